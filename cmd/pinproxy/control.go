package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"pinproxy/netstack"
	"pinproxy/proxy"
	"pinproxy/rules"
)

// The control socket lets `check` and `status` look into the running pinproxy. It speaks HTTP, so that the same
// handlers can serve a page and metrics, and any HTTP client can ask.
//
//	GET /about                                 what it is and its rules: aboutJSON
//	GET /status                                everything at one moment: statusJSON
//	GET /destination?dst=A:P[&name=N][&rule=R] what would happen to a connection: destinationJSON
//
// It is read-only. Those who may open the socket, the same user, root and the group of --socket-group, may see everything
// it tells. They are not trusted to be quick, to be few, or to ask for anything sensible.
const (
	controlConns   = 16 // at a time; more wait
	controlHeader  = 8 << 10
	controlRead    = 2 * time.Second
	controlWrite   = 30 * time.Second // a snapshot of 100,000 flows or rules is some 30 MB, and the host may be busy
	controlEnding  = time.Second
	maxNamesListed = 10_000 // pairs of a name and an address; rules.Names may have 200,000
)

// control answers on the control socket.
type control struct {
	strict bool
	low    bool // see mayBindLow
	began  time.Time
	health *health
	names  *rules.Names
	pins   *proxy.Proxy
	dialer proxy.Sockets // of pins
	stack  func() netstack.Stats
	yield  func() // lets others on; as in proxy.Config

	looking sync.Mutex
	before  moved // as of an earlier look
}

func (c *control) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /about", func(w http.ResponseWriter, _ *http.Request) { answer(w, c.about()) })
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = http.NewResponseController(w).Flush() // a look at 100,000 rules takes a while on a busy host
		_ = c.look(r.Context()).write(w, c.yield)
	})
	mux.HandleFunc("GET /destination", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query() // FormValue would also read a body that is a form: 32 MB into memory, and files without a limit
		d, err := c.destination(q.Get("dst"), q.Get("name"), q.Get("rule"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer(w, d)
	})
	return mux
}

// answer writes what was asked for. If the client has gone, that is the client's problem.
func answer(w http.ResponseWriter, what any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(what)
}

// serve answers until ctx ends, and closes l.
func (c *control) serve(ctx context.Context, l net.Listener) error {
	return serveHTTP(ctx, l, c.handler(), controlConns, controlRead, controlRead)
}

// bounded accepts a limited number of connections at a time.
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

// destination returns what the rules and the lease table say of a connection to dst. It goes by name if one is
// given, else by what is known of the address. rule is another rule whose pin to report.
func (c *control) destination(dst, name, rule string) (destinationJSON, error) {
	to, err := netip.ParseAddrPort(dst)
	if err != nil {
		return destinationJSON{}, fmt.Errorf("dst: %w", err)
	}
	d := c.names.Decide(to)
	answer := destinationJSON{Name: d.Name, Rule: ruleText(d.Rule)}
	about := d.Rule
	if name != "" {
		about = c.names.Set().Match(name, to)
		answer = destinationJSON{Name: name, Rule: ruleText(about)}
		if d.Rule != about && (d.Rule == nil || about == nil || !d.Rule.Pin().Equal(about.Pin())) {
			answer.Instead = &insteadJSON{ruleText(d.Rule), d.Name}
		}
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

// ruleText returns "" for no rule.
func ruleText(r *rules.Rule) string {
	if r == nil {
		return ""
	}
	return r.String()
}
