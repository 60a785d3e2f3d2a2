package dns

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	maxForwarded  = 1024             // queries at a time
	forwardWait   = 10 * time.Second // for all upstreams together
	nextAfter     = time.Second      // silence of an upstream after which the next one is asked too
	avoidSilent   = 30 * time.Second // how long a silent upstream is asked last
	streamIdle    = 10 * time.Second // how long a client may neither ask nor read (RFC 7766, section 6.2.3)
	maxStreamAsks = 64               // concurrent queries of one connection
)

var (
	errManyForwarded = errors.New("too many queries wait for upstream resolvers")
	errNoUpstream    = errors.New("no resolver is known for the name")
	errSilent        = errors.New("no upstream resolver answers")
)

// Choose returns the resolvers for a name (lower case, no final dot). The lists are asked in parallel, each
// list in order. Choose is called for every query and must return quickly.
type Choose func(ctx context.Context, name string) ([][]Upstream, error)

// Forwarder answers queries sent to an address of pinproxy's own, using the answers of others: it is not a resolver and
// has no cache. It asks 1024 queries at a time. If there are more, those about the zone that most are about make room. As
// with [Relay] and [Tapper], an answer is released only after it has been learned from and the routes are set. Its methods
// are safe for concurrent use.
type Forwarder struct {
	dial     LinkDialer
	choose   Choose
	learn    learner
	next     time.Duration
	roots    *x509.CertPool // nil: the system's
	sessions tls.ClientSessionCache

	ctx    context.Context // of all work in progress; ends with Serve
	cancel context.CancelFunc
	wg     sync.WaitGroup // grows under mu, while not closed

	mu     sync.Mutex
	closed bool
	asking places
	idle   chan struct{}          // closed when nothing is asked any more; nil while nobody waits
	silent map[Upstream]time.Time // since when
}

// NewForwarder returns a forwarder that asks the resolvers from choose over dial and reports to obs. A nil log
// discards.
func NewForwarder(dial LinkDialer, choose Choose, obs Observer, log *slog.Logger) *Forwarder {
	ctx, cancel := context.WithCancel(context.Background())
	return &Forwarder{
		dial:     dial,
		choose:   choose,
		learn:    learner{obs: obs, log: newThrottle(log)},
		next:     nextAfter,
		sessions: tls.NewLRUClientSessionCache(0),
		ctx:      ctx,
		cancel:   cancel,
		asking:   newPlaces(maxForwarded),
		silent:   make(map[Upstream]time.Time),
	}
}

// Serve returns nil when ctx has ended and every goroutine of the forwarder has exited. It is called once.
func (f *Forwarder) Serve(ctx context.Context) error {
	<-ctx.Done()
	f.cancel()
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.wg.Wait()
	return nil
}

// Handle accepts a datagram and returns at once. Anything that is not a query is dropped, as is everything
// after Serve.
func (f *Forwarder) Handle(q Query) {
	r, ok := requestOf("udp", q.Payload())
	if !ok {
		return
	}
	err := f.begin(r, func(ctx context.Context) {
		if msg := f.answer(ctx, r); msg != nil {
			if err := q.Reply(msg); err != nil {
				f.learn.log.warn("reply to DNS query", err, "src", q.Src(), "dst", q.Dst())
			}
		}
	})
	if err != nil {
		f.learn.log.warn("drop DNS query", err, "src", q.Src(), "dst", q.Dst())
	}
}

// Stream answers the queries on a connection until the connection or ctx ends, and then closes it. It gives up a client
// that is idle, or does not take an answer, for 10 s.
func (f *Forwarder) Stream(ctx context.Context, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	var (
		asks  sync.WaitGroup
		slots = make(chan struct{}, maxStreamAsks)
		write sync.Mutex
	)
	defer asks.Wait()
	for {
		if c.SetReadDeadline(time.Now().Add(streamIdle)) != nil {
			return
		}
		query, err := readFrame(c)
		if err != nil {
			return
		}
		r, ok := requestOf("tcp", query)
		if !ok {
			continue
		}
		slots <- struct{}{}
		asks.Add(1)
		err = f.begin(r, func(ctx context.Context) {
			defer func() { <-slots; asks.Done() }()
			if msg := f.answer(ctx, r); msg != nil {
				write.Lock()
				defer write.Unlock()
				// A client that does not read would keep its queries' places for ever.
				if c.SetWriteDeadline(time.Now().Add(streamIdle)) != nil || writeFrame(c, msg) != nil {
					c.Close() // the reading side sees it
				}
			}
		})
		if err != nil {
			asks.Done()
			return
		}
	}
}

// begin runs work for r on a goroutine if there is room for another one. The context that work gets ends when another
// query takes its place.
func (f *Forwarder) begin(r request, work func(context.Context)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return net.ErrClosed
	}
	ctx, cancel := context.WithCancel(f.ctx)
	place, ok := f.asking.take(r.q.name, cancel)
	if !ok {
		cancel()
		return errManyForwarded
	}
	f.wg.Go(func() {
		defer f.finish(place)
		work(ctx)
	})
	return nil
}

func (f *Forwarder) finish(p place) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.asking.give(p); f.asking.taken == 0 && f.idle != nil {
		close(f.idle)
		f.idle = nil
	}
}

// Drain returns when no query is in progress or ctx ends. It does not stop new queries.
func (f *Forwarder) Drain(ctx context.Context) {
	f.mu.Lock()
	if f.asking.taken > 0 && f.idle == nil {
		f.idle = make(chan struct{})
	}
	idle := f.idle
	f.mu.Unlock()
	if idle == nil {
		return
	}
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// answer returns the response to r, or nil for none.
func (f *Forwarder) answer(ctx context.Context, r request) []byte {
	wanted := r.q.wanted(f.learn.obs)
	msg, err := f.ask(ctx, r)
	switch {
	case err == nil && wanted:
		if p, _, _, ok := parseQuestion(msg, true); ok {
			return f.learn.release(Asker{}, p, r.q, msg)
		}
		return msg
	case err == nil:
		return msg
	case ctx.Err() != nil:
		return nil
	}
	f.learn.log.warn("forward DNS query", fmt.Errorf("%s: %w", r.q.name, err))
	if errors.Is(err, errSilent) && r.network == "udp" {
		return nil // as silent as the upstreams: the client knows how to proceed
	}
	return servfail(r.msg, "no upstream resolver could be asked")
}

// ask returns the best answer of the upstreams for the query's name.
func (f *Forwarder) ask(ctx context.Context, r request) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardWait)
	defer cancel()
	lists, err := f.choose(ctx, r.q.name)
	if err != nil {
		return nil, err
	}
	lists = slices.DeleteFunc(lists, func(l []Upstream) bool { return len(l) == 0 })
	replies := make(chan reply, len(lists))
	var wg sync.WaitGroup
	defer wg.Wait() // for the losers, which cancel (it runs first) ends
	defer cancel()
	for _, list := range lists {
		wg.Go(func() { replies <- f.askList(ctx, list, r) })
	}
	best := reply{err: errNoUpstream}
	for i := range lists {
		got := <-replies
		if got.err == nil && got.rcode() == dnsmessage.RCodeSuccess {
			return got.msg, nil // another network's opinion of the name does not matter
		}
		if i == 0 || got.better(best) {
			best = got
		}
		if best.settles() {
			// There is no such name here. Others may have it, but must not be waited for longer than the client waits.
			time.AfterFunc(askAgain, cancel)
		}
	}
	return best.msg, best.err
}

// askList asks one upstream after another: the next one after a delay, or as soon as the previous one has
// failed. It returns the first answer.
func (f *Forwarder) askList(ctx context.Context, list []Upstream, r request) reply {
	list = f.silentLast(list)
	type from struct {
		up Upstream
		reply
	}
	replies := make(chan from, len(list))
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	timer := time.NewTimer(f.next)
	defer timer.Stop()
	asked, open := 0, 0
	start := func() {
		if asked == len(list) {
			return
		}
		up := list[asked]
		asked++
		open++
		timer.Reset(f.next)
		wg.Go(func() {
			msg, err := f.exchange(ctx, up, r)
			replies <- from{up, reply{msg, err}}
		})
	}
	start()
	var best reply
	for open > 0 {
		select {
		case got := <-replies:
			open--
			if got.err == nil {
				f.heard(got.up)
			} else if ctx.Err() == nil {
				got.err = fmt.Errorf("ask %s: %w", got.up, got.err)
			}
			if got.settles() {
				return got.reply
			}
			if got.better(best) {
				best = got.reply
			}
			start()
		case <-timer.C:
			f.unheard(list[asked-1])
			start()
		}
	}
	if ctx.Err() != nil && best.msg == nil {
		best.err = errSilent
	}
	return best
}

// silentLast returns list with the upstreams that did not answer recently moved to the end.
func (f *Forwarder) silentLast(list []Upstream) []Upstream {
	f.mu.Lock()
	defer f.mu.Unlock()
	silent := func(u Upstream) bool {
		since, ok := f.silent[u]
		return ok && time.Since(since) < avoidSilent
	}
	ordered := slices.DeleteFunc(slices.Clone(list), silent)
	for _, u := range list {
		if silent(u) {
			ordered = append(ordered, u)
		}
	}
	return ordered
}

func (f *Forwarder) heard(u Upstream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.silent, u)
}

func (f *Forwarder) unheard(u Upstream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.silent) >= maxForwarded { // of networks left long ago
		clear(f.silent)
	}
	f.silent[u] = time.Now()
}
