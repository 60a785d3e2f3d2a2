package proxy

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"pinproxy/proxy/lease"
)

// Stage says how far a flow has come.
type Stage uint8

// The stages of a flow, in this order. A flow may go back from Dialing to Waiting.
const (
	Arrived Stage = iota
	Waiting       // for its source port
	Dialing
	Open
)

// String returns the stage as a word.
func (s Stage) String() string {
	return [...]string{"arrived", "waiting", "dialing", "open"}[s]
}

// FlowInfo is a snapshot of a flow.
type FlowInfo struct {
	ID       uint64 // Flow.Number
	Src, Dst netip.AddrPort
	Upstream netip.AddrPort // Dst, or another address of the name
	Local    netip.AddrPort // where it leaves from; invalid until connected
	Name     string         // the name the decision went by; may be empty
	Rule     string         // empty if no rule applies
	Stage    Stage
	Since    time.Time     // when it arrived
	Idle     time.Duration // since a byte moved; 0 unless open
	Up, Down uint64        // bytes
	Cause    string        // what it waits for
	Hint     string        // what would help; may be empty
	Ending   bool          // it has been told to end, for which it may need a moment
}

// Flows lists the current flows, by ID. Some may have changed or ended meanwhile. With many flows it takes tens of
// milliseconds, and others may run in between (Config.GiveWay).
func (p *Proxy) Flows() []FlowInfo {
	p.mu.Lock()
	flows := p.livesLocked()
	p.mu.Unlock()
	slices.SortFunc(flows, func(a, b *live) int { return cmp.Compare(a.id, b.id) })
	list := make([]FlowInfo, len(flows))
	for i, l := range flows {
		list[i] = l.info()
		p.cfg.GiveWay()
	}
	return list
}

// livesLocked returns the current flows. p.mu must not be held while they are looked at, because every flow needs it
// when it begins and ends.
func (p *Proxy) livesLocked() []*live {
	list := make([]*live, 0, len(p.live))
	for l := range p.live {
		list = append(list, l)
	}
	return list
}

func (l *live) info() FlowInfo {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := FlowInfo{
		ID: l.id, Src: l.flow.Src(), Dst: l.flow.Dst(), Upstream: l.upstream, Local: l.local,
		Name: l.decision.Name, Stage: l.stage, Since: l.started, Up: l.up.bytes.Load(), Down: l.down.bytes.Load(),
	}
	if l.decision.Rule != nil {
		f.Rule = l.decision.Rule.String()
	}
	if l.stage == Open {
		f.Idle = l.idleFor()
	}
	f.Cause, f.Hint = l.why()
	f.Ending = l.reason != ""
	return f
}

// why says what the flow waits for, and what would help. l.mu is held.
func (l *live) why() (cause, hint string) {
	err := l.cause
	if err == nil {
		return "", ""
	}
	if busy, ok := err.(*lease.BusyError); ok { // from when the wait began: others may have the ports by now
		if now := l.proxy.leases.Busy(busy.Dst, busy.Pin); now != nil {
			err = now
		}
	}
	if hint = hintOf(err); hint == "" && l.decision.Rule != nil {
		hint = busyHint(l.decision.Rule, err)
	}
	return err.Error(), hint
}
