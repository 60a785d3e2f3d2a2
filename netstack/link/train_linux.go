package link

import (
	"bytes"
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// train joins consecutive segments of a flow, read one after the other, into one segment.
//
// How large the kernel makes its packets depends on the round trip (tcp_tso_autosize): 64 KiB if one was below half a
// millisecond, and down to two MTUs if all are long, as they are when a thousand flows wait for their turn. The
// kernel then sends many packets at a time, and a segment costs gVisor the same whatever its size. train joins the
// segments that the kernel's own receive offload would join (tcp_gro_receive): they may differ only in the sequence
// number and PSH.
type train struct {
	first  *buffer.View   // a packet; nil: there is none
	more   []*buffer.View // data that follows
	header int            // bytes of IP and TCP header in first
	size   int            // bytes of the whole
	next   uint32         // sequence number of the next segment
}

// begin takes over a packet if others may follow it and it leaves room for a second one like it. The train must be
// empty.
func (t *train) begin(packet *buffer.View) bool {
	tcp, n, ok := dataSegment(packet.AsSlice())
	if !ok || packet.Size() > maxTrain/2 {
		return false
	}
	t.first, t.header, t.size = packet, n, packet.Size()
	t.next = binary.BigEndian.Uint32(tcp[header.TCPSeqNumOffset:]) + uint32(packet.Size()-n)
	return true
}

// join takes over a packet if it continues the train.
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

// maxTrain is the largest value of an IPv4 packet's length field.
const maxTrain = 65535

// take delivers the train as one packet.
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
	_ = b.Append(packet) // fails only for a piece that can't be written to
	for i, v := range t.more {
		_ = b.Append(v)
		t.more[i] = nil
	}
	t.more = t.more[:0]
	deliver(b)
}

// resized sets the packet's length in its IP header to size. It leaves the TCP checksum alone, because nobody checks
// it.
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

// dataSegment returns the TCP segment in an IP packet, if it carries nothing but data, and the length of both
// headers.
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

// alike reports whether the headers of two data segments of the same length are the same, apart from the fields that
// must differ between two segments.
func alike(a, b []byte) bool {
	at := header.IPv4MinimumSize
	if header.IPVersion(a) == header.IPv6Version {
		at = header.IPv6MinimumSize
		if !bytes.Equal(a[:4], b[:4]) || !bytes.Equal(a[6:at], b[6:at]) { // everything but the length
			return false
		}
	} else if !bytes.Equal(a[:2], b[:2]) || !bytes.Equal(a[6:10], b[6:10]) || !bytes.Equal(a[12:at], b[12:at]) { // everything but length, identification and checksum
		return false
	}
	a, b = a[at:], b[at:]
	return bytes.Equal(a[:header.TCPSeqNumOffset], b[:header.TCPSeqNumOffset]) && // the ports
		bytes.Equal(a[header.TCPAckNumOffset:header.TCPFlagsOffset], b[header.TCPAckNumOffset:header.TCPFlagsOffset]) &&
		bytes.Equal(a[header.TCPWinSizeOffset:header.TCPChecksumOffset], b[header.TCPWinSizeOffset:header.TCPChecksumOffset]) &&
		bytes.Equal(a[header.TCPUrgentPtrOffset:], b[header.TCPUrgentPtrOffset:]) // and the options
}
