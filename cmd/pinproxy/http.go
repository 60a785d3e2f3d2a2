package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"

	"pinproxy/cmd/pinproxy/terminal"
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

func (e *httpError) Error() string {
	return fmt.Sprintf("listen on %s: %v", e.addr, terminal.Cause(e.err))
}
func (e *httpError) Unwrap() error { return e.err }

func (e *httpError) Hint() string {
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
