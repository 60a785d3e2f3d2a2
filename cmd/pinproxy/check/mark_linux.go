package check

import (
	"golang.org/x/sys/unix"

	"pinproxy/netstack/host"
)

// mayMark says whether this process may mark its sockets in this network namespace (CAP_NET_ADMIN). The capabilities
// in /proc/self/status hold only for the process's own user namespace.
func mayMark() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, host.Mark) == nil
}
