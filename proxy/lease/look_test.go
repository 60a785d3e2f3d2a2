package lease

import (
	"cmp"
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

// Acquire gives what Look lists as next.
func TestLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		pin := pinOf(t, "63990-63993")
		next := func(fresh []uint16, used ...uint16) {
			t.Helper()
			if v := table.Look(dst, pin); !slices.Equal(v.Next, append(fresh, used...)) || !slices.Equal(v.Used, used) {
				t.Errorf("next are %v, of them used %v; want %v and %v", v.Next, v.Used, fresh, used)
			}
		}
		next([]uint16{63990, 63991, 63992, 63993})
		if len(table.pairs) > 0 {
			t.Error("a look leaves something behind")
		}
		holder := &flow{name: "flow 1"}
		a := acquire(t, table, Request{Pin: pin, Holder: holder})
		b := acquire(t, table, Request{Pin: pin})
		next([]uint16{63992, 63993})
		a.Release(time.Minute)
		b.Release(0)
		next([]uint16{63992, 63993}, 63991)
		v := table.Look(dst, pin)
		if v.Resting != 1 || len(v.Rests) != 1 || v.Rests[0].Local.Port() != 63990 || time.Until(v.Rests[0].Until) != time.Minute || v.Holding != 0 {
			t.Errorf("while one rests: %+v", v)
		}
		time.Sleep(time.Minute)
		next([]uint16{63992, 63993}, 63990, 63991) // in the order of their release, although nobody has looked since
		for _, want := range []uint16{63992, 63993, 63990, 63991} {
			if got := acquire(t, table, Request{Pin: pin, Holder: holder}).Local().Port(); got != want {
				t.Errorf("got %d, want %d", got, want)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			_, _ = table.Acquire(ctx, Request{Pin: pin, Dst: dst, Wait: time.Hour})
		}()
		synctest.Wait()
		v = table.Look(dst, pin)
		if v.Holding != 4 || len(v.Held) != 4 || v.Held[0].Local.Port() != 63990 || v.Held[0].Holder != holder || v.Waiting != 1 || v.Next != nil {
			t.Errorf("while all are held: %+v", v)
		}
		cancel()
		<-gone
	})
}

// A pin that overlaps another sees the other's holders.
func TestLookAtOverlappingPin(t *testing.T) {
	table := NewTable()
	l := acquire(t, table, Request{Pin: pinOf(t, "63990-63999")})
	defer l.Release(0)
	if v := table.Look(dst, pinOf(t, "63989-63991")); v.Holding != 1 || !slices.Equal(v.Next, []uint16{63989, 63991}) {
		t.Errorf("%+v", v)
	}
	if v := table.Look(dst, pinOf(t, "1-65535")); v.Holding != 1 || len(v.Next) != viewed {
		t.Errorf("%+v", v)
	}
}

// A port that is in several pins rests once. What is held, or has rested, is not listed.
func TestRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		rests := func(want ...uint16) {
			t.Helper()
			looks := 0
			list := table.Rests(func() { looks++; table.Counts() })
			slices.SortFunc(list, func(a, b Resting) int { return cmp.Compare(a.Local.Port(), b.Local.Port()) })
			var got []uint16
			for _, r := range list {
				if got = append(got, r.Local.Port()); r.Remote != dst || time.Until(r.Until) != time.Minute {
					t.Errorf("%+v", r)
				}
			}
			if !slices.Equal(got, want) || looks > 1 {
				t.Errorf("%v rest, want %v, in %d looks", got, want, looks)
			}
		}
		rests()
		a := acquire(t, table, Request{Pin: pinOf(t, "63990-63991")})
		b := acquire(t, table, Request{Pin: pinOf(t, "63991-63992")})
		c := acquire(t, table, Request{Pin: pinOf(t, "63992")})
		rests()
		a.Release(time.Minute)
		b.Release(time.Minute)
		rests(63990, 63991)
		time.Sleep(time.Minute)
		c.Release(0)
		rests()
	})
}

// Busy knows the ports as they are now, and nothing once one is free.
func TestBusyNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		pin := pinOf(t, "63990-63991")
		if busy := table.Busy(dst, pin); busy != nil {
			t.Errorf("with no port used: %v", busy)
		}
		a := acquire(t, table, Request{Pin: pin, Holder: &flow{name: "flow 1"}})
		if busy := table.Busy(dst, pin); busy != nil {
			t.Errorf("with one port unused: %v", busy)
		}
		b := acquire(t, table, Request{Pin: pin, Holder: &flow{name: "flow 2"}})
		time.Sleep(7 * time.Second)
		b.Release(time.Minute)
		if busy := table.Busy(dst, pin); busy == nil || busy.Holding != 1 || busy.Resting != 1 ||
			len(busy.Held) != 1 || time.Since(busy.Held[0].Since) != 7*time.Second {
			t.Errorf("with one held and one resting: %+v", busy)
		}
		time.Sleep(time.Minute)
		if busy := table.Busy(dst, pin); busy != nil {
			t.Errorf("with one rested: %v", busy)
		}
		a.Release(0)
		acquire(t, table, Request{Pin: pin}).Release(0)
		if busy := table.Busy(dst, pin); busy != nil {
			t.Errorf("with all free: %v", busy)
		}
	})
}

// The moments that a View tells are right on another process's clock too, though a host was suspended since the table
// was made, or its clock was set: JSON has no monotonic reading.
func TestLookAfterSuspend(t *testing.T) {
	table := NewTable()
	wall := (*uint64)(unsafe.Pointer(&table.epoch)) // its first field, seconds from bit 30 on
	*wall -= 3600 << 30
	if slept := time.Since(table.epoch.Round(0)) - time.Since(table.epoch); slept.Round(time.Minute) != time.Hour {
		t.Fatalf("the clock of this test is %v ahead", slept)
	}
	r := Request{Pin: pinOf(t, "10-11"), Dst: dst}
	acquire(t, table, r)
	acquire(t, table, r).Release(time.Minute)
	v := table.Look(dst, r.Pin)
	if ago := time.Since(v.Held[0].Since.Round(0)); ago.Round(time.Minute) != 0 {
		t.Errorf("held for %v", ago)
	}
	if left := time.Until(v.Rests[0].Until.Round(0)); left.Round(time.Minute) != time.Minute {
		t.Errorf("rests for %v more", left)
	}
}
