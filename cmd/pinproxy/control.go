package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"pinproxy/netstack/host"
	"pinproxy/proxy"
	"pinproxy/rules"
)

// The control socket lets others look into the running pinproxy: `check` and `status`. It speaks HTTP, so that a page
// and metrics can be answered by the same handlers, and any HTTP client can ask.
//
//	GET /about                                 what it is and its rules: aboutJSON
//	GET /status                                all of it at one moment: statusJSON
//	GET /destination?dst=A:P[&name=N][&rule=R] what a connection would meet: destinationJSON
//
// It only tells. Whoever may open the socket, the same user and root, is trusted with what is told, but not to be
// quick, or few, or to ask for something sensible.
const (
	controlConns   = 16 // at a time; more wait
	controlHeader  = 8 << 10
	controlRead    = 2 * time.Second
	controlWrite   = 10 * time.Second // a snapshot of 100,000 flows is some 30 MB
	controlEnding  = time.Second
	maxNamesListed = 10_000 // pairs of a name and an address; rules.Names may have 200,000
)

// control answers on the control socket.
type control struct {
	link   string
	strict bool
	began  time.Time
	set    *rules.Set
	names  *rules.Names
	pins   *proxy.Proxy
}

func (c *control) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /about", func(w http.ResponseWriter, _ *http.Request) { answer(w, c.about()) })
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, c.status()) })
	mux.HandleFunc("GET /destination", func(w http.ResponseWriter, r *http.Request) {
		d, err := c.destination(r.FormValue("dst"), r.FormValue("name"), r.FormValue("rule"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer(w, d)
	})
	return mux
}

// answer writes what was asked for. That the other end has gone is its own affair.
func answer(w http.ResponseWriter, what any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(what)
}

// serve answers until ctx ends, and closes l.
func (c *control) serve(ctx context.Context, l net.Listener) error {
	s := &http.Server{
		Handler:           c.handler(),
		ReadHeaderTimeout: controlRead,
		ReadTimeout:       controlRead,
		WriteTimeout:      controlWrite,
		IdleTimeout:       controlRead,
		MaxHeaderBytes:    controlHeader,
		ErrorLog:          log.New(discard{}, "", 0), // who asks nonsense is answered, not logged
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(newBounded(l, controlConns)) }() // ends with s
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

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// bounded accepts so many connections at a time.
type bounded struct {
	net.Listener
	slots  chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newBounded(l net.Listener, n int) *bounded {
	return &bounded{Listener: l, slots: make(chan struct{}, n), closed: make(chan struct{})}
}

func (b *bounded) Accept() (net.Conn, error) {
	select {
	case b.slots <- struct{}{}:
	case <-b.closed:
		return nil, net.ErrClosed
	}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.slots
		return nil, err
	}
	return &boundedConn{Conn: c, leave: sync.OnceFunc(func() { <-b.slots })}, nil
}

func (b *bounded) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.Listener.Close()
}

type boundedConn struct {
	net.Conn
	leave func()
}

func (c *boundedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// controlSocket is the path of the control socket: of --socket, or beside the state file.
func controlSocket(o options) (string, error) {
	if o.socket != "" {
		return o.socket, nil
	}
	namespace, err := host.Namespace()
	if err != nil {
		return "", err
	}
	return host.SocketFile(stateDir(), namespace), nil
}

// listenControl listens on path for the same user and root alone. A socket that nobody listens on any more is
// replaced; anything else at path stays, and is an error.
func listenControl(ctx context.Context, path string) (net.Listener, func() error, error) {
	if err := removeStale(path); err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	lc := net.ListenConfig{Control: onlyOwner}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", path, cause(err))
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // it would remove another's, too
	mine, err := os.Lstat(path)
	if err != nil {
		_ = l.Close()
		return nil, nil, fmt.Errorf("listen on %s: %w", path, cause(err))
	}
	remove := func() error {
		// An inode's number is soon used again, so its time is looked at, too.
		if now, err := os.Lstat(path); err != nil || !os.SameFile(now, mine) || !now.ModTime().Equal(mine.ModTime()) {
			return nil // gone, or no longer ours
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove control socket: %w", err)
		}
		return nil
	}
	return l, remove, nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return cause(err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is a file that is no socket")
	}
	c, err := net.DialTimeout("unix", path, controlRead)
	if err == nil {
		_ = c.Close()
		return errors.New("another process listens there")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return cause(err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return cause(err)
	}
	return nil
}

// cause takes away what repeats the call and what it was about: an errno is enough.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	for {
		var op *net.OpError
		if !errors.As(err, &op) {
			return err
		}
		err = op.Err
	}
}

// openControl opens the control socket, if it can: without it everything else works.
func openControl(ctx context.Context, o options, log *slog.Logger) (l net.Listener, path string, remove func() error) {
	path, err := controlSocket(o)
	if err == nil {
		l, remove, err = listenControl(ctx, path)
	}
	if err != nil {
		log.Warn("no control socket: check and status can't ask this pinproxy", "err", err.Error())
		return nil, "", nil
	}
	return l, path, remove
}

// destination is what the rules and the lease table say of a connection to dst: by name if that is given, else by what
// is known of the address. rule is another rule to tell the pin of.
func (c *control) destination(dst, name, rule string) (destinationJSON, error) {
	to, err := netip.ParseAddrPort(dst)
	if err != nil {
		return destinationJSON{}, fmt.Errorf("dst: %w", err)
	}
	d := c.names.Decide(to)
	if name != "" {
		d = rules.Decision{Rule: c.set.Match(name, to), Name: name}
	}
	answer := destinationJSON{Name: d.Name}
	about := d.Rule
	if d.Rule != nil {
		answer.Rule = d.Rule.String()
	}
	if rule != "" {
		if about, err = rules.Parse(rule); err != nil {
			return destinationJSON{}, err
		}
	}
	if about != nil {
		answer.Pin = c.pin(about.Pin(), to)
	}
	return answer, nil
}
