package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

// Those who wait take turns: hosts, then resolvers, then zones, then in order.
func TestTurnsOfAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turns Turns
		var order []string
		var all sync.WaitGroup
		turns.Lock()
		for i, host := range []string{
			"2001:db8::1 a", "2001:db8::2 a", "2001:db8::1 a", // addresses of one network are one host
			"2001:db8::3 b", "192.0.2.1 a", "2001:db8::1 c.a", "192.0.2.1 a", "- ", "2001:db8::1 a other", "2001:db8::1 d other",
		} {
			addr, name, _ := strings.Cut(host, " ")
			name, other, _ := strings.Cut(name, " ")
			asker := Asker{Resolver: resolverAddr}
			asker.Host, _ = netip.ParseAddr(addr)
			if other != "" {
				asker.Resolver = netip.MustParseAddrPort("192.0.2.54:53")
			}
			all.Go(func() {
				if err := turns.LockFor(asker, name, 1000); err != nil {
					t.Error(err)
				}
				defer turns.Unlock()
				order = append(order, fmt.Sprint(i))
			})
			synctest.Wait()
		}
		turns.Unlock()
		all.Wait()
		if want := strings.Fields("0 4 7 8 6 3 9 5 1 2"); !slices.Equal(order, want) {
			t.Errorf("turns were given in the order %v, want %v", order, want)
		}
		if l := &turns.waiting; turns.locked || !l.empty() || l.lines != nil || turns.addrs != nil {
			t.Errorf("something is left: %+v", l)
		}
	})
}

// Who waits with many addresses is told so at once, and others are not. A single answer may have any number.
func TestTurnsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turns Turns
		var all sync.WaitGroup
		wait := func(a Asker, addrs int) {
			all.Go(func() {
				if err := turns.LockFor(a, "www.bank.example", addrs); err != nil {
					t.Error(err)
				}
				turns.Unlock()
			})
			synctest.Wait()
		}
		asker := Asker{netip.MustParseAddr("192.0.2.1"), resolverAddr}
		other := Asker{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddrPort("192.0.2.54:53")}
		turns.Lock()
		wait(asker, maxWaiting-1)
		wait(asker, 1)
		if turns.LockFor(asker, "other.example", 1) == nil || turns.Admit(asker, 1) == nil {
			t.Error("there is no bound")
		}
		for _, a := range []Asker{other, {}} {
			if err := turns.Admit(a, maxWaiting+1); err != nil {
				t.Errorf("%v: %v", a, err)
			}
		}
		if err := turns.Admit(asker, 0); err != nil {
			t.Errorf("an answer without addresses: %v", err)
		}
		wait(other, maxWaiting+1)
		wait(Asker{}, 0)
		turns.Unlock()
		all.Wait()
		turns.Lock()
		if err := turns.Admit(asker, maxWaiting); err != nil {
			t.Errorf("after all had their turns: %v", err)
		}
		wait(asker, maxWaiting)
		turns.Unlock()
		all.Wait()
	})
}
