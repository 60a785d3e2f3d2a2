package netstack

import (
	"fmt"
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// Datagram is one UDP datagram of an application, reassembled if it came in fragments.
//
// It belongs to Config.Datagrams, which it was handed to. Reply, Unreachable and ICMP may be called any number of
// times and from any goroutine, even after Release and after the stack has stopped.
type Datagram struct{ packet }

// handleUDP receives every datagram, because there are no UDP endpoints. (gVisor's udp.Forwarder leaks a packet
// buffer per datagram: google/gvisor#13242.)
func (s *Stack) handleUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	if s.cfg.Datagrams == nil {
		return false
	}
	if h := header.UDP(pkt.TransportHeader().Slice()); len(h) < header.UDPMinimumSize || !validUDP(h, pkt) {
		return true
	}
	d := new(Datagram)
	d.init(s, pkt, netip.AddrPortFrom(addr(id.RemoteAddress), id.RemotePort), netip.AddrPortFrom(addr(id.LocalAddress), id.LocalPort))
	pkt.IncRef()
	d.pkt = pkt
	d.payload, _ = pkt.Data().PullUp(pkt.Data().Size()) // already in one piece unless it came in several
	s.cfg.Datagrams(d)
	return true
}

func validUDP(h header.UDP, pkt *stack.PacketBuffer) bool {
	net := pkt.Network()
	length, csum := header.UDPValid(h, func() uint16 { return pkt.Data().Checksum() }, uint16(pkt.Data().Size()),
		pkt.NetworkProtocolNumber, net.SourceAddress(), net.DestinationAddress(), pkt.RXChecksumValidated)
	return length && csum
}

// Reply sends b to the application, from the address that it had sent to. b may have up to 65,507 bytes (IPv6:
// 65,527) and is fragmented as the MTU requires. It is not kept.
func (d *Datagram) Reply(b []byte) error {
	if err := d.reply(b); err != nil {
		return fmt.Errorf("reply to %s: %w", d.src, err)
	}
	return nil
}

func (d *Datagram) reply(b []byte) error {
	most := header.UDPMaximumSize - header.UDPMinimumSize
	if d.src.Addr().Is4() {
		most -= header.IPv4MinimumSize
	}
	if len(b) > most {
		return syscall.EMSGSIZE
	}
	route, err := d.route()
	if err != nil {
		return err
	}
	defer route.Release()
	pkt := newPacket(route, header.UDPMinimumSize, b)
	defer pkt.DecRef()
	pkt.TransportProtocolNumber = udp.ProtocolNumber
	h := header.UDP(pkt.TransportHeader().Push(header.UDPMinimumSize))
	length := uint16(pkt.Size())
	h.Encode(&header.UDPFields{SrcPort: d.dst.Port(), DstPort: d.src.Port(), Length: length})
	sum := route.PseudoHeaderChecksum(udp.ProtocolNumber, length)
	sum = checksum.Combine(sum, pkt.Data().Checksum())
	if c := ^h.CalculateChecksum(sum); c != 0 {
		h.SetChecksum(c)
	} else {
		h.SetChecksum(0xffff) // RFC 768: zero would mean none
	}
	return errnoOf(writePacket(route, udp.ProtocolNumber, pkt))
}
