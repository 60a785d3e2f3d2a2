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
	maxQueued = 1024 // queries of all relay flows that wait to be sent
	dialWait  = 5 * time.Second
)

var (
	errManyAsked  = errors.New("too many unanswered queries from one socket")
	errManyQueued = errors.New("too many queries wait to be sent")
)

// Query is one datagram that the application sent to port 53. Its methods are
// called concurrently, and Reply and Unreachable any number of times: one Query
// stands for its socket until the next one comes.
type Query interface {
	Src() netip.AddrPort // the application
	Dst() netip.AddrPort // the resolver it means
	Payload() []byte     // not changed by anyone any more

	// Reply sends a datagram from Dst to Src. It copies b, which is at most 65535
	// bytes long, and does not block for long.
	Reply(b []byte) error

	// Unreachable tells the application by ICMP that the query can't be delivered;
	// ECONNREFUSED: nothing listens at Dst.
	Unreachable(errno syscall.Errno)
}

// Dialer opens a socket of pinproxy's own, which is never captured. network is
// "udp" or "tcp". The caller closes the connection.
type Dialer func(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error)

// Limits bounds a Relay. The zero value of a field stands for its default.
type Limits struct {
	Flows      int           // sockets at a time (4096)
	Unanswered time.Duration // how long an answer is waited for (10s)
	Answered   time.Duration // how long a socket stays when all is answered (2s)
}

func (l Limits) withDefaults() Limits {
	if l.Flows <= 0 {
		l.Flows = 4096
	}
	if l.Unanswered <= 0 {
		l.Unanswered = 10 * time.Second // BIND's resolver-query-timeout; glibc asks again after 5 s
	}
	if l.Answered <= 0 {
		l.Answered = 2 * time.Second
	}
	return l
}

// Stats are a relay's counters since the start.
type Stats struct {
	Queries uint64 // from applications
	Answers uint64 // to them
	Dropped uint64 // queries that there was no room for
}

// Relay carries DNS over UDP. Its methods are safe for concurrent use.
type Relay struct {
	dial  Dialer
	learn learner
	lim   Limits

	queries, answers, dropped atomic.Uint64

	ctx    context.Context // of the dials; ends with Serve
	cancel context.CancelFunc
	wg     sync.WaitGroup // grows under mu, while not closed

	mu     sync.Mutex
	closed bool
	flows  map[flowKey]*flow
	busy   list.List // of *flow with an open question, the one that asked longest ago first
	idle   list.List // of *flow without, the one idle longest first
	queued int       // length of all flows' queues
}

// NewRelay returns a relay that asks over dial and tells obs. A nil log discards.
func NewRelay(dial Dialer, obs Observer, log *slog.Logger, lim Limits) *Relay {
	ctx, cancel := context.WithCancel(context.Background())
	return &Relay{
		dial:   dial,
		learn:  learner{obs: obs, log: newThrottle(log)},
		lim:    lim.withDefaults(),
		ctx:    ctx,
		cancel: cancel,
		flows:  make(map[flowKey]*flow),
	}
}

// Handle takes a query over and returns without waiting for the network. Queries
// that come before Serve are carried; after it they are dropped.
func (r *Relay) Handle(q Query) {
	r.queries.Add(1)
	_, id, question, ok := parseQuestion(q.Payload(), false)
	wanted := ok && question.wanted(r.learn.obs)
	if err := r.handle(q, id, question, wanted); err != nil {
		r.dropped.Add(1)
		r.learn.log.warn("drop DNS query", err, "src", q.Src(), "dst", q.Dst())
	}
}

func (r *Relay) handle(q Query, id uint16, question question, wanted bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	if r.queued >= maxQueued {
		return errManyQueued
	}
	now := time.Now()
	key := flowKey{q.Src(), q.Dst()}
	f := r.flows[key]
	if f == nil {
		if len(r.flows) >= r.lim.Flows {
			r.evictLocked()
		}
		f = &flow{relay: r, key: key, asked: asked{max: maxAsked, keep: r.lim.Unanswered}}
		f.elem = r.idle.PushBack(f)
		r.flows[key] = f
		f.sending = true // run sends the queue when it has dialed
		r.wg.Go(f.run)
	}
	if wanted && !f.asked.add(id, question, now) {
		return errManyAsked
	}
	f.askLocked(q, now)
	return nil
}

// Stats returns the counters.
func (r *Relay) Stats() Stats {
	return Stats{Queries: r.queries.Load(), Answers: r.answers.Load(), Dropped: r.dropped.Load()}
}

func (r *Relay) evictLocked() {
	e := r.idle.Front()
	if e == nil {
		e = r.busy.Front()
	}
	e.Value.(*flow).endLocked()
}

// Serve returns nil when ctx has ended, every socket is closed and every
// goroutine of the relay is gone. It is called once.
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
