//go:build !linux

package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

// connect makes a TCP connection from pin to dst. The zero pin means any source.
func (s Sockets) connect(ctx context.Context, pin, dst netip.AddrPort, _ func(fd uintptr) error) (kernelConn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive, Control: s.control}
	d.SetMultipathTCP(false)
	if pin.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(pin)
	}
	c, err := d.DialContext(ctx, "tcp", dst.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// setOptions can set nothing: marks and shared source ports are specific to Linux.
func (s Sockets) setOptions(uintptr) error {
	if s.Mark == 0 {
		return nil
	}
	return errors.ErrUnsupported
}

// sendOver is not supported: the option is specific to Linux.
func sendOver(uintptr, string, int) error { return errors.ErrUnsupported }

// flush does nothing: there is no portable way to query the send queue.
func flush(Conn) {}
