package lease

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestStorm has many flows take, wait, give up and release at once, on the real clock. It is for the race detector,
// and checks that a 4-tuple never has two holders.
func TestStorm(t *testing.T) {
	before := runtime.NumGoroutine()
	table := NewTable()
	pins := []Request{
		{Pin: pinOf(t, "63999")},
		{Pin: pinOf(t, "63996-63999")},
		{Pin: pinOf(t, "63995-63997"), Reclaim: time.Microsecond},
		{Pin: pinOf(t, "192.0.2.10:63999"), Cooldown: 50 * time.Microsecond},
	}
	dsts := []netip.AddrPort{dst, netip.MustParseAddrPort("[2001:db8::1]:443")}
	type tuple struct{ local, dst netip.AddrPort }
	var holders sync.Map // tuple → *atomic.Int32
	var got, busy, ended atomic.Int64

	rounds := 400
	if testing.Short() {
		rounds = 50
	}
	var flows sync.WaitGroup
	for i := range 64 {
		flows.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 5))
			for range rounds {
				r := pins[rnd.IntN(len(pins))]
				r.Dst = dsts[rnd.IntN(len(dsts))]
				if r.Pin.Addr().IsValid() {
					r.Dst = dst
				}
				r.Wait = time.Duration(rnd.IntN(2000)) * time.Microsecond
				r.Holder = new(flow)
				ctx, cancel := context.WithCancel(t.Context())
				var timer *time.Timer
				if rnd.IntN(2) == 0 {
					timer = time.AfterFunc(time.Duration(rnd.IntN(1000))*time.Microsecond, cancel)
				}
				l, err := table.Acquire(ctx, r)
				switch {
				case err == nil:
					got.Add(1)
					n, _ := holders.LoadOrStore(tuple{l.Local(), r.Dst}, new(atomic.Int32))
					if n.(*atomic.Int32).Add(1) != 1 {
						t.Errorf("%v to %v has two holders", l.Local(), r.Dst)
					}
					for range rnd.IntN(4) {
						runtime.Gosched()
					}
					n.(*atomic.Int32).Add(-1)
					l.Release(time.Duration(rnd.IntN(100)-50) * time.Microsecond)
				case errors.Is(err, ErrBusy):
					busy.Add(1)
				case errors.Is(err, context.Canceled):
					ended.Add(1)
				default:
					t.Error(err)
				}
				if timer != nil {
					timer.Stop()
				}
				cancel()
			}
		})
	}
	flows.Wait()
	t.Logf("%d leases, %d busy, %d canceled", got.Load(), busy.Load(), ended.Load())
	if got.Load() == 0 || busy.Load() == 0 || ended.Load() == 0 {
		t.Error("the storm did not reach every end")
	}
	check(t, table)
	if held, waiting := table.Counts(); held != 0 || waiting != 0 {
		t.Errorf("%d held, %d waiting", held, waiting)
	}
	// No port was lost: each can be acquired.
	for _, r := range pins {
		var leases []*Lease
		for range r.Pin.Ports().Len() {
			r.Dst, r.Wait, r.Cooldown = dst, time.Minute, 0
			l, err := table.Acquire(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			leases = append(leases, l)
		}
		for _, l := range leases {
			l.Release(0)
		}
	}
	// A timer's function may still be on its way out.
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}
