package netstack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Offsets of the fields of ICMP and ICMPv6 echo messages, which are alike (RFC 792, RFC 4443 section 4).
const (
	echoChecksum = 2
	echoID       = 4
	echoSeq      = 6
	echoHeader   = 8
)

// Echo is an application's ICMP or ICMPv6 echo request, a ping. Its payload is the whole message, with identifier,
// sequence number and a checksum that is no longer valid. The port of Src is the identifier, that of Dst is 0.
//
// It belongs to Config.Echoes, which it was handed to. Reply, Unreachable and ICMP may be called any number of times
// and from any goroutine, even after Release and after the stack has stopped.
type Echo struct{ packet }

// handleICMP receives the ICMP and ICMPv6 messages that no endpoint wants. Every address is ours, so gVisor would
// answer echo requests to all of them. It does not answer an echo request that is handled here
// (DeliverTransportPacketWithDefaultHandlerResult).
func (s *Stack) handleICMP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := pkt.TransportHeader().Slice()
	if len(h) < echoHeader || !isEchoRequest(pkt, h) {
		return false
	}
	if pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber && checksum.Checksum(h, pkt.Data().Checksum()) != 0xffff {
		return true // gVisor checks only ICMPv6's
	}
	e := new(Echo)
	e.init(s, pkt, netip.AddrPortFrom(addr(id.RemoteAddress), binary.BigEndian.Uint16(h[echoID:])), netip.AddrPortFrom(addr(id.LocalAddress), 0))
	if s.cfg.Echoes == nil {
		e.Unreachable(syscall.EACCES)
		return true
	}
	e.payload = slices.Concat(h, pkt.Data().AsRange().ToSlice())
	s.cfg.Echoes(e)
	return true
}

func isEchoRequest(pkt *stack.PacketBuffer, h []byte) bool {
	if pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber {
		return header.ICMPv4(h).Type() == header.ICMPv4Echo
	}
	return header.ICMPv6(h).Type() == header.ICMPv6EchoRequest
}

// Reply sends an echo reply to the application, from the address that the request was sent to. b is the whole message
// without its IP header; its identifier and checksum are set as required. It may have up to 65,515 bytes (IPv6:
// 65,535) and is not kept.
func (e *Echo) Reply(b []byte) error {
	if err := e.reply(b); err != nil {
		return fmt.Errorf("reply to ping of %s: %w", e.src.Addr(), err)
	}
	return nil
}

func (e *Echo) reply(b []byte) error {
	v4 := e.src.Addr().Is4()
	most := header.IPv6MaximumPayloadSize
	if v4 {
		most = header.IPv4MaximumPayloadSize - header.IPv4MinimumSize
	}
	if len(b) > most {
		return syscall.EMSGSIZE
	}
	if len(b) < echoHeader || v4 && b[0] != byte(header.ICMPv4EchoReply) || !v4 && b[0] != byte(header.ICMPv6EchoReply) {
		return fmt.Errorf("no echo reply: %w", syscall.EPROTO)
	}
	route, err := e.route()
	if err != nil {
		return err
	}
	defer route.Release()
	pkt := newPacket(route, echoHeader, b[echoHeader:])
	defer pkt.DecRef()
	h := pkt.TransportHeader().Push(echoHeader)
	copy(h, b)
	binary.BigEndian.PutUint16(h[echoID:], e.src.Port())
	binary.BigEndian.PutUint16(h[echoChecksum:], 0)
	if v4 {
		pkt.TransportProtocolNumber = header.ICMPv4ProtocolNumber
		header.ICMPv4(h).SetChecksum(header.ICMPv4Checksum(h, pkt.Data().Checksum()))
	} else {
		pkt.TransportProtocolNumber = header.ICMPv6ProtocolNumber
		sumICMPv6(route, h, pkt)
	}
	return errnoOf(writePacket(route, pkt.TransportProtocolNumber, pkt))
}

// ICMP passes on an ICMP error about the request, or about another one with the same identifier. The sequence number
// in About tells which.
func (e *Echo) ICMP(i ICMPError) {
	n := e.notice()
	if at := int(e.quotedIP) + echoSeq; len(i.About) >= echoHeader && at+2 <= len(n.quoted) {
		n.quoted = slices.Clone(n.quoted)
		copy(n.quoted[at:at+2], i.About[echoSeq:])
	}
	e.pass(i, n)
}
