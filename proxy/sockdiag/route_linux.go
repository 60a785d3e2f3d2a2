package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Source returns the address from which the kernel would let a TCP connection to dst leave, if its socket is bound to
// the port alone and has the mark. Policy rules may choose by all of these, and by the protocol. Nothing is sent.
func Source(port uint16, dst netip.AddrPort, mark uint32) (netip.Addr, error) {
	b, err := route(port, dst, mark)
	if err == nil {
		for kind, value := range attributes(b[unix.SizeofRtMsg:]) {
			if kind == unix.RTA_PREFSRC {
				if addr, ok := netip.AddrFromSlice(value); ok {
					return addr, nil
				}
			}
		}
		err = unix.EADDRNOTAVAIL
	}
	return netip.Addr{}, fmt.Errorf("find the source address towards %s: %w", dst, err)
}

// Owns reports whether the host has the address: whether packets to it, with the mark, stay here. That a socket can be
// bound to it does not tell, because of the sysctl ip_nonlocal_bind.
func Owns(addr netip.Addr, mark uint32) (bool, error) {
	b, err := route(0, netip.AddrPortFrom(addr, 0), mark)
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		return false, nil // dead-end routes
	case err != nil:
		return false, fmt.Errorf("find out whether the host has %s: %w", addr, err)
	}
	return b[7] == unix.RTN_LOCAL, nil // rtm_type
}

// route returns the route, a struct rtmsg and its attributes, of a connection's first packet.
func route(port uint16, dst netip.AddrPort, mark uint32) ([]byte, error) {
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
	if err == nil && len(b) < unix.SizeofRtMsg {
		err = unix.EBADMSG
	}
	return b, err
}

// appendAttribute appends a struct rtattr.
func appendAttribute(b []byte, kind uint16, value ...byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, -len(b)&3)...)
}
