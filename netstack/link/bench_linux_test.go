package link_test

import (
	"fmt"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"pinproxy/netstack/lab"
	"pinproxy/netstack/link"
)

// counter is a netstack that only counts what the device delivers.
type counter struct{ bytes atomic.Int64 }

func (c *counter) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	c.bytes.Add(int64(pkt.Size()))
}

func (*counter) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// largest is an MTU at which every size below fits in one packet.
const largest = 65535

func openForBench(b *testing.B, c link.Config) (*lab.Host, *link.Link) {
	h := lab.ForTest(b).Host("host")
	l := open(b, h, c)
	dev, err := h.Netlink().LinkByName(l.Name())
	if err == nil {
		err = h.Netlink().LinkSetMTU(dev, largest)
	}
	if err != nil {
		b.Fatal(err)
	}
	return h, l
}

// BenchmarkRead measures a packet's way from a socket through the device to netstack's door, including the sender's
// call.
func BenchmarkRead(b *testing.B) {
	for mode, c := range modes {
		for _, size := range []int{64, 1400, 60_000} {
			b.Run(fmt.Sprintf("%s/bytes=%d", mode, size), func(b *testing.B) {
				h, l := openForBench(b, c)
				var got counter
				l.Endpoint().Attach(&got)
				b.Cleanup(func() { l.Endpoint().Attach(nil) })
				conn, err := h.Dial(b.Context(), "udp4", "203.0.113.5:9")
				if err != nil {
					b.Fatal(err)
				}
				defer conn.Close()
				data := make([]byte, size)
				const ahead = 32 // packets that may wait in the device's queue
				packet := int64(size + header.UDPMinimumSize + header.IPv4MinimumSize)
				arrived := got.bytes.Load()
				sent := arrived
				arrive := func(most int64) { // wait until at most that many bytes are missing
					if sent-got.bytes.Load() <= most {
						return
					}
					for end := time.Now().Add(10 * time.Second); sent-got.bytes.Load() > most; runtime.Gosched() {
						if time.Now().After(end) {
							b.Fatalf("%d bytes of %d have not arrived", sent-got.bytes.Load(), sent)
						}
					}
				}
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := conn.Write(data); err != nil {
						b.Fatal(err)
					}
					sent += packet
					arrive(ahead * packet)
				}
				arrive(0)
			})
		}
	}
}

// BenchmarkWrite measures a packet's way from netstack through the device up to the kernel's routing, which drops it
// because it is for another host. Whoever reads the largest one segments it.
func BenchmarkWrite(b *testing.B) {
	for _, size := range []int{0, 1400, 64_000} {
		b.Run(fmt.Sprintf("offload/bytes=%d", size), func(b *testing.B) {
			h, l := openForBench(b, modes["offload"])
			var pkts stack.PacketBufferList
			pkts.PushBack(tcpPacket(size))
			b.Cleanup(pkts.Reset)
			from, _ := h.Counters(l.Name())
			b.SetBytes(int64(size))
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				if _, err := l.Endpoint().WritePackets(pkts); err != nil {
					b.Fatal(err)
				}
				n++
			}
			if now, _ := h.Counters(l.Name()); int(now-from) < n {
				b.Errorf("the device had %d packets of %d", now-from, n)
			}
		})
	}
}

// tcpPacket returns a segment as netstack hands it over, with size bytes of payload.
func tcpPacket(size int) *stack.PacketBuffer {
	const mss = 1460
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.IPv4MinimumSize + header.TCPMinimumSize,
		Payload:            buffer.MakeWithData(make([]byte, size)),
	})
	header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize)).Encode(&header.TCPFields{
		SrcPort: 443, DstPort: 443, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagAck,
	})
	ip := header.IPv4(pkt.NetworkHeader().Push(header.IPv4MinimumSize))
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(pkt.Size()), TTL: 64, Protocol: uint8(header.TCPProtocolNumber),
		SrcAddr: tcpip.AddrFrom4Slice(net.IPv4(203, 0, 113, 5).To4()),
		DstAddr: tcpip.AddrFrom4Slice(net.IPv4(203, 0, 113, 6).To4()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	if size > 0 {
		pkt.GSOOptions = stack.GSO{
			Type: stack.GSOTCPv4, NeedsCsum: true, CsumOffset: header.TCPChecksumOffset, MSS: mss, L3HdrLen: header.IPv4MinimumSize,
		}
	}
	return pkt
}
