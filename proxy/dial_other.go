//go:build !linux

package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

// connect makes a TCP connection from pin, the zero value for any source, to dst.
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

// setOptions: marks and shared source ports are Linux's.
func (s Sockets) setOptions(uintptr) error {
	if s.Mark == 0 {
		return nil
	}
	return errors.ErrUnsupported
}

// sendOver: the option is Linux's.
func sendOver(uintptr, string, int) error { return errors.ErrUnsupported }

// flush: no portable way to ask for the send queue.
func flush(Conn) {}
