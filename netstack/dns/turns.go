package dns

import "sync"

// Turns is a mutex for the work that answers cause. Those who wait for it take turns: first the asking hosts, then the
// resolvers that a host has asked, then the zones that it has asked a resolver about, and then who came first. So whoever causes much work
// waits for it himself, and another host for one turn of his. The zero value is unlocked.
type Turns struct {
	mu      sync.Mutex
	locked  bool
	waiting line
}

// line is a queue of lines that take turns, or of turns.
type line struct {
	key   any
	lines map[any]*line
	ring  []*line // all of lines, in the order of their next turns
	turns []chan struct{}
}

// Lock returns when it is the caller's turn, for an answer about name that asker gets. Work of our own is that of the
// zero Asker.
func (t *Turns) Lock(asker Asker, name string) {
	t.mu.Lock()
	if !t.locked {
		t.locked = true
		t.mu.Unlock()
		return
	}
	turn := make(chan struct{})
	t.waiting.push(turn, asker.network(), asker.Resolver, zone(name))
	t.mu.Unlock()
	<-turn
}

// Unlock gives the next one its turn.
func (t *Turns) Unlock() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiting.empty() {
		t.locked = false
	} else {
		close(t.waiting.pop())
	}
}

func (l *line) empty() bool { return len(l.ring) == 0 && len(l.turns) == 0 }

func (l *line) push(turn chan struct{}, path ...any) {
	if len(path) == 0 {
		l.turns = append(l.turns, turn)
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
	next.push(turn, path[1:]...)
}

func (l *line) pop() (turn chan struct{}) {
	if len(l.turns) > 0 {
		turn, l.turns = l.turns[0], l.turns[1:]
		return turn
	}
	next := l.ring[0]
	l.ring = l.ring[1:]
	turn = next.pop()
	if !next.empty() {
		l.ring = append(l.ring, next)
	} else if delete(l.lines, next.key); len(l.lines) == 0 {
		l.lines, l.ring = nil, nil // after a flood they are large
	}
	return turn
}
