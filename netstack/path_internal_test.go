package netstack

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/faketime"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"pinproxy/netstack/link"
)

// synWith returns a parsed SYN with options and a checksum that is valid without a pseudo-header.
func synWith(options []byte) (*stack.PacketBuffer, header.TCP) {
	b := make([]byte, header.TCPMinimumSize+len(options))
	h := header.TCP(b)
	h.Encode(&header.TCPFields{SrcPort: 4711, DstPort: 443, SeqNum: 0x01020304, DataOffset: uint8(len(b)), Flags: header.TCPFlagSyn, WindowSize: 0xfaf0})
	copy(b[header.TCPMinimumSize:], options)
	h.SetChecksum(^checksum.Checksum(b, 0))
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	parsed, _ := pkt.TransportHeader().Consume(len(b))
	return pkt, header.TCP(parsed)
}

func TestClampMSS(t *testing.T) {
	for name, test := range map[string]struct{ options, want []byte }{
		"lowered":            {[]byte{2, 4, 0x05, 0xb4}, []byte{2, 4, 0x05, 0x64}},
		"low enough":         {[]byte{2, 4, 0x02, 0x18}, []byte{2, 4, 0x02, 0x18}},
		"at an odd place":    {[]byte{1, 2, 4, 0x05, 0xb4, 1, 1, 1}, []byte{1, 2, 4, 0x05, 0x64, 1, 1, 1}},
		"behind others":      {[]byte{4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 2, 4, 0xff, 0xff}, []byte{4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 2, 4, 0x05, 0x64}},
		"none":               {[]byte{4, 2, 1, 1}, []byte{4, 2, 1, 1}},
		"behind the end":     {[]byte{0, 2, 4, 0x05, 0xb4, 0, 0, 0}, []byte{0, 2, 4, 0x05, 0xb4, 0, 0, 0}},
		"too long an option": {[]byte{8, 200, 0, 0}, []byte{8, 200, 0, 0}},
		"no length":          {[]byte{1, 1, 1, 2}, []byte{1, 1, 1, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			pkt, h := synWith(test.options)
			defer pkt.DecRef()
			clampMSS(pkt, 1380)
			if got := h[header.TCPMinimumSize:]; string(got) != string(test.want) {
				t.Errorf("options are % x, want % x", []byte(got), test.want)
			}
			if sum := checksum.Checksum(h, 0); sum != 0xffff {
				t.Errorf("the checksum is wrong: %#x", sum)
			}
		})
	}
}

// A host on the other side of this one takes its window back when something is under way, but for a few bytes. Then it
// vanishes, or waits for an hour and opens the window again.
func TestWindowShrinks(t *testing.T) {
	const size = 536 // the largest segment of a host that names none
	for _, alive := range []bool{false, true} {
		k, clock, conns := newFar(t)
		k.send(4711, header.TCPFlagSyn, 1000, 0)
		next := k.heard(t, synAck).SequenceNumber() + 1
		k.send(4711, header.TCPFlagAck, 1001, next)
		c := (<-conns).(*conn)
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		k.heard(t, header.TCPFlagAck|header.TCPFlagPsh)
		answer := func(window uint16) { k.sendWith(nil, 4711, header.TCPFlagAck, 1001, next, window) }
		answer(400)
		if !alive {
			Eventually(t, "the connection times out", func() bool {
				clock.Advance(5 * time.Second)
				return c.Broken()
			})
			continue
		}
		asked, start := 0, clock.NowMonotonic()
		Eventually(t, "an hour passes", func() bool {
			clock.Advance(10 * time.Second)
			for pkt := k.device.Read(); pkt != nil; pkt = k.device.Read() {
				pkt.DecRef()
				answer(400)
				asked++
			}
			return clock.NowMonotonic().Sub(start) > time.Hour
		})
		if c.Broken() || asked < 20 {
			t.Errorf("broken: %v, asked %d times in an hour", c.Broken(), asked)
		}
		answer(65535)
		Eventually(t, "the segment is repeated", func() bool {
			pkt := k.device.Read()
			if pkt == nil {
				clock.Advance(time.Second)
				return false
			}
			defer pkt.DecRef()
			return pkt.Data().Size() == size && header.TCP(pkt.TransportHeader().Slice()).SequenceNumber() == next
		})
	}
}

// newFar makes a stack whose applications are on another host, with a clock of its own. Connections are sent to conns.
func newFar(t *testing.T) (k *shaky, clock *faketime.ManualClock, conns chan Conn) {
	t.Helper()
	clock, conns = faketime.NewManualClock(), make(chan Conn, 1)
	k = &shaky{device: channel.New(1024, 1500, "")}
	s, err := newStack(link.New("channel", k.device, nil), Config{Path: func(netip.Addr) int { return 1500 }}, stack.Options{Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	k.device.LinkEPCapabilities = stack.CapabilityRXChecksumOffload
	k.start(t, s, func(_ context.Context, f *Flow) {
		f.AcceptFunc(func(c Conn, _ error) { conns <- c })
	})
	return k, clock, conns
}

// A host takes its window back, but for one segment, and leaves it at that. Its SYN names a maximum that leaves no room
// for options, and this host's segments have some, or keep room for them.
func TestWindowOfOneSegment(t *testing.T) {
	k, clock, conns := newFar(t)
	k.sendSYN(4711, 1000, []byte{2, 4, 0x05, 0xb4, 4, 2, 1, 1}) // 1460 bytes, and selective acknowledgements
	next := k.heard(t, synAck).SequenceNumber() + 1
	k.send(4711, header.TCPFlagAck, 1001, next)
	if _, err := (<-conns).Write(make([]byte, 10_000)); err != nil {
		t.Fatal(err)
	}
	sent := func() (seq, size uint32, ok bool) {
		pkt := k.device.Read()
		if pkt == nil {
			return 0, 0, false
		}
		defer pkt.DecRef()
		return header.TCP(pkt.TransportHeader().Slice()).SequenceNumber(), uint32(pkt.Data().Size()), true
	}
	segment := uint32(0)
	Eventually(t, "all is sent", func() bool {
		seq, size, _ := sent()
		segment = max(segment, size)
		return seq+size == next+10_000
	})
	k.sendWith(nil, 4711, header.TCPFlagAck, 1001, next, uint16(segment))
	k.sendWith(nil, 4711, header.TCPFlagAck, 1000, next, uint16(segment)) // a probe, which is answered
	Eventually(t, "the window is known", func() bool {
		_, size, ok := sent()
		return ok && size == 0
	})
	Eventually(t, "the first segment is repeated", func() bool {
		seq, size, ok := sent()
		if !ok {
			clock.Advance(time.Second)
		}
		return ok && seq == next && size == segment
	})
}
