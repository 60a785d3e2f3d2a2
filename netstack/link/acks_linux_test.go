package link

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
)

// tcpPacket is a segment as the kernel would write it to the device.
type tcpPacket struct {
	src, dst string // with ports
	flags    byte   // 0: ACK
	seq, ack uint32
	window   uint16
	options  []byte
	data     int // bytes
}

var withTimestamps = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}

func (p tcpPacket) bytes() []byte {
	src, dst := netip.MustParseAddrPort(p.src), netip.MustParseAddrPort(p.dst)
	tcp := make([]byte, 20, 20+len(p.options)+p.data)
	binary.BigEndian.PutUint16(tcp, src.Port())
	binary.BigEndian.PutUint16(tcp[2:], dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], p.seq)
	binary.BigEndian.PutUint32(tcp[8:], p.ack)
	tcp[12] = byte(20+len(p.options)) / 4 << 4
	if tcp[13] = p.flags; p.flags == 0 {
		tcp[13] = 0x10
	}
	binary.BigEndian.PutUint16(tcp[14:], p.window)
	tcp = append(append(tcp, p.options...), make([]byte, p.data)...)
	var ip []byte
	if src.Addr().Is4() {
		ip = make([]byte, 12, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, 6
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(tcp)))
	} else {
		ip = make([]byte, 8, 40)
		ip[0], ip[6], ip[7] = 0x60, 6, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(tcp)))
	}
	ip = append(append(ip, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	return append(ip, tcp...)
}

// pass sends packets through acks as one burst, as the reader does. It returns which of them came out, in order.
func pass(packets [][]byte) (out []int) {
	var a acks
	number := func(b []byte) int {
		return slices.IndexFunc(packets, func(p []byte) bool { return bytes.Equal(p, b) })
	}
	take := func() { a.take(func(v *buffer.View) { out = append(out, number(v.AsSlice())); v.Release() }) }
	for _, p := range packets {
		if !a.hold(p) {
			take()
			out = append(out, number(p))
		}
	}
	take()
	return out
}

func TestACKsOfABurst(t *testing.T) {
	const a, b, server = "192.0.2.1:1000", "192.0.2.1:1001", "203.0.113.1:443"
	const a6, server6 = "[2001:db8::1]:1000", "[2001:db8::2]:443"
	sack := append([]byte{1, 1, 5, 10}, make([]byte, 8)...)
	fragment := tcpPacket{src: a, dst: server, ack: 1}.bytes()
	fragment[6] = 0x20
	short := tcpPacket{src: a, dst: server, ack: 1}.bytes()
	binary.BigEndian.PutUint16(short[2:], 45)
	accurate := tcpPacket{src: a, dst: server, ack: 1}.bytes()
	accurate[32] |= 1
	udp := tcpPacket{src: a, dst: server, ack: 1}.bytes()
	udp[9] = 17
	later := tcpPacket{src: a, dst: server, ack: 9}
	tests := map[string]struct {
		in   []any
		want []int
	}{
		"one stands for those before it": {[]any{
			tcpPacket{src: a, dst: server, ack: 1}, tcpPacket{src: a, dst: server, ack: 2}, tcpPacket{src: a, dst: server, ack: 3},
		}, []int{2}},
		"timestamps": {[]any{
			tcpPacket{src: a, dst: server, ack: 1, options: withTimestamps}, tcpPacket{src: a, dst: server, ack: 2, options: withTimestamps},
		}, []int{1}},
		"IPv6": {[]any{tcpPacket{src: a6, dst: server6, ack: 1}, tcpPacket{src: a6, dst: server6, ack: 2}}, []int{1}},
		"across the end of numbers": {[]any{
			tcpPacket{src: a, dst: server, ack: 1<<32 - 10}, tcpPacket{src: a, dst: server, ack: 10},
		}, []int{1}},
		"each flow its own": {[]any{
			tcpPacket{src: a, dst: server, ack: 1},
			tcpPacket{src: b, dst: server, ack: 1},
			tcpPacket{src: a, dst: server, ack: 2},
			tcpPacket{src: a, dst: "203.0.113.1:444", ack: 3},
			tcpPacket{src: a, dst: "203.0.113.2:443", ack: 3},
			tcpPacket{src: "192.0.2.2:1000", dst: server, ack: 3},
		}, []int{2, 1, 3, 4, 5}},
		"repeated":     {[]any{tcpPacket{src: a, dst: server, ack: 1}, tcpPacket{src: a, dst: server, ack: 1, window: 7}}, []int{0, 1}},
		"older":        {[]any{tcpPacket{src: a, dst: server, ack: 9}, tcpPacket{src: a, dst: server, ack: 8}}, []int{0, 1}},
		"a probe":      {[]any{tcpPacket{src: a, dst: server, seq: 4, ack: 1}, tcpPacket{src: a, dst: server, seq: 5, ack: 2}}, []int{0, 1}},
		"SACK":         {[]any{tcpPacket{src: a, dst: server, ack: 1, options: sack}, later}, []int{0, 1}},
		"SACK later":   {[]any{tcpPacket{src: a, dst: server, ack: 1}, tcpPacket{src: a, dst: server, ack: 2, options: sack}, later}, []int{0, 1, 2}},
		"data":         {[]any{tcpPacket{src: a, dst: server, ack: 1}, tcpPacket{src: a, dst: server, ack: 2, data: 1}, later}, []int{0, 1, 2}},
		"another's":    {[]any{tcpPacket{src: a, dst: server, ack: 1}, tcpPacket{src: b, dst: server, ack: 2, data: 1}, later}, []int{0, 1, 2}},
		"FIN":          {[]any{tcpPacket{src: a, dst: server, ack: 1}, tcpPacket{src: a, dst: server, ack: 2, flags: 0x11}}, []int{0, 1}},
		"RST":          {[]any{tcpPacket{src: a, dst: server, ack: 1}, tcpPacket{src: a, dst: server, ack: 2, flags: 0x14}, later}, []int{0, 1, 2}},
		"SYN":          {[]any{tcpPacket{src: a, dst: server, ack: 1}, tcpPacket{src: a, dst: server, flags: 0x02}, later}, []int{0, 1, 2}},
		"ECN":          {[]any{tcpPacket{src: a, dst: server, ack: 1, flags: 0x50}, later}, []int{0, 1}},
		"accurate ECN": {[]any{accurate, later}, []int{0, 1}},
		"a fragment":   {[]any{fragment, later}, []int{0, 1}},
		"cut short":    {[]any{short, later}, []int{0, 1}},
		"no TCP":       {[]any{udp, later}, []int{0, 1}},
		"rubbish":      {[]any{[]byte{}, []byte{0x45}, []byte{0x60, 1}, later}, []int{0, 1, 2, 3}},
		"options change": {[]any{
			tcpPacket{src: a, dst: server, ack: 1}, tcpPacket{src: a, dst: server, ack: 2, options: withTimestamps},
		}, []int{0, 1}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var in [][]byte
			for _, p := range tt.in {
				switch p := p.(type) {
				case tcpPacket:
					in = append(in, p.bytes())
				case []byte:
					in = append(in, p)
				}
			}
			if got := pass(in); !slices.Equal(got, tt.want) {
				t.Errorf("packets %v come out, want %v", got, tt.want)
			}
		})
	}
}

// However long the burst, no ACK is held back for more than maxHeld packets.
func TestACKsAreNotKeptForLong(t *testing.T) {
	var a acks
	for i := range maxHeld {
		if !a.hold(tcpPacket{src: "192.0.2.1:1000", dst: "203.0.113.1:443", ack: uint32(i)}.bytes()) {
			t.Fatalf("packet %d of a burst is not held", i)
		}
	}
	if a.hold(tcpPacket{src: "192.0.2.1:1000", dst: "203.0.113.1:443", ack: maxHeld}.bytes()) {
		t.Errorf("packet %d of a burst is held", maxHeld)
	}
	a.take((*buffer.View).Release)
	if len(a.held) != 0 || a.tries != 0 {
		t.Errorf("%d are left, after %d tries", len(a.held), a.tries)
	}
}

// Whatever the mixture, the order within a flow stays, the highest acknowledgement comes out before the burst ends,
// and an ACK is left out only if a later one acknowledges more.
func TestACKsAtRandom(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 0))
		var in []tcpPacket
		var packets [][]byte
		acked := map[string]uint32{}
		for i := range 300 {
			p := tcpPacket{src: []string{"192.0.2.1:1000", "192.0.2.1:1001", "[2001:db8::1]:1000"}[r.IntN(3)]}
			p.dst = "203.0.113.1:443"
			if p.src[0] == '[' {
				p.dst = "[2001:db8::2]:443"
			}
			acked[p.src] += uint32(r.IntN(4)) // sometimes a repetition
			p.ack, p.window = acked[p.src], uint16(i)
			if r.IntN(20) == 0 {
				p.data = 1 + r.IntN(100)
			}
			in, packets = append(in, p), append(packets, p.bytes())
		}
		out := pass(packets)
		if len(out) == len(in) {
			t.Errorf("seed %d: nothing was left out", seed)
		}
		last := map[string]int{}
		for _, n := range out {
			if before, ok := last[in[n].src]; ok && before >= n {
				t.Fatalf("seed %d: %d comes after %d", seed, n, before)
			}
			last[in[n].src] = n
		}
		for n, p := range in {
			if slices.Contains(out, n) {
				continue
			}
			next := n + 1 + slices.IndexFunc(in[n+1:], func(q tcpPacket) bool { return q.src == p.src })
			if p.data > 0 || next == n || in[next].data > 0 || in[next].ack <= p.ack {
				t.Errorf("seed %d: packet %d was left out, and %d does not stand for it", seed, n, next)
			}
		}
	}
}
