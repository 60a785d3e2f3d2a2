package lease

import "time"

const (
	// memory is how long a 4-tuple is remembered after its last use, so that the least recently used port is known.
	// It is twice the maximum segment lifetime of RFC 9293 section 3.4.2, which covers the time firewalls keep state
	// of a closed flow.
	memory = 4 * time.Minute

	// mostRemembered is how many 4-tuples are remembered at most, the rests that are not over aside. Each takes about
	// 900 bytes where it is the only one towards its destination. Whoever scans a network that a rule is for would
	// otherwise leave a gigabyte behind.
	mostRemembered = 65536

	// slack is the minimum time between two sweeps.
	slack = memory / 8

	// sweepBatch is how many records are dropped under one lock: about 0.1 ms.
	sweepBatch = 1000
)

// recency lists the tuples that are not held, in the order of their release.
type recency struct {
	oldest, newest *tuple
	len, most      int         // most is mostRemembered
	timer          *time.Timer // nil until the first release
	armed          bool
}

// remember notes that a tuple is no longer held, and when to forget it. If there are too many, the oldest are forgotten
// now. Two for each that comes are enough to look at: one whose rest is over first becomes ready.
func (t *Table) remember(tu *tuple, now stamp) {
	for n := 0; n < 2 && t.recency.len >= t.recency.most; n++ {
		t.age(t.recency.oldest, now)
	}
	t.append(tu, now)
	t.armSweep(now)
}

// append puts a tuple at the end of the list.
func (t *Table) append(tu *tuple, now stamp) {
	r := &t.recency
	r.len++
	tu.remembered = true
	tu.due = now.add(memory)
	if tu.older = r.newest; tu.older != nil {
		tu.older.newer = tu
	} else {
		r.oldest = tu
	}
	r.newest = tu
}

// recall undoes remember, if it was done.
func (t *Table) recall(tu *tuple) {
	if !tu.remembered {
		return
	}
	r := &t.recency
	if tu.older != nil {
		tu.older.newer = tu.newer
	} else {
		r.oldest = tu.newer
	}
	if tu.newer != nil {
		tu.newer.older = tu.older
	} else {
		r.newest = tu.older
	}
	tu.older, tu.newer, tu.remembered = nil, nil, false
	r.len--
}

// armSweep sets the timer for the oldest tuple, unless it is already set. The timer is not reset when that tuple is
// taken, so at most one call per slack finds nothing.
func (t *Table) armSweep(now stamp) {
	r := &t.recency
	if r.armed || r.oldest == nil {
		return
	}
	r.armed = true
	after := max(time.Duration(r.oldest.due-now), slack)
	if r.timer == nil {
		r.timer = time.AfterFunc(after, t.sweep)
	} else {
		r.timer.Reset(after)
	}
}

// sweep forgets what is due.
func (t *Table) sweep() {
	for t.sweepSome() {
	}
}

// sweepSome forgets some of what is due and reports whether there is more.
func (t *Table) sweepSome() bool {
	now := t.lock()
	defer t.unlock()
	for range sweepBatch {
		tu := t.recency.oldest
		if tu == nil || tu.due > now {
			t.recency.armed = false
			t.armSweep(now)
			return false
		}
		t.age(tu, now)
	}
	return true
}

// age forgets the oldest tuple, or brings it closer to that.
func (t *Table) age(tu *tuple, now stamp) {
	switch {
	case tu.state == ready:
		t.forget(tu)
	case tu.rested > now: // a rest longer than memory, or there are too many
		t.recall(tu)
		t.append(tu, now)
	default: // nobody has looked since the rest ended
		tu.leave()
		t.deliver(tu, now)
	}
}

// forget drops the record of a ready tuple. The port becomes fresh again, at the back of the queue.
func (t *Table) forget(tu *tuple) {
	t.recall(tu)
	tu.leave()
	for e := tu.entries; e != nil; e = e.next {
		e.pool.fresh.push(tu.port)
	}
	tu.entries = nil
	delete(tu.pair.tuples, tu.port)
	tu.pool.unref()
}
