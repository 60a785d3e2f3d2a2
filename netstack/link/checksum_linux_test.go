package link

import (
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// datagram returns a UDP datagram in IPv4 with a correct checksum.
func datagram() []byte {
	src, dst := tcpip.AddrFrom4([4]byte{192, 0, 2, 1}), tcpip.AddrFrom4([4]byte{203, 0, 113, 5})
	packet := make([]byte, header.IPv4MinimumSize+header.UDPMinimumSize+5)
	ip := header.IPv4(packet)
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(packet)), TTL: 64, Protocol: uint8(header.UDPProtocolNumber), SrcAddr: src, DstAddr: dst})
	udp := header.UDP(ip.Payload())
	udp.Encode(&header.UDPFields{SrcPort: 1024, DstPort: 53, Length: uint16(len(udp))})
	copy(udp.Payload(), "hello")
	udp.SetChecksum(^checksum.Checksum(udp, header.PseudoHeaderChecksum(header.UDPProtocolNumber, src, dst, uint16(len(udp)))))
	return packet
}

func TestIntact(t *testing.T) {
	change := func(f func(ip header.IPv4, udp header.UDP)) []byte {
		packet := datagram()
		f(packet, header.IPv4(packet).Payload())
		return packet
	}
	damaged := change(func(_ header.IPv4, udp header.UDP) { udp.Payload()[0] ^= 1 })
	for name, test := range map[string]struct {
		packet []byte
		want   bool
	}{
		"right":                {datagram(), true},
		"damaged":              {damaged, false},
		"of another address":   {change(func(ip header.IPv4, _ header.UDP) { ip.SetSourceAddress(tcpip.AddrFrom4([4]byte{192, 0, 2, 2})) }), false},
		"without a checksum":   {change(func(_ header.IPv4, udp header.UDP) { udp.SetChecksum(0) }), true},
		"first fragment":       {change(func(ip header.IPv4, _ header.UDP) { ip.SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, 0) }), true},
		"last fragment":        {change(func(ip header.IPv4, _ header.UDP) { ip.SetFlagsFragmentOffset(0, 64) }), true},
		"neither TCP nor UDP":  {change(func(ip header.IPv4, _ header.UDP) { ip[9] = 132 }), true},
		"shorter than it says": {damaged[:len(damaged)-1], true},
		"longer than it says":  {slices.Concat(datagram(), []byte{1, 2, 3}), true},
		"neither IPv4 nor 6":   {[]byte{0x70, 0, 0}, true},
		"a byte":               {[]byte{0x45}, true},
	} {
		if got := intact(test.packet); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}
