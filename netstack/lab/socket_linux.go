package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// Sockets are created in the host's namespace and can then be used from any goroutine. Addresses are literal: the
// namespace applies to one thread, but package net resolves names on other threads.

// Listen is net.Listen in the host's namespace. The listener is closed with the network at the latest.
func (h *Host) Listen(network, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // on by default; the tests are about TCP
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = lc.Listen(context.Background(), network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.name, err)
	}
	h.net.atClose(func() error { l.Close(); return nil })
	return l, nil
}

// ListenPacket is net.ListenPacket in the host's namespace. The socket is closed with the network at the latest.
func (h *Host) ListenPacket(network, addr string) (net.PacketConn, error) {
	var c net.PacketConn
	err := h.Do(func() (err error) {
		c, err = net.ListenPacket(network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.name, err)
	}
	h.net.atClose(func() error { c.Close(); return nil })
	return c, nil
}

// Dial connects from the host. The caller closes the connection.
func (h *Host) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return h.dial(ctx, &net.Dialer{}, network, addr)
}

// DialFrom is Dial from a local address and port (":63999" for any address). It sets SO_REUSEADDR, which every user
// of a shared port needs.
func (h *Host) DialFrom(ctx context.Context, network, local, addr string) (net.Conn, error) {
	from, err := localAddr(network, local)
	if err != nil {
		return nil, err
	}
	return h.dial(ctx, &net.Dialer{LocalAddr: from, Control: reuseAddr}, network, addr)
}

func (h *Host) dial(ctx context.Context, d *net.Dialer, network, addr string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return nil, err
	}
	var c net.Conn
	err := h.Do(func() (err error) {
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.name, err)
	}
	return c, nil
}

// Resolver returns Go's own resolver, which sends its queries from the host.
func (h *Host) Resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: h.Dial}
}

func localAddr(network, local string) (net.Addr, error) {
	switch network {
	case "udp", "udp4", "udp6":
		return net.ResolveUDPAddr(network, local)
	default:
		return net.ResolveTCPAddr(network, local)
	}
}

func reuseAddr(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}); cerr != nil {
		return cerr
	}
	return err
}
