package netstack

import (
	"sync"
	"sync/atomic"
	"time"
)

// deadline is a point in time that can be moved while somebody waits for it. The zero value never passes.
type deadline struct {
	over atomic.Bool // it has passed

	mu    sync.Mutex
	timer *time.Timer // nil: no deadline ahead
	moves int         // how often it has been moved
}

// set moves the deadline; the zero time removes it. Once it has passed, whoever waits for wake is woken.
func (d *deadline) set(t time.Time, wake chan<- struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop() // if it is too late to stop it, pass notices that the deadline has moved
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
		return // moved in the meantime
	}
	d.timer = nil
	d.over.Store(true)
	signal(wake)
}

// signal wakes whoever waits for c, now or later. c has room for one.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
