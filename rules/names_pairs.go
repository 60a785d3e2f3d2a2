package rules

import (
	"net/netip"
	"slices"
)

// addrEntry returns the entry of addr, or a new one that is not filed yet.
func (n *Names) addrEntry(addr netip.Addr) *addrEntry {
	if a := n.byAddr[addr]; a != nil {
		return a
	}
	return &addrEntry{addr: addr}
}

// nameEntry returns the entry of the canonical name, or a new one that is not filed yet. It returns nil if no rule
// is interested in the name.
func (n *Names) nameEntry(name string) *nameEntry {
	e := n.byName[name]
	if e == nil {
		e = &nameEntry{name: name}
		if e.hosts[n.side], e.sets = n.set.hostsOf(name); n.other != nil {
			e.hosts[1-n.side], _ = n.other.hostsOf(name)
		}
	}
	if len(n.hosts(e)) == 0 {
		return nil
	}
	return e
}

// pair returns the pair of e and a, or nil.
func (a *addrEntry) pair(e *nameEntry) *pair {
	for _, p := range a.pairs {
		if p.name == e {
			return p
		}
	}
	return nil
}

// add files a new pair, live, as the last of its address. The pair's seq and expires are set already.
func (n *Names) add(p *pair) {
	e, a := p.name, p.addr
	n.byName[e.name] = e
	n.byAddr[a.addr] = a
	p.index = len(e.pairs)
	e.pairs = append(e.pairs, p)
	a.pairs = append(a.pairs, p)
	n.enliven(p)
	if a.flows > 0 {
		n.hold(e)
	}
}

// revive makes a leaving pair live again.
func (n *Names) revive(p *pair) {
	p.leaving = false
	n.enliven(p)
}

// enliven counts p, which is filed, among the live pairs.
func (n *Names) enliven(p *pair) {
	p.name.live++
	p.addr.live++
	n.live++
	if p.name.inUse() {
		n.inUse++
	}
	p.addr.want(p.name.sets)
	n.ends.add(p, n.due(p))
	n.ages.add(p, p.age())
}

// leave makes a live pair leaving. The caller calls seeOff once for all pairs that leave together.
func (n *Names) leave(p *pair) {
	p.leaving = true
	p.name.live--
	p.addr.live--
	n.live--
	if p.name.inUse() {
		n.inUse--
	}
	n.ends.remove(p)
	n.ages.remove(p)
	p.addr.unwant(p.name.sets)
}

// seeOff appends the captures that nothing needs now that the pairs are leaving. It removes pairs that do not wait
// for any of these captures.
func (n *Names) seeOff(leaving []*pair, gone []Capture) []Capture {
	for _, p := range leaving {
		gone = p.addr.lower(p.name.sets, gone)
	}
	for _, p := range leaving {
		if !p.addr.waits(p.name.sets) {
			n.remove(p)
		}
	}
	return gone
}

// remove forgets a leaving pair.
func (n *Names) remove(p *pair) {
	e, a := p.name, p.addr
	last := len(e.pairs) - 1
	e.pairs[p.index] = e.pairs[last]
	e.pairs[p.index].index = p.index
	e.pairs[last] = nil
	e.pairs = e.pairs[:last]
	i := slices.Index(a.pairs, p)
	a.pairs = slices.Delete(a.pairs, i, i+1)
	if a.flows > 0 {
		n.free(e)
	}
	if len(e.pairs) == 0 {
		delete(n.byName, e.name)
	}
	n.dropIfEmpty(a)
}

// reap removes the leaving pairs of a that have no capture left to wait for.
func (n *Names) reap(a *addrEntry) {
	for i := len(a.pairs) - 1; i >= 0; i-- {
		if p := a.pairs[i]; p.leaving && !a.waits(p.name.sets) {
			n.remove(p)
		}
	}
	n.dropIfEmpty(a)
}

func (n *Names) dropIfEmpty(a *addrEntry) {
	if a.flows == 0 && len(a.pairs) == 0 && len(a.captures) == 0 {
		delete(n.byAddr, a.addr)
	}
}

// due is when p may go if it is not used until then.
func (n *Names) due(p *pair) queueKey {
	return queueKey{int64(max(p.expires, p.name.freedAt) + Grace), 0}
}

// age is when p was last observed or in use, in the order of events.
func (p *pair) age() queueKey { return queueKey{max(p.seq, p.name.freedSeq), p.seq} }
