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

// Beginning a flow, up to the point where its dial waits for the network, takes some 100 µs of a processor. Answering
// it takes as long, and waking or ending it half of that. While any goroutine can run, Go asks the network for news
// only every 10 ms. So when thousands of flows begin, are answered or end at once, everybody's packets wait for that
// again and again, and a new flow waits behind all that came before it.
//
// So flows that arrive in a crowd take turns: one goes ahead, and then everybody who has news gets a turn
// (link.Yielder). The processor is never idle in between, and a flow that comes alone does not notice. Turns go round
// by group, and within a group by source: a source with one flow waits for one flow of each of the others. Within a
// line, flows that have begun go before flows that have not, so that what has begun gets done. When a line is long,
// further SYNs are dropped before gVisor sees them, as a listener drops those it has no room for: the application's
// kernel sends another.
const (
	// More turns than this within turnEvery, for each processor that we use, are a crowd: fewBesides if another line
	// has had a turn within lately, and fewAlone, which only a burst exceeds, if all turns are of one line. With
	// turns a crowd takes a quarter longer, because packets are then no longer handled many at a time. With nobody
	// else there, nobody gains from it.
	turnEvery  = time.Millisecond
	fewAlone   = 64
	fewBesides = 2
	lately     = 10 * time.Millisecond
	// maxWaiting is how many flows of a line may wait to begin: about half a second of work.
	maxWaiting = 4096
	// The goroutine that reads the device yields after this many packets that begin or end flows, if they took longer
	// than yieldEvery. In a flood of them it always finds more.
	yieldAfter = 8
	yieldEvery = time.Millisecond
)

// turns makes flows begin, be answered, wake and end one after another when there are many.
type turns struct {
	of    func(dst netip.AddrPort) any // returns the destination's group
	start func(*Flow) bool             // false: the flow has been given up
	spawn func(func())
	procs int
	most  int // how many flows may wait to begin

	// There are two because a Yielder lets one caller out after the other: the goroutine that gives turns uses it all
	// the time and would keep the reader in.
	giver, reader *link.Yielder // from open to close

	crowded atomic.Bool // turns are being given; written under mu

	mu     sync.Mutex
	since  time.Time // when few was last reset
	few    int       // turns since then
	last   lineKey   // the line that had the last turn
	mixed  time.Time // when last changed
	groups map[any]*group
	ring   []*group // all of groups, in the order of their next turns
	first  bool     // the last turn was one of a group that went first
	waits  int      // flows that wait to begin, in all lines

	paced int       // packets that begin or end a flow since the reader yielded
	rests time.Time // when the reader yielded last
}

// lineKey identifies a line: connections from one host to the same group of destinations.
type lineKey struct {
	group any
	src   netip.Addr // IPv6: its /64 network, in which a host can have any number of addresses
}

// group is a set of lines that take turns with each other when the group has a turn. A host that sends from many
// addresses therefore gets no more of the others' turns.
type group struct {
	key   any
	first bool // it goes before the others this time
	lines map[netip.Addr]*line
	ring  []*line // all of lines, in the order of their next turns
}

// line is a queue of flows that wait for their turn.
type line struct {
	src   netip.Addr
	begun []chan struct{} // flows that have begun, which go first; each channel is closed at the flow's turn
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
		most:   maxParked / 2,
		groups: make(map[any]*group),
	}
}

// open is called before the device is read. close is called when the device is no longer read and all turns have been
// given.
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

// pace is called by the goroutine that reads the device, for each packet that begins or ends a flow. It lets others
// run in between.
func (t *turns) pace() {
	if t.crowded.Load() && t.rest(time.Now()) {
		t.reader.Yield()
	}
}

// rest reports whether it is time to let others run.
func (t *turns) rest(now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.paced++; t.paced < yieldAfter || now.Sub(t.rests) <= yieldEvery {
		return false
	}
	t.paced, t.rests = 0, now
	return true
}

// full reports whether a SYN is to be dropped.
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

// begin arranges for f to be started in its turn. It returns true if that is now; the caller then starts f.
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

// wait returns when it is the turn of f, a flow that has begun.
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

// aloneLocked reports whether there is no crowd. If there is one, it makes sure that turns are being given.
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
		// A new group goes first, but never two in a row: the others have at least every second turn.
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

// next takes the one whose turn it is out of its line. It returns nil, nil if nobody waits.
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
