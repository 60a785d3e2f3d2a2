package lease

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// exchange swaps a lease in the background.
func exchange(ctx context.Context, table *Table, l *Lease, rest time.Duration, r Request) *result {
	res := new(result)
	go func() {
		l, err := table.Exchange(ctx, l, rest, r)
		res.Store(&outcome{lease: l, err: err, at: time.Now(), done: true})
	}()
	return res
}

// TestExchangeKeepsTheTurn: a flow that could not use the port gets it again before those that came later. Two such
// flows keep their order.
func TestExchangeKeepsTheTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		r := Request{Pin: pinOf(t, "63998-63999"), Dst: dst, Wait: time.Hour, Cooldown: time.Minute}
		begin := time.Now()
		a, b := acquire(t, table, r), acquire(t, table, r)
		c := later(t.Context(), table, r)
		synctest.Wait()
		second := exchange(t.Context(), table, b, 20*time.Millisecond, r)
		synctest.Wait()
		first := exchange(t.Context(), table, a, 50*time.Millisecond, r)
		synctest.Wait()
		check(t, table)
		if first.get().done || second.get().done || c.get().done {
			t.Fatal("a port was given that rests")
		}
		time.Sleep(20 * time.Millisecond)
		synctest.Wait()
		if l := first.get().lease; l == nil || l.Local().Port() != 63999 {
			t.Fatalf("the first rest's port went elsewhere: %+v", first.get())
		}
		time.Sleep(30 * time.Millisecond)
		synctest.Wait()
		// 50 ms, not the cooldown's minute: the port was not used.
		if l := second.get().lease; l == nil || l.Local().Port() != 63998 || second.get().at.Sub(begin) != 50*time.Millisecond {
			t.Fatalf("%+v", second.get())
		}
		check(t, table)
		first.get().lease.Release(0)
		time.Sleep(time.Minute)
		synctest.Wait()
		if c.get().lease == nil {
			t.Fatalf("%+v", c.get())
		}
		check(t, table)
	})
}

// TestExchangeGoesOn: in a range the next port is available at once; the refused one comes last.
func TestExchangeGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		r := Request{Pin: pinOf(t, "63997-63999"), Dst: dst}
		l := acquire(t, table, r)
		for _, want := range []uint16{63998, 63999} {
			next, err := table.Exchange(t.Context(), l, time.Second, r)
			if err != nil || next.Local().Port() != want {
				t.Fatalf("%v, %v, want port %d", next, err, want)
			}
			l = next
		}
		_, err := table.Exchange(t.Context(), l, 2*time.Second, r)
		var busy *BusyError
		if !errors.As(err, &busy) || busy.Resting != 3 || !busy.FreeAt.Equal(time.Now().Add(time.Second)) {
			t.Fatalf("%+v", err)
		}
		check(t, table)
	})
}

// TestExchangeEnds: the place is lost when the wait ends or the context does.
func TestExchangeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		r := Request{Pin: pinOf(t, "63999"), Dst: dst, Wait: time.Second}
		l := acquire(t, table, r)
		_, err := table.Exchange(t.Context(), l, time.Minute, r)
		if !errors.Is(err, ErrBusy) {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		l = acquire(t, table, r)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := table.Exchange(ctx, l, time.Minute, r); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if held, waiting := table.Counts(); held != 0 || waiting != 0 {
			t.Fatalf("%d held, %d waiting", held, waiting)
		}
		check(t, table)
	})
}

// TestQueued: a request that has to wait is told so, and who is in its way. Others are not told.
func TestQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		var told []*BusyError
		r := Request{Pin: pinOf(t, "63999"), Dst: dst, Wait: time.Hour, Queued: func(e *BusyError) { told = append(told, e) }}
		l, err := table.Acquire(t.Context(), r)
		if err != nil || len(told) != 0 {
			t.Fatal(err, told)
		}
		second := later(t.Context(), table, r)
		synctest.Wait()
		if len(told) != 1 || told[0].Holding != 1 || told[0].Waiting != 0 {
			t.Fatalf("%+v", told)
		}
		l.Release(0)
		synctest.Wait()
		second.get().lease.Release(0)
	})
}

// TestTurn: requests that arrived together are served in the order of their turns, not of their goroutines.
func TestTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		r := Request{Pin: pinOf(t, "63999"), Dst: dst, Wait: time.Hour, Turn: 1}
		l := acquire(t, table, r)
		var order []uint64
		for _, turn := range []uint64{5, 3, 4, 8, 2, 7, 6} {
			go func() {
				r := r
				r.Turn = turn
				l, err := table.Acquire(t.Context(), r)
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, turn)
				l.Release(0)
			}()
			synctest.Wait()
		}
		check(t, table)
		l.Release(0)
		synctest.Wait()
		if !slices.Equal(order, []uint64{2, 3, 4, 5, 6, 7, 8}) {
			t.Errorf("served %v", order)
		}
	})
}
