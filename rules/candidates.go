package rules

import (
	"cmp"
	"net/netip"
	"slices"
)

// Candidates returns every rule that matches a connection to dst known by name ("" when no name is known), most
// specific first. The first one is the rule that [Set.Match] returns. Candidates is for explaining a decision. It
// takes time for each rule of each host that contains the destination.
func (s *Set) Candidates(name string, dst netip.AddrPort) []*Rule {
	var list []*Rule
	if name != "" {
		for h := range s.namesakes(canonical(name)) {
			list = append(list, h.candidates(dst.Port())...)
		}
	}
	for h := range s.containing(dst.Addr()) {
		list = append(list, h.candidates(dst.Port())...)
	}
	return list
}

// candidates returns the host's rules for port, the one with the fewest ports first. No two have equally many: that
// would be a ConflictError.
func (h *hostRules) candidates(port uint16) []*Rule {
	var list []*Rule
	for _, r := range h.rules {
		if r.ports.Contains(port) {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b *Rule) int { return cmp.Compare(a.ports.Len(), b.ports.Len()) })
	return list
}
