package udp

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// counter is an application's datagram that counts the answers.
type counter struct {
	payload []byte
	replies *atomic.Int64
}

func (counter) Src() netip.AddrPort       { return app4 }
func (counter) Dst() netip.AddrPort       { return dst4 }
func (counter) TTL() uint8                { return 64 }
func (counter) DontFragment() bool        { return true }
func (c counter) Payload() []byte         { return c.payload }
func (counter) Release()                  {}
func (counter) Unreachable(syscall.Errno) {}
func (counter) ICMP(ICMPError)            {}
func (c counter) Reply([]byte) error      { c.replies.Add(1); return nil }

const benchSize = 1200

// BenchmarkUp sends to a socket that nobody reads, so it measures only the sender's cost.
func BenchmarkUp(b *testing.B) {
	server := listen(b, "127.0.0.1:0")
	r := New(to(server.LocalAddr()), nil, Timeouts{})
	start(b, r)
	d := counter{make([]byte, benchSize), new(atomic.Int64)}
	r.Handle(d)
	read(b, server)
	b.SetBytes(benchSize)
	b.ReportAllocs()
	for b.Loop() {
		r.Handle(d)
	}
}

// BenchmarkDown receives from a sender that has the kernel segment, as QUIC servers do, and from one that does not.
func BenchmarkDown(b *testing.B) {
	for name, segments := range map[string]int{"single": 1, "segmented": 40} {
		b.Run(name, func(b *testing.B) {
			server := listen(b, "127.0.0.1:0")
			r := New(to(server.LocalAddr()), nil, Timeouts{})
			start(b, r)
			d := counter{make([]byte, benchSize), new(atomic.Int64)}
			r.Handle(d)
			_, from := read(b, server)
			payload := make([]byte, segments*benchSize)
			oob := cmsg(unix.SOL_UDP, unix.UDP_SEGMENT, binary.NativeEndian.AppendUint16(nil, benchSize))
			b.SetBytes(int64(len(payload)))
			b.ReportAllocs()
			sent := int64(0)
			for b.Loop() {
				if _, _, err := server.WriteMsgUDPAddrPort(payload, oob, from); err != nil {
					b.Fatal(err)
				}
				sent += int64(segments)
				eventually(b, "all come", func() bool { return d.replies.Load() == sent })
			}
		})
	}
}
