package dns

import (
	"errors"
	"sync"
)

// maxWaiting is how many addresses may wait in the answers that a host gets from a resolver. They take an eighth of a
// second.
const maxWaiting = 1 << 14

var errTooMany = errors.New("too many addresses in other answers wait to be learned")

// Turns is a mutex for the work that answers cause. Those who wait for it take turns: first the asking hosts, then the
// resolvers that a host has asked, then the zones that it has asked a resolver about, and then who came first. So
// whoever causes much work waits for it himself, and another host for one turn of his. The zero value is unlocked.
type Turns struct {
	mu      sync.Mutex
	locked  bool
	waiting line
	addrs   map[lineKey]int // how many wait
}

// lineKey is a host (IPv6: a /64 network) and a resolver that it has asked.
type lineKey struct{ network, resolver any }

func (a Asker) line() lineKey { return lineKey{a.network(), a.Resolver} }

// turn is that of an answer with so many addresses.
type turn struct {
	now   chan struct{}
	key   lineKey
	addrs int
}

// line is a queue of lines that take turns, or of turns.
type line struct {
	key   any
	lines map[any]*line
	ring  []*line // all of lines, in the order of their next turns
	turns []turn
}

// Lock returns when it is the caller's turn, for work of our own.
func (t *Turns) Lock() { _ = t.LockFor(Asker{}, "", 0) }

// LockFor returns when it is the caller's turn, for an answer about name that asker gets, with so many addresses. It
// returns an error at once if more than maxWaiting would wait.
func (t *Turns) LockFor(asker Asker, name string, addrs int) error {
	t.mu.Lock()
	if !t.locked {
		t.locked = true
		t.mu.Unlock()
		return nil
	}
	own := turn{make(chan struct{}), asker.line(), addrs}
	if err := t.admitLocked(own.key, addrs); err != nil {
		t.mu.Unlock()
		return err
	}
	if t.addrs == nil {
		t.addrs = make(map[lineKey]int)
	}
	t.addrs[own.key] += addrs
	t.waiting.push(own, own.key.network, own.key.resolver, zone(name))
	t.mu.Unlock()
	<-own.now
	return nil
}

// Admit returns the error that LockFor would return now. It is for who has yet to find out what an answer holds, and has
// no need to if it is too much.
func (t *Turns) Admit(asker Asker, addrs int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.admitLocked(asker.line(), addrs)
}

func (t *Turns) admitLocked(key lineKey, addrs int) error {
	if waiting := t.addrs[key]; waiting > 0 && waiting+addrs > maxWaiting {
		return errTooMany
	}
	return nil
}

// Unlock gives the next one its turn.
func (t *Turns) Unlock() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiting.empty() {
		t.locked, t.addrs = false, nil
		return
	}
	next := t.waiting.pop()
	if t.addrs[next.key] -= next.addrs; t.addrs[next.key] == 0 {
		delete(t.addrs, next.key)
	}
	close(next.now)
}

func (l *line) empty() bool { return len(l.ring) == 0 && len(l.turns) == 0 }

func (l *line) push(t turn, path ...any) {
	if len(path) == 0 {
		l.turns = append(l.turns, t)
		return
	}
	next := l.lines[path[0]]
	if next == nil {
		next = &line{key: path[0]}
		if l.lines == nil {
			l.lines = make(map[any]*line)
		}
		l.lines[next.key] = next
		l.ring = append(l.ring, next)
	}
	next.push(t, path[1:]...)
}

func (l *line) pop() (t turn) {
	if len(l.turns) > 0 {
		t, l.turns = l.turns[0], l.turns[1:]
		return t
	}
	next := l.ring[0]
	l.ring = l.ring[1:]
	t = next.pop()
	if !next.empty() {
		l.ring = append(l.ring, next)
	} else if delete(l.lines, next.key); len(l.lines) == 0 {
		l.lines, l.ring = nil, nil // after a flood they are large
	}
	return t
}
