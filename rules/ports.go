package rules

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// maxPort is the highest TCP port. Port 0 is reserved (RFC 6335 section 6).
const maxPort = 65535

// PortRange is the ports First to Last, both included. It is an alias of an unnamed type so that packages that may
// not import this one can name the same type.
type PortRange = struct{ First, Last uint16 }

// PortSet is a set of TCP ports. It is held as sorted ranges that neither overlap nor touch, so equal sets have
// equal ranges and equal text. The zero value is the empty set. A PortSet never changes once made and may be shared
// between goroutines.
type PortSet struct {
	ranges []PortRange
	ports  int    // how many ports the ranges hold
	text   string // String, computed once
}

// NewPortSet returns the union of ranges. Port 0 is left out. A range that ends before it starts is empty.
func NewPortSet(ranges ...PortRange) PortSet {
	sorted := make([]PortRange, 0, len(ranges))
	for _, r := range ranges {
		r.First = max(r.First, 1)
		if r.First <= r.Last {
			sorted = append(sorted, r)
		}
	}
	slices.SortFunc(sorted, func(a, b PortRange) int { return cmp.Compare(a.First, b.First) })

	merged := sorted[:0]
	for _, r := range sorted {
		if n := len(merged); n > 0 && int(r.First) <= int(merged[n-1].Last)+1 {
			merged[n-1].Last = max(merged[n-1].Last, r.Last)
			continue
		}
		merged = append(merged, r)
	}

	s := PortSet{ranges: slices.Clip(merged)}
	for _, r := range merged {
		s.ports += int(r.Last) - int(r.First) + 1
	}
	s.text = rangesText(merged)
	if s.All() {
		s.text = "*"
	}
	return s
}

// Ranges returns the set's ranges in ascending order, with at least one port missing between any two. The
// slice is the caller's.
func (s PortSet) Ranges() []PortRange { return slices.Clone(s.ranges) }

// Contains reports whether port is in the set.
func (s PortSet) Contains(port uint16) bool {
	_, ok := slices.BinarySearchFunc(s.ranges, port, func(r PortRange, port uint16) int {
		switch {
		case r.Last < port:
			return -1
		case r.First > port:
			return 1
		}
		return 0
	})
	return ok
}

// Len returns how many ports are in the set, 0 to 65535.
func (s PortSet) Len() int { return s.ports }

// LenIn returns how many ports of the set are in ranges, none of which may overlap another.
func (s PortSet) LenIn(ranges ...PortRange) int {
	n := 0
	for _, a := range s.ranges {
		for _, b := range ranges {
			if first, last := max(a.First, b.First), min(a.Last, b.Last); first <= last {
				n += int(last) - int(first) + 1
			}
		}
	}
	return n
}

// All reports whether every port, 1 to 65535, is in the set.
func (s PortSet) All() bool { return s.ports == maxPort }

// Equal reports whether both sets hold the same ports.
func (s PortSet) Equal(other PortSet) bool { return slices.Equal(s.ranges, other.ranges) }

// String returns the set as a rule writes it, "443,8000-8010" or "*" for every port, and "" when it is empty.
// Equal sets have equal text, so it serves as a map key. It does not allocate.
func (s PortSet) String() string { return s.text }

// rangesText writes ranges as a rule does, without the short form "*".
func rangesText(ranges []PortRange) string {
	var b strings.Builder
	for i, r := range ranges {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(int(r.First)))
		if r.Last > r.First {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(int(r.Last)))
		}
	}
	return b.String()
}
