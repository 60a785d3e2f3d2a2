//go:build !linux

package proxy

import (
	"context"
	"errors"
	"net/netip"
)

// makeRoom does nothing: sock_diag is specific to Linux.
func (s Sockets) makeRoom(_, _ netip.AddrPort) (bool, error) { return false, nil }

// Endings is empty: only Linux has a use for it.
type Endings struct{}

// NewEndings returns nil.
func NewEndings() *Endings { return nil }

// Marked knows nothing: marks are specific to Linux.
func (s Sockets) Marked(_, _ netip.AddrPort) (ours, known bool) { return false, false }

// Obstacle knows nothing: sock_diag is specific to Linux.
func (s Sockets) Obstacle(_, _ netip.AddrPort) Obstacle { return Obstacle{} }

// connectInRange is not supported: IP_LOCAL_PORT_RANGE is specific to Linux.
func (s Sockets) connectInRange(_ context.Context, _, _ netip.AddrPort) (kernelConn, error) {
	return nil, errors.ErrUnsupported
}
