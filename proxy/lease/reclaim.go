package lease

import (
	"cmp"
	"slices"
	"time"
)

// patience counts the waiters that tolerate other flows being idle for the same time.
type patience struct {
	idle    time.Duration
	waiters int
}

func (q patience) compare(idle time.Duration) int { return cmp.Compare(q.idle, idle) }

// hurry counts a waiter that reclaims after idle; 0 means it does not reclaim. There is more than one threshold only
// if rules share a pin.
func (p *pool) hurry(idle time.Duration) {
	if idle <= 0 {
		return
	}
	i, found := slices.BinarySearchFunc(p.patience, idle, patience.compare)
	if !found {
		p.patience = slices.Insert(p.patience, i, patience{idle: idle})
	}
	p.patience[i].waiters++
}

// calm undoes hurry.
func (p *pool) calm(idle time.Duration) {
	if idle <= 0 {
		return
	}
	i, _ := slices.BinarySearchFunc(p.patience, idle, patience.compare)
	p.patience[i].waiters--
	if p.patience[i].waiters == 0 {
		p.patience = slices.Delete(p.patience, i, i+1)
	}
}

// wanted returns how long a holder must have been idle to be the next one asked. The holders already asked are
// assigned to the waiters with the least patience. ok is false if there is one for each.
func (p *pool) wanted() (idle time.Duration, ok bool) {
	asked := p.asked
	for _, q := range p.patience {
		if asked < q.waiters {
			return q.idle, true
		}
		asked -= q.waiters
	}
	return 0, false
}

// reclaim asks idle holders to close, as many as there are waiters that need one, and returns when to look again.
func (p *pool) reclaim(now stamp) stamp {
	t := p.pair.table
	holders := &p.heaps[held]
	for {
		idle, ok := p.wanted()
		e := holders.top()
		if !ok || e == nil {
			return never
		}
		// The key is when the holder was last seen busy. It may have been busy since then; don't ask before it
		// matters.
		if due := stamp(e.key).add(idle); due > now {
			return due
		}
		holder := e.tuple.lease.holder
		if since := t.idleSince(holder, now); int64(since) > e.key {
			holders.raise(e, int64(since))
			continue
		}
		e.tuple.leave()
		e.tuple.setAsked(true)
		t.asks = append(t.asks, holder)
	}
}

// idleSince returns since when a holder has been idle, at most now.
func (t *Table) idleSince(h Holder, now stamp) stamp {
	since := h.IdleSince()
	if since.IsZero() {
		return now
	}
	return min(t.stamp(since), now)
}
