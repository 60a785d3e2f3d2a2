package netstack

import (
	"encoding/binary"
	"math"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
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

// A mark that is set while the one before it is being forgotten stays.
func TestMarkSetMeanwhile(t *testing.T) {
	var m mark
	m.set(100)
	m.set(200)
	m.forget(100)
	if n, ok := m.beyond(150); n != 50 || !ok {
		t.Errorf("the mark is %d bytes ahead, %v; want 50", n, ok)
	}
	m.forget(200)
	if _, ok := m.beyond(150); ok {
		t.Error("the mark is still there")
	}
}

// A pointer to where the application can't send yet, or has sent long ago, is nobody's that knows its stream. It must
// not make bytes urgent, nor keep others from being so.
func TestUrge(t *testing.T) {
	for _, test := range []struct {
		ends []uint32 // of urgent bytes, counted from the next byte to be read
		want int      // how far ahead the mark is
	}{
		{[]uint32{1}, 1},
		{[]uint32{1, 1000}, 1000},
		{[]uint32{1000, 1}, 1000},
		{[]uint32{tcp.MaxBufferSize}, tcp.MaxBufferSize},
		{[]uint32{0}, 0},
		{[]uint32{math.MaxUint32}, 0},
		{[]uint32{1 << 30, 1000}, 1000},
		{[]uint32{1000, 1 << 30}, 1000},
		{[]uint32{1 << 31, 1000}, 1000},
	} {
		f := &Flow{isn: math.MaxUint32 - 100}
		f.urgent.read.Store(200)
		for _, end := range test.ends {
			f.urge(f.isn + 1 + 200 + end)
		}
		if n, ok := f.urgent.in.beyond(f.unread()); ok != (test.want > 0) || ok && n != test.want {
			t.Errorf("%d: the mark is %d bytes ahead, %v; want %d", test.ends, n, ok, test.want)
		}
	}
}
