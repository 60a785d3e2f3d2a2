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

// socket is a connection of the kernel's. It is made with less than net.Dialer needs: no goroutine for the context,
// no question after the peer's name, and a round through the poller only if there is something to wait for.
// docs/performance.md has what that is worth. Its errors are those of a *net.TCPConn.
type socket struct {
	file          *os.File // Go's poller knows it
	raw           rawSocket
	local, remote netip.AddrPort // local is what the kernel says
}

var _ kernelConn = (*socket)(nil)

// noDelay does without waiting until small packets have become large ones, which the application's own kernel has done
// if it was to be done.
var noDelay = option{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}

// connect makes a TCP connection from pin, the zero value for any source, to dst. prepare, if there is one, is given the
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
	return c, nil
}

// begin has the kernel connect, and reports whether the upstream has answered already, as one on this host does, or in a
// container of it: within the call.
func (s Sockets) begin(fd uintptr, pin netip.AddrPort, to sockaddrInet, prepare func(fd uintptr) error) (connected bool, err error) {
	if err := s.setOptions(fd); err != nil {
		return false, fmt.Errorf("mark the socket: %w", err)
	}
	if err := setsockoptNow(fd, noDelay); err != nil {
		return false, err
	}
	if prepare != nil {
		if err := prepare(fd); err != nil {
			return false, err
		}
	}
	if pin.IsValid() {
		if err := bindNow(fd, sockaddrOf(pin)); err != nil {
			return false, err
		}
	}
	if errno := connectNow(fd, to); !underWay(errno) {
		return errno == 0, failure("connect", errno)
	}
	// Other flows first: what they dial is then answered together. With many connections at a time the program makes a
	// tenth fewer a second without this.
	runtime.Gosched()
	return connectedNow(fd, to)
}

// underWay says whether connect has not come to an end.
func underWay(errno syscall.Errno) bool {
	return errno == unix.EINPROGRESS || errno == unix.EALREADY || errno == unix.EINTR
}

// connectedNow asks how a connect that is under way stands, by repeating it: its end is told once, be it an error
// (__inet_stream_connect).
func connectedNow(fd uintptr, to sockaddrInet) (bool, error) {
	switch errno := connectNow(fd, to); {
	case underWay(errno):
		return false, nil
	case errno == 0, errno == unix.EISCONN:
		return true, nil
	case errno == unix.EPIPE: // a reset behind the upstream's FIN (tcp_reset)
		return false, failure("connect", unix.ECONNRESET)
	default:
		return false, failure("connect", errno)
	}
}

// newSocket takes fd over, also if it fails.
func newSocket(fd int, remote netip.AddrPort) (*socket, error) {
	file := os.NewFile(uintptr(fd), "socket")
	raw, err := file.SyscallConn()
	if err == nil {
		err = file.SetWriteDeadline(time.Time{}) // which is all that os tells of a poller without room
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

// whyEnded is why ctx has ended; nil if it has not. As with net.Dialer, a deadline is a timeout.
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

// SetLinger is that of a *net.TCPConn.
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
func (s *socket) Close() error { return s.failed("close", s.file.Close()) }

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

// failed is err, which may be nil, as a *net.TCPConn has it.
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

// rawSocket is a file's syscall.RawConn. Where a file has been closed, or is past its deadline, it has other errors
// than a net.Conn.
type rawSocket struct{ raw syscall.RawConn }

// Control implements syscall.RawConn.
func (r *rawSocket) Control(f func(fd uintptr)) error { return ofNet(r.raw.Control(f)) }

// Read implements syscall.RawConn.
func (r *rawSocket) Read(f func(fd uintptr) bool) error { return ofNet(r.raw.Read(f)) }

// Write implements syscall.RawConn.
func (r *rawSocket) Write(f func(fd uintptr) bool) error { return ofNet(r.raw.Write(f)) }

// ofNet: closed is all that is left besides the deadline, and it has no name of its own (poll.ErrFileClosing).
func ofNet(err error) error {
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return net.ErrClosed
}
