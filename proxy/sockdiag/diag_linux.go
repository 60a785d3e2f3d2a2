package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Layout of struct inet_diag_req_v2 and inet_diag_msg (include/uapi/linux/inet_diag.h).
const (
	requestLen    = 56
	requestStates = 4
	requestSockID = 8 // struct inet_diag_sockid
	requestCookie = requestSockID + 40

	messageLen     = 72
	messageState   = 1
	messageTimer   = 2
	messageSockID  = 4
	messageCookie  = messageSockID + 40
	messageExpires = 52
	messageUID     = 64
	messageInode   = 68
)

// Attributes of a message.
const (
	attributeV6Only = 11 // INET_DIAG_SKV6ONLY: a byte, for IPv6 sockets that listen or are only bound
	attributeMark   = 15 // INET_DIAG_MARK: the kernel adds it for processes with CAP_NET_ADMIN
)

// timerTimeWait is the inet_diag_msg.idiag_timer of a socket that only waits for its end (inet_twsk_diag_fill).
const timerTimeWait = 3

var noCookie = [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff} // INET_DIAG_NOCOOKIE

// Find returns the socket of a 4-tuple, if there is one.
func Find(local, remote netip.AddrPort) (Socket, bool, error) {
	b, err := ask(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, 0, request(local, remote, noCookie))
	return answer(b, err, local, remote)
}

// Namespace is a network namespace that is asked often, or is not ours. Find may be called from many goroutines.
type Namespace struct {
	mu sync.Mutex
	fd int // a socket of NETLINK_SOCK_DIAG that was made in it
}

// OpenNamespace returns ours. The caller closes it, when nobody asks any more.
func OpenNamespace() (*Namespace, error) {
	fd, err := open(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	return &Namespace{fd: fd}, nil
}

// NewNamespace returns the namespace in which fd, a socket of NETLINK_SOCK_DIAG, was made. The caller closes fd, or the
// Namespace, when nobody asks any more.
func NewNamespace(fd int) *Namespace { return &Namespace{fd: fd} }

// Close closes the socket.
func (n *Namespace) Close() error { return unix.Close(n.fd) }

// Find is [Find] in that namespace.
func (n *Namespace) Find(local, remote netip.AddrPort) (Socket, bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	b, err := exchange(n.fd, nl.SOCK_DIAG_BY_FAMILY, 0, request(local, remote, noCookie))
	return answer(b, err, local, remote)
}

// answer reads what the kernel said about one 4-tuple.
func answer(b []byte, err error, local, remote netip.AddrPort) (Socket, bool, error) {
	switch {
	case errors.Is(err, unix.ENOENT):
		return Socket{}, false, nil
	case err != nil:
		return Socket{}, false, fmt.Errorf("look for the socket %s to %s: %w", local, remote, err)
	case len(b) < messageLen:
		return Socket{}, false, nil
	}
	return parse(b), true, nil
}

// OnPort lists the sockets, of both families, that have the local port.
func OnPort(port uint16) ([]Socket, error) {
	list, err := dump(port, func(p uint16) bool { return p == port })
	if err != nil {
		return nil, fmt.Errorf("list the sockets on port %d: %w", port, err)
	}
	return list, nil
}

// OnPorts lists the sockets, of both families, whose local port is in the set. It looks at every TCP socket, so call
// it only when somebody looks at the result.
func OnPorts(in func(port uint16) bool) ([]Socket, error) {
	list, err := dump(0, in)
	if err != nil {
		return nil, fmt.Errorf("list the sockets on the pins' ports: %w", err)
	}
	return list, nil
}

// From lists the sockets that have the local address. It looks at every TCP socket.
func From(addr netip.Addr) ([]Socket, error) {
	list, err := dump(0, func(uint16) bool { return true })
	if err != nil {
		return nil, fmt.Errorf("list the sockets from %s: %w", addr, err)
	}
	return slices.DeleteFunc(list, func(s Socket) bool { return s.Local.Addr() != addr }), nil
}

// dump has the kernel list the sockets on port (0 for any) and returns those in the set.
func dump(port uint16, in func(port uint16) bool) (found []Socket, err error) {
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		r := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		r.AddRawData(request(netip.AddrPortFrom(any, port), netip.AddrPortFrom(any, 0), noCookie))
		err := r.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(b []byte) bool {
			if len(b) >= messageLen && in(binary.BigEndian.Uint16(b[messageSockID:])) {
				found = append(found, parse(b))
			}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// Destroy ends the socket, whichever process has it. A connection's peer gets a reset; a TIME_WAIT ends silently.
func Destroy(s Socket) error {
	_, err := ask(unix.NETLINK_INET_DIAG, nl.SOCK_DESTROY, unix.NLM_F_ACK, request(s.Local, s.Remote, s.cookie))
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("end the %s from %s to %s: %w", s.State, s.Local, s.Remote, err)
	}
	return nil
}

// EndsTimeWait reports whether this kernel's Destroy ends a TIME_WAIT: Linux 6.1 or later, if it was built with
// CONFIG_INET_DIAG_DESTROY. 5.10 does not, and those between were not tried. The kernel is asked once.
func EndsTimeWait() bool { return endsTimeWait() }

var endsTimeWait = sync.OnceValue(func() bool {
	nobody := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	if errors.Is(Destroy(Socket{Local: nobody, Remote: nobody}), unix.EOPNOTSUPP) {
		return false
	}
	var u unix.Utsname
	var major, minor int
	if err := unix.Uname(&u); err != nil {
		return false
	}
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return err == nil && (major > 6 || major == 6 && minor >= 1)
})

// ask sends a request about one socket, or one route, and returns the payload of the answer, nil for an
// acknowledgement. If peers do not use timestamps, every connection calls it for a lookup and for a Destroy, and the
// library would take a 64 KiB buffer and five more system calls for each. The kernel answers before the send returns
// (netlink_rcv_skb), so ask never waits.
func ask(protocol int, kind, flags uint16, request []byte) ([]byte, error) {
	fd, err := open(protocol)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	return exchange(fd, kind, flags, request)
}

func open(protocol int) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return 0, fmt.Errorf("make a netlink socket: %w", err)
	}
	return fd, nil
}

// exchange is ask on a socket that nobody else uses at the time.
func exchange(fd int, kind, flags uint16, request []byte) ([]byte, error) {
	b := make([]byte, 512)
	binary.NativeEndian.PutUint32(b[0:], uint32(unix.SizeofNlMsghdr+len(request)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|flags)
	n := unix.SizeofNlMsghdr + copy(b[unix.SizeofNlMsghdr:], request)
	if err := unix.Sendto(fd, b[:n], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("send to netlink: %w", err)
	}
	n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
	if err != nil {
		return nil, fmt.Errorf("receive from netlink: %w", err)
	}
	if n < unix.SizeofNlMsghdr+4 {
		return nil, fmt.Errorf("receive from netlink: %w", unix.EBADMSG)
	}
	payload := b[unix.SizeofNlMsghdr:n]
	if binary.NativeEndian.Uint16(b[4:]) != unix.NLMSG_ERROR {
		return payload, nil
	}
	if code := int32(binary.NativeEndian.Uint32(payload)); code != 0 { // struct nlmsgerr
		return nil, unix.Errno(-code)
	}
	return nil, nil
}

// request asks for TCP sockets in any state.
func request(local, remote netip.AddrPort, cookie [8]byte) []byte {
	b := make([]byte, requestLen)
	b[0], b[1] = unix.AF_INET, unix.IPPROTO_TCP
	if remote.Addr().Is6() {
		b[0] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(b[requestStates:], ^uint32(0))
	id := b[requestSockID:]
	binary.BigEndian.PutUint16(id[0:], local.Port())
	binary.BigEndian.PutUint16(id[2:], remote.Port())
	copy(id[4:20], local.Addr().AsSlice())
	copy(id[20:36], remote.Addr().AsSlice())
	copy(b[requestCookie:], cookie[:])
	return b
}

// parse parses a message of at least messageLen bytes.
func parse(b []byte) Socket {
	id := b[messageSockID:]
	s := Socket{
		State:  State(b[messageState]),
		Local:  netip.AddrPortFrom(address(b[0], id[4:]), binary.BigEndian.Uint16(id[0:])),
		Remote: netip.AddrPortFrom(address(b[0], id[20:]), binary.BigEndian.Uint16(id[2:])),
		UID:    binary.NativeEndian.Uint32(b[messageUID:]),
		inode:  binary.NativeEndian.Uint32(b[messageInode:]),
		cookie: [8]byte(b[messageCookie:]),
	}
	if b[messageTimer] == timerTimeWait {
		s.Left = time.Duration(binary.NativeEndian.Uint32(b[messageExpires:])) * time.Millisecond
	}
	for kind, value := range attributes(b[messageLen:]) {
		switch {
		case kind == attributeMark && len(value) == 4:
			s.Mark = binary.NativeEndian.Uint32(value)
		case kind == attributeV6Only && len(value) == 1:
			s.V6Only = value[0] != 0
		}
	}
	return s
}

// attributes yields the type and value of each attribute (struct rtattr).
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		const header = 4 // length including the header; type
		for len(b) >= header {
			n := int(binary.NativeEndian.Uint16(b))
			if n < header || n > len(b) || !yield(binary.NativeEndian.Uint16(b[2:]), b[header:n]) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
	}
}

// address parses an address of struct inet_diag_sockid. When an IPv6 socket speaks IPv4, the result is the IPv4
// address, as on the wire.
func address(family uint8, b []byte) netip.Addr {
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(b))
	}
	return netip.AddrFrom16([16]byte(b)).Unmap()
}
