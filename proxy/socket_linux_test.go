package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A socket reports and does what a *net.TCPConn does in its place.
func TestSocketIsLikeATCPConn(t *testing.T) {
	past := time.Unix(1, 0)
	raw := func(c kernelConn) syscall.RawConn {
		r, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	read := func(c net.Conn) error { _, err := c.Read(make([]byte, 1)); return err }
	later := func(f func()) { time.AfterFunc(20*time.Millisecond, f) }
	for _, test := range []struct {
		name string
		do   func(c kernelConn, peer *net.TCPConn) error // the error is compared
	}{
		{"bytes come", func(c kernelConn, peer *net.TCPConn) error { write(t, peer, "x"); return read(c) }},
		{"bytes go", func(c kernelConn, peer *net.TCPConn) error {
			write(t, c, "hello")
			wantRead(t, peer, "hello")
			return nil
		}},
		{"the peer ends", func(c kernelConn, peer *net.TCPConn) error { _ = peer.CloseWrite(); return read(c) }},
		{"the peer resets", func(c kernelConn, peer *net.TCPConn) error { closeByReset(peer); return read(c) }},
		{"the peer has reset", func(c kernelConn, peer *net.TCPConn) error {
			closeByReset(peer)
			_ = read(c)
			_, err := c.Write([]byte("x"))
			return err
		}},
		{"half is closed", func(c kernelConn, peer *net.TCPConn) error {
			err := c.CloseWrite()
			wantEnd(t, peer, nil)
			write(t, peer, "still")
			wantRead(t, c, "still")
			return err
		}},
		{"half is closed, and written to", func(c kernelConn, _ *net.TCPConn) error {
			_ = c.CloseWrite()
			_, err := c.Write([]byte("x"))
			return err
		}},
		{"half is closed after a reset", func(c kernelConn, peer *net.TCPConn) error {
			closeByReset(peer)
			_ = read(c)
			return c.CloseWrite()
		}},
		{"reset by linger", func(c kernelConn, peer *net.TCPConn) error {
			err := errors.Join(c.SetLinger(0), c.Close())
			wantEnd(t, peer, syscall.ECONNRESET)
			return err
		}},
		{"in order by linger", func(c kernelConn, peer *net.TCPConn) error {
			err := errors.Join(c.SetLinger(0), c.SetLinger(-1), c.Close())
			wantEnd(t, peer, nil)
			return err
		}},
		{"read after the deadline", func(c kernelConn, _ *net.TCPConn) error { _ = c.SetReadDeadline(past); return read(c) }},
		{"the deadline comes", func(c kernelConn, _ *net.TCPConn) error {
			later(func() { _ = c.SetDeadline(past) })
			return read(c)
		}},
		{"write after the deadline", func(c kernelConn, _ *net.TCPConn) error {
			_ = c.SetWriteDeadline(past)
			_, err := c.Write([]byte("x"))
			return err
		}},
		{"the deadline was taken back", func(c kernelConn, peer *net.TCPConn) error {
			_ = c.SetDeadline(past)
			_ = c.SetDeadline(time.Time{})
			write(t, peer, "x")
			return read(c)
		}},
		{"closed while it is read", func(c kernelConn, _ *net.TCPConn) error { later(func() { _ = c.Close() }); return read(c) }},
		{"closed, and read", func(c kernelConn, _ *net.TCPConn) error { _ = c.Close(); return read(c) }},
		{"closed, and written to", func(c kernelConn, _ *net.TCPConn) error { _ = c.Close(); _, err := c.Write([]byte("x")); return err }},
		{"closed, half of it", func(c kernelConn, _ *net.TCPConn) error { _ = c.Close(); return c.CloseWrite() }},
		{"closed, and made to linger", func(c kernelConn, _ *net.TCPConn) error { _ = c.Close(); return c.SetLinger(0) }},
		{"closed, and again", func(c kernelConn, _ *net.TCPConn) error { _ = c.Close(); return c.Close() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			leaks(t)
			theirs, ours := outcome(t, dialNet, test.do), outcome(t, dialSocket, test.do)
			if ours != theirs {
				t.Errorf("the error is %q, that of a *net.TCPConn %q", ours, theirs)
			}
		})
	}
	for _, test := range []struct {
		name string
		do   func(c kernelConn) error
		want error
	}{
		{"raw read after the deadline", func(c kernelConn) error {
			_ = c.SetDeadline(past)
			return raw(c).Read(func(uintptr) bool { return false })
		}, context.DeadlineExceeded},
		{"raw read while it is closed", func(c kernelConn) error {
			later(func() { _ = c.Close() })
			return raw(c).Read(func(uintptr) bool { return false })
		}, net.ErrClosed},
		{"raw write after close", func(c kernelConn) error {
			_ = c.Close()
			return raw(c).Write(func(uintptr) bool { return false })
		}, net.ErrClosed},
		{"deadline after close", func(c kernelConn) error {
			_ = c.Close()
			if c.SetDeadline(past) == nil || c.SetReadDeadline(past) == nil {
				return nil
			}
			return c.SetWriteDeadline(past)
		}, net.ErrClosed},
		{"raw control after close", func(c kernelConn) error { _ = c.Close(); return raw(c).Control(func(uintptr) {}) }, net.ErrClosed},
	} {
		t.Run(test.name, func(t *testing.T) {
			leaks(t)
			for name, dial := range map[string]connectFunc{"net": dialNet, "socket": dialSocket} {
				outcome(t, dial, func(c kernelConn, _ *net.TCPConn) error {
					err := test.do(c)
					if !errors.Is(err, test.want) && (test.want != context.DeadlineExceeded || !isTimeout(err)) {
						t.Errorf("%s: %v, want %v", name, err, test.want)
					}
					return err
				})
			}
		})
	}
}

type connectFunc func(ctx context.Context, pin, dst netip.AddrPort) (kernelConn, error)

func dialSocket(ctx context.Context, pin, dst netip.AddrPort) (kernelConn, error) {
	return Sockets{}.connect(ctx, pin, dst, nil)
}

func dialNet(ctx context.Context, pin, dst netip.AddrPort) (kernelConn, error) {
	d := net.Dialer{Control: Sockets{}.control}
	if pin.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(pin)
	}
	c, err := d.DialContext(ctx, "tcp", dst.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// outcome returns the text of do's error, with words for the addresses.
func outcome(t *testing.T, dial connectFunc, do func(c kernelConn, peer *net.TCPConn) error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := dial(t.Context(), netip.AddrPort{}, addrPort(l.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	for _, c := range []net.Conn{c, peer} {
		_ = c.SetDeadline(time.Now().Add(patience))
	}
	words := strings.NewReplacer(c.LocalAddr().String(), "local", c.RemoteAddr().String(), "remote")
	if err := do(c, peer.(*net.TCPConn)); err != nil {
		return words.Replace(err.Error())
	}
	return ""
}

// From the beginning the kernel has been told all that it is to know about the connection. TestKeepAlive covers the
// rest.
func TestSocketOptions(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		dst := addrPort(l.Addr())
		pin := netip.AddrPortFrom(dst.Addr(), uint16(freePort(t)))
		c, err := dialSocket(t.Context(), pin, dst)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		peer, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		if got := addrPort(c.LocalAddr()); got != pin || addrPort(peer.RemoteAddr()) != pin {
			t.Errorf("from %s, and the peer sees %s, want %s", got, peer.RemoteAddr(), pin)
		}
		if got := addrPort(c.RemoteAddr()); got != dst {
			t.Errorf("to %s, want %s", got, dst)
		}
		for _, o := range []option{noDelay, {unix.SOL_SOCKET, unix.SO_REUSEADDR, 1}} {
			err := c.(*socket).control("get", func(fd uintptr) error {
				got, err := unix.GetsockoptInt(int(fd), o.level, o.name)
				if got != o.value {
					t.Errorf("option %d of level %d is %d, want %d", o.name, o.level, got, o.value)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		err = c.(*socket).control("get", func(fd uintptr) error {
			flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0)
			if flags&unix.FD_CLOEXEC == 0 {
				t.Error("programs that are started inherit it")
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Errnos stay in the error, with the name of their call.
func TestSocketDialFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	there := addrPort(l.Addr())
	nobody := netip.AddrPortFrom(there.Addr(), uint16(freePort(t)))
	pin := netip.AddrPortFrom(there.Addr(), uint16(freePort(t)))
	living, err := dialSocket(t.Context(), pin, there)
	if err != nil {
		t.Fatal(err)
	}
	defer living.Close()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer cancel()
	for _, test := range []struct {
		name     string
		ctx      context.Context
		pin, dst netip.AddrPort
		call     string
		errno    error
	}{
		{"nobody listens", t.Context(), netip.AddrPort{}, nobody, "connect", syscall.ECONNREFUSED},
		{"nobody listens, pinned", t.Context(), netip.AddrPortFrom(netip.IPv4Unspecified(), pin.Port()), nobody, "connect", syscall.ECONNREFUSED},
		{"the 4-tuple is in use", t.Context(), pin, there, "connect", syscall.EADDRNOTAVAIL},
		{"the port has a listener", t.Context(), there, nobody, "bind", syscall.EADDRINUSE},
		{"the address is not ours", t.Context(), netip.MustParseAddrPort("192.0.2.1:0"), there, "bind", syscall.EADDRNOTAVAIL},
		{"no way there", t.Context(), netip.AddrPort{}, netip.MustParseAddrPort("255.255.255.255:1"), "connect", syscall.ENETUNREACH},
		{"given up before", gone, pin, nobody, "", context.Canceled},
		{"late before", late, pin, nobody, "", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			leaks(t)
			_, err := dialSocket(test.ctx, test.pin, test.dst)
			_, theirs := dialNet(test.ctx, test.pin, test.dst)
			switch {
			case err == nil || theirs == nil:
				t.Fatalf("%v, and %v of net", err, theirs)
			case test.errno != nil && !errors.Is(err, test.errno), test.call != "" && !fromCall(err, test.call):
				t.Errorf("%v, want %s: %v", err, test.call, test.errno)
			case test.errno != context.Canceled && err.Error() != theirs.Error():
				t.Errorf("%q, net says %q", err, theirs)
			case kindOf(err) != kindOf(theirs), unanswered(err) != unanswered(theirs):
				t.Errorf("%v is %v, of net %v", err, kindOf(err), kindOf(theirs))
			}
		})
	}
}

// An upstream that answers, sends its FIN and resets before we look has reset, whatever the kernel calls it.
func TestSocketResetBehindFIN(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	to := sockaddrOf(addrPort(l.Addr()))
	if errno := connectNow(uintptr(fd), to); !underWay(errno) {
		t.Fatal(errno)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
	eventually(t, "the reset comes", func() bool { return gone(uintptr(fd)) })
	if _, err := connectedNow(uintptr(fd), to); kindOf(err) != KindReset {
		t.Errorf("%v is %v", err, kindOf(err))
	}
}

// A dial that is not answered at once waits, but only as long as it is wanted.
func TestSocketDialWaits(t *testing.T) {
	for _, test := range []struct {
		name  string
		after func(l *net.TCPListener, cancel func()) // what happens while it waits
		limit time.Duration
		want  error
		kind  Kind
	}{
		{"given up", func(_ *net.TCPListener, cancel func()) { cancel() }, patience, context.Canceled, KindGaveUp},
		{"too late", func(*net.TCPListener, func()) {}, 50 * time.Millisecond, nil, KindSilent},
		{"answered", func(l *net.TCPListener, _ func()) {
			if c, err := l.Accept(); err == nil {
				_ = c.Close()
			}
		}, patience, nil, KindOther},
		{"refused", func(l *net.TCPListener, _ func()) { _ = l.Close() }, patience, syscall.ECONNREFUSED, KindRefused},
	} {
		t.Run(test.name, func(t *testing.T) {
			leaks(t)
			l := crampedListener(t)
			begun := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), test.limit)
			defer cancel()
			time.AfterFunc(20*time.Millisecond, func() { test.after(l, cancel) })
			c, err := dialSocket(ctx, netip.AddrPort{}, addrPort(l.Addr()))
			if took := time.Since(begun); took < 20*time.Millisecond {
				t.Fatalf("it did not wait: %v after %v", err, took)
			}
			if test.kind == KindOther {
				if err != nil {
					t.Fatal(err)
				}
				if peer, err := l.Accept(); err != nil || peer.RemoteAddr().String() != c.LocalAddr().String() {
					t.Errorf("the listener has %v, %v", peer, err)
				} else {
					write(t, peer, "x")
					wantRead(t, c, "x") // no deadline was left behind
					write(t, c, "y")
					wantRead(t, peer, "y")
					_ = peer.Close()
				}
				_ = c.Close()
				return
			}
			if err == nil {
				_ = c.Close()
			}
			if kindOf(err) != test.kind || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			if test.kind == KindSilent && !unanswered(err) {
				t.Errorf("%v counts as an answer", err)
			}
		})
	}
}

// crampedListener has room for one connection, and has that one. Further SYNs get no answer until it is accepted.
func crampedListener(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), 0) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the listener has heard the last of that handshake", func() (has bool) {
		_ = raw.Control(func(fd uintptr) {
			n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			has = n == 1
		})
		return has
	})
	t.Cleanup(func() { _ = c.Close(); _ = l.Close() })
	return l.(*net.TCPListener)
}

// A dial tells whether it failed before anything was sent.
func TestDialTellsWhetherItSent(t *testing.T) {
	refusing := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t))
	nowhere := netip.MustParseAddrPort("192.0.2.1:9") // from 127.0.0.1
	for _, c := range []struct {
		dst  netip.AddrPort
		sent bool
	}{{refusing, true}, {nowhere, false}} {
		_, err := Sockets{}.Dial(t.Context(), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t)), c.dst)
		if err == nil || nothingSent(err) == c.sent {
			t.Errorf("to %s: %v, sent nothing: %v", c.dst, err, nothingSent(err))
		}
	}
}
