package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pinproxy/netstack/dns"
	"pinproxy/netstack/host"
	"pinproxy/rules"
)

// slowRouter captures like *host.Host, and takes its time.
type slowRouter map[host.Capture]bool

func (r slowRouter) Add(_ context.Context, list []host.Capture) error {
	for _, c := range list {
		r[c] = true
	}
	return nil
}

func (r slowRouter) Remove(ctx context.Context, list []host.Capture) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	time.Sleep(time.Duration(len(list)) * 50 * time.Microsecond)
	for _, c := range list {
		delete(r, c)
	}
	return nil
}

// However many addresses expire at once, and however long that takes, none stays captured: no rule would be known for
// its connections, and they would fail.
func TestAllThatExpiresIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		routes := make(slowRouter)
		l := learnerOf(t, routes, "*.bank.example:443=63999\n*.bank.example:80=63998\n")
		const names, each = 60, 500
		observeMany(t, l, names, each)
		if len(routes) != 2*names*each {
			t.Fatalf("%d captures, want %d", len(routes), 2*names*each)
		}
		time.Sleep(shortestTTL + 2*rules.Grace)
		if err := l.sweep(t.Context(), time.Now()); err != nil {
			t.Error(err)
		}
		if len(routes) != 0 || l.names.Len() != 0 {
			t.Errorf("%d captures and %d addresses are left", len(routes), l.names.Len())
		}
	})
}

// An answer does not wait until all that expires at once is released.
func TestAnswerComesWhileMuchIsReleased(t *testing.T) {
	routes := &announcingRouter{slowRouter: make(slowRouter), removing: make(chan bool, 1)}
	l := learnerOf(t, routes, "*.bank.example:443=63999")
	const names, each = 10, 1000
	observeMany(t, l, names, each)
	swept := make(chan error)
	go func() { swept <- l.sweep(t.Context(), time.Now().Add(shortestTTL+2*rules.Grace)) }()
	<-routes.removing
	if err := l.Observe(dns.Asker{}, "www.bank.example", []netip.Addr{netip.MustParseAddr("192.0.2.1")}, time.Hour); err != nil {
		t.Error(err)
	}
	l.turns.Lock()
	if left := len(routes.slowRouter); left < names*each/2 {
		t.Errorf("of %d captures %d were left when the answer's turn came", names*each, left)
	}
	l.turns.Unlock()
	if err := <-swept; err != nil {
		t.Error(err)
	}
	if len(routes.slowRouter) != 1 {
		t.Errorf("%d captures are left, want the new one", len(routes.slowRouter))
	}
}

// announcingRouter is a slowRouter that says when it removes something.
type announcingRouter struct {
	slowRouter
	removing chan bool
}

func (r *announcingRouter) Remove(ctx context.Context, list []host.Capture) error {
	select {
	case r.removing <- true:
	default:
	}
	return r.slowRouter.Remove(ctx, list)
}

// Others may run after each few routes that an answer adds or that are removed. An error leaves out no other.
func TestManyRoutesLetOthersRun(t *testing.T) {
	const few = changeAtOnce
	r := &partsRouter{captured: make(map[host.Capture]bool)}
	l := learnerOf(t, r, "*.bank.example:443=63999\n")
	yields := 0
	l.yield = func() { yields++ }
	observeMany(t, l, 1, 2*few+1)
	if want := []int{few, few, 1}; !slices.Equal(r.parts, want) || yields != 2 || len(r.captured) != 2*few+1 {
		t.Errorf("added in parts of %v, want %v; others ran %d times; %d captures", r.parts, want, yields, len(r.captured))
	}
	r.parts, r.fails = nil, 1
	err := l.sweep(t.Context(), time.Now().Add(24*time.Hour))
	if !errors.Is(err, errRouter) || len(r.parts) != 3 || yields != 4 || len(r.captured) != few {
		t.Errorf("removed in parts of %v; others ran %d times; %d captures left; %v", r.parts, yields, len(r.captured), err)
	}
}

// partsRouter notes how many captures it is given at a time, and fails so many times.
type partsRouter struct {
	captured map[host.Capture]bool
	parts    []int
	fails    int
}

var errRouter = errors.New("no routes today")

func (r *partsRouter) Add(_ context.Context, list []host.Capture) error {
	return r.change(list, func(c host.Capture) { r.captured[c] = true })
}

func (r *partsRouter) Remove(_ context.Context, list []host.Capture) error {
	return r.change(list, func(c host.Capture) { delete(r.captured, c) })
}

func (r *partsRouter) change(list []host.Capture, each func(host.Capture)) error {
	r.parts = append(r.parts, len(list))
	if r.fails--; r.fails >= 0 {
		return errRouter
	}
	for _, c := range list {
		each(c)
	}
	return nil
}

// observeMany lets l learn names below bank.example, with so many addresses each, which expire soon.
func observeMany(t *testing.T, l *learner, names, each int) {
	t.Helper()
	addr := netip.MustParseAddr("2001:db8::1")
	for i := range names {
		var addrs []netip.Addr
		for range each {
			addrs = append(addrs, addr)
			addr = addr.Next()
		}
		if err := l.Observe(dns.Asker{}, fmt.Sprintf("n%d.bank.example", i), addrs, time.Second); err != nil {
			t.Fatal(err)
		}
	}
}

// Browsers use an address for two minutes, however short its TTL.
func TestShortTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		routes := make(slowRouter)
		l := learnerOf(t, routes, "*.bank.example:443=63999")
		if err := l.Observe(dns.Asker{}, "www.bank.example", []netip.Addr{netip.MustParseAddr("192.0.2.1")}, 5*time.Second); err != nil {
			t.Fatal(err)
		}
		for _, left := range []int{1, 0} {
			time.Sleep(119 * time.Second)
			if err := l.sweep(t.Context(), time.Now()); err != nil || len(routes) != left {
				t.Errorf("%d captures, want %d: %v", len(routes), left, err)
			}
		}
	})
}

// An answer that is not even read, because too many wait, counts as withheld.
func TestNotAdmittedIsWithheld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := learnerOf(t, make(slowRouter), "*.bank.example:443=63999")
		asker := dns.Asker{Host: netip.MustParseAddr("192.0.2.1"), Resolver: netip.MustParseAddrPort("198.51.100.53:53")}
		l.turns.Lock()
		var learned sync.WaitGroup
		learned.Go(func() {
			if err := l.Observe(asker, "www.bank.example", []netip.Addr{netip.MustParseAddr("203.0.113.1")}, time.Hour); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		const many = 1 << 16 // more than all that may wait
		if err := l.Admit(asker, 1); err != nil || l.withheld.Load() != 0 {
			t.Errorf("one address: %v, %d withheld", err, l.withheld.Load())
		}
		if err := l.Admit(asker, many); err == nil || l.withheld.Load() != 1 {
			t.Errorf("many: %v, %d withheld", err, l.withheld.Load())
		}
		l.turns.Unlock()
		learned.Wait()
		if err := l.Admit(asker, many); err != nil || l.withheld.Load() != 1 {
			t.Errorf("when none waits: %v, %d withheld", err, l.withheld.Load())
		}
	})
}

func learnerOf(t *testing.T, routes router, text string) *learner {
	t.Helper()
	return &learner{names: rules.NewNames(setOf(t, text)), routes: routes, log: slog.New(slog.DiscardHandler)}
}

func setOf(t *testing.T, text string) *rules.Set {
	t.Helper()
	list, err := rules.ParseFile("test", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	set, err := rules.NewSet(list)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// The addresses of a name that another is an alias of are that one's, for as long as it is, unless it has a rule itself.
func TestAliases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := learnerOf(t, make(slowRouter), "*.bank.example:443=63999\nedge.example:443=63998\n")
		l.Alias("other.example", "x.example", time.Hour) // of no rule
		l.Alias("www.bank.example", "edge.example", time.Hour)
		l.Alias("www.bank.example", "a.example", time.Minute)
		l.Alias("mail.bank.example", "a.example", time.Second)
		l.Alias("a.example", "b.example", time.Hour)
		addr := netip.MustParseAddr("192.0.2.0")
		for name, want := range map[string]string{
			"x.example":    "",
			"edge.example": "edge.example",
			"a.example":    "mail.bank.example www.bank.example",
			"b.example":    "mail.bank.example www.bank.example",
		} {
			addr = addr.Next()
			if err := l.Observe(dns.Asker{}, name, []netip.Addr{addr}, time.Hour); err != nil {
				t.Fatal(err)
			}
			var got []string
			for e := range l.names.All() {
				if e.Addr == addr {
					got = append(got, e.Name)
				}
			}
			if strings.Join(got, " ") != want || l.Wants(name) != (want != "") {
				t.Errorf("the address of %s is that of %q, want %q", name, got, want)
			}
		}
		time.Sleep(2 * rules.Grace)
		if l.Wants("a.example") || !l.Wants("b.example") {
			t.Error("an alias has not ended, or has ended too early")
		}
		for i := range 2 * maxAliases {
			l.Alias("www.bank.example", fmt.Sprintf("n%d.example", i), time.Hour)
			l.Alias(fmt.Sprintf("n%d.bank.example", i), "b.example", time.Hour)
		}
		if n, names := len(l.aliases.of), len(l.meant("b.example")); n != maxAliases || names > rules.MaxNamesPerAddr {
			t.Errorf("%d targets, and %d names of one, are remembered", n, names)
		}
	})
}
