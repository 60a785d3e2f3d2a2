package lease

import (
	"cmp"
	"slices"
	"time"
)

// patience is how many waiters let others be idle for so long.
type patience struct {
	idle    time.Duration
	waiters int
}

func (q patience) compare(idle time.Duration) int { return cmp.Compare(q.idle, idle) }

// hurry counts a waiter that reclaims after idle, 0 for one that does not. Only
// rules that share a pin make for more than one threshold.
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

// wanted returns how long a holder must have been idle for one more to be asked:
// those asked already are for the waiters of least patience. ok is false if
// there is one for each.
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

// reclaim asks as many idle holders to close as there are waiters in need of one,
// and returns when to look again.
func (p *pool) reclaim(now stamp) stamp {
	t := p.pair.table
	holders := &p.heaps[held]
	for {
		idle, ok := p.wanted()
		e := holders.top()
		if !ok || e == nil {
			return never
		}
		// The key is when the holder was last seen busy. It may have been
		// busy since; don't ask before it matters.
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

// idleSince returns since when a holder has been idle, now at the latest.
func (t *Table) idleSince(h Holder, now stamp) stamp {
	since := h.IdleSince()
	if since.IsZero() {
		return now
	}
	return min(t.stamp(since), now)
}
