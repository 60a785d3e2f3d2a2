// Package netstacktest is an application for tests: a second gVisor stack at the other end of a pipe, in the same
// process and without privileges.
//
//	Client (gVisor) ══ pipe ══ link.Link ── netstack.Stack ── handler
package netstacktest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/pipe"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"pinproxy/netstack/link"
)

// Addresses of the application.
var (
	Addr4 = netip.MustParseAddr("192.0.2.1")
	Addr6 = netip.MustParseAddr("2001:db8::1")
)

const mtu = 1500

// Client plays the application's kernel.
type Client struct{ gv *stack.Stack }

// Pipe returns a client and the link to which it is connected. Close the client after the stack that uses the link
// has stopped.
func Pipe() (*link.Link, *Client, error) {
	ours, theirs := pipe.New("", "", mtu)
	gv := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := gv.CreateNIC(1, theirs); err != nil {
		return nil, nil, fmt.Errorf("create the client's nic: %s", err)
	}
	for _, a := range []netip.Addr{Addr4, Addr6} {
		pa := tcpip.ProtocolAddress{Protocol: protocolOf(a), AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix()}
		if err := gv.AddProtocolAddress(1, pa, stack.AddressProperties{}); err != nil {
			return nil, nil, fmt.Errorf("give the client %s: %s", a, err)
		}
	}
	gv.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}, {Destination: header.IPv6EmptySubnet, NIC: 1}})
	return link.New("pipe", ours, nil), &Client{gv: gv}, nil
}

// Close resets what is open and ends the client's goroutines.
func (c *Client) Close() {
	c.gv.RemoveNIC(1)
	c.gv.Destroy()
}

// Conn is an application's socket.
type Conn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

// Abort sends a reset, as a socket with SO_LINGER 0 does on close.
func (c *Conn) Abort() { c.ep.Abort() }

// Forget closes it, and forgets it as a kernel does that has waited long enough for the other end's FIN.
func (c *Conn) Forget() {
	timeout := tcpip.TCPLingerTimeoutOption(time.Millisecond)
	_ = c.ep.SetSockOpt(&timeout)
	c.ep.Close()
}

// Registered reports whether the client's kernel still knows the connection, so that its 4-tuple can't be used
// again.
func (c *Conn) Registered() bool {
	switch tcp.EndpointState(c.ep.State()) {
	case tcp.StateClose, tcp.StateError:
		return false
	}
	return true
}

// Read returns ECONNRESET for a reset; gonet only has error texts.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	if err != nil && tcp.EndpointState(c.ep.State()) == tcp.StateError {
		return n, syscall.ECONNRESET
	}
	return n, err
}

// Dial connects to dst. local may give the source port, or be the zero value. A failed handshake returns an errno.
func (c *Client) Dial(ctx context.Context, local, dst netip.AddrPort) (*Conn, error) {
	proto := protocolOf(dst.Addr())
	wq := new(waiter.Queue)
	ep, terr := c.gv.NewEndpoint(tcp.ProtocolNumber, proto, wq)
	if terr != nil {
		return nil, fmt.Errorf("make the client's endpoint: %s", terr)
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if local.IsValid() {
		ep.SocketOptions().SetReuseAddress(true)
		if terr := ep.Bind(full(local)); terr != nil {
			ep.Close()
			return nil, fmt.Errorf("bind %s: %s", local, terr)
		}
	}
	if terr := ep.Connect(full(dst)); terr != nil {
		if _, ok := terr.(*tcpip.ErrConnectStarted); !ok {
			ep.Close()
			return nil, fmt.Errorf("connect %s: %s", dst, terr)
		}
	}
	select {
	case <-ctx.Done():
		ep.Close()
		return nil, ctx.Err()
	case <-ready:
	}
	if terr := ep.LastError(); terr != nil {
		ep.Close()
		return nil, errno(terr)
	}
	return &Conn{TCPConn: gonet.NewTCPConn(wq, ep), ep: ep}, nil
}

// DialUDP creates a connected UDP socket.
func (c *Client) DialUDP(dst netip.AddrPort) (net.Conn, error) {
	to := full(dst)
	return gonet.DialUDP(c.gv, nil, &to, protocolOf(dst.Addr()))
}

// DialPing creates an ICMP socket for echo requests to dst. It reads and writes whole messages, and writes its own
// identifier.
func (c *Client) DialPing(dst netip.Addr) (net.Conn, error) {
	proto, transport := protocolOf(dst), icmp.ProtocolNumber6
	if dst.Is4() {
		transport = icmp.ProtocolNumber4
	}
	wq := new(waiter.Queue)
	ep, terr := c.gv.NewEndpoint(transport, proto, wq)
	if terr != nil {
		return nil, fmt.Errorf("make the client's ping endpoint: %s", terr)
	}
	if terr := ep.Connect(full(netip.AddrPortFrom(dst, 0))); terr != nil {
		ep.Close()
		return nil, fmt.Errorf("connect %s: %s", dst, terr)
	}
	return gonet.NewUDPConn(wq, ep), nil
}

// Unreachables returns how many destination-unreachable messages the client has received.
func (c *Client) Unreachables() uint64 {
	s := c.gv.Stats().ICMP
	return s.V4.PacketsReceived.DstUnreachable.Value() + s.V6.PacketsReceived.DstUnreachable.Value()
}

func errno(terr tcpip.Error) error {
	switch terr.(type) {
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrHostUnreachable:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrNetworkUnreachable:
		return syscall.ENETUNREACH
	}
	return fmt.Errorf("client: %s", terr)
}

func full(a netip.AddrPort) tcpip.FullAddress {
	f := tcpip.FullAddress{NIC: 1, Port: a.Port()}
	if a.Addr().IsValid() {
		f.Addr = tcpip.AddrFromSlice(a.Addr().AsSlice())
	}
	return f
}

func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}
