package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/host"
	"pinproxy/netstack/lab"
)

// Hosts behind the client, which is a gateway for them:
//
//	 inner                    client                     router              server
//	┌─────────────┐ eth0  eth1┌──────────────┐eth0       ┌──────────┐        ┌────────┐
//	│ application ├───────────┤ pinproxy     ├───────────┤ firewall ├────────┤ HTTPS… │
//	└─────────────┘.130   .129└──────────────┘.2         └──────────┘        └────────┘
//	     192.0.2.128/26, 2001:db8:3::/64

// lan is a network of such hosts.
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

// inner returns the inner host's address of a family.
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
	return c.(*net.TCPConn), c.SetDeadline(time.Now().Add(talkPatience))
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

// A host behind leaves from the pin, even with the strictest rp_filter, and the log has the host's own address.
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

// A client's query is answered only when the route is in place, whichever resolver beyond the gateway it asks. So a
// name of a wildcard rule that nobody has looked up before is pinned from the first connection.
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

// Traffic that no rule names is forwarded as always, and no packet of it enters the device. The device counts only a
// few reports from the kernel, which puts a router's devices into the group of all routers (MLD).
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

// Whether the gateway hides its hosts or not, and however it is told to: pinned traffic leaves from the pin, and
// other traffic leaves as before.
func TestGatewayThatMasquerades(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name       string
		masquerade func(l *lan)
		families   []family
	}{
		{"what leaves by the uplink", func(l *lan) { l.Client.Masquerade("eth0") }, families},
		{"what comes from a subnet, as Docker does", func(l *lan) { l.Client.MasqueradeFrom(lab.LAN4, l.dev) }, families[:1]},
	} {
		for _, f := range test.families {
			t.Run(test.name+" "+f.name, func(t *testing.T) {
				l := newLAN(t, 1500)
				test.masquerade(l)
				pinned := l.Server.Serve(at(f.server, 7), lab.Echo)
				plain := l.Server.Serve(at(f.server, 8), lab.Echo)
				p := l.pins("--rule", inRule(f.server)+":7=63999")
				for range 2 {
					for _, port := range []int{7, 8} {
						c := l.mustConnect(at(f.server, port))
						echo(t, c, "hello")
						_ = c.CloseWrite()
						_, _ = io.Copy(io.Discard, c)
						_ = c.Close()
					}
				}
				for _, from := range pinned.Seen() {
					if from != f.from(63999) {
						t.Errorf("a pinned connection came from %v", from)
					}
				}
				for _, from := range plain.Seen() {
					if from.Addr().String() != f.client || from.Port() == 63999 {
						t.Errorf("a connection without a rule came from %v", from)
					}
				}
				p.await("flow", 2)
			})
		}
	}
}

// 64 MiB go each way at once, in segments that fit the path to the client. A link with WireGuard's MTU stands in for
// WireGuard. A host beyond a tunnel, whose own link has 1500 bytes, would not get the kernel's report that a packet
// is too big. Nor would one whose address is masqueraded, so that we do not see the way to it.
//
//	branch ──1500── mid ──1420── client
func TestGatewayCarriesBytesUnchanged(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		mtu  int
		args []string
	}{
		{"LAN", 1500, nil},
		{"WireGuard client", 1420, nil},
		{"jumbo frames", 9000, nil},
		{"no offload", 1500, []string{"--offload=off"}},
		{"beyond a tunnel", 1420, nil},
		{"beyond a tunnel, hidden", 1420, nil},
	} {
		for _, f := range families {
			t.Run(test.name+" "+f.name, func(t *testing.T) {
				l := newLAN(t, test.mtu)
				if strings.HasPrefix(test.name, "beyond a tunnel") {
					l.inner = l.branch()
				}
				if strings.HasSuffix(test.name, "hidden") {
					l.Client.Masquerade("pin0")
				}
				served := make(chan error, 1)
				l.Server.Serve(at(f.server, 7), func(c net.Conn) { served <- exchange(c, 1, 2) })
				p := l.pins(append([]string{"--rule", inRule(f.server) + ":7=63999"}, test.args...)...)
				if err := exchange(l.mustConnect(at(f.server, 7)), 2, 1); err != nil {
					t.Error("client:", err)
				}
				if err := <-served; err != nil {
					t.Error("server:", err)
				}
				if e := p.await("flow", 1)[0]; e.Up != total || e.Down != total || e.End != "closed" {
					t.Errorf("logged %+v", e)
				}
			})
		}
	}
}

// branch adds a network behind the inner host, and returns the host in it.
func (l *lan) branch() *lab.Host {
	l.t.Helper()
	b := l.net.Host("branch")
	l.inner.Forward()
	l.net.Link(l.inner, []string{"192.0.2.193/28", "2001:db8:4::1/64"}, b, []string{"192.0.2.194/28", "2001:db8:4::2/64"})
	b.Route("default", "192.0.2.193")
	b.Route("default", "2001:db8:4::1")
	l.Client.Route("192.0.2.192/28", lab.Inner4)
	l.Client.Route("2001:db8:4::/64", lab.Inner6)
	return b
}

// Not every host has its packets marked as not to be fragmented. Fragments have no ports, so the kernel's rules would miss
// them.
func TestGatewayOfAHostThatLetsRoutersFragment(t *testing.T) {
	l := newLAN(t, 1400)
	branch := l.branch()
	l.Server.Serve(":7", lab.Echo)
	l.pins("--rule", "203.0.113.2:7=63999")
	c, err := branch.Dial(soon(t), "tcp", at(lab.Server4, 7))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	})
	if err := errors.Join(cerr, err); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	echo(t, c, strings.Repeat("long", 1000))
}

// Clients often ask the gateway itself, at its own address in their network. Traffic to this host is never captured.
// But the queries of its resolver are, and the resolver gets the answer only when the routes are in place.
func TestGatewayWithAResolverOfItsOwn(t *testing.T) {
	eachLAN(t, func(l *lan, f family) {
		server := l.Server.Serve(":443", lab.Echo)
		own := map[string]string{"IPv4": lab.Gateway4, "IPv6": lab.Gateway6}[f.name]
		l.Client.DNS(l.forward, at(own, 53))
		l.Firewall(63999)
		l.pins("--rule", "www.bank.example:443=63999", "--rule", "*.bank.example:443=63999")
		resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return l.inner.Dial(ctx, network, at(own, 53))
		}}
		network := map[string]string{"IPv4": "ip4", "IPv6": "ip6"}[f.name]
		for _, name := range []string{"www.bank.example", map[string]string{"ip4": "v4.bank.example", "ip6": "v6.bank.example"}[network]} {
			addrs, err := resolver.LookupNetIP(soon(l.t), network, name)
			if err != nil {
				l.t.Fatal(err)
			}
			c := l.mustConnect(at(addrs[0].Unmap().String(), 443))
			echo(l.t, c, "hello")
			_ = c.CloseWrite()
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
		for _, from := range server.Seen() {
			if from != f.from(63999) {
				l.t.Errorf("a connection came from %v", from)
			}
		}
	})
}

// forward is a resolver on the client that asks the server, as dnsmasq would.
func (l *lan) forward(q lab.Query) lab.Answer {
	network := map[dnsmessage.Type]string{dnsmessage.TypeA: "ip4", dnsmessage.TypeAAAA: "ip6"}[q.Type]
	if network == "" {
		return lab.Answer{}
	}
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return l.Client.Dial(ctx, network, at(lab.Server4, 53))
	}}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	addrs, err := resolver.LookupNetIP(ctx, network, q.Name)
	if err != nil {
		return lab.Answer{RCode: dnsmessage.RCodeNameError}
	}
	var a lab.Answer
	for _, addr := range addrs {
		r := dnsmessage.Resource{Header: dnsmessage.ResourceHeader{TTL: 30}}
		if addr = addr.Unmap(); addr.Is4() {
			r.Body = &dnsmessage.AResource{A: addr.As4()}
		} else {
			r.Body = &dnsmessage.AAAAResource{AAAA: addr.As16()}
		}
		a.Records = append(a.Records, r)
	}
	return a
}

// Some clouds have their resolver at a link-local address of IPv4. The kernel forwards queries to it, and so do we.
func TestGatewayWithAResolverOfACloud(t *testing.T) {
	l := newLAN(t, 1500)
	const resolver = "169.254.169.254"
	l.Server.Own(resolver + "/32")
	l.Router.Route(resolver+"/32", lab.Server4)
	asked := l.Server.DNS(lab.Zone(zone), at(resolver, 53))
	server := l.Server.Serve(":443", lab.Echo)
	l.pins("--rule", "*.bank.example:443=63999", "--rule", resolver+":443=63999")
	for _, network := range []string{"udp", "tcp"} {
		r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return l.inner.Dial(ctx, network, at(resolver, 53))
		}}
		addrs, err := r.LookupHost(soon(t), "v4.bank.example")
		if err != nil {
			t.Fatal(network, err)
		}
		c := l.mustConnect(at(addrs[0], 443))
		echo(t, c, "hello")
		_ = c.Close()
	}
	if seen := server.Seen(); len(seen) != 2 || seen[0] != families[0].from(63999) || seen[1] != seen[0] {
		t.Errorf("connections came from %v", seen)
	}
	if len(asked.Queries()) == 0 {
		t.Error("the resolver was not asked")
	}
	// Nobody is led there otherwise.
	if _, err := l.connect(at(resolver, 443)); err == nil {
		t.Error("connected to another port")
	}
}

// If a name's answers also have an address of the gateway itself, hosts behind it do not get a connection from there.
func TestGatewayDoesNotLeadHostsToItself(t *testing.T) {
	eachLAN(t, func(l *lan, f family) {
		l.Server.Serve(":443", lab.Echo)
		own := l.Client.Serve(":443", lab.Echo)
		p := l.pins("--rule", "lure.bank.example:443=63999 busy=other-address,fail")
		open := map[string]string{"IPv4": "192.0.2.1", "IPv6": "2001:db8:cafe::1"}[f.name]
		c := l.mustConnect(at(open, 443))
		echo(l.t, c, "hello")
		if _, err := l.connect(at(open, 443)); err == nil {
			l.t.Error("a second connection was made from the only port of the pin")
		}
		p.await("flow failed", 1)
		if seen := own.Seen(); len(seen) != 0 {
			l.t.Errorf("the gateway itself was connected to from %v", seen)
		}
	})
}

// The same if the gateway hides its hosts behind its own address, as Docker and libvirt do.
func TestGatewayThatMasqueradesDoesNotLeadHostsToItself(t *testing.T) {
	t.Parallel()
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			l := newLAN(t, 1500)
			l.Client.Masquerade("pin0")
			l.Server.Serve(":443", lab.Echo)
			own := l.Client.Serve(":443", lab.Echo)
			p := l.pins("--rule", "lure.bank.example:443=63999 busy=other-address,fail")
			open := map[string]string{"IPv4": "192.0.2.1", "IPv6": "2001:db8:cafe::1"}[f.name]
			c := l.mustConnect(at(open, 443))
			echo(t, c, "hello")
			if _, err := l.connect(at(open, 443)); err == nil {
				t.Error("a second connection was made from the only port of the pin")
			}
			p.await("flow failed", 1)
			if seen := own.Seen(); len(seen) != 0 {
				t.Errorf("the gateway itself was connected to from %v", seen)
			}
		})
	}
}

// Another host that sends with an address of the device leads nothing into it, through a gateway or not. For IPv4 the
// kernel drops such a packet (a martian source). It forwards one of IPv6.
func TestGatewayIsNotDeceived(t *testing.T) {
	t.Parallel()
	for _, through := range []string{"gateway", "another device"} {
		t.Run(through, func(t *testing.T) {
			l := newLAN(t, 1500)
			server := l.Server.Serve(at(lab.Server6, 7), lab.Echo)
			args := []string{"--rule", inRule(lab.Server6) + ":7=63990-63999"}
			if through == "gateway" {
				args = append(args, "--gateway", l.dev)
			}
			l.pinproxy(args...)
			for _, src := range []netip.Addr{host.Addr6, host.Guest6} {
				l.inner.Addr("eth0", src.String()+"/128")
				from := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0)), Timeout: 100 * time.Millisecond}
				_ = l.inner.Do(func() error {
					c, err := from.Dial("tcp", at(lab.Server6, 7))
					if err == nil {
						_ = c.Close()
						t.Errorf("connected from %s", src)
					}
					return nil
				})
			}
			echo(t, l.mustConnect(at(lab.Server6, 7)), "hello")
			if seen := server.Seen(); len(seen) != 1 {
				t.Errorf("the server saw %v, want one connection", seen)
			}
		})
	}
}

// Devices come and go under the name that the rules use.
func TestGatewayDeviceComesAndGoes(t *testing.T) {
	l := newLAN(t, 1500)
	server := l.Server.Serve(at(lab.Server4, 7), lab.Echo)
	visit := func(want string) {
		t.Helper()
		c := l.mustConnect(at(lab.Server4, 7))
		echo(t, c, "hello")
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, c)
		_ = c.Close()
		seen := server.Seen()
		if got := seen[len(seen)-1].Addr().String(); got != want {
			t.Errorf("the connection came from %s, want %s", got, want)
		}
	}
	nl := l.Client.Netlink()
	rename := func(from, to string) {
		t.Helper()
		dev, err := nl.LinkByName(from)
		if err == nil {
			err = nl.LinkSetName(dev, to)
		}
		if errors.Is(err, unix.EBUSY) { // before Linux 6.2, only a device that is down gets another name
			lost, lerr := nl.AddrList(dev, netlink.FAMILY_V6)
			err = errors.Join(lerr, nl.LinkSetDown(dev), nl.LinkSetName(dev, to), nl.LinkSetUp(dev))
			for _, a := range lost {
				if a.IP.IsGlobalUnicast() {
					err = errors.Join(err, nl.AddrAdd(dev, &netlink.Addr{IPNet: a.IPNet, Flags: unix.IFA_F_NODAD}))
				}
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	p := l.pinproxy("--gateway", "lan0", "--rule", inRule(lab.Server4)+":7=63999")
	p.expect("gateway lan0: there is no such device")
	visit(lab.Inner4)
	rename(l.dev, "lan0")
	p.expect("gateway has appeared")
	visit(lab.Client4)
	rename("lan0", "lan1")
	p.expect("gateway is gone")
	visit(lab.Inner4)
	rename("lan1", "lan0")
	p.await("gateway has appeared: what its hosts send is captured", 2)
	visit(lab.Client4)

	l.Client.Sysctl("net.ipv4.ip_forward", "0")
	p.expect("gateway lan0: this host does not forward IPv4")
	if e := p.await("gateway lan0: this host does not forward IPv4: the kernel drops what the hosts behind it send", 1)[0]; e.Hint != "sudo sysctl -w net.ipv4.ip_forward=1" {
		t.Errorf("the hint is %q", e.Hint)
	}
	l.Client.Sysctl("net.ipv4.ip_forward", "1")
	p.expect("this host forwards what the hosts behind a gateway send")
	l.Client.Sysctl("net.ipv4.conf.pin0.rp_filter", "1")
	poll(t, "rp_filter of the device to be as it was", func() bool { return l.Client.SysctlGet("net.ipv4.conf.pin0.rp_filter") == "2" })
	visit(lab.Client4)
	rename("lan0", l.dev) // as it was
}

// What is left after SIGKILL lets everything pass at once, and goes with the next start or cleanup.
func TestGatewayKilled(t *testing.T) {
	eachLAN(t, func(l *lan, f family) {
		server := l.Server.Serve(at(f.server, 7), lab.Echo)
		p := l.pins("--rule", inRule(f.server)+":7=63999")
		p.kill()
		c := l.mustConnect(at(f.server, 7))
		echo(l.t, c, "hello")
		if seen := server.Seen(); seen[0].Addr().String() != f.inner() {
			l.t.Errorf("the connection came from %v", seen)
		}
		if _, _, err := l.Client.Run(l.command("cleanup")); err != nil {
			l.t.Fatal(err)
		}
		if diff := cmp.Diff(lines(p.before), lines(l.Client.Snapshot())); diff != "" {
			l.t.Errorf("cleanup left the host changed (-before +after):\n%s", diff)
		}
	})
}
