package netstack

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// crowd returns a turns in a crowd. The test gives the turns.
func crowd(most int) *turns {
	t := &turns{
		of:     func(dst netip.AddrPort) any { return dst.Port() },
		most:   most,
		groups: make(map[any]*group),
	}
	t.crowded.Store(true)
	return t
}

func idOf(src string, port uint16) stack.TransportEndpointID {
	return stack.TransportEndpointID{
		LocalAddress: tcpip.AddrFrom4([4]byte{203, 0, 113, 2}), LocalPort: port,
		RemoteAddress: tcpip.AddrFromSlice(netip.MustParseAddr(src).AsSlice()), RemotePort: 1024,
	}
}

func (t *turns) come(src string, port uint16) *Flow {
	f := &Flow{line: t.line(idOf(src, port))}
	f.dst = netip.AddrPortFrom(netip.MustParseAddr(src), port) // the test recognizes the flow by it
	t.begin(f)
	return f
}

// given returns the order of the next n turns, with "begun" for a flow that has begun.
func (t *turns) given(n int) (order []string) {
	for range n {
		f, turn := t.next()
		switch {
		case turn != nil:
			order = append(order, "begun")
		case f != nil:
			order = append(order, fmt.Sprintf("%s/%d", f.dst.Addr(), f.dst.Port()))
		}
	}
	return order
}

func TestTurns(t *testing.T) {
	const a, b, c = "198.51.100.1", "198.51.100.2", "198.51.100.3"
	for _, test := range []struct {
		name string
		come func(ts *turns)
		want []string
	}{
		{"in order", func(ts *turns) { ts.come(a, 1); ts.come(a, 1) }, []string{a + "/1", a + "/1"}},
		{"sources of a group in turns", func(ts *turns) {
			for range 3 {
				ts.come(a, 1)
			}
			ts.come(b, 1)
		}, []string{a + "/1", b + "/1", a + "/1", a + "/1"}},
		{"many sources are one group's", func(ts *turns) {
			ts.come(a, 1)
			ts.come(b, 1)
			ts.come(c, 1)
			ts.come(a, 2)
			ts.come(a, 2)
		}, []string{a + "/1", a + "/2", b + "/1", a + "/2", c + "/1"}},
		{"a network is one source", func(ts *turns) {
			ts.come("2001:db8::1", 1)
			ts.come("2001:db8::2", 1)
			ts.come("2001:db8:0:1::1", 1)
		}, []string{"2001:db8::1/1", "2001:db8:0:1::1/1", "2001:db8::2/1"}},
		{"what has begun first", func(ts *turns) {
			f := ts.come(a, 1)
			ts.come(a, 1)
			ts.waiting(f)
		}, []string{"begun", a + "/1", a + "/1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			ts := crowd(100)
			test.come(ts)
			if got := ts.given(len(test.want) + 1); !slices.Equal(got, test.want) {
				t.Errorf("turns: %v, want %v", got, test.want)
			}
			if ts.crowded.Load() || ts.waits != 0 || len(ts.groups) != 0 {
				t.Errorf("nobody waits, and there are %d of %d groups, crowded: %v", ts.waits, len(ts.groups), ts.crowded.Load())
			}
		})
	}
}

// A group that arrives while others wait goes first, but those that wait have every second turn.
func TestTurnsOfNewcomers(t *testing.T) {
	const a, b = "198.51.100.1", "198.51.100.2"
	ts := crowd(1000)
	for range 5 {
		ts.come(a, 1)
	}
	ts.given(2)
	var got []string
	for port := uint16(2); port < 6; port++ {
		ts.come(b, port)
		got = append(got, ts.given(1)...)
	}
	want := []string{b + "/2", a + "/1", b + "/4", b + "/3"}
	if !slices.Equal(got, want) {
		t.Errorf("turns: %v, want %v", got, want)
	}
}

func TestTurnsFull(t *testing.T) {
	const most = 1000
	ts := crowd(most)
	fill := func(src string) (n int) {
		for ; n < most; n++ {
			if ts.full(idOf(src, 1)) {
				return n
			}
			ts.come(src, 1)
		}
		t.Fatalf("%s is never full", src)
		return 0
	}
	// Half of what is left: n = (1000 - n) / 2, and so on.
	if first, second := fill("198.51.100.1"), fill("198.51.100.2"); first != 333 || second != 222 {
		t.Errorf("a line takes %d, and another beside it %d; want 333 and 222", first, second)
	}
	if third := fill("198.51.100.3"); third < 100 {
		t.Errorf("two long lines leave room for %d of a third", third)
	}
	ts.given(most)
	if ts.full(idOf("198.51.100.1", 1)) {
		t.Error("full when all have had their turns")
	}
}

// The reader lets others run after a few packets, if there is a crowd and the packets took long.
func TestTurnsPace(t *testing.T) {
	ts := crowd(1000)
	if err := ts.open(); err != nil {
		t.Fatal(err)
	}
	defer ts.close()
	for _, test := range []struct {
		name    string
		crowded bool
		last    time.Duration // how long ago
		packets int
		yields  bool
	}{
		{"after a few", true, time.Minute, yieldAfter, true},
		{"too few", true, time.Minute, yieldAfter - 1, false},
		{"too soon", true, -time.Minute, yieldAfter, false},
		{"no crowd", false, time.Minute, yieldAfter, false},
	} {
		ts.crowded.Store(test.crowded)
		last := time.Now().Add(-test.last)
		ts.paced, ts.rests = 0, last
		for range test.packets {
			ts.pace()
		}
		if yielded := ts.rests != last; yielded != test.yields {
			t.Errorf("%s: yielded: %v", test.name, yielded)
		}
	}
}

func TestTurnsAlone(t *testing.T) {
	a, b := lineKey{group: 1}, lineKey{group: 2}
	begun := time.Unix(1, 0)
	for _, test := range []struct {
		name  string
		lines []lineKey
		every time.Duration
		alone int // how many do not wait
	}{
		{"one line", slices.Repeat([]lineKey{a}, 80), time.Microsecond, fewAlone},
		{"one line, slowly", slices.Repeat([]lineKey{a}, 80), turnEvery / 50, 80},
		{"two lines", slices.Repeat([]lineKey{a, b}, 25), time.Microsecond, fewBesides},
		{"two lines, slowly", slices.Repeat([]lineKey{a, b}, 25), turnEvery, 50},
	} {
		t.Run(test.name, func(t *testing.T) {
			spawned := 0
			ts := &turns{procs: 1, spawn: func(func()) { spawned++ }, last: a}
			alone := 0
			for n, key := range test.lines {
				if ts.aloneLocked(key, begun.Add(time.Duration(n)*test.every)) {
					alone++
				}
			}
			if alone != test.alone {
				t.Errorf("%d of %d did not wait, want %d", alone, len(test.lines), test.alone)
			}
			if crowded := alone < len(test.lines); ts.crowded.Load() != crowded || spawned > 1 || crowded != (spawned == 1) {
				t.Errorf("crowded: %v, and %d give turns", ts.crowded.Load(), spawned)
			}
		})
	}
}

func BenchmarkTurnsAlone(b *testing.B) {
	ts := crowd(100)
	ts.crowded.Store(false)
	ts.procs, ts.spawn = 1<<20, func(func()) {}
	f := &Flow{line: lineKey{group: 1}}
	for b.Loop() {
		ts.begin(f)
	}
}
