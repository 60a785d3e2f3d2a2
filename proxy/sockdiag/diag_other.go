//go:build !linux

package sockdiag

import (
	"errors"
	"net/netip"
)

// Find is only supported on Linux.
func Find(_, _ netip.AddrPort) (Socket, bool, error) { return Socket{}, false, errors.ErrUnsupported }

// Namespace is only supported on Linux.
type Namespace struct{}

// OpenNamespace is only supported on Linux.
func OpenNamespace() (*Namespace, error) { return nil, errors.ErrUnsupported }

// Close does nothing.
func (*Namespace) Close() error { return nil }

// NewNamespace is only supported on Linux.
func NewNamespace(int) *Namespace { return nil }

// Find is only supported on Linux.
func (*Namespace) Find(local, remote netip.AddrPort) (Socket, bool, error) {
	return Find(local, remote)
}

// OnPort is only supported on Linux.
func OnPort(uint16) ([]Socket, error) { return nil, errors.ErrUnsupported }

// OnPorts is only supported on Linux.
func OnPorts(func(port uint16) bool) ([]Socket, error) { return nil, errors.ErrUnsupported }

// From is only supported on Linux.
func From(netip.Addr) ([]Socket, error) { return nil, errors.ErrUnsupported }

// EndsTimeWait is only supported on Linux.
func EndsTimeWait() bool { return false }

// Destroy is only supported on Linux.
func Destroy(Socket) error { return errors.ErrUnsupported }

// Owners is only supported on Linux.
func Owners(list []Socket) []Process { return make([]Process, len(list)) }

// Bind is only supported on Linux.
func Bind(netip.AddrPort) error { return errors.ErrUnsupported }

// Owns is only supported on Linux.
func Owns(netip.Addr, uint32) (bool, error) { return false, errors.ErrUnsupported }

// Leaves is only supported on Linux.
func Leaves(_, _ netip.AddrPort) (netip.AddrPort, error) {
	return netip.AddrPort{}, errors.ErrUnsupported
}

// Source is only supported on Linux.
func Source(uint16, netip.AddrPort, uint32) (netip.Addr, error) {
	return netip.Addr{}, errors.ErrUnsupported
}
