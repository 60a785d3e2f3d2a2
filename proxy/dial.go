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

// keepAlive probes idle upstream connections. An application's own probes end at our netstack. Without ours, a peer
// that died would hold its pin forever, and a stateful firewall would forget a connection that the application
// believes it keeps alive. On Linux the probing begins when the flow is first idle: see keeper.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 60 * time.Second, Interval: 15 * time.Second, Count: 8}

// Sockets is the Dialer that uses this system's kernel. Its only state is Endings.
type Sockets struct {
	// Mark is set on every socket (SO_MARK), so that the capture rules let it pass; 0 means none. It needs
	// CAP_NET_ADMIN.
	Mark uint32
	// Owners names the programs that own sockets. Nil means sockdiag.Owners, which names those we may see.
	Owners func([]sockdiag.Socket) []sockdiag.Process
	// Endings is for kernels whose sock_diag can't end a TIME_WAIT. Nil means that it is left there. See [NewEndings].
	Endings *Endings
	// Link is the index of the interface through which packets leave, whatever the routes say (IP_UNICAST_IF); 0
	// means none. Kernels before 6.0 honor it for IPv6 only. It is for DialPlain.
	Link int
}

// kernelConn is a TCP connection of the kernel.
type kernelConn interface {
	Conn
	syscall.Conn
}

// Dial connects a TCP socket. It binds explicitly and with SO_REUSEADDR, so that one port can serve many
// destinations; see the package's theory of operation. If a TIME_WAIT of our own holds the very 4-tuple, Dial ends
// it, if it may, and does not fail.
func (s Sockets) Dial(ctx context.Context, pin, dst netip.AddrPort) (Conn, error) {
	c, err := s.connectFreed(ctx, pin, dst)
	if inUse(err) && pin.Addr().IsUnspecified() {
		// The port may be in use only on addresses that a connection to dst does not leave from.
		if from, serr := sockdiag.Source(pin.Port(), dst, s.Mark); serr == nil {
			if beside, berr := s.connectFreed(ctx, netip.AddrPortFrom(from, pin.Port()), dst); !inUse(berr) {
				c, err = beside, berr
			}
		}
	}
	if inUse(err) {
		if shared, serr := s.connectInRange(ctx, pin, dst); serr == nil || !errors.Is(serr, errors.ErrUnsupported) && !errors.Is(serr, syscall.EADDRNOTAVAIL) {
			c, err = shared, serr
		}
	}
	if err != nil {
		return nil, err
	}
	return newUpstream(c)
}

// connectFreed connects, and does so again if it could end the TIME_WAIT that was in the way.
func (s Sockets) connectFreed(ctx context.Context, pin, dst netip.AddrPort) (kernelConn, error) {
	c, err := s.connect(ctx, pin, dst, nil)
	if !pin.IsValid() || !errors.Is(err, syscall.EADDRNOTAVAIL) || fromCall(err, "bind") {
		return c, err
	}
	freed, ferr := s.makeRoom(pin, dst)
	switch {
	case ferr != nil:
		return nil, fmt.Errorf("%w; %w", err, ferr)
	case freed:
		return s.connect(ctx, pin, dst, nil)
	}
	return nil, err
}

// inUse reports whether bind has refused the port.
func inUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) && fromCall(err, "bind") }

// DialPlain connects a socket that has the mark and uses the link, and nothing else. It is for our own DNS queries
// and those we relay. network is "udp" or "tcp".
func (s Sockets) DialPlain(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Control: s.control}
	if s.Link != 0 {
		d.Control = s.controlLink
	}
	return d.DialContext(ctx, network, dst.String())
}

// controlLink does what control does, and also chooses the interface.
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

// control sets the options that must be in place before bind and connect.
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
