package link

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// couple sends packets through a train as the reader does and returns what came out.
func couple(packets [][]byte) (out [][]byte) {
	var t train
	take := func() { t.take(func(b buffer.Buffer) { out = append(out, b.Flatten()); b.Release() }) }
	for _, p := range packets {
		view := buffer.NewViewWithData(bytes.Clone(p))
		if t.join(view) {
			continue
		}
		take()
		if !t.begin(view) {
			out = append(out, bytes.Clone(view.AsSlice()))
			view.Release()
		}
	}
	take()
	return out
}

func TestSegmentsThatFollow(t *testing.T) {
	const a, b, server = "192.0.2.1:1000", "192.0.2.1:1001", "203.0.113.1:443"
	const a6, server6 = "[2001:db8::1]:1000", "[2001:db8::2]:443"
	const psh, fin, urg = 0x18, 0x11, 0x30
	first := tcpPacket{src: a, dst: server, seq: 1000, ack: 7, window: 9, options: withTimestamps, data: 500}
	follows := func(change func(*tcpPacket)) []tcpPacket {
		second := first
		second.seq += 500
		if change != nil {
			change(&second)
		}
		return []tcpPacket{first, second}
	}
	later := slices.Clone(withTimestamps)
	later[7]++
	v6 := tcpPacket{src: a6, dst: server6, seq: 1<<32 - 300, data: 300}
	for name, c := range map[string]struct {
		packets []tcpPacket
		want    []int // bytes
	}{
		"one":                      {[]tcpPacket{first}, []int{552}},
		"two":                      {follows(nil), []int{1052}},
		"two, PSH":                 {follows(func(p *tcpPacket) { p.flags = psh }), []int{1052}},
		"FIN":                      {follows(func(p *tcpPacket) { p.flags = fin }), []int{552, 552}},
		"URG":                      {follows(func(p *tcpPacket) { p.flags = urg }), []int{552, 552}},
		"a gap":                    {follows(func(p *tcpPacket) { p.seq++ }), []int{552, 552}},
		"the same again":           {follows(func(p *tcpPacket) { p.seq = first.seq }), []int{552, 552}},
		"another flow":             {follows(func(p *tcpPacket) { p.src = b }), []int{552, 552}},
		"another acknowledgement":  {follows(func(p *tcpPacket) { p.ack++ }), []int{552, 552}},
		"another window":           {follows(func(p *tcpPacket) { p.window++ }), []int{552, 552}},
		"another time":             {follows(func(p *tcpPacket) { p.options = later }), []int{552, 552}},
		"no options":               {follows(func(p *tcpPacket) { p.options = nil }), []int{552, 540}},
		"no data":                  {follows(func(p *tcpPacket) { p.data = 0 }), []int{552, 52}},
		"IPv6, the number wraps":   {[]tcpPacket{v6, {src: a6, dst: server6, seq: 0, data: 200}}, []int{560}},
		"as long as IPv4 can say":  {[]tcpPacket{{src: a, dst: server, data: 30000}, {src: a, dst: server, seq: 30000, data: 35495}}, []int{65535}},
		"longer than IPv4 can say": {[]tcpPacket{{src: a, dst: server, data: 30000}, {src: a, dst: server, seq: 30000, data: 35496}}, []int{30040, 35536}},
	} {
		var packets [][]byte
		for _, p := range c.packets {
			packets = append(packets, p.bytes())
		}
		var sizes []int
		for _, p := range couple(packets) {
			sizes = append(sizes, len(p))
			if _, ok := segmentOf(p); !ok {
				t.Errorf("%s: what comes out is no segment", name)
			}
			if len(c.packets) > len(c.want) && header.IPVersion(p) == header.IPv4Version && header.IPv4(p).CalculateChecksum() != 0xffff {
				t.Errorf("%s: wrong checksum of the IP header", name)
			}
		}
		if !slices.Equal(sizes, c.want) {
			t.Errorf("%s: packets of %d bytes come out, want %d", name, sizes, c.want)
		}
	}
}

// However segments are put together, each flow's bytes stay the same and in the same places.
func TestSegmentsAtRandom(t *testing.T) {
	sources := []string{"192.0.2.1:1000", "192.0.2.1:1001", "192.0.2.2:1000"}
	sent, got := make([][]byte, len(sources)), make([][]byte, len(sources))
	var packets [][]byte
	for range 3000 {
		i := rand.IntN(len(sources))
		for range 1 + rand.IntN(20) {
			p := tcpPacket{src: sources[i], dst: "203.0.113.1:443", seq: uint32(len(sent[i])), ack: uint32(rand.IntN(20) / 19), data: 1 + rand.IntN(3000)}
			b := p.bytes()
			data := b[len(b)-p.data:]
			for i := range data {
				data[i] = byte(rand.Int())
			}
			sent[i] = append(sent[i], data...)
			packets = append(packets, b)
		}
	}
	out := couple(packets)
	for _, b := range out {
		i := slices.IndexFunc(sources, func(s string) bool {
			return bytes.Equal(b[12:22], tcpPacket{src: s, dst: "203.0.113.1:443"}.bytes()[12:22])
		})
		if seq := binary.BigEndian.Uint32(b[24:]); int(seq) != len(got[i]) {
			t.Fatalf("%s: a segment of place %d comes at %d", sources[i], seq, len(got[i]))
		}
		got[i] = append(got[i], b[40:]...)
	}
	for i, s := range sources {
		if !bytes.Equal(sent[i], got[i]) {
			t.Errorf("%s: %d bytes came out of %d, or others", s, len(got[i]), len(sent[i]))
		}
	}
	if len(out) > len(packets)/2 {
		t.Errorf("%d packets became %d", len(packets), len(out))
	}
}
