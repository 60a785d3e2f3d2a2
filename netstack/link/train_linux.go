package link

import (
	"bytes"
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// train makes one segment of those of a flow that were read one after the other and follow each other.
//
// How large the kernel makes its packets depends on the round trip (tcp_tso_autosize): 64 KiB where one was below half a millisecond,
// and down to two of the MTU where all are long, as they are when a thousand flows wait for their turn. It then sends
// many at a time, and a segment costs gVisor the same whatever its size. Those are put together that the
// kernel's own receive offload would (tcp_gro_receive): nothing but the sequence number and PSH may differ.
type train struct {
	first  *buffer.View   // a packet; nil: there is none
	more   []*buffer.View // data that follows
	header int            // bytes of first that are IP and TCP header
	size   int            // bytes of all
	next   uint32         // sequence number
}

// begin takes over a packet if others may follow it, and it is not so large that a second one like it would have no room. There must
// be none.
func (t *train) begin(packet *buffer.View) bool {
	tcp, n, ok := dataSegment(packet.AsSlice())
	if !ok || packet.Size() > maxTrain/2 {
		return false
	}
	t.first, t.header, t.size = packet, n, packet.Size()
	t.next = binary.BigEndian.Uint32(tcp[header.TCPSeqNumOffset:]) + uint32(packet.Size()-n)
	return true
}

// join takes over a packet that follows.
func (t *train) join(packet *buffer.View) bool {
	if t.first == nil || t.size+packet.Size()-t.header > maxTrain {
		return false
	}
	tcp, n, ok := dataSegment(packet.AsSlice())
	if !ok || n != t.header || binary.BigEndian.Uint32(tcp[header.TCPSeqNumOffset:]) != t.next || !alike(t.first.AsSlice()[:n], packet.AsSlice()[:n]) {
		return false
	}
	packet.TrimFront(n)
	t.more = append(t.more, packet)
	t.size += packet.Size()
	t.next += uint32(packet.Size())
	return true
}

// maxTrain is what the length of an IPv4 packet can say.
const maxTrain = 65535

// take passes on what is there as one packet.
func (t *train) take(deliver func(buffer.Buffer)) {
	if t.first == nil {
		return
	}
	packet := t.first
	t.first = nil
	if len(t.more) == 0 {
		deliver(split(packet))
		return
	}
	b := buffer.MakeWithView(buffer.NewViewWithData(resized(packet.AsSlice()[:t.header], t.size)))
	packet.TrimFront(t.header)
	_ = b.Append(packet) // fails for a piece that can't be written to only
	for i, v := range t.more {
		_ = b.Append(v)
		t.more[i] = nil
	}
	t.more = t.more[:0]
	deliver(b)
}

// resized has the IP header say that the packet is of so many bytes. No TCP checksum is looked at.
func resized(headers []byte, size int) []byte {
	if header.IPVersion(headers) == header.IPv6Version {
		header.IPv6(headers).SetPayloadLength(uint16(size - header.IPv6MinimumSize))
		return headers
	}
	ip := header.IPv4(headers)
	ip.SetTotalLength(uint16(size))
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
	return headers
}

// dataSegment is the TCP segment in an IP packet, if it has nothing but data to say, and the length of both headers.
func dataSegment(packet []byte) (tcp header.TCP, n int, ok bool) {
	segment, ok := segmentOf(packet)
	if !ok {
		return nil, 0, false
	}
	tcp = segment
	const also = header.TCPFlagPsh
	n = len(packet) - len(segment) + int(tcp.DataOffset())
	return tcp, n, tcp.Flags()|also == header.TCPFlagAck|also && tcp.DataOffset() >= header.TCPMinimumSize && n < len(packet)
}

// alike says whether the headers of two data segments of the same length say the same but for what it follows from that
// they are two.
func alike(a, b []byte) bool {
	at := header.IPv4MinimumSize
	if header.IPVersion(a) == header.IPv6Version {
		at = header.IPv6MinimumSize
		if !bytes.Equal(a[:4], b[:4]) || !bytes.Equal(a[6:at], b[6:at]) { // all but the length
			return false
		}
	} else if !bytes.Equal(a[:2], b[:2]) || !bytes.Equal(a[6:10], b[6:10]) || !bytes.Equal(a[12:at], b[12:at]) { // but length, identification and checksum
		return false
	}
	a, b = a[at:], b[at:]
	return bytes.Equal(a[:header.TCPSeqNumOffset], b[:header.TCPSeqNumOffset]) && // the ports
		bytes.Equal(a[header.TCPAckNumOffset:header.TCPFlagsOffset], b[header.TCPAckNumOffset:header.TCPFlagsOffset]) &&
		bytes.Equal(a[header.TCPWinSizeOffset:header.TCPChecksumOffset], b[header.TCPWinSizeOffset:header.TCPChecksumOffset]) &&
		bytes.Equal(a[header.TCPUrgentPtrOffset:], b[header.TCPUrgentPtrOffset:]) // and the options
}
