package rules

import (
	"slices"
	"time"
)

// batch is how many pairs are checked, or captures forgotten, before decisions that wait for the lock get their
// turn: a millisecond or two.
const batch = 1024

// Expired returns the captures that nothing needs any more: the TTL of their names has passed, and so has
// [Grace] since then and since a flow last used any address of these names. The caller removes them and
// passes them to [Names.Forget]. Until then connections are decided as before, and no capture is returned again.
// Expired returns those of some 1000 addresses at a time, so that answers can come in between. Every second or so,
// call it until it returns none. The time it takes depends on what has expired, not on how much is known.
func (n *Names) Expired(now time.Time) (gone []Capture) {
	n.settleAt(now)
	for more := true; more && len(gone) == 0; {
		gone, more = n.expireBatch(now)
	}
	return gone
}

// expireBatch checks the next batch, returns what has expired and reports whether there may be more.
func (n *Names) expireBatch(now time.Time) (gone []Capture, more bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	at := n.advance(now)
	var leaving []*pair
	for range batch {
		p, key := n.ends.first()
		if p == nil || key.first > int64(at) {
			return n.seeOff(leaving, nil), false
		}
		due := n.due(p)
		if p.name.inUse() {
			due.first = int64(at + Grace) // the earliest possible, if its name were freed now
		}
		if due.first > int64(at) {
			n.ends.raise(p, due)
			continue
		}
		n.leave(p)
		leaving = append(leaving, p)
	}
	return n.seeOff(leaving, nil), true
}

// Forget says that the captures c, returned by [Names.Expired] or as [Learned].Drop, have been removed. It returns
// those that are needed after all, because a flow or an answer came in between. The caller must put these back.
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
