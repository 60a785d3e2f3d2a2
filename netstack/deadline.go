package netstack

import (
	"sync"
	"time"
)

// deadline is a point in time that can be moved while others wait for it. The
// zero value never passes.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	done  chan struct{}
}

// set moves the deadline; the zero time takes it away.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.done // it has fired or is about to
		d.done = nil
	}
	d.timer = nil
	if t.IsZero() {
		if d.done != nil && isDone(d.done) {
			d.done = nil
		}
		return
	}
	if d.done == nil || isDone(d.done) {
		d.done = make(chan struct{})
	}
	done := d.done
	if wait := time.Until(t); wait > 0 {
		d.timer = time.AfterFunc(wait, func() { close(done) })
	} else {
		close(done)
	}
}

// passed is closed once the deadline has passed.
func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done == nil {
		d.done = make(chan struct{})
	}
	return d.done
}

func isDone(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
