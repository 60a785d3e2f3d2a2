package rules

import (
	"slices"
	"time"
)

// batch is how many pairs are looked at, or captures forgotten, before decisions that wait for the lock have
// their turn: a millisecond or two.
const batch = 1024

// Expired returns the captures that nothing needs any more: the TTL and [Limits].Grace of their names have
// passed, and so has Grace since a flow last used any address of these names. The caller takes them away and
// hands them to [Names.Forget]; until then connections are decided as before, and no capture is returned again. It is
// to be called every second or so. The time it takes depends on what has expired, not on how much is known.
func (n *Names) Expired(now time.Time) []Capture {
	n.settleAt(now)
	var gone []Capture
	for more := true; more; {
		gone, more = n.expireBatch(now, gone)
	}
	return gone
}

// expireBatch appends what has expired of the next batch and reports whether there may be more.
func (n *Names) expireBatch(now time.Time, gone []Capture) (_ []Capture, more bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	at := n.advance(now)
	var leaving []*pair
	for range batch {
		p, key := n.ends.first()
		if p == nil || key.first > int64(at) {
			return n.seeOff(leaving, gone), false
		}
		due := n.due(p)
		if p.name.inUse() {
			due.first = int64(at + n.limits.Grace) // the earliest, should its name be freed now
		}
		if due.first > int64(at) {
			n.ends.raise(p, due)
			continue
		}
		n.leave(p)
		leaving = append(leaving, p)
	}
	return n.seeOff(leaving, gone), true
}

// Forget says that the captures c, returned by [Names.Expired] or as [Learned].Drop, have been taken away. Those
// that are needed after all, because a flow or an answer came in between, are returned and must be put back.
func (n *Names) Forget(c []Capture) (revived []Capture) {
	for c := range slices.Chunk(c, batch) {
		revived = n.forgetBatch(c, revived)
	}
	return revived
}

// forgetBatch appends those of c that must be put back.
func (n *Names) forgetBatch(c, revived []Capture) []Capture {
	n.mu.Lock()
	defer n.mu.Unlock()
	touched := make(map[*addrEntry]bool)
	for _, gone := range c {
		a := n.byAddr[gone.Dst.Addr()]
		if a == nil || !gone.Dst.IsSingleIP() {
			continue
		}
		switch c := a.capture(gone.Set); {
		case c == nil:
			continue
		case c.live > 0:
			c.stands = true
			revived = append(revived, gone)
		default:
			c.live = forgotten
		}
		touched[a] = true
	}
	for a := range touched {
		a.forget()
		n.reap(a)
	}
	return revived
}
