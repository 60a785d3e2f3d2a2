package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// connectInRange is for a port that bind refuses because of another program's ordinary
// connection to elsewhere. connect is less strict: it shares a port that the kernel
// chose for somebody (__inet_hash_connect), as long as the 4-tuple is free, and
// IP_LOCAL_PORT_RANGE (Linux 6.3) makes a range of one port for it to choose from. It
// does so only within ip_local_port_range: elsewhere the option is ignored without a word,
// and a SYN would leave from another port. Ports that are reserved, as the whole host's
// are, it passes over (EADDRNOTAVAIL). The error is errors.ErrUnsupported where there is nothing to try.
func (s Sockets) connectInRange(ctx context.Context, pin, dst netip.AddrPort) (kernelConn, error) {
	if !inLocalRange(pin.Port()) {
		return nil, errors.ErrUnsupported
	}
	var from netip.AddrPort
	if !pin.Addr().IsUnspecified() {
		from = netip.AddrPortFrom(pin.Addr(), 0)
	}
	return s.connect(ctx, from, dst, func(fd uintptr) error { return choosePort(int(fd), pin.Port()) })
}

// choosePort leaves the choice of one port to connect.
func choosePort(fd int, port uint16) error {
	const localPortRange = 51 // IP_LOCAL_PORT_RANGE (include/uapi/linux/in.h)
	err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, localPortRange, int(port)|int(port)<<16)
	}
	if err != nil { // a kernel that does not know it
		return fmt.Errorf("ask for port %d: %w (%w)", port, errors.ErrUnsupported, err)
	}
	return nil
}

// inLocalRange says whether the kernel may choose the port for programs that don't.
func inLocalRange(port uint16) bool {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return false
	}
	var first, last uint16
	if _, err := fmt.Sscan(string(text), &first, &last); err != nil {
		return false
	}
	return first <= port && port <= last
}
