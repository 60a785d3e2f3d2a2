package netstack

import (
	"encoding/binary"
	"math"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A segment before the mark points at it, and its checksum stays right.
func TestPoint(t *testing.T) {
	const seq = math.MaxUint32 - 100 // the sequence numbers begin again in between
	large := stack.GSO{Type: stack.GSOTCPv4, NeedsCsum: true, MSS: 1000}
	for name, test := range map[string]struct {
		ahead  uint32 // the mark's distance
		size   int
		gso    stack.GSO
		remote bool
		want   uint16
	}{
		"next byte":                  {ahead: 1, size: 1, want: 1},
		"beyond the segment":         {ahead: 65535, size: 1, want: 65535},
		"out of reach":               {ahead: 65536, size: 1},
		"passed":                     {ahead: 0, size: 1},
		"long passed":                {ahead: 1 << 31, size: 1},
		"many segments":              {ahead: 1500, size: 2000, gso: large, want: 1500},
		"many segments to cut up":    {ahead: 1500, size: 2000, gso: large, remote: true},
		"one segment for far away":   {ahead: 200, size: 1000, gso: large, remote: true, want: 200},
		"summed segment, far away":   {ahead: 200, size: 1000, remote: true, want: 200},
		"one segment, sum not taken": {ahead: 2, size: 2, gso: large, want: 2},
	} {
		h := header.TCP(make([]byte, header.TCPMinimumSize))
		h.Encode(&header.TCPFields{SrcPort: 443, DstPort: 4711, SeqNum: seq, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagAck, WindowSize: 0xfaf0})
		h.SetChecksum(^checksum.Checksum(h, 0))
		before := h.Checksum()
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(make([]byte, test.size))})
		pkt.GSOOptions = test.gso
		f := &Flow{remote: test.remote}
		f.urgent.out.set(seq + test.ahead)
		f.point(h, pkt)
		pkt.DecRef()
		if got := binary.BigEndian.Uint16(h[header.TCPUrgentPtrOffset:]); got != test.want || (h.Flags()&header.TCPFlagUrg != 0) != (got != 0) {
			t.Errorf("%s: the pointer is %d, flags %v, want %d", name, got, h.Flags(), test.want)
		}
		if test.gso.NeedsCsum {
			if h.Checksum() != before { // of the pseudo-header alone
				t.Errorf("%s: the sum has changed", name)
			}
		} else if sum := checksum.Checksum(h, 0); sum != 0xffff {
			t.Errorf("%s: the checksum is wrong: %#x", name, sum)
		}
	}
}

// A mark far behind is forgotten before the sequence numbers come round to it again.
func TestMarkIsForgotten(t *testing.T) {
	f := new(Flow)
	f.urgent.out.set(1000)
	for seq := uint32(1000); ; seq += 1 << 16 { // the largest packets
		h := header.TCP(make([]byte, header.TCPMinimumSize))
		h.Encode(&header.TCPFields{SeqNum: seq, DataOffset: header.TCPMinimumSize})
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{})
		f.point(h, pkt)
		pkt.DecRef()
		if h.Flags()&header.TCPFlagUrg != 0 {
			t.Fatalf("%d bytes behind the mark a segment points at it", seq-1000)
		}
		if seq+1<<16 < seq {
			return
		}
	}
}
