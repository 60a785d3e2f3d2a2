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
//
// One case escapes the probes: a host announces a window that is smaller than a segment it has not acknowledged, but not
// zero, and then vanishes. As long as a segment is unacknowledged gVisor repeats it instead of probing, but not if it
// does not fit into the window, and then no timer runs (postXmit). Linux announces no such window.
const (
	keepAliveIdle     = tcpip.KeepaliveIdleOption(60 * time.Second)
	keepAliveInterval = tcpip.KeepaliveIntervalOption(15 * time.Second)
	keepAliveCount    = 8
)

// far prepares f for an application on another host, reached with packets of up to mtu bytes.
func (f *Flow) far(syn *stack.PacketBuffer, mtu int) {
	f.remote = true
	overhead := header.IPv4MinimumSize + header.TCPMinimumSize
	if f.src.Addr().Is6() {
		overhead = header.IPv6MinimumSize + header.TCPMinimumSize
	}
	if most := mtu - overhead; most > 0 && most < 0xffff {
		clampMSS(syn, uint16(most))
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
