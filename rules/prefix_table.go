package rules

import (
	"cmp"
	"net/netip"
	"slices"
)

// prefixTable finds the prefixes of one family that contain an address, longest first. It looks into one map per
// prefix length in use. There are few lengths, however many prefixes there are.
type prefixTable struct {
	levels []prefixLevel // longest prefix first once sorted
}

type prefixLevel struct {
	length int
	hosts  map[netip.Addr]*hostRules // by the prefix's first address
}

func (t *prefixTable) add(h *hostRules) {
	length := h.host.prefix.Bits()
	i := slices.IndexFunc(t.levels, func(l prefixLevel) bool { return l.length == length })
	if i < 0 {
		i = len(t.levels)
		t.levels = append(t.levels, prefixLevel{length, make(map[netip.Addr]*hostRules)})
	}
	t.levels[i].hosts[h.host.prefix.Addr()] = h
}

func (t *prefixTable) sort() {
	slices.SortFunc(t.levels, func(a, b prefixLevel) int { return cmp.Compare(b.length, a.length) })
}
