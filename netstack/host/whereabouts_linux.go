package host

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Whereabouts tells where addresses are, as the kernel sees it now, in the network namespace of the thread that
// opened it. Its methods are safe for concurrent use.
type Whereabouts struct {
	mu sync.Mutex
	r  *rtnl
}

// OpenWhereabouts opens a Whereabouts. The caller must close it.
func OpenWhereabouts() (*Whereabouts, error) {
	r, err := openRTNL()
	if err != nil {
		return nil, err
	}
	return &Whereabouts{r: r}, nil
}

// Close closes its socket.
func (w *Whereabouts) Close() error { return w.r.close() }

// Own reports whether packets to a stay on this host, or go to everyone on a network: the kernel's local,
// broadcast, anycast and multicast routes. Unreachable addresses do not count.
func (w *Whereabouts) Own(a netip.Addr) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	info, err := w.r.lookup(Connection{Dst: netip.AddrPortFrom(a, 1), Mark: Mark}, 0)
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno) && (errno == unix.ENETUNREACH || errno == unix.EHOSTUNREACH || errno == unix.EACCES || errno == unix.EINVAL):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("find the way to %s: %w", a, err)
	}
	return info.typ != unix.RTN_UNICAST, nil
}

// MTU returns the maximum size of packets to a, in bytes: its device's MTU, or less if the route or a router
// says so.
func (*Whereabouts) MTU(a netip.Addr) (int, error) {
	mtu, err := pathMTU(a)
	if err != nil {
		return 0, fmt.Errorf("find the MTU of the way to %s: %w", a, err)
	}
	return mtu, nil
}

// pathMTU asks a datagram socket. Nothing is sent.
func pathMTU(a netip.Addr) (int, error) {
	const discard = 9 // any port
	domain, level, option := unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU
	var to unix.Sockaddr
	if a = a.Unmap(); a.Is4() {
		to = &unix.SockaddrInet4{Port: discard, Addr: a.As4()}
	} else {
		domain, level, option = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU
		to = &unix.SockaddrInet6{Port: discard, Addr: a.As16()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, to); err != nil {
		return 0, os.NewSyscallError("connect", err)
	}
	mtu, err := unix.GetsockoptInt(fd, level, option)
	return mtu, os.NewSyscallError("getsockopt", err)
}
