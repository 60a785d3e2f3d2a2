package netstack

import (
	"encoding/binary"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// gate is the link endpoint, wrapped to look at the packets that pass. The package's theory of operation says why.
type gate struct {
	stack.LinkEndpoint
	stack *Stack
}

// The offloads of the inner endpoint must show through, because gVisor asks for them with a type assertion.
var _ stack.GSOEndpoint = (*gate)(nil)

func (g *gate) GSOMaxSize() uint32 {
	if e, ok := g.LinkEndpoint.(stack.GSOEndpoint); ok {
		return e.GSOMaxSize()
	}
	return 0
}

func (g *gate) SupportedGSO() stack.SupportedGSO {
	if e, ok := g.LinkEndpoint.(stack.GSOEndpoint); ok {
		return e.SupportedGSO()
	}
	return stack.GSONotSupported
}

// Attach puts the gate between the device and gVisor's NIC.
func (g *gate) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		g.LinkEndpoint.Attach(nil)
		return
	}
	checked := g.LinkEndpoint.Capabilities()&stack.CapabilityRXChecksumOffload != 0
	g.LinkEndpoint.Attach(&inbound{NetworkDispatcher: d, stack: g.stack, checked: checked})
}

// WritePackets lets every packet pass except a flow's first SYN-ACK and an ACK that a reply may replace. Those come
// alone, as all packets do: the NIC has no queue (delegatingQueueingDiscipline).
func (g *gate) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	if pkts.Len() == 1 && g.stack.keep(pkts.AsSlice()[0]) {
		return 1, nil
	}
	return g.LinkEndpoint.WritePackets(pkts)
}

// keep reports whether a packet is held back.
func (s *Stack) keep(pkt *stack.PacketBuffer) bool {
	h := header.TCP(pkt.TransportHeader().Slice())
	if pkt.TransportProtocolNumber != tcp.ProtocolNumber || len(h) < header.TCPMinimumSize {
		return false
	}
	net := pkt.Network()
	id := stack.TransportEndpointID{
		LocalAddress:  net.SourceAddress(),
		LocalPort:     h.SourcePort(),
		RemoteAddress: net.DestinationAddress(),
		RemotePort:    h.DestinationPort(),
	}
	const synAck = header.TCPFlagSyn | header.TCPFlagAck
	if h.Flags()&synAck == synAck {
		return s.takeSYNACK(id, pkt, h.AckNumber())
	}
	f := s.leaving(id, h.SequenceNumber(), pkt)
	if f == nil {
		return false
	}
	f.point(h, pkt)
	if h.Flags()&header.TCPFlagRst != 0 {
		s.resets(f)
	}
	return s.replies.leaves(f, pkt, h)
}

// resets records that a RST of ours is about to leave. The application may try again from the same port before gVisor
// has removed the endpoint.
func (s *Stack) resets(f *Flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.ended = f.ended || f.phase == open
}

// inbound looks at each packet on its way from the device to gVisor.
type inbound struct {
	stack.NetworkDispatcher
	stack   *Stack
	checked bool // the link verifies checksums
}

func (in *inbound) DeliverNetworkPacket(proto tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	if seg, ok := peek(proto, pkt); ok {
		if seg.flags&(header.TCPFlagSyn|header.TCPFlagFin|header.TCPFlagRst) != 0 {
			in.stack.turns.pace()
			switch in.stack.admit(seg) {
			case drop:
				return
			case anew:
				if seg.plain && in.parse(proto, seg, pkt) {
					in.stack.handleTCP(seg.id, pkt)
				}
				return // an odd one is lost, and the application's kernel repeats it
			}
		}
		if in.stack.cfg.Path != nil && seg.flags&header.TCPFlagAck != 0 {
			in.stack.heed(seg, pkt)
		}
		if seg.flags&header.TCPFlagUrg != 0 {
			in.stack.urge(seg, pkt)
		}
		if seg.flags&(header.TCPFlagPsh|header.TCPFlagFin) != 0 {
			if f := in.stack.known(seg.id); f != nil {
				in.stack.replies.came(f, seg)
			}
		}
		if in.direct(proto, seg, pkt) {
			return
		}
	}
	in.NetworkDispatcher.DeliverNetworkPacket(proto, pkt)
}

// segment is what the gate reads of a TCP packet.
type segment struct {
	id    stack.TransportEndpointID
	flags header.TCPFlags
	seq   uint32
	size  int // bytes of data

	ip, tcp int  // bytes of headers
	plain   bool // nothing is unusual: not a fragment, no IP options, as long as it claims to be, a complete TCP header
}

// peek reads the TCP header of a packet that gVisor has not parsed yet. It reports false for anything else: other
// protocols, fragments beyond the first, IPv6 extension headers, and packets that are too short. Those pass unseen.
func peek(proto tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) (segment, bool) {
	slices := pkt.AsSlices()
	if len(slices) == 0 {
		return segment{}, false
	}
	b := slices[0] // on every existing link, the headers are in one piece
	var src, dst tcpip.Address
	var tcpHeader []byte
	var n, size int // bytes of the IP header, and of what follows it according to the header
	plain := true
	switch proto {
	case header.IPv4ProtocolNumber:
		if len(b) < header.IPv4MinimumSize {
			return segment{}, false
		}
		ip := header.IPv4(b)
		n = int(ip.HeaderLength())
		if ip.Protocol() != uint8(tcp.ProtocolNumber) || ip.FragmentOffset() != 0 || n < header.IPv4MinimumSize || len(b) < n+header.TCPMinimumSize {
			return segment{}, false
		}
		src, dst, tcpHeader = ip.SourceAddress(), ip.DestinationAddress(), b[n:]
		size = int(ip.TotalLength()) - n
		plain = n == header.IPv4MinimumSize && !ip.More()
	case header.IPv6ProtocolNumber:
		if len(b) < header.IPv6MinimumSize+header.TCPMinimumSize {
			return segment{}, false
		}
		ip := header.IPv6(b)
		if ip.NextHeader() != uint8(tcp.ProtocolNumber) {
			return segment{}, false
		}
		n = header.IPv6MinimumSize
		src, dst, tcpHeader = ip.SourceAddress(), ip.DestinationAddress(), b[n:]
		size = int(ip.PayloadLength())
	default:
		return segment{}, false
	}
	flags := header.TCPFlags(tcpHeader[header.TCPFlagsOffset])
	offset := int(header.TCP(tcpHeader).DataOffset())
	return segment{
		id: stack.TransportEndpointID{
			LocalAddress:  dst,
			LocalPort:     binary.BigEndian.Uint16(tcpHeader[header.TCPDstPortOffset:]),
			RemoteAddress: src,
			RemotePort:    binary.BigEndian.Uint16(tcpHeader[header.TCPSrcPortOffset:]),
		},
		flags: flags,
		seq:   binary.BigEndian.Uint32(tcpHeader[header.TCPSeqNumOffset:]),
		size:  size - offset,

		ip:    n,
		tcp:   offset,
		plain: plain && n+size == pkt.Size() && header.TCPMinimumSize <= offset && offset <= size && offset <= len(tcpHeader),
	}, true
}

// verdict is what becomes of a SYN, FIN or RST.
type verdict uint8

const (
	pass verdict = iota // it goes on to gVisor
	drop
	// anew: it begins another flow, whatever gVisor's demultiplexer holds. gVisor may be making the endpoint of the last
	// one at this moment. That would take the SYN, and refuse it.
	anew
)

// admit records what a SYN, FIN or RST means for the flow of its 4-tuple.
func (s *Stack) admit(seg segment) verdict {
	s.mu.Lock()
	f := s.flows[seg.id]
	if f == nil {
		s.mu.Unlock()
		switch seg.flags & (header.TCPFlagSyn | header.TCPFlagAck | header.TCPFlagRst) {
		case header.TCPFlagSyn:
			if s.turns.full(seg.id) {
				s.dropped.Add(1)
				return drop
			}
		case header.TCPFlagSyn | header.TCPFlagAck:
			if s.cfg.Answer != nil {
				s.cfg.Answer(netip.AddrPortFrom(addr(seg.id.RemoteAddress), seg.id.RemotePort), netip.AddrPortFrom(addr(seg.id.LocalAddress), seg.id.LocalPort))
			}
		}
		return pass
	}
	if seg.flags&header.TCPFlagSyn == 0 {
		// In the handshake it may be the RST with which the application answers something of a predecessor's.
		f.ended = f.ended || f.phase == open || f.phase == answering && int32(seg.seq-f.isn) > 0
		refused := f.phase == answering && seg.flags&header.TCPFlagRst != 0 && seg.seq == f.isn+1
		s.mu.Unlock()
		// A kernel that has no such socket any more resets without an ACK (RFC 9293, section 3.10.7.1). With one, the socket
		// was connected by our SYN-ACK and then reset, as by a health check.
		gone := ErrGone
		if seg.flags&header.TCPFlagAck != 0 {
			gone = errReset
		}
		if refused && s.relinquish(f, gone) {
			return drop
		}
		if seg.flags&header.TCPFlagRst != 0 {
			s.replies.drop(f)
		}
		return pass
	}
	switch {
	case seg.flags&header.TCPFlagAck != 0:
		s.mu.Unlock()
		return pass // simultaneous open: gVisor's business
	case f.phase == parked && seg.seq == f.isn:
		now := time.Now()
		f.pause, f.lastSYN = now.Sub(f.lastSYN), now
		s.mu.Unlock()
		return drop // retransmission: the answer is on its way
	case f.phase == parked:
		// The application gave up and tries again from the same port.
		s.abandonLocked(f)
		s.mu.Unlock()
		f.abandoned()
		return anew
	case f.ended && seg.seq != f.isn:
		f.retired = true
		s.mu.Unlock()
		s.replies.drop(f)
		if ep := s.endpoint(seg.id); ep != nil {
			s.unregister(seg.id, ep)
		}
		return pass
	case f.phase == answering && seg.seq != f.isn:
		s.mu.Unlock()
		if s.relinquish(f, ErrGone) { // likewise
			return anew
		}
		return pass
	}
	s.mu.Unlock()
	return pass
}

// unregister takes the endpoint of a 4-tuple out of the demultiplexer. It finishes what is queued, and its own clean-up
// then finds nothing to unregister.
func (s *Stack) unregister(id stack.TransportEndpointID, ep stack.TransportEndpoint) {
	s.gv.UnregisterTransportEndpoint([]tcpip.NetworkProtocolNumber{protocolOf(id.RemoteAddress)}, tcp.ProtocolNumber, id, ep, shared, 0)
}
