package rules

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// start is when the tests of this file begin. Times are given in seconds after it.
var start = time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)

func at(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }

func addrs(texts ...string) []netip.Addr {
	var addrs []netip.Addr
	for _, text := range texts {
		addrs = append(addrs, netip.MustParseAddr(text))
	}
	return addrs
}

// namesTest is Names with what a caller keeps beside it: the captures in place.
type namesTest struct {
	*testing.T
	*Names
	set *Set
}

func newNamesTest(t *testing.T, rules ...string) namesTest {
	set := mustSet(t, rules...)
	return namesTest{t, NewNames(set), set}
}

// observe has an application ask, at a given time, for a name that has the addresses for 30 s. It compares what is
// learned with add and drop, each in the form "prefix ports".
func (t namesTest) observe(seconds int, name string, addresses []netip.Addr, add, drop []string) Learned {
	t.Helper()
	l, err := t.Observe(name, addresses, 30*time.Second, true, at(seconds))
	if err != nil {
		t.Errorf("at %d s: observe %s: %v", seconds, name, err)
	}
	if diff := cmp.Diff(add, captureTexts(t.set, l.Add)); diff != "" {
		t.Errorf("at %d s: observe %s: to add (-want +got):\n%s", seconds, name, diff)
	}
	if diff := cmp.Diff(drop, captureTexts(t.set, l.Drop)); diff != "" {
		t.Errorf("at %d s: observe %s: to drop (-want +got):\n%s", seconds, name, diff)
	}
	return l
}

func (t namesTest) expired(seconds int, want ...string) []Capture {
	t.Helper()
	got := t.Expired(at(seconds))
	sorted := captureTexts(t.set, got)
	slices.Sort(sorted)
	if diff := cmp.Diff(want, sorted); diff != "" {
		t.Errorf("at %d s: expired (-want +got):\n%s", seconds, diff)
	}
	return got
}

func (t namesTest) forget(c []Capture, revived ...string) {
	t.Helper()
	if diff := cmp.Diff(revived, captureTexts(t.set, t.Forget(c))); diff != "" {
		t.Errorf("revived (-want +got):\n%s", diff)
	}
}

// decide compares the decision with "name pin".
func (t namesTest) decide(dst, want string) {
	t.Helper()
	d := t.Decide(netip.MustParseAddrPort(dst))
	got := "nothing"
	if d.Rule != nil {
		got = d.Name + " " + d.Rule.Pin().String()
	}
	if got != want {
		t.Errorf("%s: %q decides, want %q", dst, got, want)
	}
}

func (t namesTest) known(want ...string) {
	t.Helper()
	var got []string
	for e := range t.All() {
		got = append(got, e.Name+" "+e.Addr.String())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("known (-want +got):\n%s", diff)
	}
}

func TestNamesDecide(t *testing.T) {
	n := newNamesTest(t,
		"a.example:443=1", "*.example:443=2", "*.example:80=3", "192.0.2.0/24:*=4", "*:22=5", "b.test:8443=6")
	n.decide("192.0.2.1:443", " 4")
	n.observe(0, "A.Example.", addrs("192.0.2.1", "2001:db8::1"),
		[]string{"192.0.2.1/32 443", "192.0.2.1/32 80", "2001:db8::1/128 443", "2001:db8::1/128 80"}, nil)
	n.decide("192.0.2.1:443", "a.example 1")
	n.decide("192.0.2.1:80", "a.example 3")
	n.decide("192.0.2.1:8443", " 4")
	n.decide("192.0.2.2:443", " 4")
	n.decide("[2001:db8::1]:443", "a.example 1")
	n.decide("[2001:db8::1]:22", " 5")
	n.decide("[2001:db8::2]:443", "nothing")
	n.decide("[::ffff:192.0.2.1]:443", "a.example 1")

	// The name asked for last decides. If it has no rule, the one before it does.
	n.observe(1, "c.example", addrs("192.0.2.1"), nil, nil)
	n.decide("192.0.2.1:443", "c.example 2")
	n.decide("[2001:db8::1]:443", "a.example 1")
	n.observe(2, "b.test", addrs("192.0.2.1"), []string{"192.0.2.1/32 8443"}, nil)
	n.decide("192.0.2.1:443", "c.example 2")
	n.decide("192.0.2.1:8443", "b.test 6")
	n.observe(3, "a.example", addrs("192.0.2.1"), nil, nil)
	n.decide("192.0.2.1:443", "a.example 1")

	// Our own resolution does not count as asking.
	if _, err := n.Observe("c.example", addrs("192.0.2.1", "192.0.2.2"), time.Second, false, at(4)); err != nil {
		t.Error(err)
	}
	n.decide("192.0.2.1:443", "a.example 1")
	n.decide("192.0.2.2:443", "c.example 2")

	// Names without a rule are ignored.
	n.observe(5, "example", addrs("192.0.2.1"), nil, nil)
	n.observe(5, "other.test", addrs("192.0.2.1"), nil, nil)
	n.decide("192.0.2.1:443", "a.example 1")
	n.known("a.example 192.0.2.1", "a.example 2001:db8::1", "b.test 192.0.2.1", "c.example 192.0.2.1", "c.example 192.0.2.2")
}

func TestNamesIgnoresWhatIsNotCaptured(t *testing.T) {
	n := newNamesTest(t, "a.example:443=1")
	n.observe(0, "a.example", append(addrs(
		"127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "::ffff:127.0.0.1",
		"::ffff:192.0.2.1", "192.0.2.1", "fe80::1%eth0", "169.254.169.254"), netip.Addr{}),
		[]string{"192.0.2.1/32 443", "fe80::1/128 443", "169.254.169.254/32 443"}, nil)
	n.decide("127.0.0.1:443", "nothing")
}

func TestNamesExpiry(t *testing.T) {
	n := newNamesTest(t, "*.example:443=1")
	n.observe(0, "a.example", addrs("192.0.2.1", "192.0.2.2"), []string{"192.0.2.1/32 443", "192.0.2.2/32 443"}, nil)
	n.observe(10, "a.example", addrs("192.0.2.2"), nil, nil)
	n.expired(89)
	gone := n.expired(90, "192.0.2.1/32 443")
	n.decide("192.0.2.1:443", "a.example 1") // its route may still be there
	n.expired(90)                            // said once
	n.forget(gone)
	n.decide("192.0.2.1:443", "nothing")
	n.forget(gone)
	n.expired(98)
	// A shorter TTL does not shorten what was promised before.
	if _, err := n.Observe("a.example", addrs("192.0.2.2"), time.Second, true, at(99)); err != nil {
		t.Error(err)
	}
	n.expired(100)
	n.expired(159)
	n.forget(n.expired(160, "192.0.2.2/32 443"))
	n.known()

	// A negative TTL counts as 0, an absurd one as a week.
	for ttl, seconds := range map[time.Duration]int{-time.Hour: 60, 1 << 62: 7*24*3600 + 60} {
		n := newNamesTest(t, "*.example:443=1")
		if _, err := n.Observe("a.example", addrs("192.0.2.1"), ttl, true, at(0)); err != nil {
			t.Error(err)
		}
		n.expired(seconds - 1)
		n.expired(seconds, "192.0.2.1/32 443")
	}
}

// TestNamesExpireTogether lets more expire at once than one batch holds.
func TestNamesExpireTogether(t *testing.T) {
	const many = 2*batch + 100
	n := NewNames(mustSet(t, "*.example:443,80=1", "*.example:22=2"))
	n.limits.addrsPerName = many
	all := make([]netip.Addr, many)
	for i := range all {
		all[i] = netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})
	}
	for _, name := range []string{"a.example", "b.example"} {
		if _, err := n.Observe(name, all, time.Second, true, at(0)); err != nil {
			t.Fatal(err)
		}
	}
	release := n.Hold(all[0])
	if gone := n.Expired(at(100)); len(gone) > 0 {
		t.Errorf("%d captures expired in use", len(gone))
	}
	release()
	n.Expired(at(200))
	once := make(map[Capture]bool)
	expired := 0
	for gone := n.Expired(at(300)); len(gone) > 0; gone = n.Expired(at(300)) {
		if len(gone) > 2*batch {
			t.Errorf("%d captures expired at a time", len(gone))
		}
		for _, c := range gone {
			once[c] = true
		}
		expired += len(gone)
		if revived := n.Forget(gone); len(revived) > 0 {
			t.Errorf("%d captures revived", len(revived))
		}
	}
	if expired != 2*many || len(once) != 2*many {
		t.Errorf("%d captures expired, %d different ones, want %d", expired, len(once), 2*many)
	}
	if len(n.byAddr)+len(n.byName) > 0 {
		t.Errorf("%d addresses and %d names left", len(n.byAddr), len(n.byName))
	}
}

func TestNamesTimeStandsStill(t *testing.T) {
	n := newNamesTest(t, "*.example:443=1")
	n.observe(100, "a.example", addrs("192.0.2.1"), []string{"192.0.2.1/32 443"}, nil)
	n.observe(0, "b.example", addrs("192.0.2.2"), []string{"192.0.2.2/32 443"}, nil)
	n.expired(90)
	n.expired(189)
	n.expired(190, "192.0.2.1/32 443", "192.0.2.2/32 443")
}

func TestNamesHold(t *testing.T) {
	n := newNamesTest(t, "*.example:443=1")
	n.observe(0, "a.example", addrs("192.0.2.1", "192.0.2.2"), []string{"192.0.2.1/32 443", "192.0.2.2/32 443"}, nil)
	n.observe(0, "b.example", addrs("192.0.2.3"), []string{"192.0.2.3/32 443"}, nil)
	first := n.Hold(netip.MustParseAddr("::ffff:192.0.2.1"))
	second := n.Hold(netip.MustParseAddr("192.0.2.1"))
	n.forget(n.expired(1000, "192.0.2.3/32 443"))
	first()
	first()
	n.expired(2000)
	second()
	n.expired(3000) // grace begins here, when the time is next known
	n.expired(3059)
	n.forget(n.expired(3060, "192.0.2.1/32 443", "192.0.2.2/32 443"))
	n.known()

	// An address may be held before it is known, and by flows that begin as others end.
	release := n.Hold(netip.MustParseAddr("192.0.2.9"))
	n.observe(4000, "c.example", addrs("192.0.2.9"), []string{"192.0.2.9/32 443"}, nil)
	next := n.Hold(netip.MustParseAddr("192.0.2.9"))
	release()
	n.expired(5000)
	next()
	n.expired(6000)
	release = n.Hold(netip.MustParseAddr("192.0.2.9"))
	n.expired(7000)
	release()
	n.expired(8000)
	n.forget(n.expired(9000, "192.0.2.9/32 443"))
	if len(n.byAddr) > 0 || len(n.byName) > 0 {
		t.Errorf("left behind: %d addresses, %d names", len(n.byAddr), len(n.byName))
	}
}

func TestNamesSharedCapture(t *testing.T) {
	n := newNamesTest(t, "*.example:443=1", "*.test:443,80=2", "a.test:443=3")
	n.observe(0, "a.example", addrs("192.0.2.1"), []string{"192.0.2.1/32 443"}, nil)
	n.observe(10, "b.example", addrs("192.0.2.1"), nil, nil)
	n.observe(20, "a.test", addrs("192.0.2.1"), []string{"192.0.2.1/32 80,443"}, nil)
	n.forget(n.expired(90)) // a.example goes, but its capture stays
	n.known("a.test 192.0.2.1", "b.example 192.0.2.1")
	n.forget(n.expired(100))
	n.known("a.test 192.0.2.1")
	n.forget(n.expired(110, "192.0.2.1/32 443", "192.0.2.1/32 80,443"))
	n.known()
}

func TestNamesRevived(t *testing.T) {
	rules := []string{"*.example:443=1"}
	both := []string{"192.0.2.1/32 443", "192.0.2.2/32 443"}

	t.Run("by a flow", func(t *testing.T) {
		n := newNamesTest(t, rules...)
		n.observe(0, "a.example", addrs("192.0.2.1", "192.0.2.2"), both, nil)
		gone := n.expired(90, both...)
		n.known()
		release := n.Hold(netip.MustParseAddr("192.0.2.2"))
		n.forget(gone, captureTexts(n.set, gone)...) // all addresses of the name
		n.known("a.example 192.0.2.1", "a.example 192.0.2.2")
		release()
		n.expired(91)
		n.forget(n.expired(151, both...))
		n.known()
	})
	t.Run("by an answer", func(t *testing.T) {
		n := newNamesTest(t, rules...)
		n.observe(0, "a.example", addrs("192.0.2.1", "192.0.2.2"), both, nil)
		gone := n.expired(90, both...)
		n.observe(91, "a.example", addrs("192.0.2.2"), both[1:], nil)
		n.forget(gone, both[1:]...)
		n.known("a.example 192.0.2.2")
		n.observe(92, "a.example", addrs("192.0.2.2"), nil, nil)
	})
	t.Run("by another name", func(t *testing.T) {
		n := newNamesTest(t, rules...)
		n.observe(0, "a.example", addrs("192.0.2.1"), both[:1], nil)
		gone := n.expired(90, both[:1]...)
		n.observe(91, "b.example", addrs("192.0.2.1"), both[:1], nil)
		n.decide("192.0.2.1:443", "b.example 1")
		n.forget(gone, both[:1]...)
		n.known("b.example 192.0.2.1")
	})
}

func TestNamesLost(t *testing.T) {
	n := newNamesTest(t, "*.example:443=1")
	l := n.observe(0, "a.example", addrs("192.0.2.1", "192.0.2.2"), []string{"192.0.2.1/32 443", "192.0.2.2/32 443"}, nil)
	n.Lost(l.Add[1:])
	n.Lost([]Capture{{Dst: netip.MustParsePrefix("192.0.2.9/32")}, {Dst: l.Add[0].Dst, Set: 7}}) // not known
	n.observe(1, "a.example", addrs("192.0.2.1", "192.0.2.2"), []string{"192.0.2.2/32 443"}, nil)
	n.observe(2, "a.example", addrs("192.0.2.1", "192.0.2.2"), nil, nil)
	n.forget(l.Add, "192.0.2.1/32 443", "192.0.2.2/32 443") // needed, whoever removed them
}

func TestNamesBounds(t *testing.T) {
	hold := func(n namesTest, addr string) (release func()) { return n.Hold(netip.MustParseAddr(addr)) }

	t.Run("addresses of a name", func(t *testing.T) {
		n := newNamesTest(t, "*.example:443=1")
		n.limits.addrsPerName = 2
		n.observe(0, "a.example", addrs("192.0.2.1", "192.0.2.2"), []string{"192.0.2.1/32 443", "192.0.2.2/32 443"}, nil)
		n.observe(1, "a.example", addrs("192.0.2.1"), nil, nil)
		l := n.observe(2, "a.example", addrs("192.0.2.3"), []string{"192.0.2.3/32 443"}, []string{"192.0.2.2/32 443"})
		n.decide("192.0.2.2:443", "a.example 1")
		n.forget(l.Drop)
		n.decide("192.0.2.2:443", "nothing")
		n.known("a.example 192.0.2.1", "a.example 192.0.2.3")

		// In use, the address without a flow goes, although it is younger.
		defer hold(n, "192.0.2.1")()
		n.forget(n.observe(3, "a.example", addrs("192.0.2.4"), []string{"192.0.2.4/32 443"}, []string{"192.0.2.3/32 443"}).Drop)
		defer hold(n, "192.0.2.4")()
		_, err := n.Observe("a.example", addrs("192.0.2.5"), 0, true, at(4))
		if !errors.Is(err, ErrFull) || err.Error() != `keep address 192.0.2.5 of "a.example": 2 addresses a name: all are in use` {
			t.Errorf("got %v", err)
		}
		n.known("a.example 192.0.2.1", "a.example 192.0.2.4")
		n.observe(5, "b.example", addrs("192.0.2.5"), []string{"192.0.2.5/32 443"}, nil)
	})
	t.Run("one answer too large", func(t *testing.T) {
		n := newNamesTest(t, "*.example:443=1")
		n.limits.addrsPerName = 2
		n.observe(0, "a.example", addrs("192.0.2.3"), []string{"192.0.2.3/32 443"}, nil)
		l, err := n.Observe("a.example", addrs("192.0.2.1", "192.0.2.2", "192.0.2.3"), 0, true, at(1))
		if !errors.Is(err, ErrFull) {
			t.Errorf("got %v", err)
		}
		if diff := cmp.Diff([]string{"192.0.2.1/32 443"}, captureTexts(n.set, l.Add)); diff != "" || len(l.Drop) > 0 {
			t.Errorf("to add (-want +got):\n%s\nto drop: %v", diff, l.Drop)
		}
		n.known("a.example 192.0.2.1", "a.example 192.0.2.3")
	})
	t.Run("names of an address", func(t *testing.T) {
		n := newNamesTest(t, "*.example:443=1", "*.test:22=2")
		n.limits.namesPerAddr = 2
		n.observe(0, "a.example", addrs("192.0.2.1"), []string{"192.0.2.1/32 443"}, nil)
		n.observe(1, "b.example", addrs("192.0.2.1"), nil, nil)
		n.observe(2, "c.example", addrs("192.0.2.1"), nil, nil)
		n.known("b.example 192.0.2.1", "c.example 192.0.2.1")

		// Under a flow, a name can go if the other names keep its captures, but no other name can.
		defer hold(n, "192.0.2.1")()
		n.observe(3, "a.test", addrs("192.0.2.1"), []string{"192.0.2.1/32 22"}, nil)
		n.known("a.test 192.0.2.1", "c.example 192.0.2.1")
		_, err := n.Observe("d.example", addrs("192.0.2.1"), 0, true, at(4))
		if !errors.Is(err, ErrFull) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("total", func(t *testing.T) {
		n := newNamesTest(t, "*.example:443=1")
		n.limits.pairs = 3
		n.observe(0, "a.example", addrs("192.0.2.1"), []string{"192.0.2.1/32 443"}, nil)
		n.observe(1, "b.example", addrs("192.0.2.2"), []string{"192.0.2.2/32 443"}, nil)
		n.observe(2, "c.example", addrs("192.0.2.3"), []string{"192.0.2.3/32 443"}, nil)
		hold(n, "192.0.2.1")() // has been in use since
		n.forget(n.observe(3, "d.example", addrs("192.0.2.4"), []string{"192.0.2.4/32 443"}, []string{"192.0.2.2/32 443"}).Drop)
		defer hold(n, "192.0.2.3")()
		n.forget(n.observe(4, "e.example", addrs("192.0.2.5"), []string{"192.0.2.5/32 443"}, []string{"192.0.2.1/32 443"}).Drop)
		n.known("c.example 192.0.2.3", "d.example 192.0.2.4", "e.example 192.0.2.5")
		defer hold(n, "192.0.2.4")()
		n.forget(n.observe(5, "c.example", addrs("192.0.2.6"), []string{"192.0.2.6/32 443"}, []string{"192.0.2.5/32 443"}).Drop)
		// All are in use, 192.0.2.6 only through its name: it is spared until last.
		n.forget(n.observe(6, "f.example", addrs("192.0.2.7"), []string{"192.0.2.7/32 443"}, []string{"192.0.2.6/32 443"}).Drop)
		defer hold(n, "192.0.2.7")()
		_, err := n.Observe("g.example", addrs("192.0.2.8"), 0, true, at(7))
		if !errors.Is(err, ErrFull) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the same capture again", func(t *testing.T) {
		n := newNamesTest(t, "*.example:443=1")
		n.limits.namesPerAddr = 1
		n.observe(0, "a.example", addrs("192.0.2.1"), []string{"192.0.2.1/32 443"}, nil)
		n.observe(1, "b.example", addrs("192.0.2.1"), nil, nil) // neither added nor dropped
		n.known("b.example 192.0.2.1")
		n.decide("192.0.2.1:443", "b.example 1")
	})
}

func TestNamesShared(t *testing.T) {
	n := newNamesTest(t,
		"a.example:443=1", "b.example:443=2", "c.example:443=1", "d.example:22=3", "*.test:400-500,1=4", "e.example:*=1 busy=any")
	warned := func(seconds int, name string, addr string, want ...string) {
		t.Helper()
		l, err := n.Observe(name, addrs(addr), 30*time.Second, true, at(seconds))
		if err != nil {
			t.Error(err)
		}
		var got []string
		for _, s := range l.Shared {
			got = append(got, fmt.Sprintf("%s:%d: %s %s, %s %s", s.Addr, s.Port, s.Name, s.Rule.Pin(), s.Other, s.OtherRule.Pin()))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s at %s (-want +got):\n%s", name, addr, diff)
		}
	}
	warned(0, "a.example", "192.0.2.1")
	warned(0, "b.example", "192.0.2.1", "192.0.2.1:443: b.example 2, a.example 1")
	warned(1, "a.example", "192.0.2.1") // said
	warned(1, "c.example", "192.0.2.1", "192.0.2.1:443: c.example 1, b.example 2")
	warned(2, "d.example", "192.0.2.1") // no port in common
	warned(3, "x.test", "192.0.2.2")
	warned(3, "y.test", "192.0.2.2") // the same rule
	warned(4, "b.example", "192.0.2.2",
		"192.0.2.2:443: b.example 2, y.test 4", "192.0.2.2:443: b.example 2, x.test 4")
	warned(5, "a.example", "192.0.2.3")
	warned(5, "e.example", "192.0.2.3", "192.0.2.3:443: e.example 1, a.example 1") // the same pin, but not the same rule

	// Nothing is said again when the names come back.
	n.Forget(n.Expired(at(1000)))
	n.known()
	warned(1001, "a.example", "192.0.2.1")
	warned(1001, "b.example", "192.0.2.1")

	// Our own resolution does not put a name first.
	n = newNamesTest(t, "a.example:443=1", "b.example:443=2")
	warned(0, "a.example", "192.0.2.1")
	l, err := n.Observe("b.example", addrs("192.0.2.1"), 0, false, at(0))
	if err != nil || len(l.Shared) != 1 {
		t.Fatalf("got %v, %v", l.Shared, err)
	}
	const want = `192.0.2.1 is the address of "a.example" and of "b.example", which have different rules, ` +
		`"a.example:443=1" and "b.example:443=2": the name asked for last decides, now "a.example"`
	if l.Shared[0].String() != want {
		t.Errorf("got  %s\nwant %s", l.Shared[0], want)
	}
}

func TestNamesOthers(t *testing.T) {
	n := newNamesTest(t, "*.example:443=1")
	n.Observe("a.example", addrs("192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3"), time.Second, true, at(0))
	n.Observe("a.example", addrs("192.0.2.4", "192.0.2.2", "2001:db8::2"), time.Hour, true, at(1))
	n.Observe("b.example", addrs("192.0.2.9"), time.Hour, true, at(1))
	for _, tt := range []struct {
		name, addr string
		want       []netip.Addr
	}{
		{"A.example.", "192.0.2.1", addrs("192.0.2.4", "192.0.2.2", "192.0.2.3")},
		{"a.example", "::ffff:192.0.2.4", addrs("192.0.2.2", "192.0.2.1", "192.0.2.3")},
		{"a.example", "2001:db8::1", addrs("2001:db8::2")},
		{"a.example", "192.0.2.77", addrs("192.0.2.4", "192.0.2.2", "192.0.2.1", "192.0.2.3")},
		{"b.example", "192.0.2.9", []netip.Addr{}},
		{"c.example", "192.0.2.9", nil},
	} {
		got := n.Others(tt.name, netip.MustParseAddr(tt.addr))
		if !slices.Equal(got, tt.want) {
			t.Errorf("others of %s than %s: %v, want %v", tt.name, tt.addr, got, tt.want)
		}
	}
	n.Expired(at(100))
	if got := n.Others("a.example", netip.MustParseAddr("192.0.2.4")); !slices.Equal(got, addrs("192.0.2.2")) {
		t.Errorf("others once the first answer has expired: %v", got)
	}
}

func TestNamesAll(t *testing.T) {
	n := newNamesTest(t, "*.example:443=1")
	n.observe(0, "b.example", addrs("192.0.2.2", "192.0.2.1"), []string{"192.0.2.2/32 443", "192.0.2.1/32 443"}, nil)
	n.observe(5, "a.example", addrs("192.0.2.3"), []string{"192.0.2.3/32 443"}, nil)
	defer n.Hold(netip.MustParseAddr("192.0.2.1"))()
	want := []Entry{
		{"a.example", netip.MustParseAddr("192.0.2.3"), at(35), false},
		{"b.example", netip.MustParseAddr("192.0.2.1"), at(30), true},
		{"b.example", netip.MustParseAddr("192.0.2.2"), at(30), true},
	}
	if diff := cmp.Diff(want, slices.Collect(n.All()), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for range n.All() {
		n.Hold(netip.MustParseAddr("192.0.2.3"))() // no lock is held in the meantime
		break
	}
}

// TestNamesConcurrently is for the race detector: flows come and go while one caller carries out captures.
func TestNamesConcurrently(t *testing.T) {
	set := mustSet(t, "*.example:443=1", "a.example:443=2")
	n := NewNames(set)
	n.limits = limits{addrsPerName: 8, namesPerAddr: 4, pairs: 30}
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i%12)}) }
	const rounds = 2000
	var wg sync.WaitGroup
	wg.Go(func() { // the caller of Observe and Expired
		routes := make(map[Capture]bool)
		for i := range rounds {
			l, err := n.Observe(string(rune('a'+i%7))+".example", []netip.Addr{addr(i), addr(3 * i)}, 0, i%2 == 0, at(i/4))
			if err != nil && !errors.Is(err, ErrFull) {
				t.Error(err)
			}
			gone := append(l.Drop, n.Expired(at(i/4))...)
			for _, c := range l.Add {
				routes[c] = true
			}
			for _, c := range gone {
				delete(routes, c)
			}
			for _, c := range n.Forget(gone) {
				routes[c] = true
			}
			for e := range n.All() {
				if c := (Capture{Dst: netip.PrefixFrom(e.Addr, 32)}); !routes[c] {
					t.Errorf("%v is known but not captured", e)
				}
			}
		}
	})
	for flow := range 3 {
		wg.Go(func() {
			for i := range rounds {
				a := addr(i + 5*flow)
				release := n.Hold(a)
				if d := n.Decide(netip.AddrPortFrom(a, 443)); d.Rule != nil {
					n.Others(d.Name, a)
				}
				release()
			}
		})
	}
	wg.Wait()
	n.Forget(n.Expired(at(10 * rounds)))
	n.Forget(n.Expired(at(20 * rounds)))
	if len(n.byName)+len(n.byAddr)+n.live+n.inUse+len(n.ends.pairs)+len(n.ages.pairs)+len(n.freed) > 0 {
		t.Errorf("left behind: %d names, %d addresses, %d live, %d in use, %d and %d queued, %d freed",
			len(n.byName), len(n.byAddr), n.live, n.inUse, len(n.ends.pairs), len(n.ages.pairs), len(n.freed))
	}
}
