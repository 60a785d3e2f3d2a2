package proxy

import (
	"sync/atomic"
	"time"
)

// A goroutine that waits for bytes is most of the cost of an idle flow. So a direction in which nothing moves falls
// asleep: its goroutine ends, and a new one starts when there is something to read, or to end.
//
//	         open                 src ends, or fails
//	(none) ───────▶ awake ─────────────────────────────▶ over
//	                │   ▲
//	    nothing has │   │ src can be read; the flow is ended, by us
//	    moved       ▼   │ or by an error of the other direction
//	                asleep
//
// Each direction sleeps on its own. Nothing is lost at the moment of falling asleep, because src is asked to report
// when it can be read, not when that changes. If it can be read already, it reports at once. Whoever closes an end
// wakes its reader, because a closed end reports nothing.

type state uint8

const (
	awake  state = iota // has a goroutine
	asleep              // has none: src wakes it
	over
)

// waker is what a sleeper wakes.
type waker = interface{ Wake() }

// A sleeper is a Conn that reports when a read would not block, without a goroutine that waits for it.
//
// After Watch, w.Wake is called once a read would not block, maybe before Watch returns. The call comes from any
// goroutine and with any lock held, so Wake must not block. It may be called again. Watch reports false if it can't
// watch. Unwatch undoes Watch; a call of Wake may be under way then. After Close there are no more reports.
//
// WatchReset is Watch for a stream that has been read to its end: w.Wake is called if the connection is reset after
// that, which no read reports. Ends in order are no resets. Unwatch undoes it, too.
type sleeper interface {
	Conn
	Watch(w waker) bool
	WatchReset(w waker) bool
	Unwatch()
}

// sleep is the state of a direction's sleep.
type sleep struct {
	called atomic.Bool // Wake was called since it fell asleep
	seen   uint64      // bytes, at the last look

	// Guarded by live.mu.
	state     state
	sleepless bool // src can't tell
	guarded   bool // over, but src is watched for a reset
}

// canSleep reports whether one of the directions can sleep.
func (l *live) canSleep() bool { return l.up.canSleep() || l.down.canSleep() }

// canSleep reports whether src can tell when a read would not block.
func (d *direction) canSleep() bool {
	_, ok := d.src.(sleeper)
	return ok
}

// tire asks a direction in which nothing has moved to fall asleep: a deadline ends its read.
func (d *direction) tire() {
	l := d.flow
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keepLocked()
	if d.state == awake && !d.sleepless && d.canSleep() && l.reason == "" && l.writing.Load() == 0 {
		_ = d.src.SetReadDeadline(l.started) // long past
	}
}

// fallAsleep is called after that by the direction's goroutine, which must end if it reports true, and go on if not.
func (d *direction) fallAsleep() bool {
	l := d.flow
	l.mu.Lock()
	defer l.mu.Unlock()
	src, ok := d.src.(sleeper)
	if !ok || l.ordered { // ended meanwhile: the deadline is another one by now
		return false
	}
	_ = src.SetReadDeadline(time.Time{})
	if l.reason != "" { // it is being reset: the read reports that end, which must not look like an orderly one
		return false
	}
	d.called.Store(false)
	d.state = asleep
	if !src.Watch(d) {
		d.state, d.sleepless = awake, true
		return false
	}
	l.restLocked()
	return true
}

// Wake implements waker.
func (d *direction) Wake() {
	if d.called.CompareAndSwap(false, true) {
		go d.wakeUp()
	}
}

// wakeUp continues the direction.
func (d *direction) wakeUp() {
	d.flow.mu.Lock()
	woken := d.rouseLocked()
	d.flow.mu.Unlock()
	if woken {
		d.flow.turn() // not before: if it was not woken, the flow may be done
		d.carry()
	}
}

// rouseLocked makes a sleeping direction an awake one, and reports whether it was asleep. The caller provides the
// goroutine.
func (d *direction) rouseLocked() bool {
	if d.state != asleep {
		return false
	}
	d.src.(sleeper).Unwatch()
	d.state = awake
	d.flow.proxy.rest.add(d.flow)
	d.flow.unboundLocked()
	return true
}

// rouseLocked wakes both directions.
func (l *live) rouseLocked() {
	for _, d := range []*direction{&l.up, &l.down} {
		if d.rouseLocked() {
			go d.carry()
		}
	}
}

// restLocked is called when a direction has fallen asleep or is over.
func (l *live) restLocked() {
	if l.up.state == awake || l.down.state == awake {
		return
	}
	l.proxy.rest.remove(l)
	switch {
	case l.up.state == asleep:
		l.down.guardLocked()
	case l.down.state == asleep:
		l.up.guardLocked()
	}
}

// guardLocked is called when the other direction sleeps. If this one has come to the end of src's stream, a reset of
// src would be noticed by nobody: the other direction waits for the other end, maybe for ever. While it is awake, it
// soon writes to src, or falls asleep.
func (d *direction) guardLocked() {
	if d.state == over && !d.guarded && d.readErr == nil && d.writeErr == nil {
		src, ok := d.src.(sleeper)
		d.guarded = ok && src.WatchReset((*guard)(d))
	}
}

// unguard undoes that.
func (d *direction) unguard() {
	d.flow.mu.Lock()
	defer d.flow.mu.Unlock()
	if d.guarded {
		d.guarded = false
		d.src.(sleeper).Unwatch()
	}
}

// guard is a direction whose src is watched for a reset.
type guard direction

// Wake implements waker.
func (g *guard) Wake() { go g.flow.abort("reset by " + (*direction)(g).from()) }

// from says who sends what the direction carries.
func (d *direction) from() string {
	if d == &d.flow.up {
		return "application"
	}
	return "upstream"
}

// over records that a direction has ended, and reports whether it was the last.
func (l *live) over(d *direction) (last bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d.state = over
	l.restLocked()
	if d.readErr != nil || d.writeErr != nil { // the other end has been closed, or has failed
		l.rouseLocked()
	}
	return l.up.state == over && l.down.state == over
}
