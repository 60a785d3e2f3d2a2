package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

var dst4 = netip.MustParseAddrPort("198.51.100.7:443")

// closedPort returns an address of this host where nobody listens.
func closedPort(t *testing.T, address string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return addrPort(l.Addr())
}

// failed checks the one log line about a flow that was never spliced.
func failed(t *testing.T, h *harness, level slog.Level, cause string) {
	t.Helper()
	lines := h.log.with("flow failed")
	if len(lines) != 1 {
		t.Fatalf("%d lines say that the flow failed: %v", len(lines), lines)
	}
	if got := lines[0]; got.Level != level || !strings.Contains(got.Attrs["err"], cause) {
		t.Errorf("log: %v %q, want %v %q", got.Level, got.Attrs["err"], level, cause)
	}
	if st := h.Stats(); st.Failed != 1 || st.Ended != 0 {
		t.Errorf("%+v, want 1 failed", st)
	}
}

// The rows of the failure table where the dial gets an error.
func TestDialFails(t *testing.T) {
	for _, c := range []struct {
		name   string
		dialer Dialer
		answer string
		level  slog.Level
		cause  string
	}{
		{"refused", failing("connect", syscall.ECONNREFUSED), "connection refused", slog.LevelInfo, "connection refused"},
		{"host unreachable", failing("connect", syscall.EHOSTUNREACH), "no route to host", slog.LevelInfo, "no route to host"},
		{"net unreachable", failing("connect", syscall.ENETUNREACH), "network is unreachable", slog.LevelInfo, "network is unreachable"},
		{"local firewall", failing("connect", syscall.EPERM), "permission denied", slog.LevelWarn, "a firewall of this host forbids the connection: dial tcp: connect: operation not permitted"},
		{"kernel's own timeout", failing("connect", syscall.ETIMEDOUT), "drop", slog.LevelInfo, "timed out"},
		{"no descriptors", failing("socket", syscall.EMFILE), "no route to host", slog.LevelWarn, "too many open files"},
		{"port is privileged", failing("bind", syscall.EACCES), "permission denied", slog.LevelWarn, "bind: permission denied"},
		{"pin's address is not ours", failing("bind", syscall.EADDRNOTAVAIL), "permission denied", slog.LevelWarn, "bind: cannot assign"},
		{"port is another program's", failing("bind", syscall.EADDRINUSE), "permission denied", slog.LevelWarn, "bind: address already in use"},
		{"4-tuple is the kernel's", failing("connect", syscall.EADDRNOTAVAIL), "permission denied", slog.LevelWarn, "connect: cannot assign"},
	} {
		t.Run(c.name, func(t *testing.T) {
			leaks(t)
			h := newHarness(t, Config{Dialer: c.dialer}, "*:*=1000 busy=fail")
			f := h.open(t, dst4)
			f.answered(t, c.answer)
			f.ended(t)
			failed(t, h, c.level, c.cause)
		})
	}
}

// An upstream that answers and resets at once. The dial may end with that reset.
func TestResetWhileConnecting(t *testing.T) {
	leaks(t)
	h := newHarness(t, Config{Dialer: failing("connect", syscall.ECONNRESET)}, "*:*=1000")
	f := h.open(t, dst4)
	f.answered(t, "accept")
	wantEnd(t, f.app, syscall.ECONNRESET)
	f.ended(t)
	failed(t, h, slog.LevelInfo, "connection reset")
}

// More rows, with the kernel's own answers.
func TestKernelRefuses(t *testing.T) {
	for _, c := range []struct {
		name, address, pin string
		answer, cause      string
		level              slog.Level
	}{
		{"refused", "127.0.0.1:0", "", "connection refused", "connect: connection refused", slog.LevelInfo},
		{"refused over IPv6", "[::1]:0", "", "connection refused", "connect: connection refused", slog.LevelInfo},
		{"pin's address is not ours", "127.0.0.1:0", "192.0.2.77:", "permission denied", "bind: cannot assign requested address", slog.LevelWarn},
		{"pin of the other family", "[::1]:0", "192.0.2.77:", "permission denied", "other family", slog.LevelWarn},
	} {
		t.Run(c.name, func(t *testing.T) {
			leaks(t)
			dst := closedPort(t, c.address)
			h := newHarness(t, Config{}, fmt.Sprintf("*:%d=%s%d", dst.Port(), c.pin, freePort(t)))
			f := h.open(t, dst)
			f.answered(t, c.answer)
			f.ended(t)
			failed(t, h, c.level, c.cause)
		})
	}
}

// If the upstream is silent, so are we, and the lease is free after the timeout.
func TestDialTimeout(t *testing.T) {
	for _, c := range []struct{ configured, want time.Duration }{
		{0, 30 * time.Second},
		{5 * time.Second, 5 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			silent := dialFunc(func(ctx context.Context, _, _ netip.AddrPort) (Conn, error) {
				<-ctx.Done()
				return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
			})
			h := newHarness(t, Config{Dialer: silent, DialTimeout: c.configured}, "*:*=1000")
			start := time.Now()
			f := h.open(t, dst4)
			if answer, took := <-f.answers, time.Since(start); answer != "drop" || took != c.want {
				t.Errorf("%q after %v, want drop after %v", answer, took, c.want)
			}
			if held, _ := h.leases.Counts(); held != 0 {
				t.Error("the lease outlasts the dial")
			}
			<-f.done // and then the destination was probed from another port
			failed(t, h, slog.LevelWarn, fmt.Sprintf("no answer from %s to source port 1000 within %v, nor to another port: ", dst4, c.want))
		})
	}
}

// A listener with a full queue drops SYNs: this is the kernel's silence.
func TestSilentUpstream(t *testing.T) {
	leaks(t)
	dst := fullListener(t)
	h := newHarness(t, Config{DialTimeout: 50 * time.Millisecond}, fmt.Sprintf("*:*=%d", freePort(t)))
	f := h.open(t, dst)
	f.answered(t, "drop")
	f.ended(t)
	failed(t, h, slog.LevelWarn, fmt.Sprintf("->%s: i/o timeout", dst))
}

// fullListener returns the address of a listener that accepts no more connections.
func fullListener(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	dst := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sa.(*syscall.SockaddrInet4).Port))
	for range 8 {
		c, err := net.DialTimeout("tcp", dst.String(), 200*time.Millisecond)
		if err != nil {
			return dst
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Skip("this kernel's listeners take connections beyond their queue")
	return dst
}

// A socket that does not have the address it was told to have never carries a byte.
func TestVerify(t *testing.T) {
	leaks(t)
	s := listen(t, "127.0.0.1:0")
	elsewhere := dialFunc(func(ctx context.Context, _, dst netip.AddrPort) (Conn, error) {
		return Sockets{}.Dial(ctx, netip.AddrPort{}, dst)
	})
	pin := freePort(t)
	for _, pin := range []string{fmt.Sprint(pin), fmt.Sprintf("127.0.0.1:%d", pin)} {
		h := newHarness(t, Config{Dialer: elsewhere}, "*:*="+pin)
		f := h.open(t, s.addr)
		f.answered(t, "permission denied")
		f.ended(t)
		failed(t, h, slog.LevelWarn, "instead of the pin")
		wantEnd(t, s.next(t), syscall.ECONNRESET)
	}

	// The right port on another address.
	h := newHarness(t, Config{Dialer: dialFunc(func(ctx context.Context, pin, dst netip.AddrPort) (Conn, error) {
		return Sockets{}.Dial(ctx, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.3"), pin.Port()), dst)
	})}, fmt.Sprintf("*:*=127.0.0.2:%d", pin))
	f := h.open(t, s.addr)
	f.answered(t, "permission denied")
	f.ended(t)
	failed(t, h, slog.LevelWarn, fmt.Sprintf("the socket has the local address 127.0.0.3:%d instead of the pin 127.0.0.2:%d", pin, pin))
	wantEnd(t, s.next(t), syscall.ECONNRESET)
}

// A connection to its own source would be a connection with itself.
func TestSelfConnection(t *testing.T) {
	for _, address := range []string{"", "127.0.0.1:"} { // detected after the dial, and before it
		t.Run("pin "+address, func(t *testing.T) {
			leaks(t)
			port := freePort(t)
			h := newHarness(t, Config{}, fmt.Sprintf("*:%d=%s%d", port, address, port))
			f := h.open(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port))
			f.answered(t, "permission denied")
			f.ended(t)
			failed(t, h, slog.LevelWarn, "lead back to itself")
		})
	}
}

func TestNoRule(t *testing.T) {
	leaks(t)
	s := listen(t, "127.0.0.1:0")
	h := newHarness(t, Config{}, "203.0.113.1:443=1000")
	f := h.open(t, s.addr)
	f.answered(t, "permission denied")
	f.ended(t)
	failed(t, h, slog.LevelWarn, "no rule is for this destination")
}

// Direct lets those flows without a rule through that it approves.
func TestDirect(t *testing.T) {
	leaks(t)
	s, other := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	h := newHarness(t, Config{Direct: func(dst netip.AddrPort) bool { return dst == s.addr }}, "203.0.113.1:443=1000")
	f := h.open(t, s.addr)
	f.answered(t, "accept")
	up := s.next(t)
	write(t, up, "hello")
	wantRead(t, f.app, "hello")
	_, _ = up.Close(), f.app.Close()
	f.ended(t)

	f = h.open(t, other.addr)
	f.answered(t, "permission denied")
	f.ended(t)
	if st := h.Stats(); st != (Stats{Ended: 1, Failed: 1}) {
		t.Errorf("%+v", st)
	}
}

type counted struct {
	Conn
	read atomic.Int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read.Add(int64(n))
	return n, err
}

// What Wrap returns is what the flow reads from.
func TestWrap(t *testing.T) {
	leaks(t)
	s, pin := listen(t, "127.0.0.1:0"), freePort(t)
	wrapped := make(chan *counted, 1)
	h := newHarness(t, Config{Wrap: func(_, dst netip.AddrPort, c Conn) Conn {
		if dst != s.addr {
			t.Errorf("wrap of a connection to %s, want %s", dst, s.addr)
		}
		w := &counted{Conn: c}
		wrapped <- w
		return w
	}}, fmt.Sprintf("*:*=%d", pin))
	f := h.open(t, s.addr)
	f.answered(t, "accept")
	up := s.nextFrom(t, pin)
	write(t, up, "hello")
	wantRead(t, f.app, "hello")
	_, _ = up.Close(), f.app.Close()
	f.ended(t)
	if n := (<-wrapped).read.Load(); n != 5 {
		t.Errorf("%d bytes were read through the wrapper, want 5", n)
	}
}

// The application gives up: the dial ends and the port is free.
func TestGivesUpDuringDial(t *testing.T) {
	leaks(t)
	dialing := make(chan struct{})
	h := newHarness(t, Config{Dialer: dialFunc(func(ctx context.Context, _, _ netip.AddrPort) (Conn, error) {
		close(dialing)
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
	})}, "*:*=1000")
	f := h.open(t, dst4)
	receive(t, dialing, "the dial begins")
	f.giveUp()
	f.ended(t)
	f.answered(t, "drop")
	failed(t, h, slog.LevelInfo, "the application gave up")
}

// The same with the kernel's dialer, which must leave no socket behind.
func TestGivesUpDuringKernelDial(t *testing.T) {
	leaks(t)
	dst := fullListener(t)
	dialing := make(chan struct{})
	h := newHarness(t, Config{Dialer: dialFunc(func(ctx context.Context, pin, dst netip.AddrPort) (Conn, error) {
		close(dialing)
		return Sockets{}.Dial(ctx, pin, dst)
	})}, fmt.Sprintf("*:*=%d", freePort(t)))
	f := h.open(t, dst)
	receive(t, dialing, "the dial begins")
	f.giveUp()
	f.ended(t)
	f.answered(t, "drop")
	failed(t, h, slog.LevelInfo, "the application gave up")
}

func TestGivesUpWaitingForALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstreams := make(memDialer, 1)
		h := newHarness(t, Config{Dialer: upstreams}, "*:*=1000 busy=wait:1m")
		first := h.openWith(t, dst4, memory)
		first.answered(t, "accept")
		f := h.openWith(t, dst4, memory)
		synctest.Wait()
		if held, waiting := h.leases.Counts(); held != 1 || waiting != 1 {
			t.Fatalf("%d leases held, %d waited for, want 1 and 1", held, waiting)
		}
		f.giveUp()
		f.ended(t)
		f.answered(t, "drop")
		failed(t, h, slog.LevelInfo, "the application gave up")
		if held, waiting := h.leases.Counts(); held != 1 || waiting != 0 {
			t.Errorf("%d leases held, %d waited for, want 1 and 0", held, waiting)
		}
		_ = (<-upstreams).Close()
	})
}

// The application is gone when the upstream has answered. The upstream is reset.
func TestAcceptFails(t *testing.T) {
	leaks(t)
	s, pin := listen(t, "127.0.0.1:0"), freePort(t)
	h := newHarness(t, Config{}, fmt.Sprintf("*:*=%d", pin))
	for range 3 { // a reset leaves nothing behind that would hold the port
		f := h.openWith(t, s.addr, func() (Conn, Conn, error) { return nil, nil, errors.New("the application has given up") })
		f.answered(t, "accept")
		wantEnd(t, s.nextFrom(t, pin), syscall.ECONNRESET)
		f.ended(t)
	}
	lines := h.log.with("flow failed")
	if len(lines) != 3 || lines[0].Attrs["err"] != "the application has given up" || lines[0].Attrs["local"] != fmt.Sprintf("127.0.0.1:%d", pin) {
		t.Errorf("log: %v", lines)
	}
}

// One port serves many destinations at once, over IPv4 and IPv6.
func TestOnePortManyDestinations(t *testing.T) {
	leaks(t)
	pin := freePort(t)
	h := newHarness(t, Config{}, fmt.Sprintf("*:*=%d busy=fail", pin))
	for _, address := range []string{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.2:0", "[::1]:0"} {
		s := listen(t, address)
		f := h.open(t, s.addr)
		f.answered(t, "accept")
		up := s.nextFrom(t, pin)
		write(t, f.app, "ping")
		wantRead(t, up, "ping")
		write(t, up, "pong")
		wantRead(t, f.app, "pong")
	}
	if held, _ := h.leases.Counts(); held != 4 {
		t.Errorf("%d leases held, want 4", held)
	}
}

// A flow whose application signs fails at once, before a dial, whether a rule is for it or not.
func TestSignedFlow(t *testing.T) {
	for _, rule := range []string{"*:*=1000", "*:1=1000"} {
		h := newHarness(t, Config{Dialer: failing("connect", syscall.ECONNREFUSED), Direct: func(netip.AddrPort) bool { return true }}, rule)
		h.signed = true
		f := h.open(t, dst4)
		f.answered(t, syscall.EACCES.Error())
		f.ended(t)
		lines := h.log.with("flow failed")
		if len(lines) != 1 || lines[0].Attrs["err"] != errSigned.Error() || lines[0].Attrs["hint"] == "" {
			t.Errorf("%s: log: %v, want the signature", rule, lines)
		}
	}
}
