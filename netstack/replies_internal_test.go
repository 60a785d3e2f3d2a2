package netstack

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// outwards returns a segment to the application.
func outwards(flags header.TCPFlags, ack uint32, data string, options ...byte) (*stack.PacketBuffer, header.TCP) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: header.TCPMinimumSize + len(options), Payload: buffer.MakeWithData([]byte(data))})
	h := header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize + len(options)))
	h.Encode(&header.TCPFields{AckNum: ack, DataOffset: uint8(header.TCPMinimumSize + len(options)), Flags: flags, WindowSize: 1000})
	copy(h[header.TCPMinimumSize:], options)
	pkt.TransportProtocolNumber = tcp.ProtocolNumber
	return pkt, h
}

// world is a replies and the packets that have left it.
type world struct {
	t *testing.T
	replies
	sentMu sync.Mutex
	sent   []uint32 // acknowledgement numbers of ACKs whose reply was late
}

func newWorld(t *testing.T) *world {
	w := &world{t: t}
	w.send = func(pkt *stack.PacketBuffer) {
		w.sentMu.Lock()
		defer w.sentMu.Unlock()
		w.sent = append(w.sent, header.TCP(pkt.TransportHeader().Slice()).AckNumber())
		pkt.DecRef()
	}
	return w
}

// tooLate returns the ACKs sent so far because their reply was late.
func (w *world) tooLate() []uint32 {
	synctest.Wait()
	w.sentMu.Lock()
	defer w.sentMu.Unlock()
	return slices.Clone(w.sent)
}

// says makes the application send a segment.
func (w *world) says(f *Flow, seq uint32, size int, flags header.TCPFlags) {
	w.came(f, segment{flags: flags | header.TCPFlagAck, seq: seq, size: size})
}

// expect checks whether a segment to the application leaves or is held back.
func (w *world) expect(f *Flow, what string, kept bool, flags header.TCPFlags, ack uint32, data string, options ...byte) {
	w.t.Helper()
	pkt, h := outwards(flags, ack, data, options...)
	if got := w.leaves(f, pkt, h); got != kept {
		w.t.Errorf("%s: kept back: %v, want %v", what, got, kept)
	}
	pkt.DecRef()
}

func TestReplies(t *testing.T) {
	const (
		ack = header.TCPFlagAck
		psh = header.TCPFlagPsh
		fin = header.TCPFlagFin
	)
	stamps := []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	sack := []byte{1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	run := func(name string, f func(t *testing.T, w *world)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				f(t, w)
				w.close()
			})
		})
	}
	run("a reply stands for the ACK", func(t *testing.T, w *world) {
		f := new(Flow)
		for seq := uint32(100); seq < 1000; seq += 100 {
			w.says(f, seq, 100, psh)
			w.expect(f, "the ACK", true, ack, seq+100, "", stamps...)
			w.expect(f, "the reply", false, ack|psh, seq+100, "reply", stamps...)
		}
		w.says(f, 1000, 0, fin)
		w.expect(f, "the ACK of the FIN", true, ack, 1001, "")
		w.expect(f, "our FIN", false, ack|fin, 1001, "")
		time.Sleep(time.Second)
		if sent := w.tooLate(); len(sent) != 0 {
			t.Errorf("%v sent late, want nothing", sent)
		}
	})
	run("a late reply", func(t *testing.T, w *world) {
		f, other := new(Flow), new(Flow)
		w.says(f, 100, 100, psh)
		w.expect(f, "the ACK", true, ack, 200, "")
		time.Sleep(messageTicks*replyTick + 1)
		if sent := w.tooLate(); !slices.Equal(sent, []uint32{200}) {
			t.Errorf("%v sent late, want 200", sent)
		}
		w.expect(f, "the reply", false, ack|psh, 200, "reply")
		w.says(f, 200, 100, psh)
		w.expect(f, "the next ACK of a slow flow", false, ack, 300, "")
		w.says(other, 200, 100, psh)
		w.expect(other, "another flow's ACK", true, ack, 300, "")
		w.says(f, 300, 0, fin)
		w.expect(f, "the ACK of its FIN", true, ack, 301, "")
		time.Sleep(messageTicks*replyTick + 1)
		if sent := w.tooLate(); !slices.Equal(sent, []uint32{200, 300}) {
			t.Errorf("%v sent late, want 200 and 300", sent)
		}
		time.Sleep((endTicks - messageTicks) * replyTick)
		if sent := w.tooLate(); !slices.Equal(sent, []uint32{200, 300, 301}) {
			t.Errorf("%v sent late, want 301 too", sent)
		}
	})
	run("two segments are acknowledged at once", func(t *testing.T, w *world) {
		f := new(Flow)
		w.says(f, 100, 100, psh)
		w.expect(f, "the first ACK", true, ack, 200, "")
		w.says(f, 200, 100, psh)
		w.expect(f, "the second", false, ack, 300, "")
		w.says(f, 300, 100, psh)
		w.expect(f, "the third", true, ack, 400, "")
	})
	run("what is not kept back", func(t *testing.T, w *world) {
		f := new(Flow)
		w.expect(f, "out of nothing", false, ack, 100, "")
		w.says(f, 100, 1460, psh)
		w.expect(f, "of a full segment", false, ack, 1560, "")
		w.says(f, 1560, 100, 0)
		w.expect(f, "of a part of a message", false, ack, 1660, "")
		w.says(f, 1760, 100, psh)
		w.expect(f, "of what was expected before", false, ack, 1660, "")
		w.says(f, 1660, 100, psh)
		w.expect(f, "with SACK blocks", false, ack, 1760, "", sack...)
		w.says(f, 1760, 100, psh)
		w.expect(f, "with ECN's flag", false, ack|header.TCPFlagEce, 1860, "")
		w.says(f, 1860, 100, psh)
		w.expect(f, "a reset", false, ack|header.TCPFlagRst, 1960, "")
		w.says(f, 1960, 100, psh)
		w.expect(f, "the reply at once", false, ack|psh, 2060, "reply")
		w.expect(f, "a window's update after it", false, ack, 2060, "")
	})
	run("the last of a connection", func(t *testing.T, w *world) {
		f := new(Flow)
		w.expect(f, "our FIN", false, ack|fin, 100, "")
		w.says(f, 100, 100, psh)
		w.expect(f, "the ACK of what the application said then", false, ack, 200, "")
		w.says(f, 200, 0, fin)
		w.expect(f, "the ACK of its FIN", false, ack, 201, "")
	})
	run("the application has reset it", func(t *testing.T, w *world) {
		f := new(Flow)
		w.says(f, 100, 100, psh)
		w.expect(f, "the ACK", true, ack, 200, "")
		w.drop(f)
		w.drop(f)
		if sent := w.tooLate(); len(sent) != 0 {
			t.Errorf("%v sent late, want nothing", sent)
		}
	})
	run("after the end", func(t *testing.T, w *world) {
		f := new(Flow)
		w.says(f, 100, 100, psh)
		w.expect(f, "the ACK", true, ack, 200, "")
		w.close()
		w.says(f, 200, 100, psh)
		w.expect(f, "an ACK", false, ack, 300, "")
		time.Sleep(time.Second)
		if sent := w.tooLate(); len(sent) != 0 {
			t.Errorf("%v sent after the end", sent)
		}
	})
}
