package lease

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pinproxy/rules"

	"github.com/google/go-cmp/cmp"
)

func TestLocal(t *testing.T) {
	for _, tt := range []struct{ pin, dst, local string }{
		{"63999", "203.0.113.1:443", "0.0.0.0:63999"},
		{"63999", "[2001:db8::1]:443", "[::]:63999"},
		{"63999", "[::ffff:203.0.113.1]:443", "0.0.0.0:63999"},
		{"192.0.2.10:20000-20999", "203.0.113.1:443", "192.0.2.10:20000"},
		{"[2001:db8::10]:1022", "[2001:db8::1]:22", "[2001:db8::10]:1022"},
	} {
		l := acquire(t, NewTable(), Request{Pin: pinOf(t, tt.pin), Dst: netip.MustParseAddrPort(tt.dst)})
		if got := l.Local().String(); got != tt.local {
			t.Errorf("%s to %s: %s, want %s", tt.pin, tt.dst, got, tt.local)
		}
	}
}

func TestImpossible(t *testing.T) {
	table := NewTable()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name string
		ctx  context.Context
		r    Request
		err  string
		is   error
	}{
		{
			"family", t.Context(),
			Request{Pin: pinOf(t, "192.0.2.10:63999"), Dst: netip.MustParseAddrPort("[2001:db8::1]:443")},
			"lease 192.0.2.10:63999 to [2001:db8::1]:443: source address 192.0.2.10 is of the other family", nil,
		},
		{"no ports", t.Context(), Request{Dst: dst}, "pin has no ports", nil},
		{"no destination", t.Context(), Request{Pin: pinOf(t, "63999")}, "destination has no address", nil},
		{"context", ended, Request{Pin: pinOf(t, "63999"), Dst: dst}, "context canceled", context.Canceled},
	} {
		l, err := table.Acquire(tt.ctx, tt.r)
		if l != nil || err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, %v", tt.name, l, err)
		}
		if errors.Is(err, ErrBusy) || tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("%s: %v is the wrong kind", tt.name, err)
		}
	}
	checkEmpty(t, table)
}

// TestOrder takes and releases ports of one range and checks which ports are taken.
func TestOrder(t *testing.T) {
	type step struct {
		take    uint16        // expect this one
		busy    bool          // or none
		release uint16        // this one,
		rest    time.Duration // with a rest
		pass    time.Duration
	}
	for _, tt := range []struct {
		name, pin string
		cooldown  time.Duration
		steps     []step
	}{
		{"never used first, ascending", "5000-5001,4000", 0, []step{
			{take: 4000}, {release: 4000}, {take: 5000}, {take: 5001}, {take: 4000}, {busy: true},
		}},
		{"then in order of release", "10-12", 0, []step{
			{take: 10},
			{take: 11},
			{take: 12},
			{release: 11},
			{release: 12},
			{release: 10},
			{take: 11},
			{take: 12},
			{take: 10},
			{busy: true},
		}},
		{"a long rest holds up nobody", "10-12", 0, []step{
			{take: 10},
			{take: 11},
			{take: 12},
			{release: 10, rest: time.Hour},
			{release: 11, rest: time.Second},
			{release: 12},
			{take: 12},
			{busy: true},
			{pass: time.Second},
			{take: 11},
			{busy: true},
			{pass: time.Hour - 2*time.Second},
			{busy: true},
			{pass: time.Second},
			{take: 10},
		}},
		{"rested ports take their turn by release", "10-12", 0, []step{
			{take: 10},
			{take: 11},
			{take: 12},
			{release: 10, rest: 2 * time.Second},
			{release: 11, rest: time.Second},
			{release: 12},
			{pass: 2 * time.Second},
			{take: 10},
			{take: 11},
			{take: 12},
		}},
		{"cooldown", "10", 3 * time.Second, []step{
			{take: 10}, {release: 10}, {busy: true}, {pass: 3*time.Second - 1}, {busy: true}, {pass: 1}, {take: 10},
		}},
		{"rest within cooldown", "10", 3 * time.Second, []step{
			{take: 10}, {release: 10, rest: time.Second}, {pass: 3*time.Second - 1}, {busy: true}, {pass: 1}, {take: 10},
		}},
		{"rest beyond cooldown", "10", 3 * time.Second, []step{
			{take: 10}, {release: 10, rest: time.Minute}, {pass: time.Minute - 1}, {busy: true}, {pass: 1}, {take: 10},
		}},
		{"a negative rest is none", "10", 0, []step{{take: 10}, {release: 10, rest: -time.Hour}, {take: 10}}},
		{"refused by the kernel: another port", "10-11", 0, []step{
			{take: 10},
			{release: 10, rest: 50 * time.Millisecond},
			{take: 11},
			{release: 11, rest: 50 * time.Millisecond},
			{busy: true},
			{pass: 50 * time.Millisecond},
			{take: 10},
			{release: 10, rest: 50 * time.Millisecond},
			{take: 11},
		}},
		{"remembered for four minutes", "10-13", 0, []step{
			{take: 10},
			{take: 11},
			{take: 12},
			{release: 12},
			{pass: time.Minute},
			{release: 11},
			{pass: 3*time.Minute + 30*time.Second},
			// 12 is fresh again, behind 13, which has never been used.
			{take: 13},
			{take: 12},
			{take: 11},
			{busy: true},
		}},
		{"the whole range of ports", "1-65535", 0, []step{{take: 1}, {release: 1}, {take: 2}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := NewTable()
				r := Request{Pin: pinOf(t, tt.pin), Dst: dst, Cooldown: tt.cooldown}
				leases := make(map[uint16]*Lease)
				for i, s := range tt.steps {
					switch {
					case s.pass > 0:
						time.Sleep(s.pass)
						synctest.Wait()
					case s.release > 0:
						leases[s.release].Release(s.rest)
						leases[s.release].Release(time.Hour) // does nothing
					default:
						l, err := table.Acquire(t.Context(), r)
						if s.busy {
							if !errors.Is(err, ErrBusy) {
								t.Fatalf("step %d: %v, %v, want busy", i, l, err)
							}
							break
						}
						if err != nil {
							t.Fatalf("step %d: %v", i, err)
						}
						if got := l.Local().Port(); got != s.take {
							t.Fatalf("step %d: port %d, want %d", i, got, s.take)
						}
						leases[s.take] = l
					}
					check(t, table)
				}
			})
		})
	}
}

func TestDestinationsDoNotCompete(t *testing.T) {
	table := NewTable()
	pin := pinOf(t, "63999")
	for _, to := range []string{"203.0.113.1:443", "203.0.113.1:80", "203.0.113.2:443", "[2001:db8::1]:443"} {
		acquire(t, table, Request{Pin: pin, Dst: netip.MustParseAddrPort(to)})
	}
	// Another source address is another 4-tuple.
	acquire(t, table, Request{Pin: pinOf(t, "192.0.2.10:63999")})
	acquire(t, table, Request{Pin: pinOf(t, "192.0.2.11:63999")})
	check(t, table)
	_, err := table.Acquire(t.Context(), Request{Pin: pin, Dst: netip.MustParseAddrPort("[::ffff:203.0.113.1]:443")})
	if !errors.Is(err, ErrBusy) {
		t.Errorf("a mapped address is another destination: %v", err)
	}
}

func TestOverlap(t *testing.T) {
	table := NewTable()
	one, ten := pinOf(t, "63999"), pinOf(t, "63990-63999")
	first := acquire(t, table, Request{Pin: one})
	for want := uint16(63990); want < 63999; want++ {
		if got := acquire(t, table, Request{Pin: ten}).Local().Port(); got != want {
			t.Fatalf("port %d, want %d", got, want)
		}
	}
	if _, err := table.Acquire(t.Context(), Request{Pin: ten, Dst: dst}); !errors.Is(err, ErrBusy) {
		t.Fatalf("an eleventh lease: %v", err)
	}
	first.Release(0)
	if got := acquire(t, table, Request{Pin: ten}).Local().Port(); got != 63999 {
		t.Fatalf("port %d", got)
	}
	if _, err := table.Acquire(t.Context(), Request{Pin: one, Dst: dst}); !errors.Is(err, ErrBusy) {
		t.Fatalf("a second holder: %v", err)
	}
	check(t, table)
}

// TestStaleLease releases a lease a second time while its 4-tuple serves another flow.
func TestStaleLease(t *testing.T) {
	table := NewTable()
	r := Request{Pin: pinOf(t, "63999"), Dst: dst}
	old := acquire(t, table, r)
	old.Release(0)
	acquire(t, table, r)
	old.Release(0)
	if _, err := table.Acquire(t.Context(), r); !errors.Is(err, ErrBusy) {
		t.Fatalf("a second holder: %v", err)
	}
}

func TestBusyError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		pin := pinOf(t, "63990-63993")
		browser, nameless := &flow{name: "192.0.2.7:40112"}, struct{ Holder }{}
		acquire(t, table, Request{Pin: pin, Holder: browser})
		time.Sleep(2 * time.Second)
		acquire(t, table, Request{Pin: pin, Holder: nameless})
		a, b := acquire(t, table, Request{Pin: pin}), acquire(t, table, Request{Pin: pin})
		a.Release(9 * time.Second)
		b.Release(5 * time.Second)

		for _, tt := range []struct {
			wait time.Duration
			text string
			want BusyError
		}{
			{
				0, "lease 63990-63993 to 203.0.113.1:443: every source port is busy: " +
					"63990 held for 2s by 192.0.2.7:40112, 63991 held for 0s, 2 resting, the first for 5s more",
				BusyError{Holding: 2, Resting: 2, FreeAt: time.Now().Add(5 * time.Second)},
			},
			{
				4 * time.Second, "lease 63990-63993 to 203.0.113.1:443: every source port is busy after 4s: " +
					"63990 held for 6s by 192.0.2.7:40112, 63991 held for 4s, 2 resting, the first for 1s more",
				BusyError{Holding: 2, Resting: 2, FreeAt: time.Now().Add(5 * time.Second)},
			},
		} {
			_, err := table.Acquire(t.Context(), Request{Pin: pin, Dst: dst, Wait: tt.wait})
			var busy *BusyError
			if !errors.As(err, &busy) || !errors.Is(err, ErrBusy) {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.text, busy.Error()); diff != "" {
				t.Error(diff)
			}
			if busy.Waited != tt.wait || busy.Dst != dst || busy.Pin.String() != pin.String() || busy.Waiting != 0 ||
				busy.Holding != tt.want.Holding || busy.Resting != tt.want.Resting || !busy.FreeAt.Equal(tt.want.FreeAt) {
				t.Errorf("%+v", busy)
			}
			if len(busy.Held) != 2 || busy.Held[0].Holder != browser {
				t.Errorf("held: %+v", busy.Held)
			}
		}
	})
}

// TestBusyErrorNamesAFew names a few of many holders.
func TestBusyErrorNamesAFew(t *testing.T) {
	table := NewTable()
	r := Request{Pin: pinOf(t, "1000-1999"), Dst: dst}
	for range 1000 {
		acquire(t, table, r)
	}
	_, err := table.Acquire(t.Context(), r)
	var busy *BusyError
	if !errors.As(err, &busy) || len(busy.Held) != 8 || busy.Holding != 1000 || !busy.FreeAt.IsZero() {
		t.Fatalf("%+v", busy)
	}
	if !strings.HasSuffix(err.Error(), ", 992 more held") {
		t.Error(err)
	}
}

func TestHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		one, ten := pinOf(t, "63991"), pinOf(t, "63990-63999")
		f, g := &flow{name: "f"}, &flow{name: "g"}
		begin := time.Now()
		acquire(t, table, Request{Pin: one, Holder: f})
		time.Sleep(time.Minute)
		acquire(t, table, Request{Pin: ten, Holder: g}).Release(0)
		acquire(t, table, Request{Pin: ten, Holder: g})

		tell := func(pin rules.Pin, to netip.AddrPort) (out []string) {
			for _, h := range table.Held(to, pin) {
				out = append(out, h.Local.String()+" "+h.Since.Sub(begin).String()+" "+h.Holder.(*flow).name)
			}
			return out
		}
		for _, tt := range []struct {
			pin  rules.Pin
			dst  string
			want []string
		}{
			{one, "203.0.113.1:443", []string{"0.0.0.0:63991 0s f"}},
			{ten, "203.0.113.1:443", []string{"0.0.0.0:63991 0s f", "0.0.0.0:63992 1m0s g"}},
			{ten, "[::ffff:203.0.113.1]:443", []string{"0.0.0.0:63991 0s f", "0.0.0.0:63992 1m0s g"}},
			{ten, "203.0.113.2:443", nil},
			{pinOf(t, "192.0.2.10:63991"), "203.0.113.1:443", nil},
		} {
			if diff := cmp.Diff(tt.want, tell(tt.pin, netip.MustParseAddrPort(tt.dst))); diff != "" {
				t.Errorf("%v to %s: %s", tt.pin, tt.dst, diff)
			}
		}
		if held, waiting := table.Counts(); held != 2 || waiting != 0 {
			t.Errorf("%d held, %d waiting", held, waiting)
		}
	})
}
