package rules

import (
	"cmp"
	"net/netip"
	"slices"
)

// prefixTable finds the prefixes of one family that contain an address, longest first. It looks into one map per
// prefix length in use. There are few lengths, however many prefixes there are.
type prefixTable []prefixLevel

type prefixLevel struct {
	length int
	hosts  map[netip.Addr]*hostRules // by the prefix's first address
}

func (t *prefixTable) add(h *hostRules) {
	length := h.host.prefix.Bits()
	i, found := slices.BinarySearchFunc(*t, length, func(l prefixLevel, length int) int { return cmp.Compare(length, l.length) })
	if !found {
		*t = slices.Insert(*t, i, prefixLevel{length, make(map[netip.Addr]*hostRules)})
	}
	(*t)[i].hosts[h.host.prefix.Addr()] = h
}
