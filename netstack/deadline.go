package netstack

import (
	"sync"
	"sync/atomic"
	"time"
)

// deadline is a point in time that can be moved while somebody waits for it. The
// zero value never passes.
type deadline struct {
	over atomic.Bool // it has passed

	mu    sync.Mutex
	timer *time.Timer // nil: none is to come
	moves int         // how often it was moved
}

// set moves the deadline; the zero time takes it away. Whoever waits for wake is woken once it
// has passed.
func (d *deadline) set(t time.Time, wake chan<- struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop() // if it can't, it finds that it is late
		d.timer = nil
	}
	d.moves++
	wait := time.Duration(0)
	if !t.IsZero() {
		wait = time.Until(t)
	}
	d.over.Store(!t.IsZero() && wait <= 0)
	switch {
	case d.over.Load():
		signal(wake)
	case wait > 0:
		move := d.moves
		d.timer = time.AfterFunc(wait, func() { d.pass(move, wake) })
	}
}

func (d *deadline) pass(move int, wake chan<- struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.moves != move {
		return // moved meanwhile
	}
	d.timer = nil
	d.over.Store(true)
	signal(wake)
}

// signal wakes who waits for c, which has room for one, or will.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
