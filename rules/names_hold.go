package rules

import (
	"net/netip"
	"sync"
)

// Hold says that a flow uses addr, known or not. All addresses of its names then stay until release has been called
// and [Grace] has passed. Calling release again has no effect.
func (n *Names) Hold(addr netip.Addr) (release func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a := n.addrEntry(plain(addr))
	n.byAddr[a.addr] = a
	a.flows++
	if a.flows == 1 {
		for _, p := range a.pairs {
			n.hold(p.name)
			n.reviveAll(p.name)
		}
	}
	return sync.OnceFunc(func() { n.release(a) })
}

func (n *Names) release(a *addrEntry) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a.flows--
	if a.flows > 0 {
		return
	}
	for _, p := range a.pairs {
		n.free(p.name)
	}
	n.dropIfEmpty(a)
}

// hold counts one more address of e that has a flow.
func (n *Names) hold(e *nameEntry) {
	if !e.inUse() {
		n.inUse += e.live
	}
	e.held++
}

// reviveAll makes the leaving pairs of e live again.
func (n *Names) reviveAll(e *nameEntry) {
	if e.live == len(e.pairs) {
		return
	}
	for _, p := range e.pairs {
		if p.leaving {
			n.revive(p)
		}
	}
}

// free counts one address fewer of e that has a flow. No time is passed in here, so the next time passed in counts
// as the time when e was freed. That is later than the true time, so addresses may stay longer, never shorter.
func (n *Names) free(e *nameEntry) {
	e.held--
	if e.inUse() {
		return
	}
	n.inUse -= e.live
	n.seq++
	e.freedSeq = n.seq
	if !e.freed {
		e.freed = true
		n.freed = append(n.freed, e)
	}
}
