package proxy

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// opened waits until the only flow is spliced.
func (h *harness) opened(t testing.TB) *live {
	t.Helper()
	l := h.only(t)
	eventually(t, "the flow is open", l.spliced)
	return l
}

// state returns the states of both directions.
func (l *live) state() (up, down state) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up.state, l.down.state
}

// tire asks both directions to sleep.
func (l *live) tire() {
	l.up.tire()
	l.down.tire()
}

// sleeps asks the flow to sleep and waits until no direction has a goroutine.
func (l *live) sleeps(t testing.TB) {
	t.Helper()
	eventually(t, "the flow sleeps", func() bool {
		l.tire()
		up, down := l.state()
		return up != awake && down != awake
	})
}

// restless keeps asking a flow to sleep until the test ends or stop is called.
func (l *live) restless(t testing.TB) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			l.tire()
			runtime.Gosched()
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// A sleeping flow carries what arrives in either direction, and sleeps again.
func TestSleepAndWake(t *testing.T) {
	leaks(t)
	h, s := pinnedServer(t)
	f, up := connected(t, h, s)
	l := h.opened(t)
	for i := range 100 {
		l.sleeps(t)
		text := fmt.Sprint("request ", i)
		write(t, f.app, text)
		wantRead(t, up, text)
		l.sleeps(t)
		write(t, up, text)
		wantRead(t, f.app, text)
	}
	l.sleeps(t)
	if st := h.Stats(); st.Live != 1 || st.Asleep != 1 {
		t.Errorf("%+v, want one flow, asleep", st)
	}
	if list := h.Flows(); len(list) != 1 || list[0].Stage != Open || list[0].Up == 0 || list[0].Idle == 0 {
		t.Errorf("%+v", list)
	}
	_ = f.app.CloseWrite()
	wantEnd(t, up, nil)
	_ = up.Close()
	endsAs(t, h, f, "closed")
}

// A flow that wakes waits for its turn before it carries anything, and again before each of its directions ends.
func TestSleepWaitsForTurns(t *testing.T) {
	leaks(t)
	h, s := pinnedServer(t)
	f, up := connected(t, h, s)
	l := h.opened(t)
	l.sleeps(t)
	asked, given := make(chan struct{}), make(chan struct{})
	turn := func() {
		asked <- struct{}{}
		<-given
	}
	f.turn.Store(&turn)
	write(t, f.app, "x")
	receive(t, asked, "it asks for a turn")
	if n := l.up.bytes.Load(); n != 0 {
		t.Errorf("%d bytes have moved before its turn", n)
	}
	given <- struct{}{}
	wantRead(t, up, "x")
	turns := make(chan int)
	over := make(chan struct{})
	go func() { // gives all further turns
		n := 0
		defer func() { turns <- n }()
		for {
			select {
			case <-asked:
				n++
				given <- struct{}{}
			case <-over:
				return
			}
		}
	}()
	_ = f.app.CloseWrite()
	wantEnd(t, up, nil)
	_ = up.Close()
	endsAs(t, h, f, "closed")
	close(over)
	if n := <-turns; n < 2 {
		t.Errorf("the ends have had %d turns", n)
	}
}

// A flow that we end takes no turn: whoever stops pinproxy, or waits for the port, would have to wait for all others.
func TestEndedByUsTakesNoTurn(t *testing.T) {
	leaks(t)
	h, s := pinnedServer(t)
	f, up := connected(t, h, s)
	l := h.opened(t)
	turn := func() { t.Error("it has asked for a turn") }
	f.turn.Store(&turn)
	l.end("reclaimed")
	wantEnd(t, up, nil)
	_, _ = f.app.Close(), up.Close()
	endsAs(t, h, f, "reclaimed")
}

// A byte that arrives at the very moment of falling asleep is carried.
func TestSleepMissesNothing(t *testing.T) {
	leaks(t)
	h, s := pinnedServer(t)
	f, up := connected(t, h, s)
	l := h.opened(t)
	for i := range 5000 {
		one, other, d := f.app, Conn(up), &l.up
		if i%2 == 1 {
			one, other, d = up, f.app, &l.down
		}
		tired := make(chan struct{})
		go func() {
			defer close(tired)
			for range i / 2 % 40 {
				runtime.Gosched()
			}
			d.tire()
		}()
		for range i / 80 % 20 {
			runtime.Gosched()
		}
		write(t, one, "x")
		wantRead(t, other, "x")
		<-tired
	}
	// One end after the other: a socket that becomes a TIME_WAIT is in neither state for a moment
	// (inet_twsk_hashdance_schedule), and a FIN that arrives then is answered by a reset.
	_ = f.app.Close()
	wantEnd(t, up, nil)
	_ = up.Close()
	endsAs(t, h, f, "closed")
}

// Bytes go both ways, with pauses, while the flow is constantly asked to sleep.
func TestSleepUnderTraffic(t *testing.T) {
	leaks(t)
	h, s := pinnedServer(t)
	f, up := connected(t, h, s)
	stop := h.opened(t).restless(t)
	there, back := carried(dawdling{f.app}, up, 1, 4<<20), carried(dawdling{up}, f.app, 2, 4<<20)
	for _, way := range []<-chan bool{there, back} {
		if !receive(t, way, "everything has arrived") {
			t.Error("what arrived is not what was sent")
		}
	}
	f.ended(t)
	stop()
	endsAs(t, h, f, "closed")
}

// dawdling writes in pieces, with a pause now and then.
type dawdling struct{ Conn }

func (c dawdling) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := c.Conn.Write(b[done:min(len(b), done+1+rand.IntN(40_000))])
		if done += n; err != nil {
			return done, err
		}
		if rand.IntN(3) == 0 {
			time.Sleep(time.Duration(rand.IntN(500)) * time.Microsecond)
		}
	}
	return done, nil
}

// While the flow sleeps, either end may end its direction, and the other direction continues.
func TestHalfCloseAsleep(t *testing.T) {
	for _, first := range []string{"application", "upstream"} {
		t.Run(first, func(t *testing.T) {
			leaks(t)
			h, s := pinnedServer(t)
			f, up := connected(t, h, s)
			l := h.opened(t)
			var one, other Conn = f.app, up
			if first == "upstream" {
				one, other = up, f.app
			}
			l.sleeps(t)
			_ = one.CloseWrite()
			wantEnd(t, other, nil)
			for range 3 {
				l.sleeps(t)
				write(t, other, "answer")
				wantRead(t, one, "answer")
			}
			l.sleeps(t)
			_ = other.CloseWrite()
			wantEnd(t, one, nil)
			endsAs(t, h, f, "closed")
		})
	}
}

// A reset wakes the flow, and the other end is told.
func TestResetAsleep(t *testing.T) {
	for _, by := range []string{"application", "upstream"} {
		for _, halfClosed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,halfClosed=%v", by, halfClosed), func(t *testing.T) {
				leaks(t)
				h, s := pinnedServer(t)
				f, up := connected(t, h, s)
				var one, other Conn = f.app, up
				if by == "upstream" {
					one, other = up, f.app
				}
				if halfClosed { // the end that resets is still read from
					_ = other.CloseWrite()
					wantEnd(t, one, nil)
				}
				h.opened(t).sleeps(t)
				_ = one.SetLinger(0)
				_ = one.Close()
				wantEnd(t, other, syscall.ECONNRESET)
				endsAs(t, h, f, "reset by "+by)
			})
		}
	}
}

// An end that has ended its stream is no longer read, but its reset is noticed while the flow sleeps, also after
// the flow has been awake in between.
func TestResetBehindEndAsleep(t *testing.T) {
	for _, by := range []string{"application", "upstream"} {
		for _, awake := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,awake=%v", by, awake), func(t *testing.T) {
				leaks(t)
				h, s := pinnedServer(t)
				f, up := connected(t, h, s)
				one, other := f.app.(*net.TCPConn), up
				if by == "upstream" {
					one, other = other, one
				}
				_ = one.CloseWrite()
				wantEnd(t, other, nil)
				l := h.opened(t)
				l.sleeps(t)
				if awake {
					write(t, other, "answer")
					wantRead(t, one, "answer")
					l.sleeps(t)
				}
				_ = one.SetLinger(0)
				_ = one.Close()
				raw, err := other.SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				eventually(t, "the other end is reset", func() (reset bool) {
					_ = raw.Control(func(fd uintptr) {
						errno, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
						reset = syscall.Errno(errno) == syscall.EPIPE
					})
					return reset
				})
				endsAs(t, h, f, "reset by "+by)
			})
		}
	}
}

// Sleeping flows are ended in order like others, and are not considered busy because of that.
func TestDrainAsleep(t *testing.T) {
	leaks(t)
	var took []time.Duration
	for range 3 { // a busy machine has its own pauses
		d := drainAsleep(t)
		if d <= drainIdle {
			return
		}
		took = append(took, d)
	}
	t.Errorf("drained after %v, want less than %v", took, drainIdle)
}

// drainAsleep returns how long it takes to drain a sleeping flow that has been idle long enough.
func drainAsleep(t *testing.T) time.Duration {
	t.Helper()
	h, s := pinnedServer(t)
	f, up := connected(t, h, s)
	h.opened(t).sleeps(t)
	eventually(t, "the flow is idle", func() bool { return h.only(t).idleFor() >= drainIdle })
	took := h.drain(t.Context(), time.Minute)
	for _, c := range []Conn{f.app, up} {
		if err := hangUp(c); err != nil {
			t.Errorf("%v, want the stream's end", err)
		}
	}
	d := receive(t, took, "all is drained")
	endsAs(t, h, f, "stopped")
	return d
}

// Or they are reset at once.
func TestAbortAsleep(t *testing.T) {
	leaks(t)
	h, s := pinnedServer(t)
	f, up := connected(t, h, s)
	h.opened(t).sleeps(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h.Drain(ctx, time.Minute)
	for _, c := range []Conn{f.app, up} {
		wantEnd(t, c, syscall.ECONNRESET)
	}
	endsAs(t, h, f, "stopped")
}

// The flow is asked to sleep and ended at the same time: it ends, and in order.
func TestEndWhileFallingAsleep(t *testing.T) {
	leaks(t)
	h, s := pinnedServer(t)
	for range 300 {
		f, up := connected(t, h, s)
		l := h.opened(t)
		stop := l.restless(t)
		runtime.Gosched()
		l.end("stopped")
		for _, c := range []Conn{f.app, up} {
			if err := hangUp(c); err != nil {
				t.Fatalf("%v, want the stream's end", err)
			}
		}
		endsAs(t, h, f, "stopped")
		stop()
	}
}

// The flow is asked to sleep and reset at the same time: there is a reset, not a FIN.
func TestAbortWhileFallingAsleep(t *testing.T) {
	leaks(t)
	h, s := pinnedServer(t)
	for range 300 {
		f, up := connected(t, h, s)
		l := h.opened(t)
		stop := l.restless(t)
		runtime.Gosched()
		l.abort("stopped")
		for _, c := range []Conn{f.app, up} {
			wantEnd(t, c, syscall.ECONNRESET)
		}
		endsAs(t, h, f, "stopped")
		stop()
	}
}

// A sleeping flow is the one closed for another.
func TestReclaimAsleep(t *testing.T) {
	leaks(t)
	s, pin := listen(t, "127.0.0.1:0"), freePort(t)
	h := newHarness(t, Config{}, fmt.Sprintf("*:*=%d busy=reclaim:30ms", pin))
	f, up := connected(t, h, s)
	h.opened(t).sleeps(t)
	next := h.open(t, s.addr)
	for _, c := range []Conn{f.app, up} {
		if err := hangUp(c); err != nil {
			t.Errorf("%v, want the stream's end", err)
		}
	}
	endsAs(t, h, f, "reclaimed for a waiting flow")
	next.answered(t, "accept")
	_, _ = next.app.Close(), s.next(t).Close()
	next.ended(t)
}

// Flows fall asleep by themselves. A thousand sleeping flows have no goroutine, and memory is returned once.
func TestThousandAsleep(t *testing.T) {
	leaks(t)
	const many = 1000
	s, first := listen(t, "127.0.0.1:0"), freePorts(t, many)
	var quiet atomic.Int32
	h := newHarness(t, Config{Quiet: func() { quiet.Add(1) }}, fmt.Sprintf("*:*=%d-%d busy=fail", first, first+many-1))
	before := runtime.NumGoroutine()
	flows := make([]*testFlow, many)
	ups := make(map[string]Conn)
	for i := range flows {
		f, up := connected(t, h, s)
		text := fmt.Sprintf("%04d", i)
		write(t, f.app, text)
		wantRead(t, up, text)
		flows[i], ups[text] = f, up
	}
	// The test has one for each flow: that of harness.open.
	eventually(t, "nobody is awake", func() bool { return runtime.NumGoroutine() <= before+many+3 })
	if list := h.Flows(); len(list) != many || list[0].Up != 4 {
		t.Errorf("%d flows, the first %+v", len(list), list[0])
	}
	eventually(t, "memory is returned", func() bool { return quiet.Load() > 0 })
	for i, f := range flows {
		text := fmt.Sprintf("%04d", i)
		write(t, ups[text], text)
		wantRead(t, f.app, text)
	}
	eventually(t, "nobody is awake", func() bool { return runtime.NumGoroutine() <= before+many+3 })
	for i, f := range flows {
		_ = f.app.CloseWrite()
		_ = ups[fmt.Sprintf("%04d", i)].Close()
		f.ended(t)
	}
	if n := h.rest.open + len(h.rest.awake); n != 0 {
		t.Errorf("%d flows are left", n)
	}
}

// Quiet is called when many flows are gone or asleep, but not while they come and go.
func TestQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r rest
		said := func(open, awake int) bool {
			r.open, r.awake = open, make([]*live, awake)
			for i := range r.awake {
				r.awake[i] = new(live)
			}
			_, _, quiet, _ := r.find()
			return quiet
		}
		for i, step := range []struct {
			open, awake int
			want        bool
		}{
			{100, 100, false},
			{0, 0, false}, // too few
			{0, 0, false},
			{600, 600, false},
			{900, 900, false},
			{1000, 400, false},
			{1000, 0, false}, // not calm
			{1000, 0, true},
			{1000, 0, false},
			{1000, 100, false},
			{1000, 0, false},
			{1400, 400, false},
			{1400, 0, false},
			{1400, 0, true},
			{1400, 1400, false},
			{1400, 1400, true}, // there are more than at the last call
			{100, 0, false},
			{100, 0, true},
		} {
			if got := said(step.open, step.awake); got != step.want {
				t.Errorf("step %d: %v, want %v", i, got, step.want)
			}
		}
	})
}

// Where the kernel can't watch a socket, its goroutine goes on waiting.
func TestSleepless(t *testing.T) {
	leaks(t)
	h, s := pinnedServer(t)
	f, up := connected(t, h, s)
	l := h.opened(t)
	l.net.(*upstream).watch = nil
	for range 100 {
		l.tire()
		write(t, f.app, "ping")
		wantRead(t, up, "ping")
		write(t, up, "pong")
		wantRead(t, f.app, "pong")
	}
	eventually(t, "only the other direction sleeps", func() bool {
		l.tire()
		up, down := l.state()
		return up == asleep && down == awake && l.down.sleepless
	})
	_ = up.CloseWrite()
	if _, err := io.Copy(io.Discard, f.app); err != nil {
		t.Error(err)
	}
	_ = f.app.Close()
	endsAs(t, h, f, "closed")
}

// While there are many flows, the kernel keeps little of what the upstream of a new one sends. When there are few, it
// finds the size by itself again: at the next look if the flow is awake, otherwise when it wakes.
func TestManyAreBounded(t *testing.T) {
	lab.NeedKernel(t, 5, 14, "a buffer's size can't be let grow again")
	for _, sleeping := range []bool{false, true} {
		t.Run(fmt.Sprintf("sleeping=%v", sleeping), func(t *testing.T) {
			leaks(t)
			h, s := pinnedServer(t)
			f, up := connected(t, h, s)
			l := h.opened(t)
			bounded := func() (size int, locked bool) {
				_ = l.net.(*upstream).raw.Control(func(fd uintptr) {
					lock, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BUF_LOCK)
					if err != nil {
						t.Error(err)
					}
					locked = lock&unix.SOCK_RCVBUF_LOCK != 0
					size, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF)
				})
				return size, locked
			}
			if _, locked := bounded(); locked {
				t.Error("one flow is bounded")
			}
			if sleeping {
				eventually(t, "it sleeps", func() bool { up, down := l.state(); return up == asleep && down == asleep })
			}
			l.mu.Lock()
			h.rest.mu.Lock() // nobody looks meanwhile
			h.rest.shared.Store(leastShare)
			l.boundLocked()
			if size, locked := bounded(); !locked || size != 2*leastShare {
				t.Errorf("one of many: %d bytes, bounded: %v", size, locked)
			}
			h.rest.mu.Unlock()
			l.mu.Unlock()
			h.rest.look()
			if sleeping {
				write(t, f.app, "hello")
				wantRead(t, up, "hello")
			}
			eventually(t, "it is not bounded any more", func() bool { _, locked := bounded(); return !locked })
			_, _ = f.app.Close(), up.Close()
			f.ended(t)
		})
	}
}
