package monitor

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

// What --http serves.
const (
	siteConns = 64               // at a time; more wait
	siteRead  = 10 * time.Second // for a request, from a busy browser or over a slow network
	siteIdle  = 30 * time.Second
)

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

// site returns what --http serves.
func site(name string, m *Monitor, p *page) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", p.serveIndex)
	mux.HandleFunc("/events", p.serveEvents)
	mux.Handle("/metrics", (&exporter{m: m, viewers: p.watching}).handler())
	mux.HandleFunc("/healthz", m.serveHealth)
	return protect(name, mux)
}

// ServeSite answers on the listener of --http until ctx ends, and closes it. name is the host that --http gives. A
// failure is logged, and affects nothing else.
func (m *Monitor) ServeSite(ctx context.Context, l net.Listener, name string) {
	p := newPage(m)
	var recording sync.WaitGroup
	defer recording.Wait()
	recording.Go(func() { p.run(ctx) })
	m.Log.Info("serving the page", "url", "http://"+l.Addr().String()+"/")
	if err := serve(ctx, l, site(name, m, p), siteConns, siteRead, siteIdle); err != nil {
		m.Log.Warn("the page has failed", "err", err.Error())
	}
}
