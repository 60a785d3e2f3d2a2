package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"pinproxy/netstack/dns"
	"pinproxy/netstack/host"
	"pinproxy/rules"
)

const (
	// changeAtOnce is how many routes are changed before others may run. The kernel needs 100 µs for as many, and few of
	// the other goroutines run meanwhile.
	changeAtOnce = 10
	// routeTimeout limits one such change.
	routeTimeout = 2 * time.Second
	// withdrawAtOnce is how many captures are removed before they are forgotten.
	withdrawAtOnce = 1000
	// shortestTTL is the shortest that counts. The C library does not tell programs of the TTL. Firefox goes by an
	// address for a minute, and for another one while it looks it up anew (network.dnsCacheExpiration and
	// GracePeriod); for the latter there is rules.Grace.
	shortestTTL = time.Minute
	// expireEvery is how often we look for addresses that nobody needs any more.
	expireEvery = time.Second
)

// router captures destinations. *host.Host is one.
type router interface {
	Add(ctx context.Context, list []host.Capture) error
	Remove(ctx context.Context, list []host.Capture) error
}

// learner leads from a DNS answer to a route: names learns, and routes carries out what it learned. It is pinproxy's
// dns.Observer.
type learner struct {
	names  *rules.Names
	routes router
	log    *slog.Logger
	asking func(asker dns.Asker, name string) bool // whether a resolver may be asking because we ask it; nil: never
	yield  func()                                  // lets others run; nil: nobody else is there

	withheld atomic.Uint64 // answers to applications, withheld because they could not be learned
	aliases  aliases

	turns dns.Turns // locked from a change of names until the routes have changed
}

// Wants implements dns.Observer.
func (l *learner) Wants(name string) bool { return len(l.meant(name)) > 0 }

// Admit implements dns.Observer.
func (l *learner) Admit(asker dns.Asker, addrs int) error {
	err := l.turns.Admit(asker, addrs)
	if err != nil {
		l.withheld.Add(1)
	}
	return err
}

// meant returns the names with rules that the addresses of name are for: itself, or else its aliases.
func (l *learner) meant(name string) []string {
	if len(l.names.Set().NameSets(name)) > 0 {
		return []string{name}
	}
	return l.aliases.names(name, time.Now())
}

// Alias implements dns.Observer. The addresses of a target with a rule of its own are its own.
func (l *learner) Alias(name, target string, ttl time.Duration) {
	if len(l.names.Set().NameSets(target)) > 0 {
		return
	}
	for _, n := range l.meant(name) {
		l.aliases.add(n, target, ttl, time.Now())
	}
}

// Observe implements dns.Observer, for answers to an application, or to a resolver on this host.
func (l *learner) Observe(asker dns.Asker, name string, addrs []netip.Addr, ttl time.Duration) error {
	var err error
	for _, n := range l.meant(name) {
		err = errors.Join(err, l.learn(asker, n, addrs, ttl, l.asking == nil || !l.asking(asker, n)))
	}
	if err != nil {
		l.withheld.Add(1)
	}
	return err
}

// refresh is for answers to our own queries.
func (l *learner) refresh(name string, addrs []netip.Addr, ttl time.Duration) error {
	return l.learn(dns.Asker{}, name, addrs, ttl, false)
}

// learn returns when connections to addrs are captured, or an error if they won't be.
func (l *learner) learn(asker dns.Asker, name string, addrs []netip.Addr, ttl time.Duration, asked bool) error {
	if err := l.turns.LockFor(asker, name, len(addrs)); err != nil {
		return err
	}
	defer l.turns.Unlock()
	ctx := context.Background()
	learned, err := l.names.Observe(name, addrs, max(ttl, shortestTTL), asked, time.Now())
	for _, s := range learned.Shared {
		l.log.Warn(s.String())
	}
	if len(learned.Add) > 0 {
		if aerr := l.change(ctx, l.routes.Add, learned.Add); aerr != nil {
			l.names.Lost(learned.Add)
			err = errors.Join(err, aerr)
		} else {
			l.log.Debug("captured", "name", name, "addrs", addrs, "ttl", ttl)
		}
	}
	return errors.Join(err, l.withdraw(ctx, learned.Drop))
}

// expire removes what nothing needs any more, until ctx ends.
func (l *learner) expire(ctx context.Context) error {
	tick := time.NewTicker(expireEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := l.sweep(ctx, time.Now()); err != nil && ctx.Err() == nil {
			l.log.Warn("release expired addresses: " + err.Error())
		}
	}
}

func (l *learner) sweep(ctx context.Context, now time.Time) (err error) {
	for more := true; more; {
		var serr error
		if more, serr = l.sweepSome(ctx, now); err == nil {
			err = serr
		}
	}
	return err
}

// sweepSome removes a part, because answers wait for it, and reports whether there may be more.
func (l *learner) sweepSome(ctx context.Context, now time.Time) (more bool, err error) {
	l.turns.Lock()
	defer l.turns.Unlock()
	gone := l.names.Expired(now)
	return len(gone) > 0, l.withdraw(ctx, gone)
}

// replace makes next decide as soon as apply has made the host capture what next needs, including what is known of
// names. If apply fails, replace returns its error and everything is as before.
func (l *learner) replace(next *rules.Set, apply func(learned []host.Capture) error) error {
	l.turns.Lock()
	defer l.turns.Unlock()
	if err := apply(l.names.Prepare(next)); err != nil {
		l.names.Cancel()
		return err
	}
	l.names.Switch(time.Now())
	return nil
}

// withdraw removes captures, routes first: until then connections are still decided. Captures that a flow has
// started to use in the meantime are put back. l.turns is locked.
func (l *learner) withdraw(ctx context.Context, gone []rules.Capture) (err error) {
	for part := range slices.Chunk(gone, withdrawAtOnce) {
		if perr := l.withdrawPart(ctx, part); err == nil {
			err = perr
		}
	}
	return err
}

// change adds or removes captures, lets others run in between, and returns the first error. It goes on after one: a
// capture that stayed would lead to a rule that nobody knows any more, and its connections would fail. So there is no
// limit for all together either.
func (l *learner) change(ctx context.Context, do func(context.Context, []host.Capture) error, list []host.Capture) (err error) {
	for len(list) > 0 {
		n := min(len(list), changeAtOnce)
		if perr := l.changePart(ctx, do, list[:n]); err == nil {
			err = perr
		}
		if list = list[n:]; len(list) > 0 && l.yield != nil {
			l.yield()
		}
	}
	return err
}

func (l *learner) changePart(ctx context.Context, do func(context.Context, []host.Capture) error, part []host.Capture) error {
	ctx, cancel := context.WithTimeout(ctx, routeTimeout)
	defer cancel()
	return do(ctx, part)
}

func (l *learner) withdrawPart(ctx context.Context, gone []rules.Capture) error {
	err := l.change(ctx, l.routes.Remove, gone)
	if revived := l.names.Forget(gone); len(revived) > 0 {
		if aerr := l.change(ctx, l.routes.Add, revived); aerr != nil {
			l.names.Lost(revived)
			err = errors.Join(err, aerr)
		}
	}
	return err
}
