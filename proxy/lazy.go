package proxy

import (
	"context"
	"sync"
	"time"
)

// lazy is a context that ends with its parent, by cancel, or at a deadline. Most flows ask theirs whether it has ended and never
// wait for it, so what that takes is made when somebody does: a channel, a timer, a place with the parent.
type lazy struct {
	context.Context           // the parent
	deadline        time.Time // zero: the parent's

	mu       sync.Mutex
	made     context.Context // nil until somebody waits
	end      context.CancelFunc
	canceled bool
}

// cancel ends it, and gives back what it has taken.
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

// Value implements context.Context. Package context asks it for what it knows of a context, by which it does without a
// goroutine for each that waits.
func (l *lazy) Value(key any) any {
	l.mu.Lock()
	made := l.made
	l.mu.Unlock()
	if made != nil {
		return made.Value(key)
	}
	return l.Context.Value(key)
}

// whole is the same one, made by package context.
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
