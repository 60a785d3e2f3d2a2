package proxy

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// inMemory returns a proxy whose servers are in memory, for a synctest bubble.
func inMemory(t *testing.T, texts ...string) (*harness, memDialer) {
	t.Helper()
	upstreams := make(memDialer, 10)
	return newHarness(t, Config{Dialer: upstreams}, texts...), upstreams
}

// drain runs Drain and returns a channel that reports how long it took.
func (h *harness) drain(ctx context.Context, grace time.Duration) <-chan time.Duration {
	took := make(chan time.Duration, 1)
	go func() {
		start := time.Now()
		h.Drain(ctx, grace)
		took <- time.Since(start)
	}()
	return took
}

// hangUp answers the other side's FIN, and returns how the stream ended.
func hangUp(c Conn) error {
	_, err := io.Copy(io.Discard, struct{ io.Reader }{c})
	_ = c.Close()
	return err
}

// Idle flows end at once and in order. New ones are dropped.
func TestDrainIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, upstreams := inMemory(t, "*:*=1000")
		f := h.openWith(t, dst4, memory)
		f.answered(t, "accept")
		up := <-upstreams
		time.Sleep(drainIdle + time.Millisecond)
		took := h.drain(t.Context(), time.Minute)
		if err := hangUp(f.app); err != nil {
			t.Errorf("application: %v, want the stream's end", err)
		}
		if err := hangUp(up); err != nil {
			t.Errorf("upstream: %v, want the stream's end", err)
		}
		if d := <-took; d > drainTick {
			t.Errorf("drained after %v", d)
		}
		endsAs(t, h, f, "stopped")

		f = h.openWith(t, dst4, memory)
		f.answered(t, "drop")
		f.ended(t)
		if st := h.Stats(); st != (Stats{Ended: 1}) {
			t.Errorf("%+v", st)
		}
	})
}

// A busy flow may finish.
func TestDrainBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, upstreams := inMemory(t, "*:*=1000")
		f := h.openWith(t, dst4, memory)
		f.answered(t, "accept")
		up := <-upstreams
		took := h.drain(t.Context(), time.Minute)
		for range 50 {
			time.Sleep(drainIdle - time.Millisecond)
			write(t, up, "part")
			wantRead(t, f.app, "part")
		}
		_ = up.CloseWrite()
		if err := hangUp(f.app); err != nil {
			t.Errorf("application: %v, want the stream's end", err)
		}
		if d := <-took; d < 49*time.Second || d > 51*time.Second {
			t.Errorf("drained after %v", d)
		}
		endsAs(t, h, f, "closed")
	})
}

// A flow that never ends is reset when grace is over: no FIN says that it is complete.
func TestDrainEndless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, upstreams := inMemory(t, "*:*=1000")
		f := h.openWith(t, dst4, memory)
		f.answered(t, "accept")
		up := <-upstreams
		took := h.drain(t.Context(), 10*time.Second)
		ended := make(chan error)
		go func() {
			_, err := io.Copy(io.Discard, f.app)
			ended <- err
		}()
		var broke error
		for broke == nil {
			time.Sleep(100 * time.Millisecond)
			_, broke = up.Write([]byte("more"))
		}
		if err := <-ended; err != syscall.ECONNRESET {
			t.Errorf("application: %v, want a reset", err)
		}
		if d := <-took; d < 10*time.Second || d > 10*time.Second+3*drainTick {
			t.Errorf("drained after %v", d)
		}
		if _, err := up.Read(make([]byte, 1)); err != syscall.ECONNRESET {
			t.Errorf("upstream: %v, want a reset", err)
		}
		endsAs(t, h, f, "stopped")
	})
}

// So is a flow with an end that takes nothing: it is not idle.
func TestDrainStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, upstreams := inMemory(t, "*:*=1000")
		f := h.openWith(t, dst4, memory)
		f.answered(t, "accept")
		<-upstreams
		write(t, f.app, "nobody reads this")
		if d := <-h.drain(t.Context(), 10*time.Second); d < 10*time.Second || d > 11*time.Second+2*drainTick {
			t.Errorf("drained after %v", d)
		}
		endsAs(t, h, f, "stopped")
	})
}

// An end that sends more after our FIN learns that it was lost.
func TestDrainLosesBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, upstreams := inMemory(t, "*:*=1000")
		f := h.openWith(t, dst4, memory)
		f.answered(t, "accept")
		up := <-upstreams
		time.Sleep(drainIdle + time.Millisecond)
		took := h.drain(t.Context(), time.Minute)
		wantEnd(t, f.app, nil)
		write(t, f.app, "one thing more")
		_ = f.app.CloseWrite()
		if err := hangUp(up); err != nil {
			t.Errorf("upstream: %v, want the stream's end", err)
		}
		<-took
		if !f.app.(*memConn).reset.Load() {
			t.Error("the application was not told")
		}
	})
}

// Flows that wait for a lease or for the upstream are given up when they are a second old.
func TestDrainUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, Config{Dialer: dialFunc(func(ctx context.Context, _, _ netip.AddrPort) (Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})}, "*:*=1000")
		dials, waits := h.openWith(t, dst4, memory), h.openWith(t, dst4, memory)
		synctest.Wait()
		if d := <-h.drain(t.Context(), 5*time.Second); d < drainIdle || d > drainIdle+2*drainTick {
			t.Errorf("drained after %v", d)
		}
		dials.answered(t, "drop")
		waits.answered(t, "drop")
		if lines := h.log.with("flow failed"); len(lines) != 2 || lines[0].Attrs["err"] != errGaveUp.Error() {
			t.Errorf("log: %v", lines)
		}
	})
}

// An application that is slow to take our answer is cut off when it does. Drain does not wait for that.
func TestDrainWhileAnswering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, upstreams := inMemory(t, "*:*=1000")
		f := h.openWith(t, dst4, func() (Conn, Conn, error) {
			time.Sleep(5 * time.Second)
			return memory()
		})
		up := <-upstreams
		if d := <-h.drain(t.Context(), 5*time.Second); d < drainIdle || d > drainIdle+2*drainTick {
			t.Errorf("drained after %v", d)
		}
		f.answered(t, "accept")
		if err := hangUp(up); err == nil {
			t.Log("the upstream was ended in order")
		}
		endsAs(t, h, f, "stopped")
	})
}

// When ctx ends, everything is reset at once.
func TestDrainCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, upstreams := inMemory(t, "*:*=1000")
		f := h.openWith(t, dst4, memory)
		f.answered(t, "accept")
		up := <-upstreams
		ctx, cancel := context.WithCancel(t.Context())
		took := h.drain(ctx, time.Minute)
		time.Sleep(time.Second / 2)
		cancel()
		if d := <-took; d != time.Second/2 {
			t.Errorf("drained after %v", d)
		}
		for _, c := range []Conn{f.app, up} {
			if err := hangUp(c); err != syscall.ECONNRESET {
				t.Errorf("%v, want a reset", err)
			}
		}
		endsAs(t, h, f, "stopped")
	})
}

// Hundreds of real flows at once.
func TestDrainMany(t *testing.T) {
	leaks(t)
	const many = 300
	s, first := listen(t, "127.0.0.1:0"), freePorts(t, many)
	h := newHarness(t, Config{}, fmt.Sprintf("*:*=%d-%d busy=fail", first, first+many-1))
	type pair struct {
		f  *testFlow
		up Conn
	}
	var pairs []pair
	for range many {
		f, up := connected(t, h, s)
		write(t, up, "hello")
		wantRead(t, f.app, "hello")
		pairs = append(pairs, pair{f, up})
	}
	if held, _ := h.leases.Counts(); held != many {
		t.Errorf("%d leases held, want %d", held, many)
	}
	ends := make(chan error, 2*many)
	for _, p := range pairs {
		_ = p.f.app.SetReadDeadline(time.Time{})
		go func() { ends <- hangUp(p.f.app) }()
		go func() { ends <- hangUp(p.up) }()
	}
	took := h.drain(t.Context(), patience)
	for range 2 * many {
		if err := receive(t, ends, "both ends of each flow end"); err != nil {
			t.Errorf("%v, want the stream's end", err)
		}
	}
	if d := receive(t, took, "everything is drained"); d > patience/2 { // there are hundreds, on a machine that may be busy
		t.Errorf("drained after %v, want about %v", d, drainIdle)
	}
	if st := h.Stats(); st != (Stats{Ended: many}) {
		t.Errorf("%+v", st)
	}
}

// slowToEnd is a connection whose second Close, with which a flow ends, waits.
type slowToEnd struct {
	Conn
	closed  atomic.Int32
	proceed chan struct{}
}

func (c *slowToEnd) Close() error {
	if c.closed.Add(1) > 1 {
		<-c.proceed
	}
	return c.Conn.Close()
}

// A flow that has been reset is on the list until it has ended. It says so there: nobody has to look after it any more.
func TestResetFlowIsEnding(t *testing.T) {
	s := listen(t, "127.0.0.1:0")
	proceed := make(chan struct{})
	h := newHarness(t, Config{Wrap: func(_, _ netip.AddrPort, c Conn) Conn { return &slowToEnd{Conn: c, proceed: proceed} }},
		fmt.Sprintf("*:*=%d", freePort(t)))
	f, _ := connected(t, h, s)
	eventually(t, "the flow is open", func() bool { list := h.Flows(); return len(list) == 1 && list[0].Stage == Open && !list[0].Ending })
	h.Reset(h.Flows(), "enough")
	if list := h.Flows(); len(list) != 1 || !list[0].Ending {
		t.Errorf("after a reset that has not come to its end: %+v", list)
	}
	close(proceed)
	endsAs(t, h, f, "enough")
}
