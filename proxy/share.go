package proxy

import "math/bits"

// What an end does not take is kept: in netstack a mebibyte or more for each direction that is stuck, and on the way down a
// chunk of ours. One flow needs that for its speed, a thousand don't, for together they are as fast with less. So the
// flows that are awake share a sum.
const (
	fullShare  = 1 << 20         // of this size it is not bounded
	leastShare = 128 << 10       // of however many flows: two packets
	allShares  = 128 * fullShare // of all, on the way down
)

// share is how many bytes each of so many flows may keep on the way down: a power of two, so that it does not
// change with each of them.
func share(flows int) int {
	if flows <= allShares/fullShare {
		return fullShare
	}
	return max(leastShare, 1<<(bits.Len(uint(allShares/flows))-1))
}

// upShare is what each may keep on the way up, if it is bounded: twice as much. With more room an application sends
// more at a time, which costs less (docs/performance.md, "Shares").
func upShare(share int) int { return 2 * share }

// chunkFor is how much is read at a time by flows with such a share.
func chunkFor(share int) int {
	if share < chunkSize {
		return pieceSize
	}
	return chunkSize
}

// current is the share of a flow now.
func (r *rest) current() int {
	if n := r.shared.Load(); n > 0 {
		return int(n)
	}
	return fullShare
}

// shareLocked says what the share is now, to all that need to know, if it has changed. r.mu is held.
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

// A bounder is an upstream connection of which the kernel can be told how much to keep; 0: as much as it likes.
type bounder interface{ bound(bytes int) }

// boundLocked has the kernel keep little of a new flow, if there are many. It is never less than what a connection begins
// with, so nothing that is on its way is in vain. l.mu is held.
func (l *live) boundLocked() {
	if up, ok := l.net.(bounder); ok && l.proxy.rest.current() < fullShare {
		l.bounded = true
		up.bound(l.proxy.rest.current())
	}
}

// unboundLocked takes that back when there are few: one that is far away would be slow. l.mu is held.
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
