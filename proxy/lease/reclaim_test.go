package lease

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestReclaimIdleLongest asks the flow that has been idle longest, as soon as it has been idle long enough.
func TestReclaimIdleLongest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		pin := pinOf(t, "10-12")
		var flows []*flow
		var leases []*Lease
		for range 3 {
			f := &flow{}
			flows = append(flows, f)
			leases = append(leases, acquire(t, table, Request{Pin: pin, Holder: f}))
		}
		pass := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
			check(t, table)
		}
		asked := func(want ...int) {
			t.Helper()
			for i, f := range flows {
				if f.asks() != want[i] {
					t.Fatalf("flow %d was asked %d times, want %v", i, f.asks(), want)
				}
			}
		}
		pass(time.Second)
		flows[0].touch() // idle since 1s
		pass(time.Second)
		flows[1].touch() // idle since 2s
		flows[2].touch()
		w := later(t.Context(), table, Request{Pin: pin, Wait: time.Minute, Reclaim: 5 * time.Second})
		pass(3 * time.Second) // 5s: idle 4s, 3s, 3s
		flows[0].touch()
		flows[2].touch()
		pass(2*time.Second - 1)
		asked(0, 0, 0)
		pass(1) // 7s
		asked(0, 1, 0)
		pass(30 * time.Second) // the others are idle too: no waiter needs them
		asked(0, 1, 0)
		leases[1].Release(0)
		synctest.Wait()
		if w.get().lease == nil || w.get().lease.Local().Port() != 11 {
			t.Fatalf("%+v", w.get())
		}
		pass(time.Hour)
		asked(0, 1, 0)
	})
}

// TestReclaimAtOnce: a flow that has already been idle long enough is asked before the wait.
func TestReclaimAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		pin := pinOf(t, "10")
		f := &flow{idle: time.Now()}
		l := acquire(t, table, Request{Pin: pin, Holder: f})
		f.onAsk = func() { l.Release(0) } // no lock is held
		time.Sleep(5 * time.Second)
		got, err := table.Acquire(t.Context(), Request{Pin: pin, Dst: dst, Wait: 1, Reclaim: 5 * time.Second})
		if err != nil || f.asks() != 1 {
			t.Fatalf("%v, asked %d times", err, f.asks())
		}
		got.Release(0)
		check(t, table)
	})
}

// TestReclaimNoMoreThanNeeded: six requests wait, two of them with Reclaim.
func TestReclaimNoMoreThanNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		pin := pinOf(t, "1000-1099")
		flows := make([]*flow, 100)
		leases := make([]*Lease, 100)
		for i := range flows {
			flows[i] = &flow{idle: time.Now()}
			leases[i] = acquire(t, table, Request{Pin: pin, Holder: flows[i]})
			time.Sleep(time.Millisecond)
		}
		asked := func() (n int) {
			for _, f := range flows {
				n += f.asks()
			}
			return n
		}
		pass := func(d time.Duration, want int) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			check(t, table)
			if got := asked(); got != want {
				t.Fatalf("%d were asked, want %d", got, want)
			}
		}
		pass(time.Minute, 0) // nobody waits
		for range 4 {
			later(t.Context(), table, Request{Pin: pin, Wait: time.Hour})
		}
		pass(time.Minute, 0) // no waiter has Reclaim
		for range 2 {
			later(t.Context(), table, Request{Pin: pin, Wait: time.Hour, Reclaim: 5 * time.Second})
		}
		pass(time.Minute, 2)
		if flows[0].asks() != 1 || flows[1].asks() != 1 {
			t.Fatal("others than the longest idle were asked")
		}
		// One flow closes and needs a rest: it still counts.
		leases[0].Release(time.Minute)
		pass(30*time.Second, 2)
		// When it is ready again, it goes to the first in line, which asked nobody: one more is needed.
		pass(31*time.Second, 3)
		// Another flow ends. It too serves a waiter without Reclaim.
		leases[50].Release(0)
		pass(time.Minute, 3)
		// Now four waiters have left. Two flows are asked, and the two waiters with Reclaim remain.
		leases[51].Release(0)
		leases[52].Release(0)
		pass(time.Minute, 3)
		leases[1].Release(0)
		leases[2].Release(0)
		pass(time.Minute, 3)
		if held, waiting := table.Counts(); held != 100 || waiting != 0 {
			t.Fatalf("%d held, %d wait", held, waiting)
		}
	})
}

// TestReclaimAskedForNobody: the waiter leaves. The next one relies on the flow that is already closing.
func TestReclaimAskedForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		pin := pinOf(t, "10-11")
		f, g := &flow{idle: time.Now()}, &flow{idle: time.Now()}
		acquire(t, table, Request{Pin: pin, Holder: f})
		acquire(t, table, Request{Pin: pin, Holder: g})
		for range 3 {
			later(t.Context(), table, Request{Pin: pin, Wait: 10 * time.Second, Reclaim: 5 * time.Second})
			time.Sleep(time.Minute)
			synctest.Wait()
			check(t, table)
		}
		if f.asks()+g.asks() != 1 {
			t.Errorf("asked %d and %d times", f.asks(), g.asks())
		}
	})
}

// TestReclaimSpares checks that leases without a holder and busy holders (zero time) are spared, and that idle time
// counts from the start of the lease.
func TestReclaimSpares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		pin := pinOf(t, "10-12")
		waiting, busy := &flow{idle: time.Now()}, &flow{}
		time.Sleep(time.Hour)
		acquire(t, table, Request{Pin: pin})
		acquire(t, table, Request{Pin: pin, Holder: busy})
		acquire(t, table, Request{Pin: pin, Holder: waiting})
		begin := time.Now()
		later(t.Context(), table, Request{Pin: pin, Wait: time.Hour, Reclaim: 5 * time.Second})
		later(t.Context(), table, Request{Pin: pin, Wait: time.Hour, Reclaim: 5 * time.Second})
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if busy.asks() != 0 || waiting.asks() != 1 {
			t.Fatalf("the busy one was asked %d times, the other %d times", busy.asks(), waiting.asks())
		}
		if at := waiting.asked[0].Sub(begin); at != 5*time.Second {
			t.Errorf("asked after %v", at)
		}
		busy.touch()
		begin = time.Now()
		time.Sleep(time.Minute)
		synctest.Wait()
		// It is looked at every 5 s, so it is asked within two such intervals.
		if busy.asks() != 1 || busy.asked[0].Sub(begin) > 10*time.Second {
			t.Errorf("%d times, %v", busy.asks(), busy.asked)
		}
		check(t, table)
		time.Sleep(time.Hour)
	})
}

// TestReclaimPatience: rules that share a pin may tolerate different idle times.
func TestReclaimPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		pin := pinOf(t, "10-12")
		flows := []*flow{{}, {}, {}}
		for _, f := range flows {
			f.touch()
			acquire(t, table, Request{Pin: pin, Holder: f})
		}
		for _, idle := range []time.Duration{time.Minute, 5 * time.Second, 10 * time.Second} {
			later(t.Context(), table, Request{Pin: pin, Wait: time.Hour, Reclaim: idle})
			synctest.Wait()
		}
		begin := time.Now()
		time.Sleep(time.Hour + 1)
		synctest.Wait()
		for _, want := range []time.Duration{5 * time.Second, 10 * time.Second, time.Minute} {
			found := 0
			for _, f := range flows {
				if len(f.asked) == 1 && f.asked[0].Sub(begin) == want {
					found++
				}
			}
			if found != 1 {
				t.Errorf("%d were asked after %v", found, want)
			}
		}
		check(t, table)
	})
}

// TestReclaimNewHolder: the flow to ask arrived after the waiter.
func TestReclaimNewHolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		pin := pinOf(t, "10")
		l := acquire(t, table, Request{Pin: pin})
		f := &flow{idle: time.Now()}
		next := later(t.Context(), table, Request{Pin: pin, Wait: time.Hour, Holder: f})
		synctest.Wait()
		last := later(t.Context(), table, Request{Pin: pin, Wait: time.Hour, Reclaim: 5 * time.Second})
		time.Sleep(time.Minute)
		l.Release(0)
		synctest.Wait()
		f.onAsk = func() { next.get().lease.Release(0) }
		time.Sleep(5*time.Second - time.Nanosecond)
		synctest.Wait()
		if next.get().lease == nil || f.asks() != 0 {
			t.Fatalf("%+v, asked %d times", next.get(), f.asks())
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if last.get().lease == nil || f.asks() != 1 {
			t.Fatalf("%+v, asked %d times", last.get(), f.asks())
		}
		check(t, table)
	})
}

// TestReclaimOverlap: a flow closing for one pool also counts in the other.
func TestReclaimOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		narrow, wide := pinOf(t, "10"), pinOf(t, "10-11")
		f, g := &flow{idle: time.Now()}, &flow{idle: time.Now()}
		ten := acquire(t, table, Request{Pin: wide, Holder: f})
		time.Sleep(time.Second)
		eleven := acquire(t, table, Request{Pin: wide, Holder: g})
		a := later(t.Context(), table, Request{Pin: narrow, Wait: time.Hour, Reclaim: 5 * time.Second})
		synctest.Wait()
		b := later(t.Context(), table, Request{Pin: wide, Wait: time.Hour, Reclaim: 5 * time.Second})
		time.Sleep(time.Minute)
		synctest.Wait()
		check(t, table)
		if f.asks() != 1 || g.asks() != 0 {
			t.Fatalf("asked %d and %d times", f.asks(), g.asks())
		}
		ten.Release(0)
		synctest.Wait()
		check(t, table)
		if a.get().lease == nil || g.asks() != 1 {
			t.Fatalf("%+v, asked %d times", a.get(), g.asks())
		}
		eleven.Release(0)
		synctest.Wait()
		if b.get().lease == nil {
			t.Fatalf("%+v", b.get())
		}
		check(t, table)
	})
}
