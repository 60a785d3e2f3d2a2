package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// --http serves people and their monitoring. They are trusted with what they can read there and with nothing else.
// The server is read-only: whoever may connect can change nothing, and can hold up nobody for long. Somebody else's
// web page, in a browser that may connect, must not read it either. So there is no CORS header, and a name that is
// not ours is refused, since that page could use it to appear as ours (DNS rebinding).
const (
	httpConns = 64               // at a time; more wait
	httpRead  = 10 * time.Second // for a request, from a busy browser or over a slow network
	httpIdle  = 30 * time.Second
)

// parseHTTP reads the value of --http: where to serve the page. The default host is loopback.
func parseHTTP(value string) (string, error) {
	refuse := func(why, hint string) (string, error) {
		return "", &usageError{fmt.Sprintf("--http %s: %s", value, why), "pinproxy --http " + hint + " …"}
	}
	host, port, err := net.SplitHostPort(value)
	if err != nil {
		if _, nerr := strconv.ParseUint(value, 10, 16); nerr != nil {
			return refuse("is no ADDRESS:PORT", "127.0.0.1:8080")
		}
		host, port = "", value
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return refuse(fmt.Sprintf("%q is no port", port), net.JoinHostPort(host, "8080"))
	}
	switch {
	case host == "" || strings.EqualFold(host, "localhost"):
		host = "127.0.0.1"
	case host == "*":
		return refuse("for all of this host's addresses say 0.0.0.0 or [::]", "0.0.0.0:"+port)
	}
	return net.JoinHostPort(host, port), nil
}

// listenHTTP listens where --http says, before anything else is done. It returns nil without --http.
func listenHTTP(ctx context.Context, o options, log *slog.Logger) (net.Listener, error) {
	if o.http == "" {
		return nil, nil
	}
	network := "tcp"
	if a, err := netip.ParseAddrPort(o.http); err == nil && a.Addr().Is4() {
		network = "tcp4" // Go would make 0.0.0.0 include the IPv6 addresses
	}
	l, err := new(net.ListenConfig).Listen(ctx, network, o.http)
	if err != nil {
		return nil, &httpError{o.http, err}
	}
	if a, ok := l.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
		log.Warn("the page is open to the network: whoever reaches it sees destinations, programs and names", "http", a.String())
	}
	return l, nil
}

// httpError says that --http can't be served.
type httpError struct {
	addr string
	err  error
}

func (e *httpError) Error() string { return fmt.Sprintf("listen on %s: %v", e.addr, cause(e.err)) }
func (e *httpError) Unwrap() error { return e.err }

func (e *httpError) hint() string {
	_, port, _ := net.SplitHostPort(e.addr)
	switch {
	case errors.Is(e.err, syscall.EADDRINUSE):
		return "another program listens there: see which by ss -tlnp sport = :" + port
	case errors.Is(e.err, syscall.EACCES):
		return "ports below 1024 need CAP_NET_BIND_SERVICE: take a higher one"
	case errors.Is(e.err, syscall.EADDRNOTAVAIL):
		return "it is not an address of this host: see `ip address`"
	}
	return ""
}

// serveHTTP answers on l until ctx ends, then closes l.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler, conns int, read, idle time.Duration) error {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: read,
		ReadTimeout:       read,
		WriteTimeout:      controlWrite,
		IdleTimeout:       idle,
		MaxHeaderBytes:    controlHeader,
		ErrorLog:          log.New(io.Discard, "", 0), // a bad request is answered, not logged
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(newBounded(l, conns)) }() // ends with s
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), controlEnding)
		defer cancel()
		_ = s.Shutdown(ending)
		_ = s.Close()
		err = <-served
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// protect lets requests through that are GET or HEAD and use a name of ours.
func protect(name string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		switch {
		case !ourName(r.Host, name):
			http.Error(w, "pinproxy answers to its address, to localhost and to the name that --http gives, not to "+strconv.Quote(r.Host), http.StatusMisdirectedRequest)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "pinproxy only tells: GET or HEAD", http.StatusMethodNotAllowed)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// ourName says whether a request's host can't be a name that somebody else has pointed here: it is an address,
// localhost, or the name from --http.
func ourName(host, name string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(host, ".")
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return true
	}
	host = strings.ToLower(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || host != "" && host == strings.ToLower(name)
}

// web serves everything that --http offers.
func web(name string, p *page, m *exporter) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", p.serveIndex)
	mux.HandleFunc("/events", p.serveEvents)
	mux.Handle("/metrics", m.handler())
	mux.HandleFunc("/healthz", m.c.serveHealth)
	return protect(name, mux)
}

// serveSite answers on l until ctx ends. It reports a failure, but a failure affects nothing else.
func serveSite(ctx context.Context, l net.Listener, o options, m *exporter, log *slog.Logger) error {
	p := newPage(m.c)
	m.viewers = p.watching
	name, _, _ := net.SplitHostPort(o.http)
	var parts errgroup.Group
	parts.Go(func() error { return p.run(ctx) })
	log.Info("serving the page", "url", "http://"+l.Addr().String()+"/")
	if err := serveHTTP(ctx, l, web(name, p, m), httpConns, httpRead, httpIdle); err != nil {
		log.Warn("the page has failed", "err", err.Error())
	}
	return parts.Wait()
}
