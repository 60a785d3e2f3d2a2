package link

import (
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// intact reports whether the checksum of the TCP segment or UDP datagram in an IP packet is correct. It reports true
// without checking for other protocols, for fragments, and behind IPv6 extension headers.
//
// The kernel marks most packets as not needing a check: they come from this machine, or the network card or its
// receive offload has checked them (virtio_net_hdr_from_skb). The rest were forwarded as they came, because a router
// is not to check.
func intact(packet []byte) bool {
	var (
		src, dst tcpip.Address
		proto    tcpip.TransportProtocolNumber
		payload  []byte
	)
	switch header.IPVersion(packet) {
	case header.IPv4Version:
		ip := header.IPv4(packet)
		if !ip.IsValid(len(packet)) || ip.More() || ip.FragmentOffset() != 0 {
			return true
		}
		src, dst, proto, payload = ip.SourceAddress(), ip.DestinationAddress(), ip.TransportProtocol(), ip.Payload()
	case header.IPv6Version:
		ip := header.IPv6(packet)
		if !ip.IsValid(len(packet)) {
			return true
		}
		src, dst, proto, payload = ip.SourceAddress(), ip.DestinationAddress(), tcpip.TransportProtocolNumber(ip.NextHeader()), ip.Payload()
	}
	switch {
	case proto == header.TCPProtocolNumber && len(payload) >= header.TCPMinimumSize:
	case proto == header.UDPProtocolNumber && len(payload) >= header.UDPMinimumSize:
		if header.UDP(payload).Checksum() == 0 { // there is none
			return true
		}
	default:
		return true
	}
	return checksum.Checksum(payload, header.PseudoHeaderChecksum(proto, src, dst, uint16(len(payload)))) == 0xffff
}
