package link

import (
	"bytes"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
)

// Headers are separate from data if there is much of it, and no byte is lost or moved.
func TestHeadersApart(t *testing.T) {
	const a, server = "192.0.2.1:1000", "203.0.113.1:443"
	const a6, server6 = "[2001:db8::1]:1000", "[2001:db8::2]:443"
	with := func(at int, to byte, packet []byte) []byte {
		packet[at] = to
		return packet
	}
	for name, c := range map[string]struct {
		packet []byte
		apart  bool
	}{
		"IPv4":                  {tcpPacket{src: a, dst: server, data: 60000}.bytes(), true},
		"IPv4, timestamps":      {tcpPacket{src: a, dst: server, data: 60000, options: withTimestamps}.bytes(), true},
		"IPv6":                  {tcpPacket{src: a6, dst: server6, data: 60000}.bytes(), true},
		"IPv6, timestamps":      {tcpPacket{src: a6, dst: server6, data: 1400, options: withTimestamps}.bytes(), true},
		"a request":             {tcpPacket{src: a, dst: server, data: 100}.bytes(), false},
		"no data":               {tcpPacket{src: a, dst: server}.bytes(), false},
		"UDP":                   {with(9, 17, tcpPacket{src: a, dst: server, data: 60000}.bytes()), false},
		"a fragment":            {with(6, 0x20, tcpPacket{src: a, dst: server, data: 1400}.bytes()), false},
		"a header of no length": {with(32, 0, tcpPacket{src: a, dst: server, data: 1400}.bytes()), false},
	} {
		for i := range c.packet[40:] {
			if at := 40 + i; at >= 72 { // after all headers
				c.packet[at] = byte(i)
			}
		}
		b := split(buffer.NewViewWithData(bytes.Clone(c.packet)))
		if got := b.Flatten(); !bytes.Equal(got, c.packet) {
			t.Errorf("%s: %d bytes became %d, or others", name, len(c.packet), len(got))
		}
		pieces := b.AsViewList()
		if apart := pieces.Front().Size() <= 128 && len(c.packet) > 128; apart != c.apart {
			t.Errorf("%s: a piece of %d bytes first, of %d", name, pieces.Front().Size(), len(c.packet))
		}
		b.Release()
	}
}
