package rules

import (
	"net/netip"
	"slices"
	"time"
)

// Set returns the current rules.
func (n *Names) Set() *Set {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.set
}

// HasNames reports whether any rule that may decide is for a name or a wildcard, so that we must see DNS.
func (n *Names) HasNames() bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.set.HasNames() || n.other != nil && n.other.HasNames()
}

// Prepare begins to replace the rules by next, a [Set.Successor] of the current set. It returns the captures that
// the known addresses will need: all of them, whether they are in place now or not. The caller adds those that are
// not in place, removes the others and calls Switch. If that fails, it restores what was and calls Cancel.
//
// Until then, next decides a connection for which the current rules have no rule. So a connection that is captured
// as soon as a route for it is in place does not meet rules that know nothing of it. Other decisions do not change.
//
// The caller holds the mutex under which it carries out captures from Prepare to Switch or Cancel.
func (n *Names) Prepare(next *Set) (learned []Capture) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.forgetFormer()
	i := 0
	for _, e := range n.byName {
		e.hosts[1-n.side], e.next = next.hostsOf(e.name)
		n.breathe(&i, len(e.pairs))
	}
	var sets []int
	for _, a := range n.byAddr {
		sets = sets[:0]
		for _, p := range a.pairs {
			sets = append(sets, p.name.next...)
		}
		slices.Sort(sets)
		for _, set := range slices.Compact(sets) {
			learned = append(learned, a.captureOf(set))
		}
		n.breathe(&i, len(a.pairs))
	}
	n.other = next
	return learned
}

// Cancel gives up what Prepare began.
func (n *Names) Cancel() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.other = nil
}

// Switch atomically makes the set given to Prepare decide. What is known of names that it has rules for stays known.
// The former rules, and what is known of names that only they are for, decide for [Grace] where the new rules
// have none. This is for connections that are on their way in. After that Expired forgets them.
func (n *Names) Switch(now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.settle = n.advance(now) + Grace
	n.set, n.other, n.side = n.other, n.set, 1-n.side
	clear(n.warned)

	i := 0
	for _, e := range n.byName {
		for _, p := range e.pairs {
			if !p.leaving {
				p.addr.unwant(e.sets)
				p.addr.want(e.next)
			}
		}
		e.sets, e.next = e.next, nil
		n.breathe(&i, len(e.pairs))
	}
	for _, a := range n.byAddr {
		a.captures = slices.DeleteFunc(a.captures, func(c captureCount) bool { return c.live == 0 })
		for j := range a.captures {
			a.captures[j].stands = true
		}
		n.reap(a)
		n.breathe(&i, len(a.pairs))
	}
}

// settleAt forgets the former set if its time has come.
func (n *Names) settleAt(now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.other != nil && n.advance(now) >= n.settle {
		n.forgetFormer()
	}
}

// forgetFormer forgets the former set, and what is known of names that only it had rules for. They have no captures
// any more.
func (n *Names) forgetFormer() {
	if n.other == nil {
		return
	}
	n.other = nil
	i := 0
	for _, e := range n.byName {
		e.hosts[1-n.side] = nil
		if len(n.hosts(e)) > 0 {
			continue
		}
		for _, p := range slices.Clone(e.pairs) {
			if !p.leaving {
				n.leave(p)
			}
			n.remove(p)
			n.breathe(&i, 1)
		}
	}
}

// breathe gives decisions that wait for the lock their turn after every [batch] of what i counts.
func (n *Names) breathe(i *int, more int) {
	if *i += 1 + more; *i >= batch {
		*i = 0
		n.mu.Unlock()
		n.mu.Lock()
	}
}

// decideByOther is Decide by the other set. It is for connections for which the first has no rule.
func (n *Names) decideByOther(dst netip.AddrPort) Decision {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.other == nil {
		return Decision{}
	}
	if a := n.byAddr[plain(dst.Addr())]; a != nil {
		for _, p := range a.pairs {
			if r := ruleOf(n.otherHosts(p.name), dst.Port()); r != nil {
				return Decision{r, p.name.name}
			}
		}
	}
	return Decision{Rule: n.other.matchAddr(dst)}
}
