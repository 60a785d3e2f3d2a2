package lease

import (
	"net/netip"
	"slices"
	"time"

	"pinproxy/rules"
)

// pairKey is a source address and a destination.
type pairKey struct {
	src netip.Addr
	dst netip.AddrPort
}

// pair owns the 4-tuples between a source address and a destination.
type pair struct {
	table  *Table
	key    pairKey
	tuples map[uint16]*tuple // those that have a record, by source port
	pools  []*pool           // one unless pins overlap or rules change
}

// pool is a pin towards a destination. Each port of the pin is either in fresh or has a tuple with an entry in this
// pool. The entry is in the heap for its state.
type pool struct {
	pair  *pair
	pin   rules.Pin
	refs  int // tuples last taken here, waiters, and each Acquire in progress
	fresh fresh
	heaps [states]heap

	waiters  queue
	asked    int        // entries whose tuple is asked
	patience []patience // of the waiters with Reclaim, shortest first

	timer *time.Timer // for the waiters; nil until the first
	alarm stamp       // when the timer fires
}

// pool returns the pool for a pin in the pair. It creates the pool if needed.
func (t *Table) pool(key pairKey, pin rules.Pin) *pool {
	pr := t.pairs[key]
	if pr == nil {
		pr = &pair{table: t, key: key, tuples: make(map[uint16]*tuple)}
		t.pairs[key] = pr
	}
	name := pin.String()
	for _, p := range pr.pools {
		if p.pin.String() == name {
			return p
		}
	}
	p := &pool{
		pair:  pr,
		pin:   pin,
		fresh: pin.Ports().Ranges(), // a copy
		alarm: never,
	}
	pr.pools = append(pr.pools, p)
	for port, tu := range pr.tuples {
		if pin.Ports().Contains(port) {
			p.adopt(tu)
		}
	}
	return p
}

// adopt adds to a new pool a 4-tuple that other pools used before.
func (p *pool) adopt(tu *tuple) {
	p.fresh.remove(tu.port)
	e := tu.join(p)
	if tu.asked {
		p.asked++
	}
	switch tu.state {
	case held:
		tu.place(e, int64(tu.lease.since))
	case resting:
		tu.place(e, int64(tu.rested))
	case ready:
		tu.place(e, tu.order)
	}
}

// unref drops the pool if nothing refers to it any more, and drops the pair with its last pool.
func (p *pool) unref() {
	p.refs--
	if p.refs > 0 {
		return
	}
	pr := p.pair
	for _, tu := range pr.tuples {
		tu.part(p)
	}
	pr.pools = slices.DeleteFunc(pr.pools, func(q *pool) bool { return q == p })
	if len(pr.pools) == 0 {
		delete(pr.table.pairs, pr.key)
	}
}

// take removes the least recently used free port from its heaps and returns it, or nil if none is free. The caller
// must have processed rests that are over (thaw).
func (p *pool) take() *tuple {
	if port := p.fresh.pop(); port != 0 {
		return p.pair.record(port, p)
	}
	e := p.heaps[ready].top()
	if e == nil {
		return nil
	}
	e.tuple.leave()
	return e.tuple
}

// record creates the record of a fresh 4-tuple that the pool by has just taken.
func (pr *pair) record(port uint16, by *pool) *tuple {
	tu := &tuple{pair: pr, port: port}
	for _, p := range pr.pools {
		if p != by {
			if !p.pin.Ports().Contains(port) {
				continue
			}
			p.fresh.remove(port)
		}
		tu.join(p)
	}
	pr.tuples[port] = tu
	return tu
}

// thaw passes on the ports whose rest is over, earliest end first.
func (p *pool) thaw(now stamp) {
	for {
		e := p.heaps[resting].top()
		if e == nil || e.key > int64(now) {
			return
		}
		e.tuple.leave()
		p.pair.table.deliver(e.tuple, now)
	}
}

// settle sets the timer for the next event, other than a Release, that the waiters are waiting for. It also asks
// holders to close where it is time to.
func (p *pool) settle(now stamp) {
	next := never
	if p.waiters.len > 0 {
		if e := p.heaps[resting].top(); e != nil {
			next = stamp(e.key)
		}
		next = min(next, p.reclaim(now))
	}
	p.arm(next, now)
}

// arm schedules tick for the given moment.
func (p *pool) arm(at, now stamp) {
	if at == p.alarm {
		return
	}
	p.alarm = at
	switch {
	case at == never:
		p.timer.Stop()
	case p.timer == nil:
		p.timer = time.AfterFunc(time.Duration(at-now), p.tick)
	default:
		p.timer.Reset(time.Duration(at - now))
	}
}

// tick is the timer's function. A call already under way when the timer was reset comes early and finds nothing to
// do.
func (p *pool) tick() {
	t := p.pair.table
	now := t.lock()
	defer t.unlock()
	p.alarm = never
	p.thaw(now)
	p.settle(now)
}
