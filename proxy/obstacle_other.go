//go:build !linux

package proxy

import "net/netip"

// makeRoom: sock_diag is Linux's.
func (s Sockets) makeRoom(_, _ netip.AddrPort) (bool, error) { return false, nil }

// Obstacle knows nothing: sock_diag is Linux's.
func (s Sockets) Obstacle(_, _ netip.AddrPort) Obstacle { return Obstacle{} }
