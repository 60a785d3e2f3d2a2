package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"runtime"
	"runtime/metrics"
	"strings"
	"time"

	"pinproxy/netstack/host"
	"pinproxy/proxy"
	"pinproxy/rules"
)

// What the control socket answers. The manual documents the fields, and scripts rely on them. Fields may be added,
// but are neither renamed nor given another meaning. Times are RFC 3339, durations are in seconds, addresses are as
// Go writes them.

type aboutJSON struct {
	Version string     `json:"version"`
	PID     int        `json:"pid"`
	Started time.Time  `json:"started"`
	Link    string     `json:"link"`
	Strict  bool       `json:"strict"`
	Rules   []ruleJSON `json:"rules"`

	Namespace string `json:"namespace,omitempty"` // see namespace
	LowPorts  bool   `json:"low_ports"`           // it may bind any port
	Ending    bool   `json:"ending,omitempty"`    // it captures no new connections; what moves bytes may finish
}

type ruleJSON struct {
	Rule   string `json:"rule"`
	Source string `json:"source,omitempty"` // the rules file; absent on the command line
	Line   int    `json:"line,omitempty"`
}

type statusJSON struct {
	aboutJSON
	Now      time.Time         `json:"now"`
	Ended    uint64            `json:"ended"`  // flows since the start that were connected
	Failed   uint64            `json:"failed"` // flows since the start that were not
	Kinds    map[string]uint64 `json:"failed_kinds"`
	Up       uint64            `json:"up"`
	Down     uint64            `json:"down"`
	UpRate   float64           `json:"up_rate"` // bytes a second
	DownRate float64           `json:"down_rate"`
	Rules    []ruleStateJSON   `json:"rules"` // instead of aboutJSON's
	Ports    []portJSON        `json:"ports"`
	Flows    []flowJSON        `json:"flows"`
	Failures []failureJSON     `json:"failures"`
	Names    []nameJSON        `json:"names"`
	Process  processJSON       `json:"process"`

	list []*rules.Rule // of Rules, which may have changed a moment later
}

type ruleStateJSON struct {
	ruleJSON
	Hits     uint64  `json:"hits"` // flows that the rule was for
	Failed   uint64  `json:"failed"`
	Open     int     `json:"open"`
	Waiting  int     `json:"waiting"` // including flows that have only arrived
	Dialing  int     `json:"dialing"`
	Up       uint64  `json:"up"`
	Down     uint64  `json:"down"`
	UpRate   float64 `json:"up_rate"`
	DownRate float64 `json:"down_rate"`
	Ports    int     `json:"ports"` // of the pin
	Free     int     `json:"free"`  // ports that nothing holds
}

type flowJSON struct {
	ID       uint64         `json:"id"`
	Stage    string         `json:"stage"`
	Src      netip.AddrPort `json:"src"`
	Dst      netip.AddrPort `json:"dst"`
	Upstream netip.AddrPort `json:"upstream"`
	Local    string         `json:"local"` // "" until it is connected
	Name     string         `json:"name,omitempty"`
	Rule     string         `json:"rule,omitempty"`
	Since    time.Time      `json:"since"`
	Idle     float64        `json:"idle"`
	Up       uint64         `json:"up"`
	Down     uint64         `json:"down"`
	UpRate   float64        `json:"up_rate"`
	DownRate float64        `json:"down_rate"`
	Cause    string         `json:"cause,omitempty"`
	Hint     string         `json:"hint,omitempty"`
}

type failureJSON struct {
	Rule  string         `json:"rule,omitempty"`
	Name  string         `json:"name,omitempty"`
	Dst   netip.AddrPort `json:"dst"`
	Kind  string         `json:"kind"`
	Cause string         `json:"cause"`
	Hint  string         `json:"hint,omitempty"`
	Times uint64         `json:"times"`
	First time.Time      `json:"first"`
	Last  time.Time      `json:"last"`
}

type nameJSON struct {
	Name    string     `json:"name"`
	Addr    netip.Addr `json:"address"`
	Expires time.Time  `json:"expires"`
	InUse   bool       `json:"in_use"`
}

// processJSON is what would grow if something were not released.
type processJSON struct {
	Goroutines int    `json:"goroutines"`
	Heap       uint64 `json:"heap"`      // bytes of objects, including those that the next collection frees
	Endpoints  int    `json:"endpoints"` // of netstack
}

type destinationJSON struct {
	Rule    string       `json:"rule,omitempty"` // the rule for the name that was asked about, or that a connection follows
	Name    string       `json:"name,omitempty"`
	Instead *insteadJSON `json:"instead,omitempty"` // what a connection follows, if not Rule
	Pin     *pinJSON     `json:"pin,omitempty"`
}

// insteadJSON is what decides about an address that is not known as that of the name that was asked about, or was
// last asked for by another name. Without a Rule, no rule does.
type insteadJSON struct {
	Rule string `json:"rule,omitempty"`
	Name string `json:"name,omitempty"`
}

type pinJSON struct {
	Held    []heldJSON    `json:"held"`
	Resting []restingJSON `json:"resting"`
	Next    []uint16      `json:"next"`
	Waiting int           `json:"waiting"`
}

type heldJSON struct {
	Port  uint16    `json:"port"`
	Flow  uint64    `json:"flow"`
	Src   string    `json:"src,omitempty"`
	Since time.Time `json:"since"`
}

type restingJSON struct {
	Port  uint16    `json:"port"`
	Until time.Time `json:"until"`
}

func (c *control) about() aboutJSON {
	a := aboutJSON{Version: strings.TrimSpace(version()), PID: os.Getpid(), Started: c.began, Link: c.health.link, Strict: c.strict, Rules: []ruleJSON{}, Namespace: namespace(), LowPorts: c.low, Ending: c.health.ending()}
	for _, r := range c.names.Set().Rules() {
		a.Rules = append(a.Rules, ruleInJSON(r))
	}
	return a
}

// namespace tells the network namespaces of this host apart: it is "initial", or what the names of files in another one
// have. It is "" if it can't be told.
func namespace() string {
	name, err := host.Namespace()
	if err != nil {
		return ""
	}
	return cmp.Or(name, "initial")
}

func ruleInJSON(r *rules.Rule) ruleJSON {
	source, line := r.Source()
	return ruleJSON{Rule: r.String(), Source: source, Line: line}
}

// status returns everything at this moment, except the rates and what the kernel says of ports: see look.
func (c *control) status() statusJSON {
	about, totals := c.about(), c.pins.Totals()
	s := statusJSON{
		aboutJSON: about, Now: time.Now(), Ended: totals.Ended, Up: totals.Up, Down: totals.Down, Kinds: make(map[string]uint64),
		Rules: []ruleStateJSON{}, Ports: []portJSON{}, Flows: []flowJSON{}, Failures: []failureJSON{}, Names: []nameJSON{},
	}
	for _, kind := range proxy.Kinds() {
		s.Failed += totals.Failed[kind]
		s.Kinds[kind.String()] = totals.Failed[kind]
	}
	s.list = c.names.Set().Rules()
	for i, n := range c.pins.RuleStats(s.list) {
		s.Rules = append(s.Rules, ruleStateJSON{
			ruleJSON: ruleInJSON(s.list[i]), Hits: n.Hits, Failed: n.Failed, Up: n.Up, Down: n.Down, Ports: s.list[i].Pin().Ports().Len(),
			Open: n.Stages[proxy.Open], Dialing: n.Stages[proxy.Dialing], Waiting: n.Stages[proxy.Waiting] + n.Stages[proxy.Arrived],
		})
	}
	for _, f := range c.pins.Flows() {
		s.Flows = append(s.Flows, flowInJSON(f))
		c.yield()
	}
	for _, f := range c.pins.Failures() {
		s.Failures = append(s.Failures, failureJSON{
			Rule: f.Rule, Name: f.Name, Dst: f.Dst, Kind: f.Kind.String(), Cause: f.Cause, Hint: f.Hint, Times: f.Times, First: f.First, Last: f.Last,
		})
	}
	for e := range c.names.All() {
		if len(s.Names) == maxNamesListed {
			break
		}
		s.Names = append(s.Names, nameJSON(e))
	}
	return s
}

// write writes s as JSON. The long lists go piece by piece, and in between others are let on.
func (s *statusJSON) write(to io.Writer, yield func()) error {
	rest := *s
	rest.Ports, rest.Flows = []portJSON{}, []flowJSON{}
	b, err := json.Marshal(rest)
	if err != nil {
		return err
	}
	const ports, flows = `"ports":[`, `"flows":[` // in a string, the quotes would be escaped
	beforePorts, b, _ := bytes.Cut(b, []byte(ports))
	beforeFlows, b, _ := bytes.Cut(b, []byte(flows))
	w := bufio.NewWriterSize(to, 64<<10)
	_, _ = w.Write(beforePorts) // w keeps the error until Flush
	_, _ = w.WriteString(ports)
	if err := writeList(w, s.Ports, yield); err != nil {
		return err
	}
	_, _ = w.Write(beforeFlows)
	_, _ = w.WriteString(flows)
	if err := writeList(w, s.Flows, yield); err != nil {
		return err
	}
	_, _ = w.Write(b)
	_ = w.WriteByte('\n')
	return w.Flush()
}

// writeList writes the elements of a JSON array.
func writeList[T any](w *bufio.Writer, list []T, yield func()) error {
	for i, e := range list {
		if i > 0 {
			_ = w.WriteByte(',')
		}
		b, err := json.Marshal(e)
		if err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err // the client has gone
		}
		yield()
	}
	return nil
}

func (c *control) process() processJSON {
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(heap)
	return processJSON{Goroutines: runtime.NumGoroutine(), Heap: heap[0].Value.Uint64(), Endpoints: c.stack().Endpoints}
}

func flowInJSON(f proxy.FlowInfo) flowJSON {
	j := flowJSON{
		ID: f.ID, Stage: f.Stage.String(), Src: f.Src, Dst: f.Dst, Upstream: f.Upstream, Name: f.Name, Rule: f.Rule,
		Since: f.Since, Idle: f.Idle.Seconds(), Up: f.Up, Down: f.Down, Cause: f.Cause, Hint: f.Hint,
	}
	if f.Local.IsValid() {
		j.Local = f.Local.String()
	}
	return j
}

func (c *control) pin(pin rules.Pin, dst netip.AddrPort) *pinJSON {
	info := c.pins.Pin(pin, dst)
	j := &pinJSON{Held: []heldJSON{}, Resting: []restingJSON{}, Next: info.Next, Waiting: info.Waiting}
	if j.Next == nil {
		j.Next = []uint16{}
	}
	src := make(map[uint64]string)
	if len(info.Held) > 0 {
		for _, f := range c.pins.Flows() {
			src[f.ID] = f.Src.String()
		}
	}
	for _, h := range info.Held {
		j.Held = append(j.Held, heldJSON{Port: h.Port, Flow: h.Flow, Src: src[h.Flow], Since: h.Since})
	}
	for _, r := range info.Resting {
		j.Resting = append(j.Resting, restingJSON(r))
	}
	return j
}
