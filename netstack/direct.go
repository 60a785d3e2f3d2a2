package netstack

import (
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// direct hands a plain segment of a connection straight to gVisor's TCP and reports whether it did.
//
// Half of what gVisor's IP layer costs a packet goes into questions that the gate has answered already (is it well formed, for
// which endpoint is it), or that don't arise here: is the address one of the host's own, a broadcast or a multicast one, does a
// packet filter let it through. A segment that belongs to an endpoint has the addresses of that endpoint's SYN, which did go through the IP
// layer. Whatever is not plain still does.
func (in *inbound) direct(proto tcpip.NetworkProtocolNumber, seg segment, pkt *stack.PacketBuffer) bool {
	if !seg.plain || !in.checked {
		return false
	}
	s := in.stack
	ep := s.gv.FindTransportEndpoint(proto, tcp.ProtocolNumber, seg.id, nicID)
	if ep == nil {
		return false
	}
	// What ipv4.endpoint.HandlePacket, or ipv6's, would have said of it.
	pkt.NICID, pkt.RXChecksumValidated = nicID, true
	pkt.NetworkProtocolNumber, pkt.TransportProtocolNumber = proto, tcp.ProtocolNumber
	if _, ok := pkt.NetworkHeader().Consume(seg.ip); !ok {
		return true // not a plain one
	}
	if _, ok := pkt.TransportHeader().Consume(seg.tcp); !ok {
		return true
	}
	s.tcp.QueuePacket(ep, seg.id, pkt)
	return true
}
