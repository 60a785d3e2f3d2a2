package sockdiag

import (
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Bind tries whether the kernel would let this process bind a connection's socket to local, with SO_REUSEADDR, and
// lets go of it at once. Nothing is sent. It speaks of the port alone: connect may still find the 4-tuple in use. The
// error is bind's, as package net has it.
func Bind(local netip.AddrPort) error {
	family := unix.AF_INET
	if local.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if family == unix.AF_INET {
		return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet4{Port: int(local.Port()), Addr: local.Addr().As4()}))
	}
	// Package net does so before it dials: what an IPv4 socket has is in the way of [::], too.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet6{Port: int(local.Port()), Addr: local.Addr().As16()}))
}
