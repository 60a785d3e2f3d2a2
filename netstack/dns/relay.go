package dns

import (
	"container/list"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	maxAsked  = 128  // wanted and unanswered queries of one relay flow
	maxQueued = 2048 // weight of all relay flows' queries waiting to be sent; half of it for one flow or for the largest share
	dialWait  = 5 * time.Second

	// A question costs a socket: 50 µs, mostly in the kernel. While any goroutine can run, Go polls the network
	// only every 10 ms (sysmon), so in a flood of questions everyone else would keep waiting for that poll.
	// Therefore few goroutines dial. After a few dials they rest for longer than the dials and their queries
	// take, and for longer still when so many flows wait that it is a flood.
	maxDialing  = 2
	dialsAtOnce = 2
	dialsRest   = time.Millisecond
	floodFrom   = 256
	floodRest   = 4 * time.Millisecond

	// How often a flow of the largest share may replace the oldest one of that share while all are waiting.
	// This is often enough for the first question after a flood, and rare enough that a flood costs a twentieth
	// of a processor.
	displaceEvery = time.Millisecond
)

var (
	errManyAsked  = errors.New("too many unanswered queries from one socket")
	errManyQueued = errors.New("too many queries wait to be sent")
	errManyOpen   = errors.New("too many queries wait for an answer")
)

// Query is one datagram that the application sent to port 53. Its methods are called concurrently. Reply and
// Unreachable are called any number of times: one Query represents its socket until the next one comes.
type Query interface {
	Src() netip.AddrPort // the application
	Dst() netip.AddrPort // the resolver it is meant for
	Payload() []byte     // no longer modified by anyone; valid until Release
	// Release is called at most once, when the payload is no longer needed: an application can make it 64 KiB long, and
	// have thousands of queries unanswered.
	Release()

	// Reply sends a datagram from Dst to Src. It copies b, which is at most 65535 bytes long, and does not
	// block for long.
	Reply(b []byte) error

	// Unreachable tells the application by ICMP that the query can't be delivered. ECONNREFUSED means that
	// nothing listens at Dst.
	Unreachable(errno syscall.Errno)
}

// Dialer opens a socket of pinproxy's own, which is never captured. network is "udp" or "tcp". The caller
// closes the connection.
type Dialer func(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error)

const (
	maxFlows = 4096 // concurrent sockets
	// answerWait is how long to wait for an answer: BIND's resolver-query-timeout. glibc asks again after 5 s.
	answerWait = 10 * time.Second
	// idleTime is how long a socket stays open after the last answer.
	idleTime = 2 * time.Second
)

// Stats are a relay's counters since the start.
type Stats struct {
	Queries uint64 // from applications
	Answers uint64 // to them
	Dropped uint64 // queries for which there was no room
}

// Relay carries DNS over UDP. Its methods are safe for concurrent use.
type Relay struct {
	dial  Dialer
	learn learner
	most  int // maxFlows

	queries, answers, dropped atomic.Uint64

	ctx    context.Context // of the dials; ends with Serve
	cancel context.CancelFunc
	wg     sync.WaitGroup // grows under mu, while not closed

	mu        sync.Mutex
	closed    bool
	flows     map[flowKey]*flow
	busy      crowd     // those with an open question
	idle      list.List // of *flow without one, idle longest first
	ahead     list.List // of *flow without a socket, oldest first; served before undialed
	undialed  list.List // of *flow without a socket, oldest first
	dialing   int       // dialing goroutines
	queued    int       // total weight of all flows' queues
	displaced time.Time // when the largest share last replaced a flow of its own
}

// NewRelay returns a relay that asks over dial and reports to obs. A nil log discards.
func NewRelay(dial Dialer, obs Observer, log *slog.Logger) *Relay {
	ctx, cancel := context.WithCancel(context.Background())
	return &Relay{
		dial:   dial,
		learn:  learner{obs: obs, log: newThrottle(log)},
		most:   maxFlows,
		ctx:    ctx,
		cancel: cancel,
		flows:  make(map[flowKey]*flow),
		busy:   newCrowd(),
	}
}

// Handle accepts a query and returns without waiting for the network. Queries that come before Serve are
// carried; those that come after it are dropped.
func (r *Relay) Handle(q Query) {
	r.queries.Add(1)
	_, id, question, ok := parseQuestion(q.Payload(), false)
	wanted := ok && question.wanted(r.learn.obs)
	if err := r.handle(q, id, question, wanted); err != nil {
		q.Release()
		r.dropped.Add(1)
		r.learn.log.warn("drop DNS query", err, "src", q.Src(), "dst", q.Dst())
	}
}

func (r *Relay) handle(q Query, id uint16, question question, wanted bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		q.Release()
		return nil
	}
	if r.queued >= maxQueued {
		return errManyQueued
	}
	now := time.Now()
	key := flowKey{q.Src(), q.Dst()}
	f := r.flows[key]
	if f == nil {
		var err error
		if f, err = r.beginLocked(key, r.busy.share(key.asker(), question.name), now); err != nil {
			return err
		}
	} else if f.queued >= maxQueued/2 {
		return errManyQueued
	}
	if wanted && !f.asked.add(id, question, now) {
		return errManyAsked
	}
	f.askLocked(q, now)
	return nil
}

// weight returns what q counts for in a queue: 1, as nearly all do, or more if it is long.
func weight(q Query) int { return 1 + len(q.Payload())/1024 }

// beginLocked adds a flow to a share and has it dialed, if there is room. Rejecting a flow costs next to
// nothing.
func (r *Relay) beginLocked(key flowKey, s *share, now time.Time) (*flow, error) {
	largest := r.busy.largest(s) == s
	if largest && r.queued >= maxQueued/2 {
		return nil, errManyQueued
	}
	if len(r.flows) >= r.most && !r.makeRoomLocked(s, now) {
		return nil, errManyOpen
	}
	f := &flow{relay: r, key: key, share: s, asked: asked{max: maxAsked, keep: answerWait}}
	f.elem = r.idle.PushBack(f)
	if largest {
		f.turn = r.undialed.PushBack(f)
	} else {
		f.turn = r.ahead.PushBack(f)
	}
	f.sending = true // run sends the queue once there is a socket
	r.flows[key] = f
	if r.dialing < maxDialing {
		r.dialing++
		r.wg.Go(r.dialAll)
	}
	return f, nil
}

// makeRoomLocked ends a flow to make room for one of s. It reports whether s may have the place.
func (r *Relay) makeRoomLocked(s *share, now time.Time) bool {
	if e := r.idle.Front(); e != nil {
		e.Value.(*flow).endLocked()
		return true
	}
	from := r.busy.largest(s)
	if from == s {
		if now.Sub(r.displaced) < displaceEvery {
			return false
		}
		r.displaced = now
	}
	from.oldest().endLocked()
	return true
}

// dialAll opens sockets until every flow has one.
func (r *Relay) dialAll() {
	for n := 1; ; n++ {
		f, waiting := r.undialedFlow()
		if f == nil {
			return
		}
		if f.dial() {
			r.wg.Go(f.run)
		}
		switch {
		case n%dialsAtOnce != 0:
		case waiting < floodFrom:
			time.Sleep(dialsRest)
		default:
			time.Sleep(floodRest)
		}
	}
}

// undialedFlow returns the next flow that needs a socket, and how many are waiting. If there is none it returns
// nil, and the goroutine ends.
func (r *Relay) undialedFlow() (f *flow, waiting int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.ahead.Front()
	if e == nil {
		e = r.undialed.Front()
	}
	if e == nil {
		r.dialing--
		return nil, 0
	}
	f = e.Value.(*flow)
	f.unturnLocked()
	return f, r.ahead.Len() + r.undialed.Len()
}

// Stats returns the counters.
func (r *Relay) Stats() Stats {
	return Stats{Queries: r.queries.Load(), Answers: r.answers.Load(), Dropped: r.dropped.Load()}
}

// Serve returns nil when ctx has ended, every socket is closed and every goroutine of the relay has exited. It
// is called once.
func (r *Relay) Serve(ctx context.Context) error {
	<-ctx.Done()
	r.cancel()
	r.mu.Lock()
	r.closed = true
	for _, f := range r.flows {
		f.endLocked()
	}
	r.mu.Unlock()
	r.wg.Wait()
	return nil
}
