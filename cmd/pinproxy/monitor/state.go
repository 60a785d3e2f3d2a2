package monitor

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
	"time"

	"pinproxy/netstack/host"
	"pinproxy/proxy"
	"pinproxy/rules"
)

func (m *Monitor) about() About {
	a := About{Version: m.Version, PID: os.Getpid(), Started: m.Began, Link: m.Link, Strict: m.Strict, Rules: []RuleRef{}, Namespace: Namespace(), LowPorts: m.LowPorts, Ending: m.health.Load() == healthEnding}
	for _, r := range m.Names.Set().Rules() {
		a.Rules = append(a.Rules, ReferTo(r))
	}
	return a
}

// Namespace tells the network namespaces of this host apart: it is "initial", or what the names of files in another one
// have. It is "" if it can't be told.
func Namespace() string {
	name, err := host.Namespace()
	if err != nil {
		return ""
	}
	return cmp.Or(name, "initial")
}

// ReferTo names a rule and the place it is from.
func ReferTo(r *rules.Rule) RuleRef {
	source, line := r.Source()
	return RuleRef{Rule: r.String(), Source: source, Line: line}
}

// status returns everything at this moment, except the rates and what the kernel says of ports: see look.
func (m *Monitor) status() Status {
	about, totals := m.about(), m.Pins.Totals()
	s := Status{
		About: about, Now: time.Now(), Ended: totals.Ended, Up: totals.Up, Down: totals.Down, Kinds: make(map[string]uint64),
		Rules: []RuleState{}, Ports: []Port{}, Flows: []Flow{}, Failures: []Failure{}, Names: []Name{},
	}
	for _, kind := range proxy.Kinds() {
		s.Failed += totals.Failed[kind]
		s.Kinds[kind.String()] = totals.Failed[kind]
	}
	s.list = m.Names.Set().Rules()
	for i, n := range m.Pins.RuleStats(s.list) {
		s.Rules = append(s.Rules, RuleState{
			RuleRef: ReferTo(s.list[i]), Hits: n.Hits, Failed: n.Failed, Up: n.Up, Down: n.Down, Ports: s.list[i].Pin().Ports().Len(),
			Open: n.Stages[proxy.Open], Dialing: n.Stages[proxy.Dialing], Waiting: n.Stages[proxy.Waiting] + n.Stages[proxy.Arrived],
		})
	}
	for _, f := range m.Pins.Flows() {
		s.Flows = append(s.Flows, flowInJSON(f))
		m.Yield()
	}
	for _, f := range m.Pins.Failures() {
		s.Failures = append(s.Failures, Failure{
			Rule: f.Rule, Name: f.Name, Dst: f.Dst, Kind: f.Kind.String(), Cause: f.Cause, Hint: f.Hint, Times: f.Times, First: f.First, Last: f.Last,
		})
	}
	for e := range m.Names.All() {
		if len(s.Names) == maxNamesListed {
			break
		}
		// By the wall clock of now: since the name was learned the host may have been suspended, or its clock set. Rounded,
		// because the two clocks are not read at the same moment, and the page is told of what has changed.
		e.Expires = s.Now.Add(e.Expires.Sub(s.Now)).Round(time.Second)
		s.Names = append(s.Names, Name(e))
	}
	return s
}

// write writes s as JSON. The long lists go piece by piece, and in between others are let on.
func (s *Status) write(to io.Writer, yield func()) error {
	rest := *s
	rest.Ports, rest.Flows = []Port{}, []Flow{}
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

func (m *Monitor) process() Process {
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(heap)
	return Process{Goroutines: runtime.NumGoroutine(), Heap: heap[0].Value.Uint64(), Endpoints: m.Stack().Endpoints}
}

func flowInJSON(f proxy.FlowInfo) Flow {
	j := Flow{
		ID: f.ID, Stage: f.Stage.String(), Src: f.Src, Dst: f.Dst, Upstream: f.Upstream, Name: f.Name, Rule: f.Rule,
		Since: f.Since, Idle: f.Idle.Seconds(), Up: f.Up, Down: f.Down, Cause: f.Cause, Hint: f.Hint,
	}
	if f.Local.IsValid() {
		j.Local = f.Local.String()
	}
	return j
}

func (m *Monitor) pin(pin rules.Pin, dst netip.AddrPort) *Pin {
	info := m.Pins.Pin(pin, dst)
	j := &Pin{Held: []Held{}, Resting: []Resting{}, Next: info.Next, Used: info.Used, Waiting: info.Waiting}
	if j.Next == nil {
		j.Next = []uint16{}
	}
	src := make(map[uint64]string)
	if len(info.Held) > 0 {
		for _, f := range m.Pins.Flows() {
			src[f.ID] = f.Src.String()
		}
	}
	for _, h := range info.Held {
		j.Held = append(j.Held, Held{Port: h.Port, Flow: h.Flow, Src: src[h.Flow], Since: h.Since})
	}
	for _, r := range info.Resting {
		j.Resting = append(j.Resting, Resting(r))
	}
	return j
}
