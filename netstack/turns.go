package netstack

import (
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"pinproxy/netstack/link"
)

// To begin a flow, up to where its dial waits for the network, takes some 100 µs of a processor, to answer it as
// long, and to wake or end it half of that. While any goroutine can run, Go asks the network for news every 10 ms only. So when
// thousands of flows begin, are answered or end at once, everybody's packets wait for that again and again, and a new flow
// behind all that came before it.
//
// So flows that come in a crowd take turns: one is let on, and then all who have news have theirs (link.Yielder). That is no
// rest: all of the processor is used, and a flow that comes alone does not notice. Turns go round by group,
// and within it by source: who has one flow waits for one of each of the others. One that has begun goes before
// those of its line that are to begin, so that what has begun gets done. When a line is long, further SYNs are dropped
// before gVisor sees them, as a listener does that has no room for them: the application's kernel sends another.
const (
	// More than so many turns within turnEvery are a crowd, for each processor that we use: fewBesides, if another line has
	// had one within lately, and fewAlone, which only a burst has, if all are of the same line. With
	// turns a crowd takes a quarter longer, for packets are not handled many at a time then: nobody's gain where there is nobody else.
	turnEvery  = time.Millisecond
	fewAlone   = 64
	fewBesides = 2
	lately     = 10 * time.Millisecond
	// maxWaiting flows of a line wait to begin, for about half a second.
	maxWaiting = 4096
	// The goroutine that reads the device yields after so many packets that begin or end flows, if they took so long: in a flood
	// of them it always finds more.
	yieldAfter = 8
	yieldEvery = time.Millisecond
)

// turns has flows begin, be answered, wake and end one after another where there are many.
type turns struct {
	of    func(dst netip.AddrPort) any // its group
	start func(*Flow) bool             // false: the flow has been given up
	spawn func(func())
	procs int
	most  int // that may wait to begin

	// Two, for a Yielder has one out after the other, and who gives turns all the time would keep the reader in.
	giver, reader *link.Yielder // from open to close

	crowded atomic.Bool // turns are being given; written under mu

	mu     sync.Mutex
	since  time.Time // of few
	few    int       // that were let on at once
	last   lineKey   // whose turn was the last one
	mixed  time.Time // when it was another's
	groups map[any]*group
	ring   []*group // all of groups, in the order of their next turns
	first  bool     // the last turn was one of a group that went first
	waits  int      // to begin, in all lines

	paced int       // packets that begin or end a flow since the reader yielded
	rests time.Time // when that was
}

// lineKey is who waits in one line: connections to the same group of destinations, from one host.
type lineKey struct {
	group any
	src   netip.Addr // IPv6: its /64 network, in which a host has as many addresses as it likes
}

// group is lines that have turns among each other when the group has one: whoever sends from many addresses has no
// more of others' turns.
type group struct {
	key   any
	first bool // it goes before others this time
	lines map[netip.Addr]*line
	ring  []*line // all of lines, in the order of their next turns
}

// line is flows that wait for their turn.
type line struct {
	src   netip.Addr
	begun []chan struct{} // to be closed: flows that have begun, which go first
	begin []*Flow
}

func newTurns(s *Stack) *turns {
	of := s.cfg.Group
	if of == nil {
		of = func(netip.AddrPort) any { return nil }
	}
	return &turns{
		of:     of,
		start:  s.start,
		spawn:  s.workers.all.Go,
		procs:  runtime.GOMAXPROCS(0),
		most:   s.cfg.MaxParked / 2,
		groups: make(map[any]*group),
	}
}

// open is called before the device is read, close when it is not any more and all turns have been given.
func (t *turns) open() error {
	giver, err := link.NewYielder()
	if err != nil {
		return err
	}
	t.giver = giver
	if t.reader, err = link.NewYielder(); err != nil {
		_ = giver.Close()
	}
	return err
}

func (t *turns) close() {
	_ = t.giver.Close()
	_ = t.reader.Close()
}

func (t *turns) line(id stack.TransportEndpointID) lineKey {
	src := addr(id.RemoteAddress)
	if src.Is6() {
		src = netip.PrefixFrom(src, 64).Masked().Addr()
	}
	return lineKey{t.of(netip.AddrPortFrom(addr(id.LocalAddress), id.LocalPort)), src}
}

// pace is called by the goroutine that reads the device, for each packet that begins or ends a flow. It lets others on in between.
func (t *turns) pace() {
	if t.crowded.Load() && t.rest(time.Now()) {
		t.reader.Yield()
	}
}

// rest says whether it is time to let others on.
func (t *turns) rest(now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.paced++; t.paced < yieldAfter || now.Sub(t.rests) <= yieldEvery {
		return false
	}
	t.paced, t.rests = 0, now
	return true
}

// full says whether a SYN is to be dropped.
func (t *turns) full(id stack.TransportEndpointID) bool {
	if !t.crowded.Load() {
		return false
	}
	key := t.line(id)
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.groups[key.group]
	if g == nil || g.lines[key.src] == nil {
		return false
	}
	// Half of what is left, so that many long lines leave room for another one (dynamic thresholds: Choudhury and
	// Hahne, 1998).
	return len(g.lines[key.src].begin) >= min(maxWaiting, (t.most-t.waits)/2)
}

// begin has f started in its turn. True: that is now, and the caller starts it.
func (t *turns) begin(f *Flow) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.aloneLocked(f.line, time.Now()) {
		return true
	}
	l := t.lineLocked(f.line)
	l.begin = append(l.begin, f)
	t.waits++
	return false
}

// wait returns when it is the turn of f, which has begun.
func (t *turns) wait(f *Flow) {
	if turn := t.waiting(f); turn != nil {
		<-turn
	}
}

func (t *turns) waiting(f *Flow) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.aloneLocked(f.line, time.Now()) {
		return nil
	}
	turn := make(chan struct{})
	l := t.lineLocked(f.line)
	l.begun = append(l.begun, turn)
	return turn
}

// aloneLocked says whether there is no crowd. If there is one, turns are given from now on.
func (t *turns) aloneLocked(key lineKey, now time.Time) bool {
	if t.crowded.Load() {
		return false
	}
	if now.Sub(t.since) > turnEvery {
		t.since, t.few = now, 0
	}
	if key != t.last {
		t.last, t.mixed = key, now
	}
	few := fewAlone
	if now.Sub(t.mixed) < lately {
		few = fewBesides
	}
	if t.few++; t.few <= few*t.procs {
		return true
	}
	t.crowded.Store(true)
	t.spawn(t.give)
	return false
}

func (t *turns) lineLocked(key lineKey) *line {
	g := t.groups[key.group]
	if g == nil {
		g = &group{key: key.group, lines: make(map[netip.Addr]*line)}
		t.groups[key.group] = g
		// Who comes anew goes first, but no two at a time: the others have every second turn at least.
		if g.first = !t.first && (len(t.ring) == 0 || !t.ring[0].first); g.first {
			t.ring = slices.Insert(t.ring, 0, g)
		} else {
			t.ring = append(t.ring, g)
		}
	}
	l := g.lines[key.src]
	if l == nil {
		l = &line{src: key.src}
		g.lines[key.src] = l
		g.ring = append(g.ring, l)
	}
	return l
}

// give gives turns until nobody waits.
func (t *turns) give() {
	for {
		f, turn := t.next()
		switch {
		case turn != nil:
			close(turn)
		case f == nil:
			return
		case !t.start(f):
			continue
		}
		t.giver.Yield()
	}
}

// next takes whose turn it is out of its line; nil: nobody waits.
func (t *turns) next() (f *Flow, turn chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.ring) == 0 {
		t.ring = nil
		t.crowded.Store(false)
		return nil, nil
	}
	g := t.ring[0]
	t.ring = t.ring[1:]
	t.first, g.first = g.first, false
	f, turn = g.next()
	if f != nil {
		t.waits--
	}
	if len(g.ring) > 0 {
		t.ring = append(t.ring, g)
	} else {
		delete(t.groups, g.key)
	}
	return f, turn
}

func (g *group) next() (f *Flow, turn chan struct{}) {
	l := g.ring[0]
	g.ring = g.ring[1:]
	if len(l.begun) > 0 {
		turn, l.begun = l.begun[0], l.begun[1:]
	} else {
		f, l.begin[0] = l.begin[0], nil
		l.begin = l.begin[1:]
	}
	if len(l.begun)+len(l.begin) > 0 {
		g.ring = append(g.ring, l)
	} else {
		delete(g.lines, l.src)
	}
	return f, turn
}
