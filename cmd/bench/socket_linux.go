package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// socket is a blocking IPv4 TCP socket. The kernel wakes two ends that block directly. Go's poller would add as much
// to a round trip as some of the systems under test do.
type socket int

// dial connects to dst. It uses the port from, or any port if from is 0.
func dial(dst netip.AddrPort, from uint16) (socket, error) {
	s, err := newSocket(socketPatience)
	if err != nil {
		return -1, err
	}
	if from != 0 {
		if err := s.bind(netip.AddrPortFrom(netip.IPv4Unspecified(), from)); err != nil {
			s.close()
			return -1, err
		}
	}
	if err := s.connect(dst); err != nil {
		s.close()
		return -1, fmt.Errorf("connect: %w", err)
	}
	return s, nil
}

func newSocket(patience time.Duration) (socket, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make a socket: %w", err)
	}
	s := socket(fd)
	return s, s.setPatience(patience)
}

func (s socket) setPatience(d time.Duration) error {
	t := unix.NsecToTimeval(int64(d))
	return errors.Join(
		unix.SetsockoptTimeval(int(s), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t),
		unix.SetsockoptTimeval(int(s), unix.SOL_SOCKET, unix.SO_SNDTIMEO, &t))
}

func (s socket) bind(a netip.AddrPort) error {
	err := unix.SetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(int(s), sockaddr(a))
	}
	if err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

func (s socket) connect(dst netip.AddrPort) error {
	for {
		switch err := unix.Connect(int(s), sockaddr(dst)); {
		case errors.Is(err, unix.EINTR): // from Go's scheduler; calling it again continues
		case errors.Is(err, unix.EISCONN):
			return nil
		case errors.Is(err, unix.EINPROGRESS), errors.Is(err, unix.EALREADY): // this is how SO_SNDTIMEO ends
			return unix.ETIMEDOUT
		default:
			return err
		}
	}
}

// read reads once. The error at the end of input is io.EOF.
func (s socket) read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(s), b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("read: %w", timedOut(err))
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// write writes once: some or all of b.
func (s socket) write(b []byte) (int, error) {
	for {
		n, err := unix.SendmsgN(int(s), b, nil, nil, unix.MSG_NOSIGNAL)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("write: %w", timedOut(err))
		default:
			return n, nil
		}
	}
}

// timedOut translates the error that the kernel returns when SO_RCVTIMEO ends.
func timedOut(err error) error {
	if errors.Is(err, unix.EAGAIN) {
		return unix.ETIMEDOUT
	}
	return err
}

func (s socket) readFull(b []byte) error {
	for len(b) > 0 {
		n, err := s.read(b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (s socket) writeFull(b []byte) error {
	for len(b) > 0 {
		n, err := s.write(b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// noDelay makes the kernel send small messages at once.
func (s socket) noDelay() error {
	return unix.SetsockoptInt(int(s), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

// setQueue limits how much may wait to be sent.
func (s socket) setQueue(size int) error {
	return unix.SetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_SNDBUF, size)
}

func (s socket) local() string {
	a, err := unix.Getsockname(int(s))
	return addrString(a, err)
}

func (s socket) remote() string {
	a, err := unix.Getpeername(int(s))
	return addrString(a, err)
}

func (s socket) close() { _ = unix.Close(int(s)) }

// listen returns a socket for accept, which has no time limit.
func listen(port uint16) (socket, error) {
	s, err := newSocket(0)
	if err != nil {
		return -1, err
	}
	err = s.bind(netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	if err == nil {
		err = unix.Listen(int(s), 8192)
	}
	if err != nil {
		s.close()
		return -1, fmt.Errorf("listen on port %d: %w", port, err)
	}
	return s, nil
}

func (s socket) accept() (socket, error) {
	for {
		fd, _, err := unix.Accept4(int(s), unix.SOCK_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
		case err != nil:
			return -1, err
		default:
			c := socket(fd)
			return c, c.setPatience(socketPatience)
		}
	}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

func addrString(a unix.Sockaddr, err error) string {
	if in, ok := a.(*unix.SockaddrInet4); ok && err == nil {
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port)).String()
	}
	return ""
}
