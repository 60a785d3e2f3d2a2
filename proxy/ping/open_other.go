//go:build !linux

package ping

import (
	"errors"
	"net"
	"net/netip"
)

// open: what other systems have differs in what the kernel fills in.
func open(netip.Addr) (net.Conn, error) { return nil, errors.ErrUnsupported }
