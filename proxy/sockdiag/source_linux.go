package sockdiag

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Source returns the address from which the kernel would let a TCP connection to dst leave, if its socket is bound to
// the port alone and has the mark. Policy rules may choose by all of these, and by the protocol. Nothing is sent.
func Source(port uint16, dst netip.AddrPort, mark uint32) (netip.Addr, error) {
	family, addr := uint8(unix.AF_INET), dst.Addr().Unmap()
	if addr.Is6() {
		family = unix.AF_INET6
	}
	r := make([]byte, unix.SizeofRtMsg, 64)
	r[0], r[1] = family, uint8(addr.BitLen()) // struct rtmsg: rtm_family, rtm_dst_len
	r = appendAttribute(r, unix.RTA_DST, addr.AsSlice()...)
	r = appendAttribute(r, unix.RTA_IP_PROTO, unix.IPPROTO_TCP)
	r = appendAttribute(r, unix.RTA_SPORT, byte(port>>8), byte(port))
	r = appendAttribute(r, unix.RTA_DPORT, byte(dst.Port()>>8), byte(dst.Port()))
	r = appendAttribute(r, unix.RTA_MARK, binary.NativeEndian.AppendUint32(nil, mark)...)
	b, err := ask(unix.NETLINK_ROUTE, unix.RTM_GETROUTE, 0, r)
	if err == nil {
		for kind, value := range attributes(b[min(unix.SizeofRtMsg, len(b)):]) {
			if kind == unix.RTA_PREFSRC && len(value) == len(addr.AsSlice()) {
				return address(family, value), nil
			}
		}
		err = unix.EADDRNOTAVAIL
	}
	return netip.Addr{}, fmt.Errorf("find the source address towards %s: %w", dst, err)
}

// appendAttribute appends a struct rtattr.
func appendAttribute(b []byte, kind uint16, value ...byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, -len(b)&3)...)
}
