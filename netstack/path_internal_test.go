package netstack

import (
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
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
