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

// Datagram is one UDP datagram of an application, put together again if it came
// in fragments.
//
// It belongs to whoever Config.Datagrams handed it to. Reply may be called any
// number of times and from any goroutine, also after the stack has stopped.
type Datagram struct {
	stack    *Stack
	pkt      *stack.PacketBuffer // headers only, for Unreachable
	src, dst netip.AddrPort
	payload  []byte
}

// handleUDP gets every datagram, as there are no UDP endpoints. (gVisor's
// udp.Forwarder leaks a packet buffer per datagram: google/gvisor#13242.)
func (s *Stack) handleUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	if s.cfg.Datagrams == nil {
		return false
	}
	if h := header.UDP(pkt.TransportHeader().Slice()); len(h) < header.UDPMinimumSize || !validUDP(h, pkt) {
		return true
	}
	s.cfg.Datagrams(&Datagram{
		stack:   s,
		pkt:     pkt.Clone(),
		src:     netip.AddrPortFrom(addr(id.RemoteAddress), id.RemotePort),
		dst:     netip.AddrPortFrom(addr(id.LocalAddress), id.LocalPort),
		payload: pkt.Data().AsRange().ToSlice(),
	})
	return true
}

func validUDP(h header.UDP, pkt *stack.PacketBuffer) bool {
	net := pkt.Network()
	length, csum := header.UDPValid(h, func() uint16 { return pkt.Data().Checksum() }, uint16(pkt.Data().Size()),
		pkt.NetworkProtocolNumber, net.SourceAddress(), net.DestinationAddress(), pkt.RXChecksumValidated)
	return length && csum
}

// Src is the application's address and port.
func (d *Datagram) Src() netip.AddrPort { return d.src }

// Dst is where the application sent it.
func (d *Datagram) Dst() netip.AddrPort { return d.dst }

// Payload is the datagram's content; the caller may keep and change it.
func (d *Datagram) Payload() []byte { return d.payload }

// Reply sends b to the application as coming from where it had sent to. b may
// have up to 65,507 bytes and is fragmented as the MTU demands; it is not kept.
func (d *Datagram) Reply(b []byte) error {
	if err := d.reply(b); err != nil {
		return fmt.Errorf("reply to %s: %w", d.src, err)
	}
	return nil
}

func (d *Datagram) reply(b []byte) error {
	net := d.pkt.Network()
	route, terr := d.stack.gv.FindRoute(nicID, net.DestinationAddress(), net.SourceAddress(), d.pkt.NetworkProtocolNumber, false)
	if terr != nil {
		return errnoOf(terr)
	}
	defer route.Release()
	if len(b) > header.UDPMaximumSize-header.UDPMinimumSize-header.IPv4MinimumSize {
		return syscall.EMSGSIZE
	}
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

// Unreachable tells the application by ICMP that nobody listens there: its next
// call on the socket fails with ECONNREFUSED.
func (d *Datagram) Unreachable() { d.stack.unreachable(d.pkt, syscall.ECONNREFUSED) }
