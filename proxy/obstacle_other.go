//go:build !linux

package proxy

import "net/netip"

// makeRoom: sock_diag is Linux's.
func (s Sockets) makeRoom(_, _ netip.AddrPort) (bool, error) { return false, nil }
