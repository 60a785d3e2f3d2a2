package proxy

import (
	"context"
	"sync"
	"time"
)

// lazy is a context that ends with its parent, by cancel, or at a deadline. Most flows only ask whether it has ended,
// and never wait for that. So what waiting needs is made when somebody waits: a channel, a timer, a place with the
// parent.
type lazy struct {
	context.Context           // the parent
	deadline        time.Time // zero means the parent's

	mu       sync.Mutex
	made     context.Context // nil until somebody waits
	end      context.CancelFunc
	canceled bool
}

// cancel ends the context and releases what it holds.
func (l *lazy) cancel() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.canceled = true
	if l.end != nil {
		l.end()
	}
}

// Deadline implements context.Context.
func (l *lazy) Deadline() (time.Time, bool) {
	at, ok := l.Context.Deadline()
	if !l.deadline.IsZero() && (!ok || l.deadline.Before(at)) {
		return l.deadline, true
	}
	return at, ok
}

// Done implements context.Context.
func (l *lazy) Done() <-chan struct{} { return l.whole().Done() }

// Err implements context.Context.
func (l *lazy) Err() error {
	l.mu.Lock()
	made, canceled := l.made, l.canceled
	l.mu.Unlock()
	if made != nil {
		return made.Err()
	}
	if canceled {
		return context.Canceled
	}
	if err := l.Context.Err(); err != nil {
		return err
	}
	if !l.deadline.IsZero() && !time.Now().Before(l.deadline) {
		return context.DeadlineExceeded
	}
	return nil
}

// Value implements context.Context. Package context uses it to recognize its own contexts, which need no goroutine
// for each waiter.
func (l *lazy) Value(key any) any {
	l.mu.Lock()
	made := l.made
	l.mu.Unlock()
	if made != nil {
		return made.Value(key)
	}
	return l.Context.Value(key)
}

// whole returns the equivalent context made by package context.
func (l *lazy) whole() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.made != nil {
		return l.made
	}
	if l.deadline.IsZero() {
		l.made, l.end = context.WithCancel(l.Context)
	} else {
		l.made, l.end = context.WithDeadline(l.Context, l.deadline)
	}
	if l.canceled {
		l.end()
	}
	return l.made
}
