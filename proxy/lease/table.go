package lease

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"pinproxy/rules"
)

// Table hands out leases. It is safe for concurrent use.
type Table struct {
	epoch time.Time // stamps count from here

	mu       sync.Mutex
	pairs    map[pairKey]*pair
	recency  recency
	releases int64  // so far
	arrivals uint64 // requests without a turn so far
	held     int    // leases
	waiting  int    // requests
	asks     []Holder
}

// NewTable returns an empty table. It starts nothing and needs no closing.
func NewTable() *Table {
	return &Table{epoch: time.Now(), pairs: make(map[pairKey]*pair), recency: recency{most: mostRemembered}}
}

// lock locks the table and returns the time, which therefore never goes backwards from one caller to the next.
func (t *Table) lock() stamp {
	t.mu.Lock()
	return t.stamp(time.Now())
}

// unlock unlocks the table, then does what must be done without the lock.
func (t *Table) unlock() {
	asks := t.asks
	t.asks = nil
	t.mu.Unlock()
	for _, h := range asks {
		h.Reclaim()
	}
}

// Acquire returns a lease of the pin's least recently used free port towards the destination. If there is none, it
// waits its turn, for at most r.Wait. The error is a *BusyError when that time is over, wraps ctx's error when ctx
// ends first, and is neither if the request makes no sense. The caller owns the lease and must release it.
func (t *Table) Acquire(ctx context.Context, r Request) (*Lease, error) {
	key, err := r.ends()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, r.failed(err)
	}
	return t.acquire(ctx, key, &r, nil, 0)
}

// Exchange replaces a lease that the kernel would not let its holder use because the kernel itself still holds the
// 4-tuple. It gives the lease back, to rest for the given time without a cooldown, and acquires another as Acquire
// does. The request keeps its old turn, ahead of all that came later. With one port, the same 4-tuple comes back
// after its rest. r is the request that l is from, with what is left of its Wait.
func (t *Table) Exchange(ctx context.Context, l *Lease, rest time.Duration, r Request) (*Lease, error) {
	key, err := r.ends()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		l.ReleaseUnused(rest)
		return nil, r.failed(err)
	}
	return t.acquire(ctx, key, &r, l, rest)
}

func (t *Table) acquire(ctx context.Context, key pairKey, r *Request, old *Lease, rest time.Duration) (*Lease, error) {
	l, w, busy := t.tryOrJoin(key, r, old, rest)
	if w == nil {
		if l == nil {
			return nil, busy
		}
		return l, nil
	}
	if busy != nil {
		r.Queued(busy)
	}
	w.wait(ctx)
	return t.finish(ctx, w)
}

// tryOrJoin takes a free port, joins the queue, or reports why it can do neither. An old lease is exchanged. With a
// waiter, the error is non-nil if the request has a Queued callback.
func (t *Table) tryOrJoin(key pairKey, r *Request, old *Lease, rest time.Duration) (*Lease, *waiter, *BusyError) {
	now := t.lock()
	defer t.unlock()
	p := t.pool(key, r.Pin)
	p.refs++
	defer p.unref()
	var arrival uint64
	if old != nil {
		arrival = old.arrival
		old.release(rest, now)
	} else if arrival = r.Turn; arrival == 0 {
		t.arrivals++
		arrival = t.arrivals
	}
	p.thaw(now)
	if tu := p.take(); tu != nil {
		return t.grant(tu, p, r, arrival, now), nil, nil
	}
	if r.Wait <= 0 {
		return nil, nil, p.busy(0, now)
	}
	var busy *BusyError
	if r.Queued != nil {
		busy = p.busy(0, now)
	}
	w := p.join(r, arrival)
	p.settle(now)
	return nil, w, busy
}

// finish ends a wait. The lock decides which came first, the lease or the end of the wait.
func (t *Table) finish(ctx context.Context, w *waiter) (*Lease, error) {
	now := t.lock()
	defer t.unlock()
	p := w.pool
	ended := ctx.Err()
	if ended == nil && w.lease == nil {
		p.thaw(now) // a rest may end at the same time as Wait
	}
	switch {
	case w.lease != nil && ended == nil:
		return w.lease, nil
	case w.lease != nil:
		w.lease.withdraw(now)
		return nil, w.request.failed(ended)
	}
	w.leave()
	p.settle(now)
	defer p.unref()
	if ended != nil {
		return nil, w.request.failed(ended)
	}
	return nil, p.busy(w.request.Wait, now)
}

// failed wraps err with what was requested.
func (r *Request) failed(err error) error {
	return fmt.Errorf("lease %s to %s: %w", r.Pin, r.Dst, err)
}

// Held lists the ports of the pin that are in use towards dst, sorted by port, whichever pin they were leased for.
func (t *Table) Held(dst netip.AddrPort, pin rules.Pin) []Held {
	t.lock()
	defer t.unlock()
	pr := t.pairs[keyOf(pin, dst)]
	if pr == nil {
		return nil
	}
	var list []Held
	for port, tu := range pr.tuples {
		if tu.state == held && pin.Ports().Contains(port) {
			list = append(list, tu.held())
		}
	}
	slices.SortFunc(list, func(a, b Held) int { return cmp.Compare(a.Local.Port(), b.Local.Port()) })
	return list
}

// Counts returns how many leases are held and how many requests wait, over all destinations.
func (t *Table) Counts() (held, waiting int) {
	t.lock()
	defer t.unlock()
	return t.held, t.waiting
}
