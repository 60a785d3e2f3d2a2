package dns

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	atOnce     = 16               // concurrent lookups
	lookupWait = 20 * time.Second // two servers, each tried twice at resolv.conf's 5 s: a lookup survives a dead first server
	firstWait  = 10 * time.Second // ready is called by then, whatever is missing
	hostsEvery = time.Minute      // for names that come from no DNS answer
	soonest    = 5 * time.Second  // a TTL of 0 must not cause a storm
	latest     = time.Hour
	retryFirst = time.Second
	retryLast  = time.Minute
	passWait   = 2 * time.Second // how long a resolver that has answered us from an old answer may take to renew it
)

// Resolver keeps names resolved. It resolves as any Go program on this host would (/etc/hosts, resolv.conf). A
// name with a dot in it is taken as fully qualified.
type Resolver struct {
	lookup  func(ctx context.Context, name string) (found, error)
	observe func(name string, addrs []netip.Addr, ttl time.Duration) error
	log     *slog.Logger
	changes chan wanted

	mu     sync.Mutex
	passed map[passed]int // how many times now
}

// passed is a name that a resolver asks others for, because we ask it.
type passed struct {
	name string
	from netip.Addr // the resolver; invalid if it is on this host
}

// wanted is the set of names to keep resolved, and the function to call once the new ones have been tried.
type wanted struct {
	names []string
	ready func()
}

// NewResolver returns a Resolver whose sockets come from dial. observe is called concurrently. addrs is not
// empty and belongs to the callee. ttl is at least the time until the name is looked up again. A nil log
// discards.
func NewResolver(dial Dialer, observe func(name string, addrs []netip.Addr, ttl time.Duration) error, log *slog.Logger) *Resolver {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &Resolver{
		observe: observe,
		log:     log,
		changes: make(chan wanted),
		passed:  make(map[passed]int),
	}
	r.lookup = func(ctx context.Context, name string) (found, error) { return lookup(ctx, r.dialFor(name, dial), name) }
	return r
}

// Asking reports whether a query for name may come from a resolver that passes on what we have asked it, and so not from
// an application. The resolver is on this host, or is the asker.
func (r *Resolver) Asking(asker Asker, name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.passed[passed{name, netip.Addr{}}] > 0 || r.passed[passed{name, asker.Host}] > 0
}

// dialFor returns dial for a lookup of name. The context that the dial gets ends with the question.
func (r *Resolver) dialFor(name string, dial Dialer) Dialer {
	return func(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
		c, err := dial(ctx, network, dst)
		if err == nil {
			p := passed{name, dst.Addr().Unmap()}
			if here(c) {
				p.from = netip.Addr{}
			}
			r.pass(p, 1)
			context.AfterFunc(ctx, func() { time.AfterFunc(passWait, func() { r.pass(p, -1) }) })
		}
		return c, err
	}
}

func (r *Resolver) pass(p passed, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.passed[p] += n; r.passed[p] == 0 {
		delete(r.passed, p)
	}
}

// here reports whether the other end of c is on this host.
func here(c net.Conn) bool {
	from, ferr := netip.ParseAddrPort(c.LocalAddr().String())
	to, terr := netip.ParseAddrPort(c.RemoteAddr().String())
	return ferr == nil && terr == nil && (to.Addr().IsLoopback() || to.Addr() == from.Addr())
}

// Run resolves names, 16 at a time, and each one again when its TTL ends: after 5 s at least and an hour at
// most, plus a random extra of up to a tenth. A name from /etc/hosts is resolved again after a minute. Run
// calls ready once: when every name has been tried, or after 10 s. It returns nil when ctx has ended and its
// goroutines have exited; ready may not have been called by then. Run may be called again after it has
// returned.
func (r *Resolver) Run(ctx context.Context, names []string, ready func()) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, atOnce)
	kept := make(map[string]context.CancelFunc)
	for want := (wanted{names, ready}); ; {
		r.follow(ctx, want, kept, slots, &wg)
		select {
		case want = <-r.changes:
		case <-ctx.Done():
			return nil
		}
	}
}

// Change makes a running Run resolve these names from now on. Names that are already being resolved continue
// unchanged. Run calls ready once the new names have been tried, on the same terms as at its start. Change
// returns before that, or when ctx ends.
func (r *Resolver) Change(ctx context.Context, names []string, ready func()) {
	select {
	case r.changes <- wanted{names, ready}:
	case <-ctx.Done():
	}
}

// follow starts and stops the upkeep of names. It returns when the new ones have been tried or it takes too
// long.
func (r *Resolver) follow(ctx context.Context, want wanted, kept map[string]context.CancelFunc, slots chan struct{}, wg *sync.WaitGroup) {
	names := slices.Clone(want.names)
	for i, n := range names {
		names[i] = strings.ToLower(strings.TrimSuffix(n, "."))
	}
	slices.Sort(names)
	names = slices.Compact(names)
	for name, end := range kept {
		if _, still := slices.BinarySearch(names, name); !still {
			end()
			delete(kept, name)
		}
	}
	var tried sync.WaitGroup
	for _, name := range names {
		if kept[name] != nil {
			continue
		}
		ctx, end := context.WithCancel(ctx)
		kept[name] = end
		tried.Add(1)
		wg.Go(func() { r.keep(ctx, name, slots, sync.OnceFunc(tried.Done)) })
	}
	all := make(chan struct{})
	wg.Go(func() {
		tried.Wait()
		close(all)
	})
	late := time.NewTimer(firstWait)
	defer late.Stop()
	select {
	case <-all:
	case <-late.C:
	case <-ctx.Done():
	}
	if ctx.Err() == nil && want.ready != nil {
		want.ready()
	}
}

// keep resolves one name until ctx ends.
func (r *Resolver) keep(ctx context.Context, name string, slots chan struct{}, tried func()) {
	defer tried()
	var retry time.Duration
	var trouble string
	for {
		wait, err := r.once(ctx, name, slots)
		if ctx.Err() != nil {
			return
		}
		tried()
		if err != nil {
			if text := err.Error(); text != trouble {
				trouble = text
				r.log.Warn("resolve name", "name", name, "err", err)
			}
			retry = min(max(2*retry, retryFirst), retryLast)
			again := jitter(retry)
			if wait == 0 || again < wait {
				wait = again
			}
		} else {
			if trouble != "" {
				r.log.Info("name resolves again", "name", name)
			}
			retry, trouble = 0, ""
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// once resolves name and returns when to do it again. If only a part is known, it also returns an error, which may be
// a reason to do it sooner.
func (r *Resolver) once(ctx context.Context, name string, slots chan struct{}) (time.Duration, error) {
	select {
	case slots <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { <-slots }()
	ctx, cancel := context.WithTimeout(ctx, lookupWait)
	defer cancel()
	got, err := r.lookup(ctx, name)
	if len(got.addrs) == 0 {
		return 0, err
	}
	ttl := got.ttl
	if !got.wire {
		ttl = hostsEvery
	}
	wait := jitter(min(max(ttl, soonest), latest))
	if err := r.observe(name, got.addrs, max(ttl, wait)); err != nil {
		return 0, fmt.Errorf("observe addresses: %w", err)
	}
	return wait, err
}

// jitter spreads lookups that began together.
func jitter(d time.Duration) time.Duration { return d + rand.N(d/10) }
