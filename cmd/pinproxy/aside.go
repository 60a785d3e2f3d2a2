package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"pinproxy/netstack/host"
	"pinproxy/proxy"
	"pinproxy/proxy/sockdiag"
)

// asideDialer dials for a command. If a pinproxy for the whole host runs in the same network namespace, its rules would
// capture the dial, which has no mark, and lead it away from the command's pin. What has a source address they let
// pass. Dials without a pin are left to them: what the host pins, it pins for commands, too.
type asideDialer struct {
	proxy.Sockets
	beside *atomic.Bool // a pinproxy for the whole host runs, or did. If none does, dials are spared the kernel's answer
}

func newAsideDialer(s proxy.Sockets) asideDialer {
	d := asideDialer{s, new(atomic.Bool)}
	_, running, _ := host.FindRunning()
	d.beside.Store(running)
	return d
}

// Dial implements proxy.Dialer.
func (d asideDialer) Dial(ctx context.Context, pin, dst netip.AddrPort) (proxy.Conn, error) {
	switch {
	case !pin.IsValid() || !pin.Addr().IsUnspecified():
		return d.Sockets.Dial(ctx, pin, dst)
	case d.beside.Load():
		return d.dialPast(ctx, pin, dst)
	}
	c, err := d.Sockets.Dial(ctx, pin, dst)
	if err == nil && !ofDevice(c.LocalAddr().(*net.TCPAddr).AddrPort().Addr()) {
		return c, nil
	}
	if from, aside := stepAside(pin.Port(), dst); !from.IsValid() && aside == nil {
		return c, err
	}
	d.beside.Store(true) // it has started since
	if err == nil {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
	return d.dialPast(ctx, pin, dst)
}

// dialPast dials past the rules of a pinproxy for the whole host.
func (d asideDialer) dialPast(ctx context.Context, pin, dst netip.AddrPort) (proxy.Conn, error) {
	from, err := stepAside(pin.Port(), dst)
	if err != nil {
		return nil, err
	}
	if from.IsValid() {
		pin = netip.AddrPortFrom(from, pin.Port())
	}
	return d.Sockets.Dial(ctx, pin, dst)
}

// stepAside returns the source address that a connection from port to dst has to be bound to. It is invalid if there
// is nothing to step aside from, or no way past it: around a command of another pinproxy there is nothing but that.
func stepAside(port uint16, dst netip.AddrPort) (netip.Addr, error) {
	if from, err := sockdiag.Source(port, dst, 0); err != nil || !ofDevice(from) {
		return netip.Addr{}, nil // the dial itself says what is wrong
	}
	past, err := host.FindWay(host.Connection{Dst: dst, Port: port, Mark: host.Mark})
	if err != nil || ofDevice(past.Source) {
		return netip.Addr{}, nil
	}
	bound, err := host.FindWay(host.Connection{Dst: dst, Port: port, Src: past.Source})
	if err == nil && bound.Ours {
		return netip.Addr{}, fmt.Errorf("%w: the pinproxy for this host captures it, by --strict", proxy.ErrNotFromPin)
	}
	return past.Source, nil
}

// ofDevice reports whether addr is that of a pinproxy's device.
func ofDevice(addr netip.Addr) bool {
	return addr == host.Addr4 || addr == host.Addr6 || addr == commandAddr6
}
