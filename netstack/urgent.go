package netstack

import (
	"encoding/binary"
	"math"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// Urgent data (MSG_OOB) is one byte of the stream that a pointer in TCP's header marks. gVisor leaves the pointer out
// of account, so the gate reads it in what the application sends, and sets it in what is sent to the application. As in
// the kernel there is one mark for each direction: where a second one comes before the first has been passed on, the
// first is an ordinary byte. Linux's urgent byte is the one before that which the pointer means (tcp_check_urg,
// tcp_mark_urg), and so is ours.
type urgent struct {
	in   mark          // the byte behind the urgent one, of the application's stream
	out  mark          // the same of ours
	read atomic.Uint32 // how many bytes of the application's stream have been read, modulo 2^32
}

// mark is a sequence number, or none.
type mark struct{ v atomic.Uint64 }

func (m *mark) set(seq uint32) { m.v.Store(1<<32 | uint64(seq)) }

// forget ends the mark at seq, unless another one has been set meanwhile.
func (m *mark) forget(seq uint32) { m.v.CompareAndSwap(1<<32|uint64(seq), 0) }

// beyond returns how many bytes lie between seq and the mark. It is negative if the mark has been passed.
func (m *mark) beyond(seq uint32) (n int, ok bool) {
	v := m.v.Load()
	return int(int32(uint32(v) - seq)), v != 0
}

// urge is called for a segment from the application that has an urgent pointer.
func (s *Stack) urge(seg segment, pkt *stack.PacketBuffer) {
	f := s.known(seg.id)
	pointer := binary.BigEndian.Uint16(pkt.AsSlices()[0][seg.ip+header.TCPUrgentPtrOffset:])
	if f == nil || pointer == 0 || pointer == math.MaxUint16 { // the last is also said of what lies farther ahead
		return
	}
	f.urge(seg.seq + uint32(pointer))
}

// urge sets the application's mark, if there isn't one that lies farther ahead. It can only be where the application
// may send: anybody on its network can make a segment up, and need not know where its stream is.
func (f *Flow) urge(end uint32) {
	if n := int32(end - f.unread()); n <= 0 || n > maxUnread {
		return
	}
	if n, ok := f.urgent.in.beyond(end); !ok || n < 0 {
		f.urgent.in.set(end)
	}
}

// unread is the sequence number of the next byte to be read.
func (f *Flow) unread() uint32 { return f.isn + 1 + f.urgent.read.Load() }

// point sets the urgent pointer of a segment that is about to leave, if a mark is ahead of it.
func (f *Flow) point(h header.TCP, pkt *stack.PacketBuffer) {
	gso := pkt.GSOOptions
	n, ok := f.urgent.out.beyond(h.SequenceNumber())
	switch {
	case !ok:
	case n < -maxUnacknowledged: // or it would be ahead again one day
		f.urgent.out.forget(h.SequenceNumber() + uint32(n))
	case n <= 0 || n > math.MaxUint16: // passed, unless it is repeated; not in reach
	case f.remote && gso.Type != stack.GSONone && pkt.Data().Size() > int(gso.MSS):
		// When the kernel cuts it up to forward it, each piece keeps the pointer, which then means another byte.
	default:
		h.SetFlags(uint8(h.Flags() | header.TCPFlagUrg))
		binary.BigEndian.PutUint16(h[header.TCPUrgentPtrOffset:], uint16(n))
		if gso.Type == stack.GSONone || !gso.NeedsCsum { // the checksum is complete; RFC 1624, both fields were zero
			h.SetChecksum(^checksum.Combine(^h.Checksum(), checksum.Combine(uint16(header.TCPFlagUrg), uint16(n))))
		}
	}
}

const (
	maxUnacknowledged = 1 << 28               // more than gVisor ever has under way
	maxUnread         = 2 * tcp.MaxBufferSize // more than it ever lets come
)

// urgentAhead returns how many bytes can be read up to the urgent one, and that one excluded; none if there is no mark.
func (c *conn) urgentAhead() (n int, ok bool) {
	next := c.flow.unread()
	if n, ok = c.flow.urgent.in.beyond(next); ok && n <= 0 {
		c.flow.urgent.in.forget(next + uint32(n))
		return 0, false
	}
	return n - 1, ok
}

// WriteUrgent is Write, and the last byte of b is urgent data.
func (c *conn) WriteUrgent(b []byte) (int, error) {
	c.flow.urgent.out.set(c.flow.iss + 1 + c.sent + uint32(len(b)))
	return c.Write(b)
}
