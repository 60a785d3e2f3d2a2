package netstack

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/faketime"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"pinproxy/netstack/link"
)

// FuzzDirect shows the same packets to two stacks with the same connection: one takes plain segments past gVisor's IP
// layer, the other takes none. gVisor's clock stands still but for what each packet advances it by, and nothing is
// random, so that both must do the same to the last bit.
func FuzzDirect(f *testing.F) {
	f.Cleanup(StopAtOnce())
	const (
		ack = byte(header.TCPFlagAck)
		psh = byte(header.TCPFlagPsh) | ack
		fin = byte(header.TCPFlagFin) | ack
		rst = byte(header.TCPFlagRst)
		syn = byte(header.TCPFlagSyn)
	)
	// The bytes of a packet, see script.packets: flags, sequence number (16 is the next one), acknowledgement in
	// steps of 16, data, TCP options, more IP header, tail, changes, fragments.
	plain := []byte{psh, 16, 1, 2, 'h', 'i', 0, 0, 0, 0, 0}
	for _, v6 := range []bool{false, true} {
		for _, input := range [][]byte{
			plain,
			{ack, 20, 1, 2, 'l', 'o', 0, 0, 0, 0, 0, psh, 14, 9, 6, 't', 'o', 'h', 'e', 'l', 'l', 0, 0, 0, 0, 0}, // out of order, overlapping
			{fin, 16, 200, 0, 0, 0, 0, 0, 0, fin, 16, 200, 0, 0, 0, 0, 0, 0},
			{rst, 16, 0, 0, 0, 0, 0, 0, 0, psh, 16, 1, 1, 'x', 0, 0, 0, 0, 0},
			{syn, 16, 0, 0, 0, 0, 0, 0, 0, syn | rst, 99, 0, 0, 0, 0, 0, 0, 0, 0, 16, 1, 0, 0, 0, 0, 0, 0, 0xff, 16, 1, 0, 0, 0, 0, 0, 0},
			{psh, 16, 1, 1, 'x', 3, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0}, // timestamps nobody asked for
			{psh, 16, 1, 1, 'x', 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0},              // NOPs, or an unknown extension header
			{psh, 16, 1, 1, 'x', 0, 1, 60, 0, 1, 4, 0, 0, 0, 0, 0, 0, 0},             // destination options
			{psh, 16, 1, 1, 'x', 0, 1, 7, 7, 4, 0, 0, 0, 0, 0, 0, 0, 0},              // record route
			{psh, 16, 1, 2, 'h', 'i', 0, 0, 0x84, 0, 0},                              // padded
			{psh, 16, 1, 2, 'h', 'i', 0, 0, 0x01, 0, 0},                              // cut short
			{psh, 16, 1, 2, 'h', 'i', 0, 0, 0, 1, 32, 15 << 4, 0},                    // data offset beyond the end
			{psh, 16, 1, 2, 'h', 'i', 0, 0, 0, 1, 52, 15 << 4, 0},                    // IPv6
			{psh, 16, 1, 2, 'h', 'i', 0, 0, 0, 1, 32, 2 << 4, 0},                     // data offset within the header
			{psh, 16, 1, 2, 'h', 'i', 0, 0, 0, 1, 52, 2 << 4, 0},                     // IPv6
			{psh, 16, 1, 2, 'h', 'i', 0, 0, 0, 2, 3, 41, 5, 21, 0},                   // longer, and shorter, than it claims to be
			{psh, 16, 1, 2, 'h', 'i', 0, 0, 0, 2, 6, 0x20, 7, 1, 0},                  // more fragments, which never come
			{psh, 16, 1, 2, 'h', 'i', 0, 0, 0, 1, 7, 1, 0},                           // the last fragment, alone
			{psh, 16, 1, 8, 'h', 'e', 'l', 'l', 'o', ',', ' ', 'h', 0, 0, 0, 0, 3},   // fragments
			{psh, 16, 1, 8, 'h', 'e', 'l', 'l', 'o', ',', ' ', 'h', 0, 0, 0, 0, 0x83},
			append([]byte{psh, 16, 1, 0, 0, 0, 0, 1, 0, 0x65, 0}, plain...), // another version
		} {
			f.Add(v6, append(slices.Clone(input), plain...))
		}
	}
	f.Fuzz(func(t *testing.T, v6 bool, input []byte) {
		want, got := play(t, v6, input, false), play(t, v6, input, true)
		// What goes past the IP layer is not counted there. It would have been valid and delivered.
		past := want.IP["PacketsReceived"] - got.IP["PacketsReceived"]
		for _, name := range []string{"PacketsReceived", "ValidPacketsReceived", "PacketsDelivered"} {
			got.IP[name] += past
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("through the IP layer (-) and past it (+):\n%s", diff)
		}
	})
}

// account is all that can be seen of a connection from outside.
type account struct {
	Sent              [][]string // packets in hexadecimal after each that was received
	States            []string
	Info              tcpip.TCPInfoOption
	Read, End         string
	Endpoint, TCP, IP map[string]uint64
}

// counters are gVisor's, by name.
func counters(stats any) map[string]uint64 {
	m := make(map[string]uint64)
	var add func(prefix string, v reflect.Value)
	add = func(prefix string, v reflect.Value) {
		for i := range v.NumField() {
			name, f := prefix+v.Type().Field(i).Name, reflect.Indirect(v.Field(i))
			if c, ok := f.Addr().Interface().(*tcpip.StatCounter); ok {
				m[name] = c.Value()
			} else if f.Kind() == reflect.Struct {
				add(name+".", f)
			}
		}
	}
	add("", reflect.Indirect(reflect.ValueOf(stats)))
	return m
}

// throughIP is a device whose segments all go through gVisor's IP layer, although it vouches for checksums.
type throughIP struct{ *channel.Endpoint }

func (d throughIP) Attach(n stack.NetworkDispatcher) {
	if in, ok := n.(*inbound); ok {
		in.checked = false
	}
	d.Endpoint.Attach(n)
}

// ones are random numbers that are the same each time. Zeros would not do: gVisor goes on until a packet's
// identification is another number.
type ones struct{}

func (ones) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 1
	}
	return len(b), nil
}

// twin is one of the two stacks, with a connection.
type twin struct {
	*Stack
	device *channel.Endpoint
	clock  *faketime.ManualClock
}

// play shows a new connection the packets of a script.
func play(t *testing.T, v6 bool, input []byte, direct bool) (a account) {
	k := &twin{device: channel.New(1024, 1500, ""), clock: faketime.NewManualClock()}
	k.device.LinkEPCapabilities = stack.CapabilityRXChecksumOffload
	defer k.device.Close()
	var end stack.LinkEndpoint = k.device
	if !direct {
		end = throughIP{k.device}
	}
	var err error
	if k.Stack, err = newStack(link.New("twin", end, nil), Config{}, stack.Options{Clock: k.clock, SecureRNG: ones{}}); err != nil {
		t.Fatal(err)
	}
	k.replies.close() // how long an acknowledgement is held back is a matter of real time
	ctx, cancel := context.WithCancel(t.Context())
	accepted, served := make(chan Conn, 1), make(chan error, 1)
	go func() {
		served <- k.Serve(ctx, func(_ context.Context, f *Flow) {
			if f.Number() != 1 {
				return // silence
			}
			f.AcceptFunc(func(c Conn, _ error) { accepted <- c }) // nil if there is an error
		})
	}()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve = %v", err)
		}
	}()
	<-k.Ready()
	soon, done := context.WithTimeout(ctx, 10*time.Second)
	defer done()
	k.inject(segmentIn(v6, header.TCPFlagSyn, 1000, 0, ""))
	synAck := k.device.ReadContext(soon)
	if synAck == nil {
		t.Fatal("no SYN-ACK")
	}
	answer := header.TCP(synAck.TransportHeader().Slice()).SequenceNumber() + 1
	synAck.DecRef()
	k.inject(segmentIn(v6, header.TCPFlagAck, 1001, answer, ""))
	var c Conn
	select {
	case c = <-accepted:
	case <-soon.Done():
	}
	if c == nil {
		t.Fatal("no connection")
	}
	if n := k.gv.Stats().IP.PacketsReceived.Value(); direct != (n == 1) {
		t.Fatalf("direct is %v, but %d of the two segments of the handshake went through the IP layer", direct, n)
	}
	ep := c.(*conn).ep.(*tcp.Endpoint)
	// Something to acknowledge.
	if _, err := c.Write(make([]byte, 3000)); err != nil {
		t.Fatal(err)
	}
	note := func() {
		k.settle()
		a.Sent, a.States = append(a.Sent, k.sent()), append(a.States, tcp.EndpointState(ep.State()).String())
	}
	note()
	for s := script(input); len(s) > 0 && len(a.Sent) < 64; {
		for _, p := range s.packets(v6, answer) {
			k.inject(p)
			note()
		}
	}
	if err := ep.GetSockOpt(&a.Info); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	var terr tcpip.Error
	for terr == nil {
		_, terr = ep.Read(&b, tcpip.ReadOptions{})
	}
	a.Read, a.End = b.String(), terr.String()
	note()
	stats := k.gv.Stats()
	a.Endpoint, a.TCP, a.IP = counters(ep.Stats()), counters(&stats.TCP), counters(&stats.IP)
	return a
}

// inject delivers a packet as package link does: its first byte decides between IPv4 and IPv6.
func (k *twin) inject(p []byte) {
	proto := header.IPv4ProtocolNumber
	switch header.IPVersion(p) {
	case header.IPv4Version:
	case header.IPv6Version:
		proto = header.IPv6ProtocolNumber
	default:
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(p)})
	k.device.InjectInbound(proto, pkt)
	pkt.DecRef()
}

// settle returns when all packets have been processed, and what was due a moment later as well.
func (k *twin) settle() {
	k.gv.Pause()
	k.gv.Resume()
	k.clock.Advance(100 * time.Millisecond)
	k.gv.Pause()
	k.gv.Resume()
}

// sent returns the packets that have left since the last call.
func (k *twin) sent() (packets []string) {
	for {
		pkt := k.device.Read()
		if pkt == nil {
			return packets
		}
		packets = append(packets, fmt.Sprintf("%x", bytes.Join(pkt.AsSlices(), nil)))
		pkt.DecRef()
	}
}

// script is the fuzzer's bytes. They say how each packet is made from a plain segment.
type script []byte

func (s *script) byte() byte {
	if len(*s) == 0 {
		return 0
	}
	b := (*s)[0]
	*s = (*s)[1:]
	return b
}

func (s *script) bytes(n byte) []byte {
	b := (*s)[:min(int(n), len(*s))]
	*s = (*s)[len(b):]
	return slices.Concat(b, make([]byte, int(n)-len(b)))
}

// packets returns the next packet, which may be in fragments.
func (s *script) packets(v6 bool, answer uint32) [][]byte {
	flags, seq, ack := header.TCPFlags(s.byte()), uint32(s.byte()), uint32(s.byte())
	p := segmentIn(v6, flags, 1001-16+seq, answer-16+16*ack, string(s.bytes(s.byte()%64)))
	ip := header.IPv4MinimumSize
	if v6 {
		ip = header.IPv6MinimumSize
	}
	options := s.bytes(s.byte() % 11 * 4)
	p = slices.Insert(p, ip+header.TCPMinimumSize, options...)
	header.TCP(p[ip:]).SetDataOffset(uint8(header.TCPMinimumSize + len(options)))
	switch more := s.bytes(s.byte() % 6 * 8); {
	case len(more) == 0:
	case v6: // an extension header, whose first byte says which; the rest may be further ones
		p[header.IPv6NextHeaderOffset], more[0] = more[0], uint8(tcp.ProtocolNumber)
		p = slices.Insert(p, ip, more...)
	default:
		p = slices.Insert(p, ip, more...)
		header.IPv4(p).SetHeaderLength(uint8(ip + len(more)))
	}
	setLength(p, v6)
	if n := int(s.byte()); n >= 0x80 {
		p = append(p, make([]byte, n-0x80)...)
	} else {
		p = p[:max(len(p)-n, 1)]
	}
	for range s.byte() % 8 {
		at := int(s.byte()) % len(p)
		p[at] = s.byte()
	}
	n := s.byte()
	fragments := fragment(p, v6, 8*int(n%16))
	if n >= 0x80 {
		slices.Reverse(fragments)
	}
	return fragments
}

func setLength(p []byte, v6 bool) {
	if v6 {
		header.IPv6(p).SetPayloadLength(uint16(len(p) - header.IPv6MinimumSize))
	} else {
		header.IPv4(p).SetTotalLength(uint16(len(p)))
	}
}

// fragment cuts a packet in two, so many bytes after its IP header, if it is longer.
func fragment(p []byte, v6 bool, at int) [][]byte {
	ip := header.IPv6MinimumSize
	if !v6 {
		ip = max(int(header.IPv4(p).HeaderLength()), header.IPv4MinimumSize)
	}
	if at == 0 || len(p) <= ip+at {
		return [][]byte{p}
	}
	first, second := bytes.Clone(p[:ip+at]), slices.Concat(p[:ip], p[ip+at:])
	if v6 {
		h := [8]byte{first[header.IPv6NextHeaderOffset], 7: 1} // the identification
		first[header.IPv6NextHeaderOffset] = uint8(header.IPv6FragmentExtHdrIdentifier)
		second[header.IPv6NextHeaderOffset] = uint8(header.IPv6FragmentExtHdrIdentifier)
		h[3] = 1 // more
		first = slices.Insert(first, ip, h[:]...)
		binary.BigEndian.PutUint16(h[2:], uint16(at))
		second = slices.Insert(second, ip, h[:]...)
	} else {
		header.IPv4(first).SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, 0)
		header.IPv4(second).SetFlagsFragmentOffset(0, uint16(at))
	}
	setLength(first, v6)
	setLength(second, v6)
	return [][]byte{first, second}
}
