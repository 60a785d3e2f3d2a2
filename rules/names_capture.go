package rules

import (
	"cmp"
	"net/netip"
	"slices"
)

// captureCount is a capture of one address, counted over the live pairs that need it: two names that share an
// address and a port set share the capture. It stays here at 0 until Forget says that it is gone.
type captureCount struct {
	set    int
	live   int
	stands bool // whether the caller was asked to bring it in place, and not to take it away since
	going  bool // whether the caller was asked to take it away, and it was not wanted since
}

// capture returns a's capture for set, or nil.
func (a *addrEntry) capture(set int) *captureCount {
	i, ok := slices.BinarySearchFunc(a.captures, set, func(c captureCount, set int) int { return cmp.Compare(c.set, set) })
	if !ok {
		return nil
	}
	return &a.captures[i]
}

// want counts one more live pair for each of sets, which ascend.
func (a *addrEntry) want(sets []int) {
	missing := false
	for _, set := range sets {
		if c := a.capture(set); c != nil {
			c.live++
			c.going = false
		} else {
			missing = true
		}
	}
	if !missing {
		return
	}
	known := len(a.captures)
	for _, set := range sets {
		if _, ok := slices.BinarySearchFunc(a.captures[:known], set, func(c captureCount, set int) int { return cmp.Compare(c.set, set) }); !ok {
			a.captures = append(a.captures, captureCount{set: set, live: 1})
		}
	}
	slices.SortFunc(a.captures, func(x, y captureCount) int { return cmp.Compare(x.set, y.set) })
}

// unwant counts one live pair less for each of sets.
func (a *addrEntry) unwant(sets []int) {
	for _, set := range sets {
		a.capture(set).live--
	}
}

// lower appends the captures of sets that no live pair needs, which the caller now takes away.
func (a *addrEntry) lower(sets []int, gone []Capture) []Capture {
	for _, set := range sets {
		if c := a.capture(set); c.live == 0 && !c.going {
			c.stands, c.going = false, true
			gone = append(gone, a.captureOf(set))
		}
	}
	return gone
}

// raise appends the captures of sets that don't stand, which the caller now brings in place.
func (a *addrEntry) raise(sets []int, add []Capture) []Capture {
	for _, set := range sets {
		if c := a.capture(set); !c.stands {
			c.stands = true
			add = append(add, a.captureOf(set))
		}
	}
	return add
}

// waits reports whether any capture of sets is to be taken away but has not been forgotten.
func (a *addrEntry) waits(sets []int) bool {
	return slices.ContainsFunc(sets, func(set int) bool {
		c := a.capture(set)
		return c != nil && c.live == 0
	})
}

// sharedAll reports whether other live pairs need all captures of sets too.
func (a *addrEntry) sharedAll(sets []int) bool {
	return !slices.ContainsFunc(sets, func(set int) bool { return a.capture(set).live == 1 })
}

func (a *addrEntry) captureOf(set int) Capture {
	return Capture{Dst: netip.PrefixFrom(a.addr, a.addr.BitLen()), Set: set}
}

// Lost says that the captures c, which Observe had returned to be added, do not stand: they could not be brought in
// place, or somebody took them away. The next Observe of their names returns them again.
func (n *Names) Lost(c []Capture) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, lost := range c {
		if a := n.byAddr[lost.Dst.Addr()]; a != nil {
			if c := a.capture(lost.Set); c != nil {
				c.stands = false
			}
		}
	}
}

// forgotten is the count of a capture between being taken away and being deleted.
const forgotten = -1

// forget deletes the captures so marked, all at once as there may be many.
func (a *addrEntry) forget() {
	a.captures = slices.DeleteFunc(a.captures, func(c captureCount) bool { return c.live == forgotten })
}
