package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// connectInRange is for a port that bind refuses because another program has an ordinary connection from it to
// somewhere else. connect is less strict: it shares a port that the kernel itself chose for a socket
// (__inet_hash_connect), as long as the 4-tuple is free. IP_LOCAL_PORT_RANGE (Linux 6.3) gives it a range of one port
// to choose from. This works only within ip_local_port_range: outside it the kernel silently ignores the option, and
// a SYN would leave from another port. The kernel skips reserved ports, such as a whole host's pins
// (EADDRNOTAVAIL). The error is errors.ErrUnsupported if there is nothing to try.
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

// choosePort makes connect choose this one port.
func choosePort(fd int, port uint16) error {
	const localPortRange = 51 // IP_LOCAL_PORT_RANGE (include/uapi/linux/in.h)
	err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, localPortRange, int(port)|int(port)<<16)
	}
	if err != nil { // the kernel does not know the option
		return fmt.Errorf("ask for port %d: %w (%w)", port, errors.ErrUnsupported, err)
	}
	return nil
}

// inLocalRange reports whether the kernel may choose the port for programs that do not choose one.
func inLocalRange(port uint16) bool {
	fd, err := unix.Open("/proc/sys/net/ipv4/ip_local_port_range", unix.O_RDONLY|unix.O_CLOEXEC, 0) // an os.File would go to the poller
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var text [32]byte
	n, err := unix.Read(fd, text[:])
	if err != nil {
		return false
	}
	var first, last uint16
	if _, err := fmt.Sscan(string(text[:n]), &first, &last); err != nil {
		return false
	}
	return first <= port && port <= last
}
