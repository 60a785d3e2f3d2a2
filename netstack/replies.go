package netstack

import (
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// replies holds acknowledgements back for the packet that follows them. gVisor acknowledges at once: it sends one
// packet to acknowledge a request and the reply as the next, or one to acknowledge an application's FIN and our FIN
// as the next. Each packet to the device costs not only our processing but also that of the application's own TCP.
// The later packet says all that the earlier one does, so if it follows within a moment, the earlier one is left out.
//
// Only an ACK that nobody should miss is held back: the pure ACK of a FIN, or of a small segment that ends a message
// (PSH). A flow never has two of them held back: the segment that leaves next takes the place of the first, so two
// segments are acknowledged at once (RFC 5681, section 4.2). An application with a small write queued behind another
// one waits for the ACK of the first (Nagle's algorithm). So once a reply to a message has been late, the flow's
// messages are acknowledged at once for good.
type replies struct {
	send func(*stack.PacketBuffer) // takes over the reference

	mu     sync.Mutex
	list   []*Flow // flows with an ACK held back, and some that no longer have one
	kept   int     // number of ACKs held back; the timer runs unless it is 0
	timer  *time.Timer
	closed bool
}

// reply is a flow's part. replies.mu guards it.
type reply struct {
	due    uint32              // acknowledgement number of the ACK that may be held back, if await
	await  bool                // a segment whose ACK may be held back has come
	fin    bool                // and it is a FIN
	prompt bool                // a reply was late: messages are acknowledged at once
	ended  bool                // our FIN or RST has left: nothing follows
	listed bool                // in replies.list
	ticks  int                 // how many more ticks it is held back
	kept   *stack.PacketBuffer // nil: none
}

const (
	replyTick = time.Millisecond // timers are no finer
	// messageTicks, less a fraction of a tick, is how long the ACK of a message is held back.
	messageTicks = 2
	// endTicks is the same for a FIN. Nobody waits for that ACK, except an application that closes with SO_LINGER.
	endTicks = 10
	// smallMessage is less than a full segment.
	smallMessage = 1024
)

// came is called for each segment of f from the application.
func (r *replies) came(f *Flow, seg segment) {
	fin := seg.flags&header.TCPFlagFin != 0
	if !fin && (seg.flags&header.TCPFlagPsh == 0 || seg.size == 0 || seg.size > smallMessage) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.reply.ended {
		return // an application that did not close first waits for this ACK
	}
	f.reply.due, f.reply.fin = seg.seq+uint32(seg.size), fin
	if fin {
		f.reply.due++
	}
	f.reply.await = fin || !f.reply.prompt
}

// leaves is called for each packet of f to the application and reports whether it is held back.
func (r *replies) leaves(f *Flow, pkt *stack.PacketBuffer, h header.TCP) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := &f.reply
	p.ended = p.ended || h.Flags()&(header.TCPFlagFin|header.TCPFlagRst) != 0
	if p.kept != nil {
		r.dropLocked(p)
		return false
	}
	if !p.await {
		return false
	}
	p.await = false
	if r.closed || h.Flags() != header.TCPFlagAck || pkt.Data().Size() != 0 || h.AckNumber() != p.due || !onlyTimestamps(h) {
		return false
	}
	p.kept = pkt.IncRef()
	if p.ticks = messageTicks; p.fin {
		p.ticks = endTicks
	}
	if !p.listed {
		p.listed = true
		r.list = append(r.list, f)
	}
	switch r.kept++; {
	case r.timer == nil:
		r.timer = time.AfterFunc(replyTick, r.tick)
	case r.kept == 1:
		r.timer.Reset(replyTick)
	}
	return true
}

// drop discards the ACK held back for f: the application has ended the connection.
func (r *replies) drop(f *Flow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.reply.kept != nil {
		r.dropLocked(&f.reply)
	}
}

func (r *replies) dropLocked(p *reply) {
	p.kept.DecRef()
	p.kept, p.await = nil, false
	if r.kept--; r.kept == 0 {
		r.timer.Stop() // don't wake an idle process for nothing
		r.sortLocked()
	}
}

func onlyTimestamps(h header.TCP) bool {
	options := h.Options()
	return len(options) == 0 || len(options) == 12 && binary.BigEndian.Uint32(options) == 1<<24|1<<16|header.TCPOptionTS<<8|header.TCPOptionTSLength
}

// sortLocked removes the flows from the list that have nothing held back.
func (r *replies) sortLocked() {
	r.list = slices.DeleteFunc(r.list, func(f *Flow) bool {
		f.reply.listed = f.reply.kept != nil
		return !f.reply.listed
	})
}

// tick sends the ACKs that have been held back long enough.
func (r *replies) tick() {
	for _, pkt := range r.late() {
		r.send(pkt)
	}
}

func (r *replies) late() (late []*stack.PacketBuffer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.list {
		p := &f.reply
		if p.kept == nil {
			continue
		}
		if p.ticks--; p.ticks > 0 {
			continue
		}
		late = append(late, p.kept)
		p.kept = nil
		p.prompt = p.prompt || !p.fin
		r.kept--
	}
	r.sortLocked()
	if r.kept > 0 {
		r.timer.Reset(replyTick)
	}
	return late
}

// close releases everything that is held back.
func (r *replies) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	if r.timer != nil {
		r.timer.Stop()
	}
	for _, f := range r.list {
		if f.reply.kept != nil {
			f.reply.kept.DecRef()
			f.reply.kept = nil
		}
	}
	r.list, r.kept = nil, 0
}
