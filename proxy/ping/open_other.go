//go:build !linux

package ping

import (
	"errors"
	"net"
	"net/netip"
)

// open is unsupported: the kernels of other systems fill in different fields.
func open(netip.Addr) (net.Conn, error) { return nil, errors.ErrUnsupported }
