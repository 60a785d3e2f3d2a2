package netstack_test

import (
	"context"
	"io"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"pinproxy/netstack"
	"pinproxy/netstack/link"
)

// The device delivers whatever programs, and hosts behind a gateway, write. None of it may end the stack, keep a flow
// forever, or prevent a properly made connection.

// device is a link whose other end the test controls. Like a TUN with offloads, it vouches for checksums.
type device struct {
	*channel.Endpoint
}

func newDevice() *device {
	ep := channel.New(4096, 1500, "")
	ep.LinkEPCapabilities = stack.CapabilityRXChecksumOffload
	return &device{Endpoint: ep}
}

// inject delivers a packet as if read from the device. Its first byte decides between IPv4 and IPv6, as in package
// link.
func (d *device) inject(b []byte) {
	var proto tcpip.NetworkProtocolNumber
	switch header.IPVersion(b) {
	case header.IPv4Version:
		proto = header.IPv4ProtocolNumber
	case header.IPv6Version:
		proto = header.IPv6ProtocolNumber
	default:
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	d.InjectInbound(proto, pkt)
	pkt.DecRef()
}

// The parts of a fuzzed packet. Without any of these bits, it is taken as it is.
const (
	fixIP    = 1 << iota // a valid IP header is put in front, with the packet's length
	fixV6                // … IPv6
	fixTCP               // … and a TCP header, whose flags, window and options are the packet's
	fixShort             // … with few different ports, so that packets meet in one flow
)

// packet makes a packet from a recipe and the fuzzer's bytes.
func packet(recipe byte, b []byte) []byte {
	if recipe&fixIP == 0 {
		return b
	}
	proto := uint8(header.UDPProtocolNumber)
	if len(b) > 0 && recipe&fixTCP == 0 {
		proto, b = b[0], b[1:]
	}
	if recipe&fixTCP != 0 {
		proto = uint8(header.TCPProtocolNumber)
		h := make([]byte, header.TCPMinimumSize)
		b = append(h, b...)
		if len(b) > 2*header.TCPMinimumSize {
			copy(h, b[header.TCPMinimumSize:2*header.TCPMinimumSize])
			b = append(h, b[2*header.TCPMinimumSize:]...)
		}
		if recipe&fixShort != 0 {
			t := header.TCP(b)
			t.SetSourcePort(1024 + t.SourcePort()%4)
			t.SetDestinationPort(440 + t.DestinationPort()%8)
			t.SetDataOffset(header.TCPMinimumSize)
		}
	}
	if recipe&fixV6 != 0 {
		p := make([]byte, header.IPv6MinimumSize+len(b))
		header.IPv6(p).Encode(&header.IPv6Fields{
			PayloadLength: uint16(len(b)), TransportProtocol: tcpip.TransportProtocolNumber(proto), HopLimit: 64,
			SrcAddr: tcpip.AddrFromSlice(netip.MustParseAddr("2001:db8::1").AsSlice()), DstAddr: tcpip.AddrFromSlice(server6.Addr().AsSlice()),
		})
		copy(p[header.IPv6MinimumSize:], b)
		return p
	}
	p := make([]byte, header.IPv4MinimumSize+len(b))
	ip := header.IPv4(p)
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(p)), TTL: 64, Protocol: proto,
		SrcAddr: tcpip.AddrFromSlice(netip.MustParseAddr("192.0.2.1").AsSlice()), DstAddr: tcpip.AddrFromSlice(server4.Addr().AsSlice()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	copy(p[header.IPv4MinimumSize:], b)
	return p
}

// syn returns a valid IPv4 SYN.
func syn(src, dst netip.AddrPort) []byte {
	b := make([]byte, header.TCPMinimumSize)
	t := header.TCP(b)
	t.Encode(&header.TCPFields{SrcPort: src.Port(), DstPort: dst.Port(), SeqNum: 1000, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 65535})
	s, d := tcpip.AddrFromSlice(src.Addr().AsSlice()), tcpip.AddrFromSlice(dst.Addr().AsSlice())
	t.SetChecksum(^checksum.Combine(header.PseudoHeaderChecksum(header.TCPProtocolNumber, s, d, uint16(len(b))), checksum.Checksum(b, 0)))
	return packet(fixIP, append([]byte{uint8(header.TCPProtocolNumber)}, b...))
}

// answered waits for the SYN-ACK to a SYN from src.
func (d *device) answered(ctx context.Context, src netip.AddrPort) bool {
	for {
		pkt := d.ReadContext(ctx)
		if pkt == nil {
			return false
		}
		t := header.TCP(pkt.TransportHeader().Slice())
		const both = header.TCPFlagSyn | header.TCPFlagAck
		ok := pkt.TransportProtocolNumber == header.TCPProtocolNumber && len(t) >= header.TCPMinimumSize &&
			t.DestinationPort() == src.Port() && t.Flags()&both == both
		pkt.DecRef()
		if ok {
			return true
		}
	}
}

// diverse ends each flow in a different way, depending on its port.
func diverse(_ context.Context, f *netstack.Flow) {
	switch f.Dst().Port() % 8 {
	case 1:
		f.Reject(syscall.ECONNREFUSED)
	case 2:
		f.Reject(syscall.EHOSTUNREACH)
	case 3:
		f.Drop()
	case 4:
		if c, err := f.Accept(); err == nil {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	default:
		c, err := f.Accept()
		if err != nil {
			return
		}
		_ = c.SetDeadline(time.Now().Add(time.Second))
		_, _ = io.Copy(c, c)
		_ = c.CloseWrite()
		_ = c.Close()
	}
}

func FuzzPackets(f *testing.F) {
	f.Cleanup(netstack.StopAtOnce())
	tcp := func(flags header.TCPFlags, seq, ack uint32, more ...byte) []byte {
		b := make([]byte, header.TCPMinimumSize)
		header.TCP(b).Encode(&header.TCPFields{SrcPort: 1024, DstPort: 440, SeqNum: seq, AckNum: ack, DataOffset: header.TCPMinimumSize, Flags: flags, WindowSize: 1000})
		return append(b, more...)
	}
	// Each seed is a list of packets: a recipe, a length, and that many bytes.
	list := func(recipe byte, packets ...[]byte) (b []byte) {
		for _, p := range packets {
			b = append(append(b, recipe, byte(len(p))), p...)
		}
		return b
	}
	const flow, flow6 = fixIP | fixTCP | fixShort, fixIP | fixTCP | fixShort | fixV6
	for _, recipe := range []byte{flow, flow6} {
		f.Add(list(recipe, tcp(header.TCPFlagSyn, 1, 0), tcp(header.TCPFlagAck, 2, 1), tcp(header.TCPFlagAck|header.TCPFlagPsh, 2, 1, 'h', 'i'), tcp(header.TCPFlagFin|header.TCPFlagAck, 4, 1)))
		f.Add(list(recipe, tcp(header.TCPFlagSyn, 1, 0), tcp(header.TCPFlagSyn, 1, 0), tcp(header.TCPFlagSyn, 9, 0), tcp(header.TCPFlagRst, 10, 0), tcp(header.TCPFlagSyn, 99, 0)))
		f.Add(list(recipe, tcp(header.TCPFlagSyn|header.TCPFlagAck, 1, 7), tcp(header.TCPFlagFin, 1, 0), tcp(0, 0, 0), tcp(0xff, 5, 5)))
	}
	f.Add(list(0, syn(netip.MustParseAddrPort("192.0.2.1:1024"), server4), []byte{0x45}, []byte{0x60}, nil))
	f.Add(list(fixIP, []byte{17, 0, 53, 0, 53, 0, 9, 0, 0, 'x'}, []byte{1, 8, 0, 0, 0, 0, 1, 0, 1}, []byte{6, 0}, []byte{0}))
	f.Add(list(fixIP|fixV6, []byte{58, 128, 0, 0, 0, 0, 1, 0, 1}, []byte{0, 6, 0, 0, 0, 0, 0, 0}, []byte{44, 6, 0, 0, 1, 0, 0, 0, 1}, []byte{43, 17, 0, 0, 0}, []byte{60, 60, 0}))
	f.Fuzz(func(t *testing.T, input []byte) {
		d := newDevice()
		s, err := netstack.New(link.New("fuzz", d, nil), netstack.Config{
			Datagrams: func(d *netstack.Datagram) {
				_ = d.Reply(d.Payload())
				d.ICMP(netstack.ICMPError{Type: 3, Code: 4, Info: 576, About: d.Payload()})
				d.Unreachable(syscall.ECONNREFUSED)
				d.Release()
			},
			Echoes: func(e *netstack.Echo) {
				_ = e.Reply(e.Payload())
				e.ICMP(netstack.ICMPError{Type: 11, About: e.Payload()})
				e.Release()
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.SetMaxParked(64)
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- s.Serve(ctx, diverse) }()
		<-s.Ready()
		for len(input) >= 2 {
			recipe, n := input[0], min(int(input[1]), len(input)-2)
			d.inject(packet(recipe, append([]byte(nil), input[2:2+n]...)))
			input = input[2+n:]
		}
		// A properly made connection is still answered.
		src := netip.MustParseAddrPort("192.0.2.99:50000")
		soon, done := context.WithTimeout(ctx, 10*time.Second)
		d.Drain()
		d.inject(syn(src, netip.AddrPortFrom(server4.Addr(), 440))) // echoed
		if !d.answered(soon, src) {
			t.Error("a proper SYN was not answered")
		}
		done()
		cancel()
		select {
		case err := <-served:
			if err != nil {
				t.Errorf("Serve = %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("Serve did not end")
		}
		if st := s.Stats(); st.Open != 0 || st.Parked != 0 {
			t.Errorf("flows are left: %+v", st)
		}
		d.Close()
	})
}
