package netstack

import (
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// replies keeps acknowledgements back for what follows them. gVisor acknowledges at once: a request by one packet, and the
// reply is the next, an application's FIN by one and ours is the next. Each packet to the device costs the application's
// own TCP besides ours. The later one says all that the earlier one does, so if it comes within a moment, the earlier one is left out.
//
// Only what nobody should miss is kept back: the ACK, and nothing else, of a segment that ends a message (PSH) and is small, or of a
// FIN. Not a second one of a flow: whichever segment of it leaves next takes the first one's place, so two segments are
// acknowledged at once (RFC 5681, section 4.2). An application that has a small write behind another one waits for the ACK
// of that (Nagle's algorithm): once a reply to a message was late, a flow has its acknowledgements at once for good.
type replies struct {
	send func(*stack.PacketBuffer) // takes over the reference

	mu     sync.Mutex
	list   []*Flow // that have one kept back; and some that don't any more
	kept   int     // how many there are; the timer runs unless it is 0
	timer  *time.Timer
	closed bool
}

// reply is a flow's part. replies.mu guards it.
type reply struct {
	due    uint32              // what the ACK says that may be kept back, if awaited
	await  bool                // such a segment has come
	fin    bool                // and it is the end
	prompt bool                // replies are late
	ended  bool                // our FIN or RST has left: nothing follows
	listed bool                // in replies.list
	ticks  int                 // how many more it is kept
	kept   *stack.PacketBuffer // nil: none
}

const (
	replyTick = time.Millisecond // timers are no finer
	// messageTicks, less a part of one, is how long the ACK of a message is kept.
	messageTicks = 2
	// endTicks is that of a FIN, for which nobody waits, but for who closes with SO_LINGER.
	endTicks = 10
	// smallMessage is less than a full segment.
	smallMessage = 1024
)

// came is told of a segment of f from the application.
func (r *replies) came(f *Flow, seg segment) {
	fin := seg.flags&header.TCPFlagFin != 0
	if !fin && (seg.flags&header.TCPFlagPsh == 0 || seg.size == 0 || seg.size > smallMessage) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.reply.ended {
		return // an application that is not the first to close waits for this ACK
	}
	f.reply.due, f.reply.fin = seg.seq+uint32(seg.size), fin
	if fin {
		f.reply.due++
	}
	f.reply.await = fin || !f.reply.prompt
}

// leaves is told of a packet of f to the application, and reports whether it is kept back.
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

// drop leaves out what is kept back of f: the application has ended the connection.
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
		r.timer.Stop() // an idle process is not to be woken for nothing
		r.sortLocked()
	}
}

func onlyTimestamps(h header.TCP) bool {
	options := h.Options()
	return len(options) == 0 || len(options) == 12 && binary.BigEndian.Uint32(options) == 1<<24|1<<16|header.TCPOptionTS<<8|header.TCPOptionTSLength
}

// sortLocked takes those out of the list of which nothing is kept.
func (r *replies) sortLocked() {
	r.list = slices.DeleteFunc(r.list, func(f *Flow) bool {
		f.reply.listed = f.reply.kept != nil
		return !f.reply.listed
	})
}

// tick sends what has been kept for long.
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

// close lets go of all that is kept.
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
