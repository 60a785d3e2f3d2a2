package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// waiting waits until this many flows wait for a lease.
func (h *harness) waiting(t *testing.T, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d flows wait", want), func() bool {
		_, n := h.leases.Counts()
		return n == want
	})
}

// First come, first served.
func TestWaitIsFIFO(t *testing.T) {
	leaks(t)
	s, pin := listen(t, "127.0.0.1:0"), freePort(t)
	h := newHarness(t, Config{}, fmt.Sprintf("*:*=%d", pin))
	var flows []*testFlow
	for i := range 6 {
		f := h.open(t, s.addr)
		if flows = append(flows, f); i == 0 {
			f.answered(t, "accept")
		}
		h.waiting(t, i)
	}
	for i, f := range flows {
		if i > 0 {
			f.answered(t, "accept")
		}
		up := s.nextFrom(t, pin)
		write(t, f.app, fmt.Sprint(i))
		wantRead(t, up, fmt.Sprint(i))
		_ = f.app.CloseWrite() // our side closes first: TIME_WAIT
		wantEnd(t, up, nil)
		_ = up.Close()
		wantEnd(t, f.app, nil)
		f.ended(t)
	}
	lines := h.log.with("flow waits for its source port")
	if len(lines) != 5 || lines[0].Level != slog.LevelInfo || !almost30s(lines[0].Attrs["for"]) ||
		!strings.Contains(lines[0].Attrs["cause"], "by flow 1 from "+flows[0].src.String()) {
		t.Errorf("log: %v", lines)
	}
}

// almost30s reports whether left is what is left of 30 s a moment later.
func almost30s(left string) bool {
	d, err := time.ParseDuration(left)
	return err == nil && d <= 30*time.Second && d > 20*time.Second
}

// A flow that waits behind an idle one gets a hint about busy=reclaim in the log, and gives up in time.
func TestWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstreams := make(memDialer, 1)
		h := newHarness(t, Config{Dialer: upstreams}, "*:*=1000 busy=wait:10s")
		first := h.openWith(t, dst4, memory)
		first.answered(t, "accept")
		time.Sleep(3 * time.Second)
		start := time.Now()
		f := h.openWith(t, dst4, memory)
		<-f.done
		f.answered(t, "permission denied")
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("the wait ended after %v, want 10s", took)
		}
		failed(t, h, slog.LevelWarn, "every source port is busy after 10s: 1000 held for 13s by flow 1 from "+first.src.String())
		lines := h.log.with("flow waits behind an idle one")
		if len(lines) != 1 || !strings.Contains(lines[0].Attrs["hint"], "busy=reclaim") {
			t.Errorf("log: %v, want one hint at busy=reclaim", lines)
		}
		_ = (<-upstreams).Close()
	})
}

func TestFail(t *testing.T) {
	leaks(t)
	s, pin := listen(t, "127.0.0.1:0"), freePort(t)
	h := newHarness(t, Config{}, fmt.Sprintf("*:*=%d busy=fail", pin))
	h.open(t, s.addr).answered(t, "accept")
	f := h.open(t, s.addr)
	f.answered(t, "permission denied")
	f.ended(t)
	failed(t, h, slog.LevelWarn, "every source port is busy")
}

// Only busy=any leaves from another port, after the ways before it have been tried, and says so.
func TestWaitThenAny(t *testing.T) {
	leaks(t)
	s, pin := listen(t, "127.0.0.1:0"), freePort(t)
	h := newHarness(t, Config{}, fmt.Sprintf("*:*=%d busy=wait:20ms,any", pin))
	h.open(t, s.addr).answered(t, "accept")
	s.nextFrom(t, pin)
	start := time.Now()
	f := h.open(t, s.addr)
	f.answered(t, "accept")
	if waited := time.Since(start); waited < 20*time.Millisecond {
		t.Errorf("waited %v, want 20ms", waited)
	}
	if got := addrPort(s.next(t).RemoteAddr()).Port(); got == pin {
		t.Errorf("source port %d twice", got)
	}
	lines := h.log.with("flow leaves unpinned, as busy=any allows")
	if len(lines) != 1 || lines[0].Level != slog.LevelWarn || !strings.Contains(lines[0].Attrs["cause"], "busy after") {
		t.Errorf("log: %v", lines)
	}
	if held, _ := h.leases.Counts(); held != 1 {
		t.Errorf("%d leases held, want 1", held)
	}
}

// An idle flow is ended in order for the one that waits: both of its ends see a FIN.
func TestReclaim(t *testing.T) {
	leaks(t)
	s, pin := listen(t, "127.0.0.1:0"), freePort(t)
	h := newHarness(t, Config{}, fmt.Sprintf("*:*=%d busy=reclaim:30ms", pin))
	idle := h.open(t, s.addr)
	idle.answered(t, "accept")
	idleUp := s.nextFrom(t, pin)
	write(t, idle.app, "ping")
	wantRead(t, idleUp, "ping")

	f := h.open(t, s.addr)
	wantEnd(t, idle.app, nil)
	wantEnd(t, idleUp, nil)
	_, _ = idle.app.Close(), idleUp.Close()
	idle.ended(t)
	f.answered(t, "accept")
	up := s.nextFrom(t, pin)
	write(t, up, "hello")
	wantRead(t, f.app, "hello")
	if lines := h.log.with("flow"); len(lines) != 1 || lines[0].Attrs["end"] != "reclaimed for a waiting flow" || lines[0].Attrs["up"] != "4" {
		t.Errorf("log: %v", lines)
	}
	if lines := h.log.with("flow waits for its source port"); len(lines) != 1 || !almost30s(lines[0].Attrs["for"]) {
		t.Errorf("log: %v", lines)
	}
	if lines := h.log.with("flow waits behind an idle one"); len(lines) != 0 {
		t.Errorf("log: %v", lines)
	}
}

// Ends that don't answer our FIN get a second. After that the kernel must not keep the port for them.
func TestReclaimFromTheDeaf(t *testing.T) {
	leaks(t)
	s, pin := listen(t, "127.0.0.1:0"), freePort(t)
	h := newHarness(t, Config{}, fmt.Sprintf("*:*=%d busy=reclaim:1ms,wait:%v", pin, patience))
	idle := h.open(t, s.addr)
	idle.answered(t, "accept")
	idleUp := s.nextFrom(t, pin)
	write(t, idleUp, "last words")
	wantRead(t, idle.app, "last words")

	start := time.Now()
	f := h.open(t, s.addr)
	f.answered(t, "accept")
	if took := time.Since(start); took < endLinger/2 || took > 10*endLinger {
		t.Errorf("the port was free after %v, want %v", took, endLinger)
	}
	s.nextFrom(t, pin)
	wantEnd(t, idle.app, nil)
	wantEnd(t, idleUp, nil)
}

// A flow is not idle while an end takes its bytes slowly.
func TestSlowIsNotIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, upstreams := inMemory(t, "*:*=1000 busy=reclaim:1s,wait:1m")
		slow := h.openWith(t, dst4, memory)
		slow.answered(t, "accept")
		up := <-upstreams
		write(t, slow.app, "nobody reads this yet")
		start := time.Now()
		f := h.openWith(t, dst4, memory)
		<-f.done
		f.answered(t, "permission denied")
		failed(t, h, slog.LevelWarn, "every source port is busy after 1m0s")
		if waited := time.Since(start); waited != time.Minute { // the two ways are one wait
			t.Errorf("waited %v, want 1m", waited)
		}

		wantRead(t, up, "nobody reads this yet")
		f = h.openWith(t, dst4, memory)
		start = time.Now()
		_, _ = hangUp(slow.app), hangUp(up)
		f.answered(t, "accept")
		if waited := time.Since(start); waited != time.Second {
			t.Errorf("waited %v for a flow to be idle for 1s", waited)
		}
		_ = (<-upstreams).Close()
	})
}

// only returns the live flow.
func (h *harness) only(t testing.TB) *live {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.live) != 1 {
		t.Fatalf("%d flows, want 1", len(h.live))
	}
	for l := range h.live {
		return l
	}
	return nil
}

// The same port serves another address of the name. The ways are tried in order.
func TestOtherAddress(t *testing.T) {
	leaks(t)
	a := listen(t, "127.0.0.1:0")
	port, pin := a.addr.Port(), freePort(t)
	c := listen(t, fmt.Sprintf("127.0.0.3:%d", port)) // nobody listens on 127.0.0.2
	names := &byName{
		set:   setOf(t, fmt.Sprintf("many.example:%d=%d busy=other-address,wait:20ms", port, pin)),
		name:  "many.example",
		addrs: []netip.Addr{a.addr.Addr(), netip.MustParseAddr("127.0.0.2"), c.addr.Addr()},
	}
	h := newHarness(t, Config{Names: names})
	first := h.open(t, a.addr)
	first.answered(t, "accept")
	a.nextFrom(t, pin)

	second := h.open(t, a.addr)
	second.answered(t, "accept")
	up := c.nextFrom(t, pin)
	write(t, up, "hello")
	wantRead(t, second.app, "hello")
	if held, _ := h.leases.Counts(); held != 2 {
		t.Errorf("%d leases held, want 2", held)
	}

	third := h.open(t, a.addr)
	third.answered(t, "permission denied")
	third.ended(t)
	failed(t, h, slog.LevelWarn, fmt.Sprintf("lease %d to %s: every source port is busy after", pin, a.addr))
	if got := h.log.with("flow failed")[0].Attrs["upstream"]; got != "" {
		t.Errorf("log: upstream %s, want none", got)
	}

	_, _ = up.Close(), second.app.Close()
	second.ended(t)
	if got := h.log.with("flow")[0].Attrs; got["dst"] != a.addr.String() || got["upstream"] != c.addr.String() {
		t.Errorf("log: %v", got)
	}
	if held := names.held.Load(); held != 1 {
		t.Errorf("%d addresses are in use, want 1", held)
	}
}

// After the other addresses have failed, the next way continues with the flow's own address.
func TestOtherAddressThenAny(t *testing.T) {
	leaks(t)
	s, pin := listen(t, "127.0.0.1:0"), freePort(t)
	h := newHarness(t, Config{Names: &byName{
		set:   setOf(t, fmt.Sprintf("many.example:*=%d busy=other-address,any", pin)),
		name:  "many.example",
		addrs: []netip.Addr{s.addr.Addr(), netip.MustParseAddr("127.0.0.2")}, // where nobody listens
	}})
	h.open(t, s.addr).answered(t, "accept")
	s.nextFrom(t, pin)
	h.open(t, s.addr).answered(t, "accept")
	if got := addrPort(s.next(t).RemoteAddr()).Port(); got == pin {
		t.Errorf("source port %d twice", got)
	}
}

// A port that another program listens on rests, and is tried again.
func TestPortOfAListener(t *testing.T) {
	leaks(t)
	s, pin := listen(t, "127.0.0.1:0"), freePort(t)
	other, err := net.Listen("tcp", fmt.Sprintf(":%d", pin))
	if err != nil {
		t.Fatal(err)
	}
	var dials atomic.Int32
	h := newHarness(t, Config{Dialer: dialFunc(func(ctx context.Context, pin, dst netip.AddrPort) (Conn, error) {
		dials.Add(1)
		return Sockets{}.Dial(ctx, pin, dst)
	})}, fmt.Sprintf("*:%d=%d", s.addr.Port(), pin), fmt.Sprintf("198.51.100.7:443=%d busy=wait:40ms", pin))

	f := h.open(t, dst4)
	f.answered(t, "permission denied")
	f.ended(t)
	failed(t, h, slog.LevelWarn, "bind: address already in use")

	f = h.open(t, s.addr)
	before := dials.Load()
	eventually(t, "the port is tried again", func() bool { return dials.Load() > before+2 })
	_ = other.Close()
	f.answered(t, "accept")
	s.nextFrom(t, pin)
}

// So does a port whose 4-tuple the kernel holds for another program.
func TestTakenTuple(t *testing.T) {
	leaks(t)
	s, pin := listen(t, "127.0.0.1:0"), freePort(t)
	other, err := Sockets{}.Dial(t.Context(), netip.AddrPortFrom(netip.IPv4Unspecified(), pin), s.addr)
	if err != nil {
		t.Fatal(err)
	}
	s.nextFrom(t, pin)
	h := newHarness(t, Config{}, fmt.Sprintf("*:%d=%d busy=wait:5s", s.addr.Port(), pin), fmt.Sprintf("127.0.0.1:%d=%d busy=fail", s.addr.Port(), pin))
	f := h.open(t, s.addr)
	f.answered(t, "permission denied")
	f.ended(t)
	failed(t, h, slog.LevelWarn, "connect: cannot assign requested address")

	// 127.0.0.1 as an IPv4-mapped address would be another rule. So the waiting flow goes the same way through a
	// proxy of its own.
	h = newHarness(t, Config{}, fmt.Sprintf("*:%d=%d busy=wait:5s", s.addr.Port(), pin))
	f = h.open(t, s.addr)
	eventually(t, "the flow waits for the port", func() bool { return len(h.log.with("flow waits for the kernel to free its source port")) == 1 })
	closeByReset(other)
	f.answered(t, "accept")
	s.nextFrom(t, pin)
}

// In a range the next port is used.
func TestRangeWithATakenPort(t *testing.T) {
	for taken := range 3 {
		t.Run(fmt.Sprint(taken), func(t *testing.T) {
			leaks(t)
			s, first := listen(t, "127.0.0.1:0"), freePorts(t, 3)
			other, err := net.Listen("tcp", fmt.Sprintf(":%d", int(first)+taken))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = other.Close() }()
			h := newHarness(t, Config{}, fmt.Sprintf("*:*=%d-%d busy=fail", first, first+2))
			var ports []int
			for range 2 {
				h.open(t, s.addr).answered(t, "accept")
				ports = append(ports, int(addrPort(s.next(t).RemoteAddr()).Port()-first))
			}
			want := slices.DeleteFunc([]int{0, 1, 2}, func(i int) bool { return i == taken })
			if !slices.Equal(ports, want) {
				t.Errorf("ports %v of the range were used, want %v", ports, want)
			}
			f := h.open(t, s.addr)
			f.answered(t, "permission denied")
			f.ended(t)
			line := h.log.with("flow failed")[0].Attrs["err"]
			for _, part := range []string{"by flow 1 from", "1 resting"} {
				if !strings.Contains(line, part) {
					t.Errorf("log: %q does not say %q", line, part)
				}
			}
		})
	}
}

// Even a pin so wide that its first port has rested by the time the last is refused comes to an end.
func TestEveryPortRefused(t *testing.T) {
	for _, c := range []struct {
		busy  string
		least time.Duration
		most  time.Duration
	}{
		{"fail", 0, 2 * time.Second},
		{"wait:5s", 5 * time.Second, 8 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			refusing := failing("bind", syscall.EADDRINUSE)
			h := newHarness(t, Config{Dialer: dialFunc(func(ctx context.Context, pin, dst netip.AddrPort) (Conn, error) {
				time.Sleep(time.Millisecond)
				return refusing.Dial(ctx, pin, dst)
			})}, "*:*=1000-1999 busy="+c.busy)
			start := time.Now()
			f := h.openWith(t, dst4, memory)
			<-f.done
			f.answered(t, "permission denied")
			if took := time.Since(start); took < c.least || took > c.most {
				t.Errorf("busy=%s ended after %v", c.busy, took)
			}
			failed(t, h, slog.LevelWarn, "bind: address already in use")
		})
	}
}

// A cooldown is for firewalls that remember a connection. It does not count if a dial has sent nothing: because the
// kernel refused it, or had no way for it, for instance.
func TestNoCooldownWithoutConnection(t *testing.T) {
	for _, c := range []struct {
		name  string
		err   error
		after string // what the next flow gets
	}{
		{"no descriptor", os.NewSyscallError("socket", syscall.EMFILE), "accept"},
		{"no such source address", os.NewSyscallError("bind", syscall.EADDRNOTAVAIL), "accept"},
		{"the port is taken", os.NewSyscallError("connect", syscall.EADDRNOTAVAIL), "accept"},
		{"no route", &unsentError{os.NewSyscallError("connect", syscall.ENETUNREACH)}, "accept"},
		{"a router says so", os.NewSyscallError("connect", syscall.ENETUNREACH), "permission denied"},
		{"refused", os.NewSyscallError("connect", syscall.ECONNREFUSED), "permission denied"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				upstreams, fails := make(memDialer, 1), true
				h := newHarness(t, Config{Dialer: dialFunc(func(ctx context.Context, pin, dst netip.AddrPort) (Conn, error) {
					if fails {
						return nil, &net.OpError{Op: "dial", Net: "tcp", Err: c.err}
					}
					return upstreams.Dial(ctx, pin, dst)
				})}, "*:*=1000 cooldown=1h busy=fail")
				f := h.openWith(t, dst4, memory)
				<-f.done
				<-f.answers
				fails = false
				time.Sleep(time.Second)
				f = h.openWith(t, dst4, memory)
				f.answered(t, c.after)
			})
		})
	}
}

// Who looks at a waiting flow is told who is in its way now, not who was when it began to wait.
func TestFlowsTellWhoIsInTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, upstreams := inMemory(t, "*:*=1000 busy=wait:1m")
		first := h.openWith(t, dst4, memory)
		first.answered(t, "accept")
		second := h.openWith(t, dst4, memory)
		synctest.Wait()
		third := h.openWith(t, dst4, memory)
		for _, want := range []string{"1000 held for 7s by flow 1 from " + first.src.String(), "1000 held for 7s by flow 2 from " + second.src.String()} {
			time.Sleep(7 * time.Second)
			list := h.Flows()
			if got := list[len(list)-1]; got.Stage != Waiting || !strings.HasSuffix(got.Cause, want) || got.Hint == "" {
				t.Errorf("%+v, want cause %q", got, want)
			}
			_ = (<-upstreams).Close()
			if len(list) == 3 {
				_ = hangUp(first.app)
				first.ended(t)
				second.answered(t, "accept")
			}
		}
		_ = hangUp(second.app)
		third.answered(t, "accept")
		_ = (<-upstreams).Close()
		_ = hangUp(third.app)
	})
}
