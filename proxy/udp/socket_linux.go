package udp

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// perWake is how many times a socket is read before others get their turn.
const perWake = 16

// kernelSocket is a socket of the kernel. Its error queue is read, and each datagram sets its own TTL and permission
// to fragment.
type kernelSocket struct {
	conn net.Conn
	raw  syscall.RawConn
	v6   bool
	ping bool       // an ICMP socket
	peer netip.Addr // the address it is connected to

	// Used by the sender.
	ttl      uint8 // as last set; 0: not yet
	fragment fragment
	payload  []byte
	sendErr  error
	once     func(fd uintptr) bool // sendOnce, allocated once
	until    func(fd uintptr) bool // sendUntil
}

// fragment is the socket's path MTU discovery setting.
type fragment uint8

const (
	unset fragment = iota
	may            // the kernel and routers fragment what is too big
	never          // EMSGSIZE
)

// newSocket takes over conn if it succeeds.
func newSocket(conn net.Conn) (socket, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return plain{conn}, nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &kernelSocket{conn: conn, raw: raw}
	s.once, s.until = s.sendOnce, s.sendUntil
	if a, ok := conn.RemoteAddr().(*net.UDPAddr); ok {
		s.peer = a.AddrPort().Addr().Unmap().WithZone("")
	}
	var opErr error
	if err := raw.Control(func(fd uintptr) { opErr = s.setUp(int(fd)) }); err != nil {
		return nil, err
	}
	if opErr != nil {
		return nil, os.NewSyscallError("set up datagram socket", opErr)
	}
	return s, nil
}

func (s *kernelSocket) setUp(fd int) error {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return err
	}
	proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return err
	}
	s.v6, s.ping = family == unix.AF_INET6, proto == unix.IPPROTO_ICMP || proto == unix.IPPROTO_ICMPV6
	if !s.ping {
		// Receive in one piece what the network card or the sender has put together. Linux 5.0.
		_ = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1)
	}
	if s.v6 {
		return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
	}
	return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1)
}

func (s *kernelSocket) Close() error                      { return s.conn.Close() }
func (s *kernelSocket) SetReadDeadline(t time.Time) error { return s.conn.SetReadDeadline(t) }

func (s *kernelSocket) try(d Datagram) error { return s.write(d, s.once) }

func (s *kernelSocket) send(d Datagram) error { return s.write(d, s.until) }

func (s *kernelSocket) write(d Datagram, f func(uintptr) bool) error {
	if err := s.adapt(d); err != nil {
		return err
	}
	s.payload = d.Payload()
	err := s.raw.Write(f)
	s.payload = nil
	if err != nil {
		return err
	}
	return s.sendErr
}

func (s *kernelSocket) sendOnce(fd uintptr) bool {
	for {
		s.sendErr = unix.Send(int(fd), s.payload, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch s.sendErr {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			s.sendErr = errBusy
		}
		return true
	}
}

func (s *kernelSocket) sendUntil(fd uintptr) bool {
	s.sendOnce(fd)
	return s.sendErr != errBusy
}

// adapt sets the socket options for d. Few applications change theirs from one datagram to the next.
func (s *kernelSocket) adapt(d Datagram) error {
	want := may
	if d.DontFragment() {
		want = never
	}
	ttl := d.TTL()
	if want == s.fragment && (ttl == s.ttl || ttl == 0) {
		return nil
	}
	var opErr error
	err := s.raw.Control(func(fd uintptr) { opErr = s.set(int(fd), want, ttl) })
	return errors.Join(err, opErr)
}

func (s *kernelSocket) set(fd int, want fragment, ttl uint8) error {
	level, hops, discover := unix.SOL_IP, unix.IP_TTL, unix.IP_MTU_DISCOVER
	if s.v6 {
		level, hops, discover = unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_MTU_DISCOVER
	}
	if ttl != 0 && ttl != s.ttl {
		if err := unix.SetsockoptInt(fd, level, hops, int(ttl)); err != nil {
			return os.NewSyscallError("set time to live", err)
		}
		s.ttl = ttl
	}
	if want != s.fragment {
		value := unix.IP_PMTUDISC_DONT // IPv6 uses the same values
		if want == never {
			value = unix.IP_PMTUDISC_DO
		}
		if err := unix.SetsockoptInt(fd, level, discover, value); err != nil {
			return os.NewSyscallError("set path MTU discovery", err)
		}
		s.fragment = want
	}
	return nil
}

// receive reads into one buffer until the socket is empty. It gives the buffer back while it waits.
func (s *kernelSocket) receive(deliver func([]byte, int)) error {
	var (
		buf  *[maxDatagram]byte
		n    int
		size int
		err  error
	)
	read := func(fd uintptr) bool {
		if buf == nil {
			buf = buffers.Get().(*[maxDatagram]byte)
		}
		n, size, err = s.read(int(fd), buf[:])
		if err == unix.EAGAIN {
			buffers.Put(buf)
			buf = nil
			return false
		}
		return true
	}
	for range perWake {
		if werr := s.raw.Read(read); werr != nil {
			return werr // closed, or past the deadline; no buffer is held
		}
		if err != nil {
			buffers.Put(buf)
			return err
		}
		if size != 0 {
			deliver(buf[:n], size)
		}
	}
	buffers.Put(buf)
	return nil
}

// read reads once. A size of 0 means that the datagram came from another sender.
func (s *kernelSocket) read(fd int, b []byte) (n, size int, err error) {
	var control [64]byte
	for {
		n, oobn, _, from, err := unix.Recvmsg(fd, b, control[:], unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, 0, err
		case s.ping && addrOf(from) != s.peer:
			// The kernel looks only at the identifier (ping_lookup).
			return 0, 0, nil
		}
		return n, segment(control[:oobn], maxDatagram), nil
	}
}

func addrOf(sa unix.Sockaddr) netip.Addr {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(sa.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(sa.Addr)
	}
	return netip.Addr{}
}

// errors empties the error queue.
func (s *kernelSocket) errors(last Datagram) (told, local bool) {
	_ = s.raw.Control(func(fd uintptr) {
		var about, control [512]byte
		for {
			n, oobn, _, _, err := unix.Recvmsg(int(fd), about[:], control[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return
			}
			e, ok := parseError(control[:oobn])
			if !ok {
				continue
			}
			told = true
			local = s.tell(last, e, about[:n]) || local
		}
	})
	return told, local
}

// tell passes e on to the application and reports whether it came from this host itself.
func (s *kernelSocket) tell(last Datagram, e queuedError, about []byte) (local bool) {
	i := ICMPError{From: e.from, Type: e.typ, Code: e.code, Info: e.info, About: about}
	if e.from == s.peer {
		i.From = netip.Addr{} // dst, which peer may stand for
	}
	v6 := last.Dst().Addr().Is6()
	switch {
	case e.origin == unix.SO_EE_ORIGIN_LOCAL && e.errno == unix.EMSGSIZE:
		i.From, i.Type, i.Code = netip.Addr{}, 3, 4 // fragmentation needed and DF set
		if v6 {
			i.Type, i.Code = 2, 0 // packet too big
		}
		last.ICMP(i)
		return true
	case e.origin == unix.SO_EE_ORIGIN_ICMP && !v6, e.origin == unix.SO_EE_ORIGIN_ICMP6 && v6:
		last.ICMP(i)
		return false
	}
	last.Unreachable(e.errno)
	return e.origin == unix.SO_EE_ORIGIN_LOCAL
}
