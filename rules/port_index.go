package rules

import (
	"cmp"
	"container/heap"
	"slices"
)

// portIndex maps destination ports to the winning rule among the rules of one host. Its segments are in ascending
// order and don't overlap.
type portIndex []segment

type segment struct {
	first, last uint16
	rule        *Rule
}

// rule returns the winner at port, or nil.
func (x portIndex) rule(port uint16) *Rule {
	low, high := 0, len(x)
	for low < high {
		if mid := int(uint(low+high) >> 1); x[mid].last < port {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low < len(x) && x[low].first <= port {
		return x[low].rule
	}
	return nil
}

// newPortIndex compiles the rules of one host, given in their order. It sweeps over the ports from one range edge to
// the next. It keeps the rules with an open range, keyed by how many ports they have: O(n log n) for n ranges.
func newPortIndex(rules []*Rule) (portIndex, *ConflictError) {
	type edge struct {
		at    int // the first port of a range, or the first after it
		opens bool
		order int // the rule's place in rules
	}
	var edges []edge
	for i, r := range rules {
		for _, ports := range r.ports.ranges {
			edges = append(edges, edge{int(ports.First), true, i}, edge{int(ports.Last) + 1, false, i})
		}
	}
	// At one port, ranges close before others open. Rules that open at one port do so in their order, so that the
	// reported conflict does not depend on the sort.
	slices.SortFunc(edges, func(a, b edge) int {
		if a.at != b.at {
			return cmp.Compare(a.at, b.at)
		}
		switch {
		case !a.opens && b.opens:
			return -1
		case a.opens && !b.opens:
			return 1
		}
		return cmp.Compare(a.order, b.order)
	})

	var index portIndex
	open := make(map[int]int) // how many ports a rule has → the one rule of that size with an open range
	var narrowest intHeap     // keys of open, and some that are no longer there
	for i := 0; i < len(edges); {
		at := edges[i].at
		for ; i < len(edges) && edges[i].at == at; i++ {
			e := edges[i]
			width := rules[e.order].ports.Len()
			if !e.opens {
				delete(open, width)
				continue
			}
			if other, ok := open[width]; ok {
				first, second := min(other, e.order), max(other, e.order)
				return nil, &ConflictError{rules[first], rules[second], uint16(at)}
			}
			open[width] = e.order
			heap.Push(&narrowest, width)
		}
		for len(narrowest) > 0 {
			if _, ok := open[narrowest[0]]; ok {
				break
			}
			heap.Pop(&narrowest)
		}
		if len(narrowest) == 0 {
			continue
		}
		index = index.extend(at, edges[i].at-1, rules[open[narrowest[0]]])
	}
	return slices.Clip(index), nil
}

// extend appends the ports first to last. If the last segment belongs to the same rule, they become part of it.
func (x portIndex) extend(first, last int, rule *Rule) portIndex {
	if n := len(x); n > 0 && x[n-1].rule == rule && int(x[n-1].last)+1 == first {
		x[n-1].last = uint16(last)
		return x
	}
	return append(x, segment{uint16(first), uint16(last), rule})
}

// intHeap is a container/heap of ints, least first. A number may be in it more than once.
type intHeap []int

func (h intHeap) Len() int           { return len(h) }
func (h intHeap) Less(i, j int) bool { return h[i] < h[j] }
func (h intHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *intHeap) Push(x any)        { *h = append(*h, x.(int)) }
func (h *intHeap) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}
