package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socket is a kernel connection. It takes less to make than with net.Dialer: no goroutine for the context, no query
// for the peer's name, and a pass through the poller only if there is something to wait for. docs/performance.md says
// what that is worth. Its errors are those of a *net.TCPConn.
type socket struct {
	file          *os.File // known to Go's poller
	raw           rawSocket
	local, remote netip.AddrPort // local is as reported by the kernel
	endings       *Endings       // nil unless it leaves from a pin
}

var _ kernelConn = (*socket)(nil)

// noDelay does not wait for small packets to become large ones. If that is wanted, the application's own kernel has
// already done it.
var noDelay = option{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}

// urgentInline leaves urgent data (MSG_OOB) in its place among the other bytes, from where readChunk passes it on.
// Without it nobody would read that byte, and the application would not get it at all.
var urgentInline = option{unix.SOL_SOCKET, unix.SO_OOBINLINE, 1}

// v6Only keeps a socket bound to [::] off the ports of IPv4. Without it, as net.ipv6.bindv6only has it by default, a
// program that has a port of IPv4 would keep us from the same port of IPv6.
var v6Only = option{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1}

// connect makes a TCP connection from pin to dst. The zero pin means any source. prepare, if not nil, is given the
// socket before it is bound.
func (s Sockets) connect(ctx context.Context, pin, dst netip.AddrPort, prepare func(fd uintptr) error) (kernelConn, error) {
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	c, err := s.connectSocket(ctx, pin, dst, prepare)
	if err != nil {
		failed := &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(dst), Err: err}
		if pin.IsValid() {
			failed.Source = net.TCPAddrFromAddrPort(pin)
		}
		return nil, failed
	}
	return c, nil
}

func (s Sockets) connectSocket(ctx context.Context, pin, dst netip.AddrPort, prepare func(fd uintptr) error) (*socket, error) {
	if err := whyEnded(ctx); err != nil {
		return nil, err
	}
	to := sockaddrOf(dst)
	fd, err := unix.Socket(to.family(), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	connected, err := s.begin(uintptr(fd), pin, to, prepare)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	c, err := newSocket(fd, dst)
	if err != nil {
		return nil, err
	}
	if !connected {
		err = c.await(ctx, to)
	}
	if err == nil {
		c.local, err = getsocknameNow(uintptr(fd))
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	if pin.IsValid() {
		c.endings = s.Endings
	}
	return c, nil
}

// begin makes the kernel connect, and reports whether the upstream has answered already. An upstream on this host, or
// in a container on it, answers within the call.
func (s Sockets) begin(fd uintptr, pin netip.AddrPort, to sockaddrInet, prepare func(fd uintptr) error) (connected bool, err error) {
	if err := s.setOptions(fd); err != nil {
		return false, fmt.Errorf("mark the socket: %w", err)
	}
	for _, o := range [...]option{noDelay, urgentInline} {
		if err := setsockoptNow(fd, o); err != nil {
			return false, err
		}
	}
	if prepare != nil {
		if err := prepare(fd); err != nil {
			return false, err
		}
	}
	if pin.Addr() == netip.IPv6Unspecified() {
		if err := setsockoptNow(fd, v6Only); err != nil {
			return false, err
		}
	}
	if pin.IsValid() {
		if err := bindNow(fd, sockaddrOf(pin)); err != nil {
			return false, err
		}
	}
	switch errno := connectNow(fd, to); {
	case underWay(errno):
	case errno == 0, errno == unix.ECONNREFUSED:
		return errno == 0, failure("connect", errno)
	default: // nobody but this host has been asked
		return false, &unsentError{failure("connect", errno)}
	}
	// Let other flows go first: what they dial is then answered together. Without this, with many connections at a
	// time, the program makes a tenth fewer per second.
	runtime.Gosched()
	return connectedNow(fd, to)
}

// underWay reports whether connect has not come to an end yet.
func underWay(errno syscall.Errno) bool {
	return errno == unix.EINPROGRESS || errno == unix.EALREADY || errno == unix.EINTR
}

// connectedNow asks for the state of a connect under way by repeating it. The kernel reports its end once, even if it
// is an error (__inet_stream_connect).
func connectedNow(fd uintptr, to sockaddrInet) (bool, error) {
	switch errno := connectNow(fd, to); {
	case underWay(errno):
		return false, nil
	case errno == 0, errno == unix.EISCONN:
		return true, nil
	case errno == unix.EPIPE: // a reset after the upstream's FIN (tcp_reset)
		return false, failure("connect", unix.ECONNRESET)
	default:
		return false, failure("connect", errno)
	}
}

// newSocket takes over fd, even if it fails.
func newSocket(fd int, remote netip.AddrPort) (*socket, error) {
	file := os.NewFile(uintptr(fd), "socket")
	raw, err := file.SyscallConn()
	if err == nil {
		err = file.SetWriteDeadline(time.Time{}) // the only sign that os gives of a poller without room
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("watch the socket: %w", err)
	}
	return &socket{file: file, raw: rawSocket{raw}, remote: remote}, nil
}

// await returns when the connection is made, has failed, or ctx has ended.
func (s *socket) await(ctx context.Context, to sockaddrInet) error {
	stop := context.AfterFunc(ctx, func() { _ = s.file.SetWriteDeadline(time.Unix(1, 0)) })
	var err error
	werr := s.raw.Write(func(fd uintptr) bool {
		var done bool
		done, err = connectedNow(fd, to)
		return done || err != nil
	})
	if !stop() {
		return whyEnded(ctx)
	}
	if werr != nil {
		return werr
	}
	return err
}

// whyEnded returns why ctx has ended; nil if it has not. As with net.Dialer, a deadline is a timeout.
func whyEnded(ctx context.Context) error {
	err := ctx.Err()
	if errors.Is(err, context.DeadlineExceeded) {
		return os.ErrDeadlineExceeded
	}
	return err
}

// Read implements net.Conn.
func (s *socket) Read(b []byte) (int, error) {
	n, err := s.file.Read(b)
	if err != nil && err != io.EOF {
		err = s.failed("read", err)
	}
	return n, err
}

// Write implements net.Conn.
func (s *socket) Write(b []byte) (int, error) {
	n, err := s.file.Write(b)
	return n, s.failed("write", err)
}

// CloseWrite ends our direction.
func (s *socket) CloseWrite() error {
	return s.control("close", func(fd uintptr) error { return shutdownNow(fd, unix.SHUT_WR) })
}

// SetLinger does what that of a *net.TCPConn does.
func (s *socket) SetLinger(sec int) error {
	linger := unix.Linger{Linger: int32(max(sec, 0))}
	if sec >= 0 {
		linger.Onoff = 1
	}
	return s.control("set", func(fd uintptr) error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &linger))
	})
}

func (s *socket) control(op string, f func(fd uintptr) error) error {
	var err error
	if cerr := s.raw.Control(func(fd uintptr) { err = f(fd) }); cerr != nil {
		err = cerr
	}
	return s.failed(op, err)
}

// Close implements net.Conn.
func (s *socket) Close() error {
	if s.endings != nil {
		_ = s.raw.Control(func(fd uintptr) { s.endings.note(fd, s.local, s.remote) })
	}
	return s.failed("close", s.file.Close())
}

// LocalAddr implements net.Conn.
func (s *socket) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(s.local) }

// RemoteAddr implements net.Conn.
func (s *socket) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(s.remote) }

// SetDeadline implements net.Conn.
func (s *socket) SetDeadline(t time.Time) error { return s.failed("set", ofNet(s.file.SetDeadline(t))) }

// SetReadDeadline implements net.Conn.
func (s *socket) SetReadDeadline(t time.Time) error {
	return s.failed("set", ofNet(s.file.SetReadDeadline(t)))
}

// SetWriteDeadline implements net.Conn.
func (s *socket) SetWriteDeadline(t time.Time) error {
	return s.failed("set", ofNet(s.file.SetWriteDeadline(t)))
}

// SyscallConn implements syscall.Conn.
func (s *socket) SyscallConn() (syscall.RawConn, error) { return &s.raw, nil }

// failed returns err, which may be nil, as a *net.TCPConn reports it.
func (s *socket) failed(op string, err error) error {
	if err == nil {
		return nil
	}
	var of *os.PathError
	if errors.As(err, &of) {
		err = of.Err
	}
	var errno syscall.Errno
	switch {
	case errors.Is(err, os.ErrClosed):
		err = net.ErrClosed
	case errors.As(err, &errno) && err == error(errno):
		err = os.NewSyscallError(op, err)
	}
	return &net.OpError{Op: op, Net: "tcp", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: err}
}

// rawSocket is a file's syscall.RawConn with the errors of a net.Conn. A file's own errors differ when it has been
// closed or is past its deadline.
type rawSocket struct{ raw syscall.RawConn }

// Control implements syscall.RawConn.
func (r *rawSocket) Control(f func(fd uintptr)) error { return ofNet(r.raw.Control(f)) }

// Read implements syscall.RawConn.
func (r *rawSocket) Read(f func(fd uintptr) bool) error { return ofNet(r.raw.Read(f)) }

// Write implements syscall.RawConn.
func (r *rawSocket) Write(f func(fd uintptr) bool) error { return ofNet(r.raw.Write(f)) }

// ofNet turns a file's error into that of a net.Conn. Besides the deadline, only a closed file is left. Its error has
// no exported name (poll.ErrFileClosing).
func ofNet(err error) error {
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return net.ErrClosed
}
