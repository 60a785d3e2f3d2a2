package link

import (
	"bytes"
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// acks holds acknowledgements back while there are more packets of the same burst to read, and lets one stand for
// those before it.
//
// gVisor answers each ACK by sending what it has made room for, however little. The kernel acknowledges that at once,
// so small segments stay small. With eight flows, a packet to the device held 10 kB on average, of a possible 64. The
// kernel's own TCP waits for more (tcp_tso_should_defer); here it is the ACKs that arrive together.
//
// To gVisor the earlier ACKs seem lost on the way, which TCP can handle (RFC 3449, section 5.2.1). An ACK is left out
// only if it says nothing else, and only for an ACK that acknowledges more. A repeated ACK, one with SACK blocks or
// ECN's flags, and a probe all pass.
type acks struct {
	held  []*buffer.View // in order of arrival
	tries int            // packets seen since the first of them
}

// maxHeld is the largest number of packets for which an ACK is held back.
const maxHeld = 64

// hold takes the packet over if it is an ACK that says nothing else. It reports false if it is not, or if the held
// ones are to be delivered before more are held.
func (a *acks) hold(packet []byte) bool {
	if a.tries == maxHeld || !pureACK(packet) {
		return false
	}
	a.tries++
	view := buffer.NewViewWithData(packet)
	for i := len(a.held) - 1; i >= 0; i-- {
		old := a.held[i]
		if !sameFlow(old.AsSlice(), packet) {
			continue
		}
		if acknowledgesMore(old.AsSlice(), packet) {
			a.held[i] = view
			old.Release()
			return true
		}
		break
	}
	a.held = append(a.held, view)
	return true
}

// take delivers what is held.
func (a *acks) take(deliver func(*buffer.View)) {
	for i, v := range a.held {
		a.held[i] = nil
		deliver(v)
	}
	a.held, a.tries = a.held[:0], 0
}

// timestamps is how Linux begins its 12 bytes of options: two NOPs, then kind and length of the only option
// (tcp_options_write).
var timestamps = []byte{header.TCPOptionNOP, header.TCPOptionNOP, header.TCPOptionTS, header.TCPOptionTSLength}

// pureACK reports whether an IP packet is a TCP segment with no data, no options but timestamps, and no flag but ACK.
func pureACK(packet []byte) bool {
	tcp, ok := segmentOf(packet)
	if !ok || tcp[header.TCPFlagsOffset] != byte(header.TCPFlagAck) {
		return false
	}
	switch len(tcp) {
	case header.TCPMinimumSize:
		return tcp[header.TCPDataOffset] == header.TCPMinimumSize/4<<4
	case header.TCPMinimumSize + 12:
		return tcp[header.TCPDataOffset] == (header.TCPMinimumSize+12)/4<<4 && bytes.HasPrefix(tcp[header.TCPMinimumSize:], timestamps)
	}
	return false
}

// segmentOf returns the TCP segment in an IP packet that is whole and has no options.
func segmentOf(packet []byte) (tcp []byte, ok bool) {
	switch {
	case len(packet) >= header.IPv4MinimumSize+header.TCPMinimumSize && packet[0] == 4<<4|header.IPv4MinimumSize/4:
		ip := header.IPv4(packet)
		more := ip.Flags()&header.IPv4FlagMoreFragments != 0 || ip.FragmentOffset() != 0
		return packet[header.IPv4MinimumSize:], ip.Protocol() == uint8(header.TCPProtocolNumber) && int(ip.TotalLength()) == len(packet) && !more
	case len(packet) >= header.IPv6MinimumSize+header.TCPMinimumSize && header.IPVersion(packet) == header.IPv6Version:
		ip := header.IPv6(packet)
		return packet[header.IPv6MinimumSize:], ip.NextHeader() == uint8(header.TCPProtocolNumber) && int(ip.PayloadLength())+header.IPv6MinimumSize == len(packet)
	}
	return nil, false
}

// sameFlow reports whether two segments that pureACK accepts have the same addresses and ports.
func sameFlow(a, b []byte) bool {
	if len(a) != len(b) || a[0]>>4 != b[0]>>4 {
		return false
	}
	// The ports follow the addresses, with no options in between.
	if header.IPVersion(a) == header.IPv4Version {
		return bytes.Equal(a[12:24], b[12:24])
	}
	return bytes.Equal(a[8:44], b[8:44])
}

// acknowledgesMore reports whether the later ACK of a flow says everything that the earlier one says, and
// acknowledges more.
func acknowledgesMore(earlier, later []byte) bool {
	a, _ := segmentOf(earlier)
	b, _ := segmentOf(later)
	const seq, ack = header.TCPSeqNumOffset, header.TCPAckNumOffset
	if binary.BigEndian.Uint32(a[seq:]) != binary.BigEndian.Uint32(b[seq:]) {
		return false // a probe (tcp_xmit_probe_skb), or an ACK sent after data
	}
	return int32(binary.BigEndian.Uint32(b[ack:])-binary.BigEndian.Uint32(a[ack:])) > 0
}
