package lease

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestFirstComeFirstServed runs 500 flows on one port.
func TestFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		r := Request{Pin: pinOf(t, "63999"), Dst: dst, Wait: time.Hour}
		l := acquire(t, table, r)
		const n = 500
		var mu sync.Mutex
		var served []int
		for i := range n {
			go func() {
				l, err := table.Acquire(t.Context(), r)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				served = append(served, i)
				mu.Unlock()
				time.Sleep(time.Second)
				l.Release(0)
			}()
			synctest.Wait()
		}
		if held, waiting := table.Counts(); held != 1 || waiting != n {
			t.Fatalf("%d held, %d waiting", held, waiting)
		}
		check(t, table)
		begin := time.Now()
		l.Release(0)
		for len(table.Held(dst, r.Pin)) > 0 {
			time.Sleep(time.Second)
			synctest.Wait()
			check(t, table)
		}
		if took := time.Since(begin); took != n*time.Second {
			t.Errorf("%v for %d flows of a second", took, n)
		}
		if len(served) != n || !slices.IsSorted(served) {
			t.Errorf("served %v", served)
		}
	})
}

func TestWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		pin := pinOf(t, "63999")
		l := acquire(t, table, Request{Pin: pin})
		begin := time.Now()
		short := later(t.Context(), table, Request{Pin: pin, Wait: 10 * time.Second})
		synctest.Wait()
		long := later(t.Context(), table, Request{Pin: pin, Wait: 30 * time.Second})
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if !short.get().done || !errors.Is(short.get().err, ErrBusy) || short.get().at.Sub(begin) != 10*time.Second {
			t.Fatalf("%+v", short.get())
		}
		var busy *BusyError
		if !errors.As(short.get().err, &busy) || busy.Waiting != 1 || busy.Waited != 10*time.Second {
			t.Errorf("%+v", busy)
		}
		check(t, table)
		l.Release(0)
		synctest.Wait()
		if long.get().lease == nil {
			t.Fatalf("%+v", long.get())
		}
		check(t, table)
	})
}

func TestContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		r := Request{Pin: pinOf(t, "63999"), Wait: time.Hour}
		l := acquire(t, table, r)
		ctx, cancel := context.WithCancel(t.Context())
		dead, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		a := later(ctx, table, r)
		synctest.Wait()
		b := later(dead, table, r)
		synctest.Wait()
		c := later(t.Context(), table, r)
		synctest.Wait()
		cancel()
		synctest.Wait()
		if !a.get().done || !errors.Is(a.get().err, context.Canceled) || errors.Is(a.get().err, ErrBusy) {
			t.Fatalf("%+v", a.get())
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if !b.get().done || !errors.Is(b.get().err, context.DeadlineExceeded) {
			t.Fatalf("%+v", b.get())
		}
		l.Release(0)
		synctest.Wait()
		if c.get().lease == nil {
			t.Fatalf("%+v", c.get())
		}
		check(t, table)
	})
}

// TestContextEndsAsPortIsGiven: whichever of the two happens first, the port goes to the next in line, without the
// cooldown of a flow that never used it.
func TestContextEndsAsPortIsGiven(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(cancel func(), l *Lease)
	}{
		{"cancel, release", func(cancel func(), l *Lease) { cancel(); l.Release(0) }},
		{"release, cancel", func(cancel func(), l *Lease) { l.Release(0); cancel() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				withdrawn := 0
				for range 200 {
					table := NewTable()
					r := Request{Pin: pinOf(t, "63999"), Wait: time.Hour}
					cooling := r
					cooling.Cooldown = time.Hour
					l := acquire(t, table, r)
					ctx, cancel := context.WithCancel(t.Context())
					a := later(ctx, table, cooling)
					synctest.Wait()
					b := later(t.Context(), table, r)
					synctest.Wait()
					tt.do(cancel, l)
					synctest.Wait()
					check(t, table)
					if a.get().lease != nil { // it got the lease before the cancel
						a.get().lease.Release(0)
						continue
					}
					withdrawn++
					if !errors.Is(a.get().err, context.Canceled) || b.get().lease == nil {
						t.Fatalf("%+v, %+v", a.get(), b.get())
					}
					b.get().lease.Release(0)
					acquire(t, table, r)
				}
				t.Logf("%d of 200 not given", withdrawn)
			})
		})
	}
}

// TestRestEndsForWaiter serves waiters by the clock alone.
func TestRestEndsForWaiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		r := Request{Pin: pinOf(t, "10-11"), Wait: time.Hour}
		a, b := acquire(t, table, r), acquire(t, table, r)
		begin := time.Now()
		a.Release(time.Minute)
		first := later(t.Context(), table, r)
		synctest.Wait()
		second := later(t.Context(), table, r)
		synctest.Wait()
		b.Release(10 * time.Second) // ends before a's
		check(t, table)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		check(t, table)
		if first.get().lease == nil || first.get().lease.Local().Port() != 11 || first.get().at.Sub(begin) != 10*time.Second {
			t.Errorf("%+v", first.get())
		}
		if second.get().lease == nil || second.get().lease.Local().Port() != 10 || second.get().at.Sub(begin) != time.Minute {
			t.Errorf("%+v", second.get())
		}
	})
}

// TestRestAndWaitEndTogether: the lease wins.
func TestRestAndWaitEndTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 100 {
			table := NewTable()
			r := Request{Pin: pinOf(t, "10"), Wait: time.Minute}
			acquire(t, table, r).Release(time.Minute)
			a := later(t.Context(), table, r)
			time.Sleep(time.Minute)
			synctest.Wait()
			if a.get().lease == nil {
				t.Fatal(a.get().err)
			}
			check(t, table)
		}
	})
}

// TestNewcomerDoesNotOvertake sends a request at the moment a rest ends, when the timer may not have fired yet.
func TestNewcomerDoesNotOvertake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 100 {
			table := NewTable()
			r := Request{Pin: pinOf(t, "10"), Wait: time.Hour}
			acquire(t, table, r).Release(time.Minute)
			a := later(t.Context(), table, r)
			time.Sleep(time.Minute)
			_, err := table.Acquire(t.Context(), Request{Pin: r.Pin, Dst: dst})
			synctest.Wait()
			if a.get().lease == nil || !errors.Is(err, ErrBusy) {
				t.Fatalf("%+v; newcomer: %v", a.get(), err)
			}
		}
	})
}

// TestOverlapLongestWaiting: one port wakes the longest-waiting of all requests that can use it, whichever pin they
// have.
func TestOverlapLongestWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		wide := Request{Pin: pinOf(t, "10-11"), Wait: time.Hour}
		left := Request{Pin: pinOf(t, "10"), Wait: time.Hour}
		right := Request{Pin: pinOf(t, "11"), Wait: time.Hour}
		ten, eleven := acquire(t, table, wide), acquire(t, table, wide)
		var waiters []*result
		for _, r := range []Request{right, wide, left, wide} {
			waiters = append(waiters, later(t.Context(), table, r))
			synctest.Wait()
		}
		check(t, table)
		give := func(l *Lease, to int) *Lease {
			t.Helper()
			l.Release(0)
			synctest.Wait()
			check(t, table)
			for i, w := range waiters {
				if w != nil && w.get().done {
					if i != to || w.get().err != nil || w.get().lease.Local().Port() != l.Local().Port() {
						t.Fatalf("%d was served, %+v, want %d", i, w.get(), to)
					}
					waiters[i] = nil
					return w.get().lease
				}
			}
			t.Fatalf("nobody was served, want %d", to)
			return nil
		}
		ten = give(ten, 1) // the first can't use it
		eleven = give(eleven, 0)
		ten = give(ten, 2)
		give(eleven, 3)
		ten.Release(0)
		time.Sleep(time.Hour)
		check(t, table)
	})
}
