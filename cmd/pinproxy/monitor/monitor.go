package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"pinproxy/netstack"
	"pinproxy/netstack/dns"
	"pinproxy/proxy"
	"pinproxy/rules"
)

// The control socket.
const (
	controlConns   = 16 // at a time; more wait
	controlRead    = 2 * time.Second
	maxNamesListed = 10_000 // pairs of a name and an address; rules.Names may have 200,000
)

// Config says what there is to tell about. Its functions may be called at any time, from many goroutines.
type Config struct {
	Version  string // of the program
	Link     string // name of the device
	Strict   bool
	LowPorts bool // any port may be bound
	Began    time.Time
	Names    *rules.Names
	Pins     *proxy.Proxy
	Dialer   proxy.Sockets // of Pins
	Stack    func() netstack.Stats
	DNS      func() dns.Stats
	Withheld func() uint64 // DNS answers that were kept from applications
	Yield    func()        // lets others on; as in proxy.Config
	Log      *slog.Logger
}

// Monitor tells what is going on. Its methods may be called from many goroutines.
type Monitor struct {
	Config
	health atomic.Int32 // healthStarting, healthCapturing or healthEnding

	looking sync.Mutex
	before  moved // as of an earlier look
}

// New returns a Monitor that reports itself as starting.
func New(c Config) *Monitor { return &Monitor{Config: c} }

// Serve answers on the control socket until ctx ends, and closes l.
func (m *Monitor) Serve(ctx context.Context, l net.Listener) error {
	return serve(ctx, l, m.control(), controlConns, controlRead, controlRead)
}

func (m *Monitor) control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /about", func(w http.ResponseWriter, _ *http.Request) { answer(w, m.about()) })
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = http.NewResponseController(w).Flush() // a look at 100,000 rules takes a while on a busy host
		_ = m.look(r.Context()).write(w, m.Yield)
	})
	mux.HandleFunc("GET /destination", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query() // FormValue would also read a body that is a form: 32 MB into memory, and files without a limit
		d, err := m.destination(q.Get("dst"), q.Get("name"), q.Get("rule"))
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

// destination returns what the rules and the lease table say of a connection to dst. It goes by name if one is
// given, else by what is known of the address. rule is another rule whose pin to report.
func (m *Monitor) destination(dst, name, rule string) (Destination, error) {
	to, err := netip.ParseAddrPort(dst)
	if err != nil {
		return Destination{}, fmt.Errorf("dst: %w", err)
	}
	d := m.Names.Decide(to)
	answer := Destination{Name: d.Name, Rule: ruleText(d.Rule)}
	about := d.Rule
	if name != "" {
		about = m.Names.Set().Match(name, to)
		answer = Destination{Name: name, Rule: ruleText(about)}
		if d.Rule != about && (d.Rule == nil || about == nil || !d.Rule.Pin().Equal(about.Pin())) {
			answer.Instead = &Instead{ruleText(d.Rule), d.Name}
		}
	}
	if rule != "" {
		if about, err = rules.Parse(rule); err != nil {
			return Destination{}, err
		}
	}
	if about != nil {
		answer.Pin = m.pin(about.Pin(), to)
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
