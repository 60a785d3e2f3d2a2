//go:build !linux

package proxy

import (
	"errors"
	"net/netip"
)

// setOptions: marks and shared source ports are Linux's.
func (s Sockets) setOptions(uintptr) error {
	if s.Mark == 0 {
		return nil
	}
	return errors.ErrUnsupported
}

// flush: no portable way to ask for the send queue.
func flush(Conn) {}

// makeRoom: sock_diag is Linux's.
func (s Sockets) makeRoom(_, _ netip.AddrPort) (bool, error) { return false, nil }
