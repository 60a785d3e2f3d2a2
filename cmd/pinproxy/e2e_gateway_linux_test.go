package main

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pinproxy/netstack/lab"
)

// Hosts behind the client, which is a gateway for them:
//
//	 inner                    client                     router              server
//	┌─────────────┐ eth0  eth1┌──────────────┐eth0       ┌──────────┐        ┌────────┐
//	│ application ├───────────┤ pinproxy     ├───────────┤ firewall ├────────┤ HTTPS… │
//	└─────────────┘.130   .129└──────────────┘.2         └──────────┘        └────────┘
//	     192.0.2.128/26, 2001:db8:3::/64

// lan is such a network.
type lan struct {
	*network
	inner *lab.Host
	dev   string // the client's device towards it
}

func newLAN(t *testing.T, mtu int) *lan {
	w := newNetwork(t)
	w.names()
	inner, dev := w.LAN(mtu)
	return &lan{w, inner, dev}
}

// pins starts a pinproxy with the LAN's device as a gateway.
func (l *lan) pins(args ...string) *running {
	l.t.Helper()
	return l.pinproxy(append([]string{"--gateway", l.dev}, args...)...)
}

// innerAddr is the inner host's address of a family.
func (f family) inner() string {
	if f.name == "IPv6" {
		return lab.Inner6
	}
	return lab.Inner4
}

// connect connects as a program on the inner host does.
func (l *lan) connect(addr string) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := l.inner.Dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	l.t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn), c.SetDeadline(time.Now().Add(2 * patience))
}

func (l *lan) mustConnect(addr string) *net.TCPConn {
	l.t.Helper()
	c, err := l.connect(addr)
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

// eachLAN runs a test for both families, each on a network of its own.
func eachLAN(t *testing.T, test func(l *lan, f family)) {
	t.Parallel()
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) { test(newLAN(t, 1500), f) })
	}
}

// A host behind leaves from the pin, with rp_filter as strict as can be, and the log has its own address.
func TestGatewayPinsHostsBehind(t *testing.T) {
	eachLAN(t, func(l *lan, f family) {
		for _, dev := range []string{"all", "default", "eth0", l.dev} {
			l.Client.Sysctl("net.ipv4.conf."+dev+".rp_filter", "1")
		}
		server := l.Server.Serve(at(f.server, 7), lab.Echo)
		l.Firewall(63999)
		p := l.pins("--rule", inRule(f.server)+":7=63999")
		c := l.mustConnect(at(f.server, 7))
		echo(l.t, c, "hello")
		if seen := server.Seen(); len(seen) != 1 || seen[0] != f.from(63999) {
			l.t.Errorf("connections came from %v, want one from %v", seen, f.from(63999))
		}
		_ = c.Close()
		e := p.await("flow", 1)[0]
		if src, err := netip.ParseAddrPort(e.Src); err != nil || src.Addr().String() != f.inner() {
			l.t.Errorf("the flow is logged as one of %s, want %s", e.Src, f.inner())
		}
		if !strings.HasSuffix(e.Local, ":63999") {
			l.t.Errorf("logged %+v", e)
		}
	})
}

// A client's query is answered after the route stands, whichever resolver beyond the gateway it asks; so the name of a
// rule with a wildcard, which nobody has looked up before, is pinned at the first connection.
func TestGatewayHoldsAnswersForHostsBehind(t *testing.T) {
	eachLAN(t, func(l *lan, f family) {
		server := l.Server.Serve(":443", lab.Echo)
		l.Firewall(63999)
		l.pins("--rule", "*.bank.example:443=63999")
		for _, network := range []string{"udp", "tcp"} {
			resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return l.inner.Dial(ctx, network, at(f.server, 53))
			}}
			name := map[string]string{"IPv4": "v4.bank.example", "IPv6": "v6.bank.example"}[f.name]
			addrs, err := resolver.LookupHost(soon(l.t), name)
			if err != nil {
				l.t.Fatal(err)
			}
			c := l.mustConnect(at(addrs[0], 443))
			echo(l.t, c, "hello")
			_ = c.Close()
		}
		for _, from := range server.Seen() {
			if from != f.from(63999) {
				l.t.Errorf("a connection came from %v", from)
			}
		}
	})
}

// What no rule names is forwarded as ever, and enters the device with no packet. All that the device counts is a few
// reports of the kernel's, which has a router's devices be in the group of all routers (MLD).
func TestGatewayForwardsTheRest(t *testing.T) {
	eachLAN(t, func(l *lan, f family) {
		server := l.Server.Serve(":7", lab.Echo)
		l.pins("--rule", inRule(f.server)+":443=63999")
		_, before := l.Client.Counters("pin0")
		for range 10 {
			for _, addr := range []string{at(f.server, 7), at(f.elsewhere, 7)} {
				c := l.mustConnect(addr)
				echo(l.t, c, "hello")
				_ = c.Close()
			}
		}
		for _, from := range server.Seen() {
			if from.Addr().String() != f.inner() {
				l.t.Errorf("a connection came from %v, want the inner host", from)
			}
		}
		if _, after := l.Client.Counters("pin0"); after > before+4 {
			l.t.Errorf("%d packets entered the device", after-before)
		}
	})
}
