package netstack

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// again is when an ICMP answer to a SYN is repeated. The kernel drops an answer that arrives while the application is
// still inside connect() and holds the socket (tcp_v4_err, LINUX_MIB_LOCKDROPPEDICMPS), and would send its SYN again
// only after a second. A socket that took the first answer is gone, and the repeats do no harm.
var again = [...]time.Duration{5 * time.Millisecond, 50 * time.Millisecond, 250 * time.Millisecond}

// insist answers syn by ICMP, several times, and releases it.
func (s *Stack) insist(syn *stack.PacketBuffer, errno syscall.Errno) {
	s.unreachable(syn, errno)
	for _, after := range again {
		syn.IncRef()
		time.AfterFunc(after, func() {
			s.unreachable(syn, errno)
			syn.DecRef()
		})
	}
	syn.DecRef()
}

// ICMPError is what a router or host has said about a datagram of ours, by ICMP or ICMPv6 according to the datagram's
// family.
type ICMPError = struct {
	From       netip.Addr // the sender of the error; the zero value means the destination itself
	Type, Code uint8
	Info       uint32 // the next hop's MTU in bytes if the datagram was too big; the position of the problem if a header has one
	About      []byte // the beginning of the datagram's payload; may be empty
}

// notice is an ICMP error on its way to the application.
type notice struct {
	proto     tcpip.NetworkProtocolNumber
	from, to  tcpip.Address
	typ, code uint8
	info      uint32
	quoted    []byte        // the packet it is about, from its IP header on
	target    tcpip.Address // where that packet was sent
}

// unreachable tells the sender of pkt by ICMP that it can't be delivered. The message comes from the destination, as
// if a router there had sent it. The kernel's TCP checks the sequence number in the quoted header.
func (s *Stack) unreachable(pkt *stack.PacketBuffer, errno syscall.Errno) {
	net := pkt.Network()
	n := notice{
		proto: pkt.NetworkProtocolNumber, from: net.DestinationAddress(), to: net.SourceAddress(),
		quoted: quote(pkt), target: net.DestinationAddress(),
	}
	if errno == syscall.EACCES && n.proto == header.IPv6ProtocolNumber {
		errno = syscall.EHOSTUNREACH // what ICMP's prohibited reads as; ICMPv6's reads as EACCES
	}
	n.typ, n.code = unreachableCode(n.proto, errno)
	s.notify(n)
}

// unreachableCode returns the ICMP type and code that the kernel turns into errno for the caller of connect() or
// send() (icmp_err_convert, icmpv6_err_convert).
func unreachableCode(proto tcpip.NetworkProtocolNumber, errno syscall.Errno) (typ, code uint8) {
	v4, v6 := header.ICMPv4HostUnreachable, header.ICMPv6AddressUnreachable
	switch errno {
	case syscall.ENETUNREACH:
		v4, v6 = header.ICMPv4NetUnreachable, header.ICMPv6NetworkUnreachable
	case syscall.EACCES:
		v4, v6 = header.ICMPv4AdminProhibited, header.ICMPv6Prohibited
	case syscall.ECONNREFUSED: // UDP: nobody listens
		v4, v6 = header.ICMPv4PortUnreachable, header.ICMPv6PortUnreachable
	}
	if proto == header.IPv4ProtocolNumber {
		return uint8(header.ICMPv4DstUnreachable), uint8(v4)
	}
	return uint8(header.ICMPv6DstUnreachable), uint8(v6)
}

// quote returns the headers of pkt as they came: more than the 8 bytes behind
// the IP header that RFC 792 asks for.
func quote(pkt *stack.PacketBuffer) []byte {
	ip, transport := pkt.NetworkHeader().Slice(), pkt.TransportHeader().Slice()
	b := make([]byte, 0, len(ip)+len(transport))
	return append(append(b, ip...), transport...)
}

// notify sends n. Nothing can be done about a failure here: the sender will try again. A packet that was sent to many
// receivers is never answered with an error (RFC 1122, section 3.2.2; RFC 4443, section 2.4).
func (s *Stack) notify(n notice) {
	if header.IsV4MulticastAddress(n.target) || header.IsV6MulticastAddress(n.target) || n.target == header.IPv4Broadcast {
		return
	}
	route, err := s.gv.FindRoute(nicID, n.from, n.to, n.proto, false)
	if err != nil {
		return
	}
	defer route.Release()
	switch n.proto {
	case header.IPv4ProtocolNumber:
		sendICMPv4(route, n)
	case header.IPv6ProtocolNumber:
		sendICMPv6(route, n)
	}
}

func sendICMPv4(route *stack.Route, n notice) {
	pkt := newPacket(route, header.ICMPv4MinimumSize, n.quoted)
	defer pkt.DecRef()
	pkt.TransportProtocolNumber = header.ICMPv4ProtocolNumber
	h := header.ICMPv4(pkt.TransportHeader().Push(header.ICMPv4MinimumSize))
	h.SetType(header.ICMPv4Type(n.typ))
	h.SetCode(header.ICMPv4Code(n.code))
	switch {
	case h.Type() == header.ICMPv4DstUnreachable && h.Code() == header.ICMPv4FragmentationNeeded:
		h.SetMTU(uint16(min(n.info, 0xffff)))
	case h.Type() == header.ICMPv4ParamProblem:
		h.SetPointer(byte(n.info))
	}
	h.SetChecksum(header.ICMPv4Checksum(h, pkt.Data().Checksum()))
	_ = writePacket(route, header.ICMPv4ProtocolNumber, pkt)
}

func sendICMPv6(route *stack.Route, n notice) {
	pkt := newPacket(route, header.ICMPv6ErrorHeaderSize, n.quoted)
	defer pkt.DecRef()
	pkt.TransportProtocolNumber = header.ICMPv6ProtocolNumber
	h := header.ICMPv6(pkt.TransportHeader().Push(header.ICMPv6ErrorHeaderSize))
	h.SetType(header.ICMPv6Type(n.typ))
	h.SetCode(header.ICMPv6Code(n.code))
	switch h.Type() {
	case header.ICMPv6PacketTooBig, header.ICMPv6ParamProblem:
		binary.BigEndian.PutUint32(h[header.ICMPv6HeaderSize:], n.info)
	}
	sumICMPv6(route, h, pkt)
	_ = writePacket(route, header.ICMPv6ProtocolNumber, pkt)
}

func sumICMPv6(route *stack.Route, h header.ICMPv6, pkt *stack.PacketBuffer) {
	h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
		Header:      h,
		Src:         route.LocalAddress(),
		Dst:         route.RemoteAddress(),
		PayloadCsum: pkt.Data().Checksum(),
		PayloadLen:  pkt.Data().Size(),
	}))
}

// newPacket makes a packet with payload and room for a transport header.
func newPacket(route *stack.Route, transport int, payload []byte) *stack.PacketBuffer {
	return stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(route.MaxHeaderLength()) + transport,
		Payload:            buffer.MakeWithData(payload),
	})
}

func writePacket(route *stack.Route, proto tcpip.TransportProtocolNumber, pkt *stack.PacketBuffer) tcpip.Error {
	return route.WritePacket(stack.NetworkHeaderParams{
		Protocol: proto,
		TTL:      route.DefaultTTL(),
		TOS:      stack.DefaultTOS,
	}, pkt)
}
