package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"pinproxy/proxy/sockdiag"
)

// keepAlive probes idle upstream connections. An application's own probes end at
// our netstack, so without these a peer that died would hold its pin for ever,
// and a stateful firewall would forget a connection that the application
// believes it keeps alive. On Linux that begins when the flow is first idle: see keeper.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 60 * time.Second, Interval: 15 * time.Second, Count: 8}

// Sockets is the Dialer of this system's kernel. It has no state.
type Sockets struct {
	// Mark is put on every socket (SO_MARK), so that the capture rules pass it by;
	// 0: none. It needs CAP_NET_ADMIN.
	Mark uint32
	// Owners names the programs that have sockets; nil: sockdiag.Owners, as far as
	// we may see them.
	Owners func([]sockdiag.Socket) []sockdiag.Process
	// Link is the index of the interface that packets leave over, wherever the routes would
	// have them go (IP_UNICAST_IF); 0: none. Kernels before 6.0 heed it for IPv6 only. It is for DialPlain.
	Link int
}

// kernelConn is a TCP connection of this system's kernel.
type kernelConn interface {
	Conn
	syscall.Conn
}

// Dial connects a TCP socket. Binding is explicit and with SO_REUSEADDR, so that
// one port can serve many destinations; see the package's theory of operation. A
// TIME_WAIT of our own on the very 4-tuple is no reason to fail where we may end it.
func (s Sockets) Dial(ctx context.Context, pin, dst netip.AddrPort) (Conn, error) {
	c, err := s.connect(ctx, pin, dst, nil)
	if pin.IsValid() && errors.Is(err, syscall.EADDRNOTAVAIL) && !fromCall(err, "bind") {
		freed, ferr := s.makeRoom(pin, dst)
		if ferr != nil {
			return nil, fmt.Errorf("%w; %w", err, ferr)
		}
		if freed {
			c, err = s.connect(ctx, pin, dst, nil)
		}
	}
	if errors.Is(err, syscall.EADDRINUSE) && fromCall(err, "bind") {
		if shared, serr := s.connectInRange(ctx, pin, dst); serr == nil || !errors.Is(serr, errors.ErrUnsupported) && !errors.Is(serr, syscall.EADDRNOTAVAIL) {
			c, err = shared, serr
		}
	}
	if err != nil {
		return nil, err
	}
	return newUpstream(c)
}

// DialPlain connects a socket with the mark, and over the link, and nothing else, for
// our own DNS queries and those we relay; network is "udp" or "tcp".
func (s Sockets) DialPlain(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Control: s.control}
	if s.Link != 0 {
		d.Control = s.controlLink
	}
	return d.DialContext(ctx, network, dst.String())
}

// controlLink is control, and chooses the interface.
func (s Sockets) controlLink(network, address string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = sendOver(fd, network, s.Link) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("choose interface %d: %w", s.Link, err)
	}
	return s.control(network, address, c)
}

// control sets the options that must be there before bind and connect.
func (s Sockets) control(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = s.setOptions(fd) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("mark the socket: %w", err)
	}
	return nil
}
