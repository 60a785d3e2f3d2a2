package udp

import (
	"encoding/binary"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// queuedError is struct sock_extended_err with its offender (include/uapi/linux/errqueue.h).
type queuedError struct {
	errno             syscall.Errno
	origin, typ, code uint8
	info              uint32
	from              netip.Addr
}

const extendedErrSize = 16

// parseError parses the control messages read from a socket's error queue.
func parseError(control []byte) (e queuedError, ok bool) {
	for len(control) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return e, false
		}
		control = rest
		v4, v6 := h.Level == unix.SOL_IP && h.Type == unix.IP_RECVERR, h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_RECVERR
		if !v4 && !v6 || len(data) < extendedErrSize {
			continue
		}
		e = queuedError{
			errno:  syscall.Errno(binary.NativeEndian.Uint32(data)),
			origin: data[4], typ: data[5], code: data[6],
			info: binary.NativeEndian.Uint32(data[8:]),
			from: offender(data[extendedErrSize:]),
		}
		return e, true
	}
	return e, false
}

// offender returns the address in a struct sockaddr_in or sockaddr_in6, or the zero value if there is none.
func offender(sa []byte) netip.Addr {
	if len(sa) < 8 {
		return netip.Addr{}
	}
	switch family := binary.NativeEndian.Uint16(sa); {
	case family == unix.AF_INET:
		return netip.AddrFrom4([4]byte(sa[4:8]))
	case family == unix.AF_INET6 && len(sa) >= 24:
		return netip.AddrFrom16([16]byte(sa[8:24])).Unmap()
	}
	return netip.Addr{}
}

// segment returns the size of the datagrams that UDP_GRO has put together, or whole if it has not.
func segment(control []byte, whole int) int {
	for len(control) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return whole
		}
		control = rest
		if h.Level != unix.SOL_UDP || h.Type != unix.UDP_GRO {
			continue
		}
		switch {
		case len(data) >= 4:
			whole = int(binary.NativeEndian.Uint32(data))
		case len(data) >= 2:
			whole = int(binary.NativeEndian.Uint16(data))
		}
		if whole <= 0 || whole > maxDatagram {
			return maxDatagram
		}
		return whole
	}
	return whole
}
