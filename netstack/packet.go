package netstack

import (
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// maxQuoted is how many bytes from the beginning of a packet are kept for an ICMP error: the longest IPv4 header, or
// IPv6's with some extension headers, and the transport header.
const maxQuoted = 88

// packet is something an application has sent without a connection, reassembled if it came in fragments.
//
// It belongs to the function it was handed to. After Release only its content is gone. Unreachable and ICMP may be
// called any number of times and from any goroutine, even after the stack has stopped.
type packet struct {
	stack    *Stack
	src, dst netip.AddrPort
	proto    tcpip.NetworkProtocolNumber
	ttl      uint8
	whole    bool // must not be fragmented
	quotedIP uint8
	quotedN  uint8
	quoted   [maxQuoted]byte // IP header of quotedIP bytes, then the transport's

	payload []byte
	pkt     *stack.PacketBuffer // holds payload; nil if there is nothing to release
}

// init fills in p from pkt, except for its payload.
func (p *packet) init(s *Stack, pkt *stack.PacketBuffer, src, dst netip.AddrPort) {
	p.stack, p.src, p.dst, p.proto = s, src, dst, pkt.NetworkProtocolNumber
	ip := pkt.NetworkHeader().Slice()
	p.quotedIP = uint8(copy(p.quoted[:], ip))
	p.quotedN = p.quotedIP + uint8(copy(p.quoted[p.quotedIP:], pkt.TransportHeader().Slice()))
	if p.proto == header.IPv4ProtocolNumber {
		h := header.IPv4(ip)
		p.ttl = h.TTL()
		// gVisor clears the flags of reassembled packets.
		p.whole = h.Flags()&header.IPv4FlagDontFragment != 0
		return
	}
	p.ttl = header.IPv6(ip).HopLimit()
	// No router fragments IPv6. A fragment header is one of the extension headers, which are seldom used for anything
	// else.
	p.whole = len(ip) == header.IPv6MinimumSize
}

// Src is the application's address, and its port or, for an echo request, its identifier.
func (p *packet) Src() netip.AddrPort { return p.src }

// Dst is where the application sent it. An echo request has port 0.
func (p *packet) Dst() netip.AddrPort { return p.dst }

// TTL is the time to live, or hop limit, that it arrived with.
func (p *packet) TTL() uint8 { return p.ttl }

// DontFragment reports whether nobody on the way may fragment it: either DF is set, or it came in one piece over
// IPv6. An application that learns of a smaller MTU through ICMPError will send fragments, or less at a time.
func (p *packet) DontFragment() bool { return p.whole }

// Payload is the content, valid until Release. The caller may change it.
func (p *packet) Payload() []byte { return p.payload }

// Release returns the memory of the payload for use by the next packet. Calling it is optional; it must not be called
// twice.
func (p *packet) Release() {
	p.payload = nil
	if p.pkt != nil {
		p.pkt.DecRef()
		p.pkt = nil
	}
}

// Unreachable tells the application by ICMP that the packet can't be delivered: ECONNREFUSED, nobody listens there;
// ENETUNREACH; EACCES, it is prohibited; anything else is EHOSTUNREACH. The message seems to come from the
// destination. The next call on a socket connected to the destination fails with that errno (over IPv4, with
// EHOSTUNREACH for EACCES). ENETUNREACH and EHOSTUNREACH are reported only to a socket that has asked for such errors
// with IP_RECVERR or IPV6_RECVERR.
func (p *packet) Unreachable(errno syscall.Errno) {
	n := p.notice()
	n.typ, n.code = unreachableCode(p.proto, errno)
	p.stack.notify(n)
}

// ICMP passes on an ICMP error about the packet, or about an earlier one between the same addresses. A message that
// is not an error, or is of the other family, is dropped.
func (p *packet) ICMP(e ICMPError) { p.pass(e, p.notice()) }

func (p *packet) pass(e ICMPError, n notice) {
	if !isError(p.proto, e.Type) {
		return
	}
	if from := e.From.Unmap(); from.Is4() == p.src.Addr().Is4() && from.IsValid() && !from.IsUnspecified() {
		n.from = tcpip.AddrFromSlice(from.AsSlice())
	}
	n.typ, n.code, n.info = e.Type, e.Code, e.Info
	p.stack.notify(n)
}

func isError(proto tcpip.NetworkProtocolNumber, typ uint8) bool {
	if proto == header.IPv6ProtocolNumber {
		switch header.ICMPv6Type(typ) {
		case header.ICMPv6DstUnreachable, header.ICMPv6PacketTooBig, header.ICMPv6TimeExceeded, header.ICMPv6ParamProblem:
			return true
		}
		return false
	}
	switch header.ICMPv4Type(typ) {
	case header.ICMPv4DstUnreachable, header.ICMPv4TimeExceeded, header.ICMPv4ParamProblem:
		return true
	}
	return false
}

// notice returns a notice about p from its destination.
func (p *packet) notice() notice {
	dst := tcpip.AddrFromSlice(p.dst.Addr().AsSlice())
	return notice{
		proto: p.proto, from: dst, to: tcpip.AddrFromSlice(p.src.Addr().AsSlice()),
		quoted: p.quoted[:p.quotedN], target: dst,
	}
}

// route returns the route back to the application, from the address that it had sent to.
func (p *packet) route() (*stack.Route, error) {
	route, err := p.stack.gv.FindRoute(nicID, tcpip.AddrFromSlice(p.dst.Addr().AsSlice()), tcpip.AddrFromSlice(p.src.Addr().AsSlice()), p.proto, false)
	if err != nil {
		return nil, errnoOf(err)
	}
	return route, nil
}
