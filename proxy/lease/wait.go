package lease

import (
	"context"
	"time"
)

// waiter is a request in its pool's queue.
type waiter struct {
	pool    *pool
	request Request
	arrival uint64 // the request's turn: its order in the queue and across all pools

	ahead, behind *waiter

	lease   *Lease // set, under the table's lock, before granted is closed
	granted chan struct{}
}

// queue holds a pool's waiters, first come first.
type queue struct {
	first, last *waiter
	len         int
}

// join adds a request, with a reference, to the pool's queue: at the end, unless the request was there before.
func (p *pool) join(r *Request, arrival uint64) *waiter {
	p.pair.table.waiting++
	w := &waiter{pool: p, request: *r, arrival: arrival, granted: make(chan struct{})}
	q := &p.waiters
	if q.first != nil && arrival < q.first.arrival {
		w.behind = q.first // it comes back (Exchange)
	} else {
		// Requests that arrived at the same time are close to the end.
		for w.ahead = q.last; w.ahead != nil && arrival < w.ahead.arrival; w.ahead = w.ahead.ahead {
			w.behind = w.ahead
		}
	}
	if w.ahead != nil {
		w.ahead.behind = w
	} else {
		q.first = w
	}
	if w.behind != nil {
		w.behind.ahead = w
	} else {
		q.last = w
	}
	q.len++
	p.refs++
	p.hurry(r.Reclaim)
	return w
}

// leave takes w out of the queue. The caller then calls unref on the pool.
func (w *waiter) leave() {
	q := &w.pool.waiters
	if w.ahead != nil {
		w.ahead.behind = w.behind
	} else {
		q.first = w.behind
	}
	if w.behind != nil {
		w.behind.ahead = w.ahead
	} else {
		q.last = w.ahead
	}
	q.len--
	w.pool.pair.table.waiting--
	w.pool.calm(w.request.Reclaim)
}

// wait returns when the request has a lease, its time is up, or ctx ends.
func (w *waiter) wait(ctx context.Context) {
	timer := time.NewTimer(w.request.Wait)
	defer timer.Stop()
	select {
	case <-w.granted:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// next returns the longest-waiting request that can use the tuple; nil if there is none.
func (tu *tuple) next() *waiter {
	var next *waiter
	for e := tu.entries; e != nil; e = e.next {
		if w := e.pool.waiters.first; w != nil && (next == nil || w.arrival < next.arrival) {
			next = w
		}
	}
	return next
}

// deliver gives a tuple that is in no heap to the longest-waiting request, or makes it ready.
func (t *Table) deliver(tu *tuple, now stamp) {
	tu.setAsked(false)
	if w := tu.next(); w != nil {
		w.leave()
		w.lease = t.grant(tu, w.pool, &w.request, w.arrival, now)
		close(w.granted)
		w.pool.unref()
	} else {
		tu.enter(ready, tu.order)
	}
	tu.settle(now)
}

// grant creates the lease of a tuple that is in no heap.
func (t *Table) grant(tu *tuple, p *pool, r *Request, arrival uint64, now stamp) *Lease {
	t.recall(tu)
	t.held++
	tu.lease = &Lease{tuple: tu, holder: r.Holder, cooldown: r.Cooldown, since: now, arrival: arrival}
	tu.enter(held, int64(now))
	if before := tu.pool; before != p {
		tu.pool = p
		p.refs++
		if before != nil {
			before.unref()
		}
	}
	return tu.lease
}
