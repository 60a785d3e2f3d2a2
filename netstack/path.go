package netstack

import (
	"encoding/binary"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// An application on another host may vanish without a word: powered off, or out of range. Its kernel's own probes
// would only find our netstack alive, so it is up to us to ask. Otherwise the flow, and its source port, would be
// kept forever. The times are those of the upstream side (package proxy).
const (
	keepAliveIdle     = tcpip.KeepaliveIdleOption(60 * time.Second)
	keepAliveInterval = tcpip.KeepaliveIntervalOption(15 * time.Second)
	keepAliveCount    = 8
)

// far prepares f for an application on another host, reached with packets of up to mtu bytes. It returns the maximum
// segment size to tell that host. What it sends must fit as well: packets that a router between us has to fragment have no
// ports for the kernel's policy rules, and pass us by.
func (f *Flow) far(syn *stack.PacketBuffer, mtu int) (mss int) {
	f.remote = true
	overhead := header.IPv4MinimumSize + header.TCPMinimumSize
	if f.src.Addr().Is6() {
		overhead = header.IPv6MinimumSize + header.TCPMinimumSize
	}
	if most := mtu - overhead; most > 0 && most < 0xffff {
		clampMSS(syn, uint16(most))
		mss = most
	}
	o := header.ParseSynOptions(header.TCP(syn.TransportHeader().Slice()).Options(), false)
	f.stack.mu.Lock()
	defer f.stack.mu.Unlock()
	f.window = window{scale: uint8(max(o.WS, 0))}
	return mss
}

// window is what must be known about the receive window of an application on another host.
//
// As long as a segment is unacknowledged gVisor repeats it instead of probing. But it does not repeat a segment for which
// the window has become too small, and then no timer runs (postXmit). If the host vanished, or its next window got lost,
// the flow would be kept forever. Only a window of zero is always asked about again, for as long as the host answers. So
// a window that is too small for what has been sent is taken for zero. One that has room for a segment as gVisor makes
// them, without what their options take, is not too small: a host may leave it at that, and then would be asked for ever.
// Hosts are not to take back what they have offered (RFC 9293, section 3.8.6), but some do.
type window struct {
	scale   uint8
	segment uint32 // the most bytes that one segment has had
	sent    uint32 // the sequence number behind all that has been sent
}

// leaving returns the flow of a 4-tuple, or nil, and records that pkt, from the sequence number seq on, is sent.
func (s *Stack) leaving(id stack.TransportEndpointID, seq uint32, pkt *stack.PacketBuffer) *Flow {
	size := uint32(pkt.Data().Size())
	segment := size
	if gso := pkt.GSOOptions; gso.Type != stack.GSONone {
		segment = uint32(gso.MSS)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.flows[id]
	if f == nil {
		return nil
	}
	f.window.segment = max(f.window.segment, segment)
	if end := seq + size; int32(end-f.window.sent) > 0 {
		f.window.sent = end
	}
	return f
}

// heed closes the window in a segment if something that has been sent no longer fits into it.
func (s *Stack) heed(seg segment, pkt *stack.PacketBuffer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.flows[seg.id]
	if f == nil {
		return
	}
	h := header.TCP(pkt.AsSlices()[0][seg.ip:])
	size := uint32(h.WindowSize()) << f.window.scale
	if size < f.window.segment && int32(f.window.sent-h.AckNumber()) > int32(size) {
		h.SetChecksum(updated(h.Checksum(), h.WindowSize(), 0, false))
		h.SetWindowSize(0)
	}
}

// clampMSS lowers the maximum segment size that a SYN announces to most, if it is larger. Netstack believes the SYN
// and sends no larger segment. It learns nothing of what the device in between can carry: it is told only of packets
// that are too big for pin0. A SYN without the option means 536 (RFC 9293, section 3.7.1), less than any link has.
func clampMSS(syn *stack.PacketBuffer, most uint16) {
	h := header.TCP(syn.TransportHeader().Slice())
	for o := h[header.TCPMinimumSize:h.DataOffset()]; len(o) > 0; {
		switch {
		case o[0] == header.TCPOptionEOL:
			return
		case o[0] == header.TCPOptionNOP:
			o = o[1:]
			continue
		case len(o) < 2 || o[1] < 2 || int(o[1]) > len(o):
			return
		case o[0] == header.TCPOptionMSS && o[1] == header.TCPOptionMSSLength:
			if old := binary.BigEndian.Uint16(o[2:]); old > most {
				binary.BigEndian.PutUint16(o[2:], most)
				at := len(h[:h.DataOffset()]) - len(o) + 2
				h.SetChecksum(updated(h.Checksum(), old, most, at%2 == 1))
			}
			return
		}
		o = o[o[1]:]
	}
}

// updated returns a checksum after one of its words has changed (RFC 1624). odd means that the word begins at an odd
// byte.
func updated(sum, old, now uint16, odd bool) uint16 {
	if odd {
		old, now = old<<8|old>>8, now<<8|now>>8
	}
	s := uint32(^sum) + uint32(^old) + uint32(now)
	s = s&0xffff + s>>16
	s = s&0xffff + s>>16
	return ^uint16(s)
}

// keepAlive makes gVisor probe an application, as one on another host from the beginning.
func keepAlive(ep tcpip.Endpoint, idle tcpip.KeepaliveIdleOption, interval tcpip.KeepaliveIntervalOption) {
	_ = ep.SetSockOpt(&idle)
	_ = ep.SetSockOpt(&interval)
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepAliveCount)
	ep.SocketOptions().SetKeepAlive(true)
}
