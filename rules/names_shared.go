package rules

import (
	"fmt"
	"net/netip"
	"slices"
)

// Shared says that two names share an address and have different rules for a port there. A connection does not tell
// which name was meant, so the name asked for last decides.
type Shared struct {
	Addr        netip.Addr
	Port        uint16 // the lowest such port
	Name, Other string // Name decides now
	Rule        *Rule  // of Name, for Port
	OtherRule   *Rule  // of Other, for Port
}

// String returns the warning as one sentence without a full stop.
func (s Shared) String() string {
	return fmt.Sprintf("%s is the address of %q and of %q, which have different rules, %s and %s: the name asked for last decides, now %q",
		s.Addr, s.Name, s.Other, s.Rule.where(), s.OtherRule.where(), s.Name)
}

// sharers are two names of an address, first < second.
type sharers struct {
	addr          netip.Addr
	first, second string
}

// share warns, once, if the pairs p and other of one address have different rules. first says whether p comes
// before other.
func (o *observation) share(p, other *pair, first bool) {
	if !first {
		p, other = other, p
	}
	hosts, others := o.hosts(p.name), o.hosts(other.name)
	port, differ := differentRules(hosts, others)
	if !differ {
		return
	}
	key := sharers{p.addr.addr, min(p.name.name, other.name.name), max(p.name.name, other.name.name)}
	if o.warned[key] {
		return
	}
	if len(o.warned) >= o.limits.pairs {
		clear(o.warned) // better to warn again than to grow without end
	}
	o.warned[key] = true
	o.Shared = append(o.Shared, Shared{
		Addr: p.addr.addr,
		Port: port,
		Name: p.name.name, Other: other.name.name,
		Rule: ruleOf(hosts, port), OtherRule: ruleOf(others, port),
	})
}

// differentRules returns the lowest port for which both names have a rule and the two rules differ in effect.
func differentRules(a, b []*hostRules) (lowest uint16, differ bool) {
	if slices.Equal(a, b) {
		return 0, false
	}
	// A name's rule changes only where a segment of one of its hosts begins or has ended.
	try := func(port uint16) {
		if differ && port >= lowest {
			return
		}
		ra, rb := ruleOf(a, port), ruleOf(b, port)
		if ra != nil && rb != nil && !ra.sameEffect(rb) {
			lowest, differ = port, true
		}
	}
	for _, hosts := range [][]*hostRules{a, b} {
		for _, h := range hosts {
			for _, s := range h.index {
				try(s.first)
				if s.last < maxPort {
					try(s.last + 1)
				}
			}
		}
	}
	return lowest, differ
}

// sameEffect reports whether both rules treat a connection the same.
func (r *Rule) sameEffect(other *Rule) bool {
	return r == other || r.pin.Equal(other.pin) && r.cooldown == other.cooldown && slices.Equal(r.busy, other.busy)
}
