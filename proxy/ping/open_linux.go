package ping

import (
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// anyPort means nothing to an ICMP socket, but without a port getpeername reports that the socket is not connected
// (inet_getname).
const anyPort = 1

func open(dst netip.Addr) (net.Conn, error) {
	family, proto := unix.AF_INET6, unix.IPPROTO_ICMPV6
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: dst.As16(), Port: anyPort}
	if dst.Is4() {
		family, proto = unix.AF_INET, unix.IPPROTO_ICMP
		to = &unix.SockaddrInet4{Addr: dst.As4(), Port: anyPort}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, to); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	return asConn(fd)
}

// asConn makes a net.Conn from fd and closes fd.
func asConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "ping")
	defer f.Close()
	return net.FileConn(f) // duplicates the descriptor
}
