//go:build !linux

package sockdiag

import (
	"errors"
	"net/netip"
)

// Find is Linux's.
func Find(_, _ netip.AddrPort) (Socket, bool, error) { return Socket{}, false, errors.ErrUnsupported }

// OnPort is Linux's.
func OnPort(uint16) ([]Socket, error) { return nil, errors.ErrUnsupported }

// OnPorts is Linux's.
func OnPorts(func(port uint16) bool) ([]Socket, error) { return nil, errors.ErrUnsupported }

// Destroy is Linux's.
func Destroy(Socket) error { return errors.ErrUnsupported }

// Owners is Linux's.
func Owners(list []Socket) []Process { return make([]Process, len(list)) }

// Bind is Linux's.
func Bind(netip.AddrPort) error { return errors.ErrUnsupported }
