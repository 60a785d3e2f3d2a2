package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// rtnl is a socket for routes by the hundred thousand, and for rules. Package netlink, with a system call and a dozen
// allocations per route, is not made for that. Here many requests go out in one sendto, and only the last is
// acknowledged; the others are reported if they fail. It is not safe for concurrent use. It works on the
// network namespace of the thread that opened it, from any thread.
type rtnl struct {
	fd   int
	port uint32 // of the socket; the kernel puts it in the notifications of our own changes
	seq  uint32
	buf  []byte // requests
	in   []byte // answers
}

// batchRoutes is how many requests go out together. If all of them fail, their answers must fit into the
// default receive buffer of 208 KiB, where each takes about 1 KiB.
const batchRoutes = 100

// answerTimeout can be exceeded only by a kernel bug.
var answerTimeout = unix.Timeval{Sec: 10}

func openRTNL() (*rtnl, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	// The kernel fills up to 32 KiB of an answer at once (netlink_dump).
	r := &rtnl{fd: fd, in: make([]byte, 32<<10)}
	if err := r.setup(); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	return r, nil
}

func (r *rtnl) setup() error {
	if err := unix.Bind(r.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	self, err := unix.Getsockname(r.fd)
	if err != nil {
		return err
	}
	r.port = self.(*unix.SockaddrNetlink).Pid
	// Both exist since 4.20 and only save work: dumps filtered by the kernel, short error messages.
	_ = unix.SetsockoptInt(r.fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	_ = unix.SetsockoptInt(r.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	return unix.SetsockoptTimeval(r.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &answerTimeout)
}

func (r *rtnl) close() error { return unix.Close(r.fd) }

// addRoutes adds routes into the device with the given index. flag says what to do with an existing route:
// NLM_F_EXCL keeps it (without a flag IPv4 would add a second one), NLM_F_REPLACE replaces it. It returns how
// many it added or replaced.
func (r *rtnl) addRoutes(list []dest, flag uint16, link int) (added int, err error) {
	return r.batch(list, unix.EEXIST, func(d dest) {
		scope := uint8(unix.RT_SCOPE_LINK)
		if d.family() == v6 {
			scope = unix.RT_SCOPE_UNIVERSE // IPv6 has no scopes
		}
		end := r.begin(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|flag)
		r.route(d, scope, unix.RTN_UNICAST)
		r.attr(unix.RTA_PREFSRC, d.family().source().AsSlice())
		r.attr32(unix.RTA_OIF, uint32(link))
		r.attr32(unix.RTA_PRIORITY, metric)
		r.attr(unix.RTA_METRICS, congestionMetric)
		end()
	})
}

// congestionMetric is a struct rtattr with the route's congestion control.
var congestionMetric = func() []byte {
	const size = unix.SizeofRtAttr + len(congestion) + 1
	b := binary.NativeEndian.AppendUint16(nil, uint16(size))
	b = append(binary.NativeEndian.AppendUint16(b, unix.RTAX_CC_ALGO), congestion...)
	return append(b, make([]byte, align4(size)-len(b))...)
}()

// delRoutes deletes routes of ours. It returns how many existed.
func (r *rtnl) delRoutes(list []dest) (deleted int, err error) {
	return r.batch(list, unix.ESRCH, func(d dest) {
		end := r.begin(unix.RTM_DELROUTE, 0)
		r.route(d, unix.RT_SCOPE_NOWHERE, unix.RTN_UNSPEC) // any scope and type
		end()
	})
}

// delMulticast deletes the route of noMulticast.
func (r *rtnl) delMulticast(link int) error {
	multicast := dest{unix.RT_TABLE_LOCAL, netip.MustParsePrefix("ff00::/8")}
	_, err := r.batch([]dest{multicast}, unix.ESRCH, func(d dest) {
		end := r.begin(unix.RTM_DELROUTE, 0)
		r.header(unix.AF_INET6, 8, d.table, unix.RTPROT_UNSPEC, unix.RT_SCOPE_NOWHERE, unix.RTN_UNSPEC)
		r.attr(unix.RTA_DST, d.dst.Addr().AsSlice())
		r.attr32(unix.RTA_OIF, uint32(link))
		end()
	})
	return err
}

// batch sends one request for each route in list and counts those that succeeded. The errno tolerated is not an
// error. Of all other errors the first is returned, and up to batchRoutes requests after it are carried out.
func (r *rtnl) batch(list []dest, tolerated unix.Errno, request func(dest)) (done int, err error) {
	for len(list) > 0 {
		n := min(len(list), batchRoutes)
		r.buf = r.buf[:0]
		first := r.seq + 1
		for i, d := range list[:n] {
			start := len(r.buf)
			request(d)
			if i == n-1 {
				flags := r.buf[start+6:]
				binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
			}
		}
		if err := r.send(); err != nil {
			return done, fmt.Errorf("send to rtnetlink: %w", err)
		}
		failed, err := r.answers(first, r.seq, tolerated, func(i int) dest { return list[i] })
		done += n - failed
		if err != nil {
			return done, err
		}
		list = list[n:]
	}
	return done, nil
}

// answers reads until request last is answered, and counts failed requests.
func (r *rtnl) answers(first, last uint32, tolerated unix.Errno, request func(int) dest) (failed int, err error) {
	rerr := r.receive(func(m message) bool {
		if m.typ != unix.NLMSG_ERROR || len(m.data) < 4 || m.seq-first > last-first {
			return true
		}
		if errno := m.errno(); errno != 0 {
			failed++
			if errno != tolerated && err == nil {
				d := request(int(m.seq - first))
				err = fmt.Errorf("route %v in table %d: %w", d.dst, d.table, errno)
			}
		}
		return m.seq != last
	})
	return failed, errors.Join(err, rerr)
}

// dumpRoutes calls f with each route of a table and family, or of all tables if table is 0. It may miss routes
// that are added or deleted meanwhile. A nonexistent table is empty.
func (r *rtnl) dumpRoutes(fam family, table int, f func(routeInfo)) error {
	r.buf = r.buf[:0]
	end := r.begin(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
	r.header(fam.af(), 0, table, 0, 0, 0)
	end()
	if err := r.send(); err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	var err error
	rerr := r.receive(func(m message) bool {
		switch {
		case m.seq != r.seq:
		case m.typ == unix.NLMSG_DONE || m.typ == unix.NLMSG_ERROR:
			if errno := m.errno(); errno != 0 && errno != unix.ENOENT {
				err = errno
			}
			return false
		case m.typ == unix.RTM_NEWROUTE:
			// Kernels without NETLINK_GET_STRICT_CHK send all tables.
			if info, ok := parseRoute(m.data); ok && (table == 0 || info.table == table) {
				f(info)
			}
		}
		return true
	})
	if err = errors.Join(err, rerr); err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	return nil
}

// message is a netlink message. Its data is valid until the next message is read.
type message struct {
	typ  uint16
	seq  uint32
	data []byte
}

// errno is the error of a message that ends an answer (NLMSG_ERROR, NLMSG_DONE); 0 if it tells none.
func (m message) errno() unix.Errno {
	if len(m.data) < 4 {
		return 0
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(m.data)))
}

// send sends the requests in buf.
func (r *rtnl) send() error {
	return unix.Sendto(r.fd, r.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// receive calls f with each message until it returns false.
func (r *rtnl) receive(f func(message) bool) error {
	for {
		n, from, err := unix.Recvfrom(r.fd, r.in, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		if from, ok := from.(*unix.SockaddrNetlink); !ok || from.Pid != 0 {
			continue // not from the kernel
		}
		for m := range messages(r.in[:n]) {
			if !f(m) {
				return nil
			}
		}
	}
}

// messages yields the netlink messages in b.
func messages(b []byte) func(yield func(message) bool) {
	return func(yield func(message) bool) {
		for len(b) >= unix.SizeofNlMsghdr {
			n := int(binary.NativeEndian.Uint32(b))
			if n < unix.SizeofNlMsghdr || n > len(b) {
				return
			}
			m := message{binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:]), b[unix.SizeofNlMsghdr:n]}
			if !yield(m) {
				return
			}
			b = b[min(align4(n), len(b)):]
		}
	}
}

// attrType is NLA_TYPE_MASK: the number of an attribute without its flags.
const attrType = 0x3fff

// attributes yields the attributes in b, by number.
func attributes(b []byte) func(yield func(uint16, []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			n := int(binary.NativeEndian.Uint16(b))
			if n < unix.SizeofRtAttr || n > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&attrType, b[unix.SizeofRtAttr:n]) {
				return
			}
			b = b[min(align4(n), len(b)):]
		}
	}
}

// routeInfo is the part of a route that we look at.
type routeInfo struct {
	dest
	protocol uint8
	typ      uint8
	link     int        // 0: several, or none
	src      netip.Addr // for sockets that have none; invalid: not given
}

// parseRoute parses a struct rtmsg and its attributes.
func parseRoute(b []byte) (routeInfo, bool) {
	if len(b) < unix.SizeofRtMsg {
		return routeInfo{}, false
	}
	info := routeInfo{protocol: b[5], typ: b[7], dest: dest{table: int(b[4])}}
	a := netip.IPv4Unspecified()
	if b[0] == unix.AF_INET6 {
		a = netip.IPv6Unspecified()
	}
	for typ, value := range attributes(b[unix.SizeofRtMsg:]) {
		switch {
		case typ == unix.RTA_DST:
			if got, ok := netip.AddrFromSlice(value); ok {
				a = got
			}
		case typ == unix.RTA_PREFSRC:
			info.src, _ = netip.AddrFromSlice(value)
		case typ == unix.RTA_TABLE && len(value) == 4:
			info.table = int(binary.NativeEndian.Uint32(value))
		case typ == unix.RTA_OIF && len(value) == 4:
			info.link = int(binary.NativeEndian.Uint32(value))
		}
	}
	info.dst = netip.PrefixFrom(a, int(b[1]))
	return info, b[0] == unix.AF_INET || b[0] == unix.AF_INET6
}

// begin starts a request in buf; the function it returns ends it.
func (r *rtnl) begin(typ, flags uint16) func() {
	r.seq++
	start := len(r.buf)
	b := binary.NativeEndian.AppendUint32(r.buf, 0) // the length, filled in at the end
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, r.seq)
	r.buf = binary.NativeEndian.AppendUint32(b, 0)
	return func() { binary.NativeEndian.PutUint32(r.buf[start:], uint32(len(r.buf)-start)) }
}

// header appends a struct rtmsg and the table.
func (r *rtnl) header(af, dstLen uint8, table int, protocol, scope, typ uint8) {
	r.buf = append(r.buf, af, dstLen, 0, 0, unix.RT_TABLE_UNSPEC, protocol, scope, typ, 0, 0, 0, 0)
	if table != 0 {
		r.attr32(unix.RTA_TABLE, uint32(table))
	}
}

// route appends a struct rtmsg for a route of ours, its table and destination.
func (r *rtnl) route(d dest, scope, typ uint8) {
	r.header(familyOf(d.dst.Addr()).af(), uint8(d.dst.Bits()), d.table, Protocol, scope, typ)
	if d.dst.Bits() > 0 {
		r.attr(unix.RTA_DST, d.dst.Addr().AsSlice())
	}
}

func (r *rtnl) attr(typ uint16, value []byte) {
	b := binary.NativeEndian.AppendUint16(r.buf, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	r.buf = append(b, value...) // all our values are multiples of 4 bytes
}

func (r *rtnl) attr32(typ uint16, value uint32) {
	r.attr(typ, binary.NativeEndian.AppendUint32(nil, value))
}

func align4(n int) int { return (n + 3) &^ 3 }

// af is the family's number in netlink.
func (f family) af() uint8 {
	if f == v6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}
