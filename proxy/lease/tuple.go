package lease

import "net/netip"

// The states of a 4-tuple that has a record. See the drawing in doc.go.
type state uint8

const (
	held state = iota
	resting
	ready
	states // number of states
)

// tuple is the record of a 4-tuple. Between states it is in no heap; enter and leave are paired under one lock.
type tuple struct {
	pair  *pair
	port  uint16
	state state
	asked bool // its holder was asked to close, and it is not ready again yet

	lease  *Lease // the current lease; nil unless held
	pool   *pool  // the pool it was last taken through; counted in pool.refs
	order  int64  // Table.releases at its last release, 0 if never used
	rested stamp  // when its rest ends

	// For Table.remember: the list of tuples that are not held, oldest first.
	older, newer *tuple
	due          stamp
	remembered   bool

	// One entry for each pool of the pair that contains the port. The first entry is stored inline, because a second
	// is rare.
	entries *entry
	own     entry
}

// entry is a tuple as seen by one pool: an element of that pool's heap for the tuple's state.
type entry struct {
	tuple *tuple
	pool  *pool
	next  *entry // the same tuple in the next pool
	index int    // position in the heap, or outside
	key   int64  // held: last seen busy; resting: end of the rest; ready: order
}

// outside is the index of an entry that is in no heap: a held one that can't be asked.
const outside = -1

func (tu *tuple) local() netip.AddrPort {
	return netip.AddrPortFrom(tu.pair.key.src, tu.port)
}

// join gives the tuple an entry in p, which is in no heap yet.
func (tu *tuple) join(p *pool) *entry {
	e := &tu.own
	if tu.own.pool != nil {
		e = new(entry)
	}
	*e = entry{tuple: tu, pool: p, next: tu.entries, index: outside}
	tu.entries = e
	return e
}

// part removes the tuple's entry in p, if it has one; p is being dropped.
func (tu *tuple) part(p *pool) {
	for at := &tu.entries; *at != nil; at = &(*at).next {
		e := *at
		if e.pool != p {
			continue
		}
		if e.index != outside {
			p.heaps[tu.state].remove(e)
		}
		*at = e.next
		e.pool = nil // own can be used by another join
		return
	}
}

// enter puts the tuple into a state, with its key for that state.
func (tu *tuple) enter(s state, key int64) {
	tu.state = s
	for e := tu.entries; e != nil; e = e.next {
		tu.place(e, key)
	}
}

// place puts one entry into the heap for the tuple's state.
func (tu *tuple) place(e *entry, key int64) {
	if tu.state == held && (tu.lease.holder == nil || tu.asked) {
		return
	}
	e.pool.heaps[tu.state].push(e, key)
}

// leave takes the tuple out of the heaps for its state.
func (tu *tuple) leave() {
	for e := tu.entries; e != nil; e = e.next {
		if e.index != outside {
			e.pool.heaps[tu.state].remove(e)
		}
	}
}

// vacate ends a lease. The tuple is then in no heap.
func (tu *tuple) vacate() {
	tu.leave()
	tu.lease = nil
	tu.pair.table.held--
}

// setAsked records in each pool that the tuple's flow is closing for a waiter, or no longer is.
func (tu *tuple) setAsked(asked bool) {
	if tu.asked == asked {
		return
	}
	tu.asked = asked
	for e := tu.entries; e != nil; e = e.next {
		if asked {
			e.pool.asked++
		} else {
			e.pool.asked--
		}
	}
}

// settle calls settle on every pool that the tuple is in.
func (tu *tuple) settle(now stamp) {
	for e := tu.entries; e != nil; e = e.next {
		e.pool.settle(now)
	}
}
