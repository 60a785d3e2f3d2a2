package netstack

import (
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// direct hands a plain segment of a connection straight to gVisor's TCP. It reports whether it has done so.
//
// Half of the time that gVisor's IP layer spends on a packet goes into questions that the gate has already answered
// (is it well formed, which endpoint is it for) or that don't arise here (is the address one of the host's own, a
// broadcast or a multicast one; does a packet filter let it through). A segment that belongs to an endpoint has the
// same addresses as that endpoint's SYN, which did go through the IP layer. Whatever is not plain still does.
//
// The endpoint sees no difference (FuzzDirect). Elsewhere there are two, both on purpose: gVisor's counters of IP and
// of the NIC leave such a segment out, and raw sockets and packet filters, of which this stack has none, would miss it.
func (in *inbound) direct(proto tcpip.NetworkProtocolNumber, seg segment, pkt *stack.PacketBuffer) bool {
	if !seg.plain || !in.checked {
		return false
	}
	s := in.stack
	ep := s.gv.FindTransportEndpoint(proto, tcp.ProtocolNumber, seg.id, nicID)
	if ep == nil {
		return false
	}
	if in.parse(proto, seg, pkt) {
		s.tcp.QueuePacket(ep, seg.id, pkt)
	}
	return true
}

// parse sets what HandlePacket of ipv4.endpoint, or of ipv6's, would have set in a plain packet. It reports false if the
// packet is not plain after all.
func (in *inbound) parse(proto tcpip.NetworkProtocolNumber, seg segment, pkt *stack.PacketBuffer) bool {
	pkt.NICID, pkt.RXChecksumValidated = nicID, in.checked
	pkt.NetworkProtocolNumber, pkt.TransportProtocolNumber = proto, tcp.ProtocolNumber
	if _, ok := pkt.NetworkHeader().Consume(seg.ip); !ok {
		return false
	}
	_, ok := pkt.TransportHeader().Consume(seg.tcp)
	return ok
}
