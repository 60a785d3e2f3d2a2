package rules

import (
	"iter"
	"net/netip"
	"slices"
	"strings"
)

// Capture is a destination prefix and a port set, given as the index Set into [Set.PortSets]. Connections to these
// addresses and ports must come to us. Capture is an alias of an unnamed type so that packages that may not import
// this one can name the same type.
type Capture = struct {
	Dst netip.Prefix
	Set int
}

// Set is a list of rules, compiled so that finding the most specific one takes the same time however many there are.
// It never changes once made and may be shared between goroutines.
type Set struct {
	rules []*Rule

	exact    map[string]*hostRules // by name
	wildcard map[string]*hostRules // by the name after "*."
	v4, v6   prefixTable
	any      *hostRules // "*", nil when there is none

	portSets []PortSet
	static   []Capture
	names    []string
	pinPorts PortSet
}

// hostRules are the rules of one host.
type hostRules struct {
	host  Host
	rules []*Rule
	index portIndex
	sets  []int // the rules' port sets, ascending
}

// NewSet compiles rules. Their order affects only the order of what the set lists. Two rules of one host that share
// a port and have the same number of ports give a [*ConflictError].
func NewSet(rules []*Rule) (*Set, error) { return new(Set).Successor(rules) }

// Successor is NewSet for rules that take the place of former's. A port set that former also has keeps its index.
// Others get indices that stand for nothing in former. So captures of both sets can be in place side by side while
// one takes over from the other.
func (former *Set) Successor(rules []*Rule) (*Set, error) {
	s := &Set{
		rules:    slices.Clone(rules),
		exact:    make(map[string]*hostRules),
		wildcard: make(map[string]*hostRules),
	}
	byHost := make(map[Host]*hostRules)
	numbers := former.numbers()
	var hosts []*hostRules // in order of their first rule
	var pins []PortRange
	for _, r := range rules {
		h := byHost[r.host]
		if h == nil {
			h = &hostRules{host: r.host}
			byHost[r.host] = h
			hosts = append(hosts, h)
		}
		set := numbers.of(r.ports)
		s.number(r.ports, set)
		h.rules = append(h.rules, r)
		h.sets = append(h.sets, set)
		pins = append(pins, r.pin.ports.ranges...)
	}
	s.pinPorts = NewPortSet(pins...)

	seen := make(map[Capture]bool) // "*", 0.0.0.0/0 and ::/0 may ask for the same
	for _, h := range hosts {
		var conflict *ConflictError
		if h.index, conflict = newPortIndex(h.rules); conflict != nil {
			return nil, conflict
		}
		slices.Sort(h.sets)
		h.sets = slices.Compact(h.sets)
		s.add(h, seen)
	}
	return s, nil
}

// numbers gives port sets their indices.
type numbers struct {
	known map[string]int // by the port set's text
	taken map[int]bool
	next  int
}

// numbers starts with the port sets of s.
func (s *Set) numbers() *numbers {
	n := &numbers{known: make(map[string]int), taken: make(map[int]bool)}
	for i, ports := range s.portSets {
		if ports.Len() > 0 {
			n.known[ports.String()], n.taken[i] = i, true
		}
	}
	return n
}

// of returns the index of ports. Ports without an index get the lowest that is not taken.
func (n *numbers) of(ports PortSet) int {
	if i, ok := n.known[ports.String()]; ok {
		return i
	}
	for n.taken[n.next] {
		n.next++
	}
	n.known[ports.String()], n.taken[n.next] = n.next, true
	return n.next
}

// number files ports at an index.
func (s *Set) number(ports PortSet, at int) {
	for len(s.portSets) <= at {
		s.portSets = append(s.portSets, PortSet{})
	}
	s.portSets[at] = ports
}

// add files h under its host. The captures in seen are already listed.
func (s *Set) add(h *hostRules, seen map[Capture]bool) {
	var dst []netip.Prefix
	switch prefix := h.host.prefix; {
	case h.host.wildcard:
		s.wildcard[h.host.name] = h
	case h.host.name != "":
		s.exact[h.host.name] = h
		s.names = append(s.names, h.host.name)
	case prefix.IsValid():
		dst = []netip.Prefix{prefix}
		if prefix.Addr().Is4() {
			s.v4.add(h)
		} else {
			s.v6.add(h)
		}
	default:
		s.any = h
		dst = []netip.Prefix{
			netip.PrefixFrom(netip.IPv4Unspecified(), 0),
			netip.PrefixFrom(netip.IPv6Unspecified(), 0),
		}
	}
	for _, set := range h.sets {
		for _, dst := range dst {
			if c := (Capture{Dst: dst, Set: set}); !seen[c] {
				seen[c] = true
				s.static = append(s.static, c)
			}
		}
	}
}

// Match returns the rule for a connection to dst that is known by name ("" when no name is known), or nil when there
// is none. The most specific host that has a rule for the port wins: the exact name, the longest wildcard, the
// longest prefix, "*". Among the rules of that host the one with the fewest ports wins. The name's case and final
// dot don't matter.
func (s *Set) Match(name string, dst netip.AddrPort) *Rule {
	if name != "" {
		for h := range s.namesakes(canonical(name)) {
			if r := h.index.rule(dst.Port()); r != nil {
				return r
			}
		}
	}
	return s.matchAddr(dst)
}

// hostsOf returns the hosts that are or contain the canonical name, the most specific first, and the port sets of their
// rules, ascending.
func (s *Set) hostsOf(name string) (hosts []*hostRules, sets []int) {
	for h := range s.namesakes(name) {
		hosts = append(hosts, h)
		sets = append(sets, h.sets...)
	}
	slices.Sort(sets)
	return hosts, slices.Compact(sets)
}

// matchAddr returns the rule for dst among those of prefixes and "*", or nil.
func (s *Set) matchAddr(dst netip.AddrPort) *Rule {
	for h := range s.containing(dst.Addr()) {
		if r := h.index.rule(dst.Port()); r != nil {
			return r
		}
	}
	return nil
}

// containing yields the prefixes that contain addr, the longest first, and then "*". An invalid address is in none.
func (s *Set) containing(addr netip.Addr) iter.Seq[*hostRules] {
	return func(yield func(*hostRules) bool) {
		addr := addr.Unmap()
		if !addr.IsValid() {
			return
		}
		table := s.v6
		if addr.Is4() {
			table = s.v4
		}
		for _, level := range table {
			prefix, _ := addr.Prefix(level.length) // drops a zone
			if h := level.hosts[prefix.Addr()]; h != nil && !yield(h) {
				return
			}
		}
		if s.any != nil {
			yield(s.any)
		}
	}
}

// namesakes yields the hosts that are or contain the canonical name, the most specific first.
func (s *Set) namesakes(name string) iter.Seq[*hostRules] {
	return func(yield func(*hostRules) bool) {
		if h := s.exact[name]; h != nil && !yield(h) {
			return
		}
		if len(s.wildcard) == 0 {
			return
		}
		for {
			i := strings.IndexByte(name, '.')
			if i < 0 {
				return
			}
			name = name[i+1:]
			if h := s.wildcard[name]; h != nil && !yield(h) {
				return
			}
		}
	}
}

// Rules returns the rules in the order given. The slice is the caller's.
func (s *Set) Rules() []*Rule { return slices.Clone(s.rules) }

// PortSets returns the distinct destination port sets of the rules, in order of first use. For a [Set.Successor],
// they have the indices that the sets before it left them, with empty sets in between. The slice is the caller's.
func (s *Set) PortSets() []PortSet { return slices.Clone(s.portSets) }

// NameSets returns the indices, ascending, of the port sets of all rules for name, exact and wildcard. It is empty
// when no rule is interested in the name. The slice is the caller's.
func (s *Set) NameSets(name string) []int {
	_, sets := s.hostsOf(canonical(name))
	return sets
}

// Static returns what must come to us from the start, whatever names resolve to: the captures of prefix and "*"
// rules. "*" gives 0.0.0.0/0 and ::/0. The slice is the caller's.
func (s *Set) Static() []Capture { return slices.Clone(s.static) }

// Names returns the exact names, canonical and distinct, in order of first use. They can be resolved without waiting
// for an application to ask. The slice is the caller's.
func (s *Set) Names() []string { return slices.Clone(s.names) }

// HasNames reports whether any rule is for a name or a wildcard, so that we must see DNS.
func (s *Set) HasNames() bool { return len(s.exact) > 0 || len(s.wildcard) > 0 }

// PinPorts returns the union of all pins' ports.
func (s *Set) PinPorts() PortSet { return s.pinPorts }
