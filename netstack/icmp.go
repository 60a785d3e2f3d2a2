package netstack

import (
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// again is when an answer to a SYN by ICMP is repeated. The kernel drops one that
// comes while the application is still inside connect() and holds the socket
// (tcp_v4_err, LINUX_MIB_LOCKDROPPEDICMPS), and would try again after a second. A
// socket that took the first one is gone, and nobody minds the others.
var again = [...]time.Duration{5 * time.Millisecond, 50 * time.Millisecond, 250 * time.Millisecond}

// insist answers syn by ICMP, more than once, and releases it.
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

// unreachable tells the sender of pkt by ICMP that it can't be delivered. The
// message comes from the destination, as if a router there had sent it. The
// kernel's TCP checks the sequence number in the quoted header and maps type and
// code to the errno of connect() (icmp_err_convert, icmpv6_err_convert).
// Nothing can be done about a failure here: the sender will try again.
func (s *Stack) unreachable(pkt *stack.PacketBuffer, errno syscall.Errno) {
	v4, v6 := header.ICMPv4HostUnreachable, header.ICMPv6AddressUnreachable
	switch errno {
	case syscall.ENETUNREACH:
		v4, v6 = header.ICMPv4NetUnreachable, header.ICMPv6NetworkUnreachable
	case syscall.EACCES:
		// ICMPv6 has a code for it too, but applications would see EACCES.
		v4 = header.ICMPv4AdminProhibited
	case syscall.ECONNREFUSED: // UDP: nobody listens
		v4, v6 = header.ICMPv4PortUnreachable, header.ICMPv6PortUnreachable
	}
	net := pkt.Network()
	route, err := s.gv.FindRoute(nicID, net.DestinationAddress(), net.SourceAddress(), pkt.NetworkProtocolNumber, false)
	if err != nil {
		return
	}
	defer route.Release()
	switch pkt.NetworkProtocolNumber {
	case header.IPv4ProtocolNumber:
		s.sendICMPv4(route, v4, quote(pkt))
	case header.IPv6ProtocolNumber:
		s.sendICMPv6(route, v6, quote(pkt))
	}
}

// quote returns the headers of pkt as they came: more than the 8 bytes behind
// the IP header that RFC 792 asks for.
func quote(pkt *stack.PacketBuffer) []byte {
	ip, transport := pkt.NetworkHeader().Slice(), pkt.TransportHeader().Slice()
	b := make([]byte, 0, len(ip)+len(transport))
	return append(append(b, ip...), transport...)
}

func (s *Stack) sendICMPv4(route *stack.Route, code header.ICMPv4Code, quoted []byte) {
	pkt := newPacket(route, header.ICMPv4MinimumSize, quoted)
	defer pkt.DecRef()
	pkt.TransportProtocolNumber = header.ICMPv4ProtocolNumber
	h := header.ICMPv4(pkt.TransportHeader().Push(header.ICMPv4MinimumSize))
	h.SetType(header.ICMPv4DstUnreachable)
	h.SetCode(code)
	h.SetChecksum(header.ICMPv4Checksum(h, pkt.Data().Checksum()))
	writePacket(route, header.ICMPv4ProtocolNumber, pkt)
}

func (s *Stack) sendICMPv6(route *stack.Route, code header.ICMPv6Code, quoted []byte) {
	pkt := newPacket(route, header.ICMPv6DstUnreachableMinimumSize, quoted)
	defer pkt.DecRef()
	pkt.TransportProtocolNumber = header.ICMPv6ProtocolNumber
	h := header.ICMPv6(pkt.TransportHeader().Push(header.ICMPv6DstUnreachableMinimumSize))
	h.SetType(header.ICMPv6DstUnreachable)
	h.SetCode(code)
	h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
		Header:      h,
		Src:         route.LocalAddress(),
		Dst:         route.RemoteAddress(),
		PayloadCsum: pkt.Data().Checksum(),
		PayloadLen:  pkt.Data().Size(),
	}))
	writePacket(route, header.ICMPv6ProtocolNumber, pkt)
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
