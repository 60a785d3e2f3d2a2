package rules

import (
	"cmp"
	"net/netip"
	"slices"
)

// captureCount is a capture of one address, with the number of live pairs that need it: two names that share an
// address and a port set share the capture. At 0 it stays here until Forget says that it is gone.
type captureCount struct {
	set    int
	live   int
	stands bool // the caller was asked to add it, and not to remove it since
	going  bool // the caller was asked to remove it, and it was not wanted since
}

// capture returns a's capture for set, or nil.
func (a *addrEntry) capture(set int) *captureCount {
	i, ok := slices.BinarySearchFunc(a.captures, set, func(c captureCount, set int) int { return cmp.Compare(c.set, set) })
	if !ok {
		return nil
	}
	return &a.captures[i]
}

// want counts one more live pair for each of sets, which are in ascending order.
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

// unwant counts one live pair fewer for each of sets.
func (a *addrEntry) unwant(sets []int) {
	for _, set := range sets {
		a.capture(set).live--
	}
}

// lower appends the captures of sets that no live pair needs. The caller must remove them.
func (a *addrEntry) lower(sets []int, gone []Capture) []Capture {
	for _, set := range sets {
		if c := a.capture(set); c.live == 0 && !c.going {
			c.stands, c.going = false, true
			gone = append(gone, a.captureOf(set))
		}
	}
	return gone
}

// raise appends the captures of sets that are not in place. The caller must add them.
func (a *addrEntry) raise(sets []int, add []Capture) []Capture {
	for _, set := range sets {
		if c := a.capture(set); !c.stands {
			c.stands = true
			add = append(add, a.captureOf(set))
		}
	}
	return add
}

// waits reports whether any capture of sets is to be removed but has not been forgotten.
func (a *addrEntry) waits(sets []int) bool {
	return slices.ContainsFunc(sets, func(set int) bool {
		c := a.capture(set)
		return c != nil && c.live == 0
	})
}

// sharedAll reports whether other live pairs also need every capture of sets.
func (a *addrEntry) sharedAll(sets []int) bool {
	return !slices.ContainsFunc(sets, func(set int) bool { return a.capture(set).live == 1 })
}

func (a *addrEntry) captureOf(set int) Capture {
	return Capture{Dst: netip.PrefixFrom(a.addr, a.addr.BitLen()), Set: set}
}

// Lost says that the captures c, which Observe returned to be added, are not in place: they could not be added, or
// somebody removed them. The next Observe of their names returns them again.
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

// forgotten is the count of a capture that has been removed but not yet deleted.
const forgotten = -1

// forget deletes the captures marked as forgotten. It deletes all at once because there may be many.
func (a *addrEntry) forget() {
	a.captures = slices.DeleteFunc(a.captures, func(c captureCount) bool { return c.live == forgotten })
}
