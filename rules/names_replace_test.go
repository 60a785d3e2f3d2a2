package rules

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func successor(t testing.TB, s *Set, texts ...string) *Set {
	t.Helper()
	next, err := s.Successor(mustSet(t, texts...).Rules())
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func TestSuccessorKeepsNumbers(t *testing.T) {
	s := mustSet(t, "a.x:443=1", "b.x:22=2", "c.x:80=3")
	for _, step := range []struct {
		rules []string
		want  string
	}{
		{[]string{"c.x:80=3", "a.x:443=1"}, "[443  80]"},                  // one goes: its number stays empty
		{[]string{"c.x:80=3", "d.x:25=4", "e.x:*=5"}, "[ 25 80 *]"},       // a number that was freed earlier may be taken, but not one that is freed now
		{[]string{"e.x:*=5", "f.x:25,26=6", "g.x:25=7"}, "[25-26 25  *]"}, // sets are told apart by the ports they hold
		{[]string{"g.x:26,25=7", "h.x:25-26=8"}, "[25-26]"},               // the same ports, written differently
		{nil, "[]"},
		{[]string{"a.x:443=1"}, "[443]"},
	} {
		next := successor(t, s, step.rules...)
		if got := fmt.Sprint(next.PortSets()); got != step.want {
			t.Errorf("%v: port sets %s, want %s", step.rules, got, step.want)
		}
		for _, c := range next.Static() {
			if next.PortSets()[c.Set].Len() == 0 {
				t.Errorf("%v: %v has no port set", step.rules, c)
			}
		}
		s = next
	}
}

func TestSuccessorConflict(t *testing.T) {
	rules := append(mustSet(t, "a.x:443=1").Rules(), mustSet(t, "a.x:443=2").Rules()...)
	if _, err := mustSet(t, "a.x:22=1").Successor(rules); err == nil {
		t.Error("no error")
	}
}

// A connection that arrives while the rules are replaced meets a rule, before and after.
func TestNamesSwitch(t *testing.T) {
	old := mustSet(t, "a.x:443=1", "b.x:443=2", "192.0.2.0/24:22=3", "c.x:80=6")
	n := NewNames(old)
	for i, name := range []string{"a.x", "b.x", "c.x"} {
		if _, err := n.Observe(name, addrs(fmt.Sprintf("203.0.113.%d", i+1)), time.Hour, true, start); err != nil {
			t.Fatal(err)
		}
	}
	decide := func(when string, want ...string) {
		t.Helper()
		var got []string
		for _, dst := range []string{"203.0.113.1:443", "203.0.113.2:443", "203.0.113.3:80", "192.0.2.1:22", "198.51.100.1:22"} {
			got = append(got, "-")
			if d := n.Decide(netip.MustParseAddrPort(dst)); d.Rule != nil {
				got[len(got)-1] = d.Name + "=" + d.Rule.Pin().String()
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	next := successor(t, old, "a.x:443=11", "*.x:8443=12", "198.51.100.0/24:22=4")
	learned := captureTexts(next, n.Prepare(next))
	slices.Sort(learned)
	want := []string{"203.0.113.1/32 443", "203.0.113.1/32 8443", "203.0.113.2/32 8443", "203.0.113.3/32 8443"}
	if diff := cmp.Diff(want, learned); diff != "" {
		t.Errorf("learned (-want +got):\n%s", diff)
	}
	decide("prepared", "a.x=1", "b.x=2", "c.x=6", "=3", "=4")
	n.Cancel()
	decide("cancelled", "a.x=1", "b.x=2", "c.x=6", "=3", "-")
	n.Prepare(next)
	n.Switch(start)
	decide("switched", "a.x=11", "b.x=2", "c.x=6", "=3", "=4")
	if n.Set() != next || !n.HasNames() {
		t.Error("the set is not the new one")
	}
	n.Expired(start.Add(Grace - 1))
	decide("just before the end", "a.x=11", "b.x=2", "c.x=6", "=3", "=4")
	if gone := n.Expired(start.Add(Grace)); len(gone) > 0 {
		t.Errorf("captures go a second time: %v", gone)
	}
	decide("in the end", "a.x=11", "-", "-", "-", "=4")

	// What no rule is interested in any more is forgotten, and not learned again.
	none := successor(t, next, "198.51.100.0/24:22=4")
	if c := n.Prepare(none); len(c) > 0 {
		t.Errorf("learned %v without names", c)
	}
	n.Switch(start)
	if !n.HasNames() {
		t.Error("DNS is not looked at while the former rules have names")
	}
	for e := range n.All() {
		t.Errorf("%s is listed", e.Name)
	}
	if l, err := n.Observe("a.x", addrs("203.0.113.9"), time.Hour, true, start); err != nil || len(l.Add) > 0 {
		t.Errorf("learned %v, %v", l.Add, err)
	}
	n.Expired(start.Add(2 * Grace))
	if n.HasNames() || len(n.byName)+len(n.byAddr)+n.live > 0 {
		t.Errorf("left behind: %d names, %d addresses, %d live", len(n.byName), len(n.byAddr), n.live)
	}
}

// Names that went through other rules say the same as Names that always had the last ones, about what both could
// learn.
func TestNamesCarriedOver(t *testing.T) {
	lists := [][]string{
		{"*.x:443=1", "a.x:443,80=2", "d.y:22=4", "*.y:443=5", "192.0.2.0/30:*=6"},
		{"*.x:443=1", "b.x:22=3", "*.y:443=15", "192.0.2.0/30:443=6", "*:80=7"},
		{"*.x:8443=1", "a.x:443,80=2", "e.y:*=9", "*.z:443=8"},
		{"a.x:443=1", "d.y:443=2", "e.y:443=3"},
	}
	names := []string{"a.x", "b.x", "c.x", "d.y", "e.y", "f.z"}
	universe := addrs("192.0.2.1", "192.0.2.2", "203.0.113.3", "203.0.113.4", "2001:db8::1")
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 2))
		first := mustSet(t, lists[rng.IntN(len(lists))]...)
		last := successor(t, first, lists[rng.IntN(len(lists))]...)
		n, fresh := NewNames(first), NewNames(last)
		now := start
		stands := make(map[Capture]bool) // according to fresh
		observe := func(both bool) {
			name, addr := names[rng.IntN(len(names))], universe[rng.IntN(len(universe)):][:1]
			ttl, asked := time.Duration(1+rng.IntN(9))*time.Hour, rng.IntN(3) > 0
			got, err := n.Observe(name, addr, ttl, asked, now)
			if err != nil {
				t.Fatal(err)
			}
			if len(first.NameSets(name)) == 0 && !both {
				return
			}
			want, err := fresh.Observe(name, addr, ttl, asked, now)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range want.Add {
				stands[c] = true
			}
			if !both {
				return // the sets of the first rules have other numbers
			}
			if diff := cmp.Diff(sortedTexts(last, want.Add), sortedTexts(last, got.Add)); diff != "" {
				t.Fatalf("seed %d: to add for %s (-fresh +carried over):\n%s", seed, name, diff)
			}
		}
		expire := func() {
			want, got := fresh.Expired(now), n.Expired(now)
			if diff := cmp.Diff(sortedTexts(last, want), sortedTexts(last, got)); diff != "" {
				t.Fatalf("seed %d: expired (-fresh +carried over):\n%s", seed, diff)
			}
			fresh.Forget(want)
			n.Forget(got)
		}
		for range 12 {
			observe(false)
		}
		learned := n.Prepare(last)
		want := make([]Capture, 0, len(stands))
		for c := range stands {
			want = append(want, c)
		}
		if diff := cmp.Diff(sortedTexts(last, want), sortedTexts(last, learned)); diff != "" {
			t.Fatalf("seed %d: learned (-fresh +carried over):\n%s", seed, diff)
		}
		n.Switch(now)
		now = now.Add(Grace)
		expire()
		for range 20 {
			if diff := cmp.Diff(slices.Collect(fresh.All()), slices.Collect(n.All()), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Fatalf("seed %d: known (-fresh +carried over):\n%s", seed, diff)
			}
			for _, addr := range universe {
				for _, port := range []uint16{22, 80, 443, 8443} {
					dst := netip.AddrPortFrom(addr, port)
					if got, want := n.Decide(dst), fresh.Decide(dst); got != want {
						t.Fatalf("seed %d: Decide(%v) = %v, want %v", seed, dst, got, want)
					}
				}
				for _, name := range names {
					if got, want := n.Others(name, addr), fresh.Others(name, addr); !slices.Equal(got, want) {
						t.Fatalf("seed %d: Others(%s) = %v, want %v", seed, name, got, want)
					}
				}
			}
			observe(true)
			now = now.Add(time.Duration(rng.IntN(60)) * time.Minute)
			expire()
		}
	}
}

// Decisions go on while rules are replaced: a destination that has a rule in all sets always has one.
func TestNamesSwitchConcurrently(t *testing.T) {
	sets := [][]string{{"a.x:443=1", "203.0.113.0/24:22=3"}, {"*.x:443=2", "203.0.113.1/32:22=4"}}
	set := mustSet(t, sets[0]...)
	n := NewNames(set)
	if _, err := n.Observe("a.x", addrs("203.0.113.1"), time.Hour, true, start); err != nil {
		t.Fatal(err)
	}
	done, failed := make(chan struct{}), make(chan string, 1)
	go func() {
		defer close(failed)
		for {
			select {
			case <-done:
				return
			default:
			}
			release := n.Hold(netip.MustParseAddr("203.0.113.1"))
			for _, dst := range []string{"203.0.113.1:443", "203.0.113.1:22"} {
				if d := n.Decide(netip.MustParseAddrPort(dst)); d.Rule == nil {
					failed <- dst + " has no rule"
					return
				}
			}
			release()
		}
	}()
	for i := range 2000 {
		next := successor(t, n.Set(), sets[(i+1)%2]...)
		n.Prepare(next)
		if i%3 == 0 {
			n.Cancel()
			continue
		}
		n.Switch(start)
	}
	close(done)
	if what, ok := <-failed; ok {
		t.Error(what)
	}
}
