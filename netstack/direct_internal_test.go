package netstack

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// segmentIn returns a segment to port 443 of a server, as the device hands it over. Its TCP checksum is wrong.
func segmentIn(v6 bool, flags header.TCPFlags, seq, ack uint32, data string) []byte {
	t := make([]byte, header.TCPMinimumSize, header.TCPMinimumSize+len(data))
	header.TCP(t).Encode(&header.TCPFields{SrcPort: 4711, DstPort: 443, DataOffset: header.TCPMinimumSize, Flags: flags, SeqNum: seq, AckNum: ack, WindowSize: 65535})
	t = append(t, data...)
	if v6 {
		b := make([]byte, header.IPv6MinimumSize)
		header.IPv6(b).Encode(&header.IPv6Fields{
			PayloadLength: uint16(len(t)), TransportProtocol: tcp.ProtocolNumber, HopLimit: 64,
			SrcAddr: tcpip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: 1}), DstAddr: tcpip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: 5}),
		})
		return append(b, t...)
	}
	b := make([]byte, header.IPv4MinimumSize)
	ip := header.IPv4(b)
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(b) + len(t)), TTL: 64, Protocol: uint8(tcp.ProtocolNumber),
		SrcAddr: tcpip.AddrFrom4([4]byte{192, 0, 2, 1}), DstAddr: tcpip.AddrFrom4([4]byte{203, 0, 113, 5}),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	return append(b, t...)
}

// Segments of a connection arrive whether they are plain or not. Only the plain ones bypass gVisor's IP layer.
func TestDirect(t *testing.T) {
	patch := func(p []byte, length int) []byte { // IPv4 only
		ip := header.IPv4(p)
		ip.SetTotalLength(uint16(length))
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
		return p
	}
	same := func(p []byte) [][]byte { return [][]byte{p} }
	for _, test := range []struct {
		name   string
		v6     bool
		change func(p []byte) [][]byte
		plain  bool
		lost   bool
	}{
		{name: "plain", change: same, plain: true},
		{name: "plain, IPv6", v6: true, change: same, plain: true},
		{name: "padded", change: func(p []byte) [][]byte { return same(append(p, "padding"...)) }},
		{name: "padded, IPv6", v6: true, change: func(p []byte) [][]byte { return same(append(p, "padding"...)) }},
		{name: "cut short", change: func(p []byte) [][]byte { return same(p[:len(p)-1]) }, lost: true},
		{name: "cut short, IPv6", v6: true, change: func(p []byte) [][]byte { return same(p[:len(p)-1]) }, lost: true},
		{name: "data offset beyond the end", change: func(p []byte) [][]byte {
			p[header.IPv4MinimumSize+header.TCPDataOffset] = 15 << 4
			return same(p)
		}, lost: true},
		{name: "data offset within the header", change: func(p []byte) [][]byte {
			p[header.IPv4MinimumSize+header.TCPDataOffset] = 4 << 4
			return same(p)
		}, lost: true},
		{name: "IP options", change: func(p []byte) [][]byte {
			q := append(bytes.Clone(p[:header.IPv4MinimumSize]), 1, 1, 1, 1)
			q = append(q, p[header.IPv4MinimumSize:]...)
			header.IPv4(q).SetHeaderLength(header.IPv4MinimumSize + 4)
			return same(patch(q, len(q)))
		}},
		{name: "fragments", change: func(p []byte) [][]byte {
			const at = header.IPv4MinimumSize + 24 // a multiple of eight bytes
			first, second := bytes.Clone(p[:at]), append(bytes.Clone(p[:header.IPv4MinimumSize]), p[at:]...)
			header.IPv4(first).SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, 0)
			header.IPv4(second).SetFlagsFragmentOffset(0, 24)
			return [][]byte{patch(first, len(first)), patch(second, len(second))}
		}},
		{name: "IPv6, an extension header", v6: true, change: func(p []byte) [][]byte {
			q := append(bytes.Clone(p[:header.IPv6MinimumSize]), uint8(tcp.ProtocolNumber), 0, 1, 4, 0, 0, 0, 0)
			q = append(q, p[header.IPv6MinimumSize:]...)
			q[header.IPv6NextHeaderOffset] = uint8(header.IPv6DestinationOptionsExtHdrIdentifier)
			binary.BigEndian.PutUint16(q[header.IPv6PayloadLenOffset:], uint16(len(q)-header.IPv6MinimumSize))
			return same(q)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			heard := make(chan string, 1)
			k := newShakyWith(t, stack.CapabilityRXChecksumOffload, func(c Conn, err error) {
				if err != nil {
					t.Error(err)
					return
				}
				b, _ := io.ReadAll(c)
				heard <- string(b)
				_ = c.Close()
			})
			send := func(packets ...[]byte) {
				for _, p := range packets {
					proto := header.IPv4ProtocolNumber
					if test.v6 {
						proto = header.IPv6ProtocolNumber
					}
					pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(p)})
					k.device.InjectInbound(proto, pkt)
					pkt.DecRef()
				}
			}
			const hello = "hello, hello"
			send(segmentIn(test.v6, header.TCPFlagSyn, 1000, 0, ""))
			answer := k.heard(t, synAck).SequenceNumber() + 1
			send(segmentIn(test.v6, header.TCPFlagAck, 1001, answer, ""))
			before := k.gv.Stats().IP.PacketsReceived.Value()
			send(test.change(segmentIn(test.v6, header.TCPFlagAck, 1001, answer, hello))...)
			if passed := k.gv.Stats().IP.PacketsReceived.Value() == before; passed != test.plain {
				t.Errorf("went past the IP layer: %v", passed)
			}
			if test.lost { // it was not acknowledged, so it comes again
				send(segmentIn(test.v6, header.TCPFlagAck, 1001, answer, "HELLO, HELLO"))
			}
			send(segmentIn(test.v6, header.TCPFlagAck|header.TCPFlagFin, 1001+uint32(len(hello)), answer, ""))
			want := hello
			if test.lost {
				want = "HELLO, HELLO"
			}
			if got := <-heard; got != want {
				t.Errorf("read %q, want %q", got, want)
			}
		})
	}
}
