package proxy

import "math/bits"

// Data that an end does not accept yet is kept: in netstack a mebibyte or more for each stuck direction, and on the
// way down a chunk of ours. One flow needs that for its speed. A thousand don't: together they are as fast with less.
// So the awake flows share a total.
const (
	fullShare  = 1 << 20         // a share of this size is not bounded
	leastShare = 128 << 10       // for any number of flows: two packets
	allShares  = 128 * fullShare // of all flows together, on the way down
)

// share returns how many bytes each of this many flows may keep on the way down. It is a power of two, so that it
// does not change with every flow.
func share(flows int) int {
	if flows <= allShares/fullShare {
		return fullShare
	}
	return max(leastShare, 1<<(bits.Len(uint(allShares/flows))-1))
}

// upShare returns how much each flow may keep on the way up, if it is bounded: twice as much. With more room an
// application sends more at a time, which costs less (docs/performance.md, "Shares").
func upShare(share int) int { return 2 * share }

// chunkFor returns how much flows with such a share read at a time.
func chunkFor(share int) int {
	if share < chunkSize {
		return pieceSize
	}
	return chunkSize
}

// current returns the current share of a flow.
func (r *rest) current() int {
	if n := r.shared.Load(); n > 0 {
		return int(n)
	}
	return fullShare
}

// shareLocked updates the share and, if it has changed, tells all that need to know. r.mu is held.
func (r *rest) shareLocked() {
	now := share(len(r.awake))
	if now == r.current() {
		return
	}
	r.shared.Store(int64(now))
	switch {
	case r.share == nil:
	case now == fullShare:
		r.share(0, 0)
	default:
		r.share(upShare(now), now)
	}
}

// A bounder is an upstream connection that can tell the kernel how much to keep; 0 means no bound.
type bounder interface{ bound(bytes int) }

// boundLocked makes the kernel keep little of a new flow, if there are many. The bound is never less than what a
// connection begins with, so nothing under way is wasted. l.mu is held.
func (l *live) boundLocked() {
	if up, ok := l.net.(bounder); ok && l.proxy.rest.current() < fullShare {
		l.bounded = true
		up.bound(l.proxy.rest.current())
	}
}

// unboundLocked removes the bound when there are few flows: with it, a distant upstream would be slow. l.mu is held.
func (l *live) unboundLocked() {
	if l.bounded && l.proxy.rest.current() == fullShare {
		l.bounded = false
		l.net.(bounder).bound(0)
	}
}

func (l *live) unbound() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unboundLocked()
}
