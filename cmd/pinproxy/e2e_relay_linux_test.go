package main

// Traffic without connections, carried for an application in a network of its own whose only way out is the TUN. The
// relays' sockets are the client's:
//
//	 app                        client                    router                  server
//	┌─────────────┐            ┌─────────────┐ eth0  eth0┌──────┐eth1       eth0┌──────────────┐
//	│ application │            │ udp.Relay   ├───────────┤      ├───────────────┤ 203.0.113.2  │
//	│   │    ▲    │ descriptor │ ping socket │.2       .1│      │.1           .2│ 2001:db8:2::2│
//	│   ▼    │    │            │   ▲     │   │           └──────┘               └──────────────┘
//	│   pin0 ─────┼────────────┼ netstack    │
//	└─────────────┘            └─────────────┘

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"pinproxy/netstack"
	"pinproxy/netstack/lab"
	"pinproxy/netstack/link"
	"pinproxy/proxy/ping"
	"pinproxy/proxy/udp"
)

// carried is an application's network whose datagrams and pings are carried.
type carried struct {
	*lab.Topology
	app   *lab.Host
	relay *udp.Relay
	pings *udp.Relay
}

// bothServers are the server's addresses.
var bothServers = map[string]netip.Addr{"ipv4": netip.MustParseAddr(lab.Server4), "ipv6": netip.MustParseAddr(lab.Server6)}

func carry(t testing.TB) *carried {
	t.Helper()
	n := lab.ForTest(t)
	c := &carried{Topology: n.Topology(), app: n.Host("app")}
	mayPing(c.app)
	var dev *link.Link
	if err := c.app.Do(func() (err error) { dev, err = link.Open(link.Config{Offload: true}); return err }); err != nil {
		t.Fatal(err)
	}
	tun, err := c.app.Netlink().LinkByName(dev.Name())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.app.Netlink().LinkSetMTU(tun, dev.MTU()), c.app.Netlink().LinkSetUp(tun)); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"192.0.2.200/32", "2001:db8:ff::1/128"} {
		c.app.Addr("lo", a)
	}
	// The kernel makes a new IPv6 address reachable only a little later, on a work queue.
	for end := time.Now().Add(30 * time.Second); ; runtime.Gosched() {
		routes, err := c.app.Netlink().RouteGet(net.ParseIP("2001:db8:ff::1"))
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the application's IPv6 address is not reachable: %v, %v", routes, err)
		}
	}
	c.app.Route("0.0.0.0/0", dev.Name())
	c.app.Route("::/0", dev.Name())

	dial := func(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
		return c.Client.Dial(ctx, "udp", dst.String())
	}
	dialPing := func(ctx context.Context, dst netip.AddrPort) (conn net.Conn, err error) {
		err = c.Client.Do(func() error { conn, err = ping.Dial(ctx, dst); return err })
		return conn, err
	}
	c.relay = udp.New(dial, nil, udp.Timeouts{})
	c.pings = ping.NewRelay(dialPing, nil)
	s, err := netstack.New(dev, netstack.Config{
		Datagrams: func(d *netstack.Datagram) { c.relay.Handle(d) },
		Echoes:    func(e *netstack.Echo) { c.pings.Handle(e) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var parts errgroup.Group
	parts.Go(func() error { return c.relay.Serve(ctx) })
	parts.Go(func() error { return c.pings.Serve(ctx) })
	parts.Go(func() error { return s.Serve(ctx, func(_ context.Context, f *netstack.Flow) { f.Drop() }) })
	<-s.Ready()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(parts.Wait(), dev.Close()); err != nil {
			t.Error(err)
		}
	})
	return c
}

// mayPing allows root, which we are here, to use ICMP sockets. A new network namespace allows them to nobody.
func mayPing(h *lab.Host) { h.Sysctl("net.ipv4.ping_group_range", "0 0") }

// echoUDP makes the server send back what arrives at port 7.
func (c *carried) echoUDP(t testing.TB) {
	t.Helper()
	for _, addr := range bothServers {
		s, err := c.Server.ListenPacket("udp", netip.AddrPortFrom(addr, 7).String())
		if err != nil {
			t.Fatal(err)
		}
		go sendBack(s) // ends with the network
	}
}

func sendBack(s net.PacketConn) {
	buf := make([]byte, 65536)
	for {
		n, from, err := s.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = s.WriteTo(buf[:n], from)
	}
}

// dialUDP returns a connected socket of the application.
func (c *carried) dialUDP(t testing.TB, addr netip.Addr, port uint16) *net.UDPConn {
	t.Helper()
	conn, err := c.app.Dial(t.Context(), "udp", netip.AddrPortFrom(addr, port).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UDPConn)
}

func TestRelayCarriesDatagramsOfAnySize(t *testing.T) {
	c := carry(t)
	c.echoUDP(t)
	for family, addr := range bothServers {
		t.Run(family, func(t *testing.T) {
			largest := 65507
			if addr.Is6() {
				largest = 65527
			}
			conn := c.dialUDP(t, addr, 7)
			_ = conn.SetReadBuffer(1 << 20)
			for _, size := range []int{0, 1, 1452, 1453, 1472, 1473, 5000, largest} {
				want := make([]byte, size)
				_, _ = rand.Read(want)
				if _, err := conn.Write(want); err != nil {
					t.Fatalf("send %d bytes: %v", size, err)
				}
				got := make([]byte, 65536)
				n, err := conn.Read(got)
				if err != nil || !bytes.Equal(got[:n], want) {
					t.Errorf("%d bytes there, %d back: %v", size, n, err)
				}
			}
		})
	}
}

func TestRelayTellsOfClosedPort(t *testing.T) {
	c := carry(t)
	for family, addr := range bothServers {
		conn := c.dialUDP(t, addr, 9)
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: read = %v, want ECONNREFUSED", family, err)
		}
	}
}

func TestRelayTellsOfNoRoute(t *testing.T) {
	c := carry(t)
	for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := c.Client.Netlink().RouteList(nil, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if r.Gw != nil {
				if err := c.Client.Netlink().RouteDel(&r); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for family, addr := range bothServers {
		conn := c.dialUDP(t, addr, 9)
		receiveErrors(t, conn, addr)
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("%s: read = %v, want ENETUNREACH", family, err)
		}
	}
}

// The path has a smaller MTU than the TUN. An application that allows no fragmentation learns of it, and one that
// does not care gets through.
func TestRelayTellsOfPathMTU(t *testing.T) {
	const mtu = 1300
	for _, where := range []string{"router", "client"} {
		t.Run(where, func(t *testing.T) {
			c := carry(t)
			c.echoUDP(t)
			switch where { // asynchronously by ICMP, or at once by EMSGSIZE
			case "router":
				setMTU(t, c.Router, "eth1", mtu)
				setMTU(t, c.Server, "eth0", mtu)
			case "client":
				setMTU(t, c.Client, "eth0", mtu)
				setMTU(t, c.Router, "eth0", mtu)
			}
			for family, addr := range bothServers {
				conn := c.dialUDP(t, addr, 7)
				level, discover, getMTU := unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_MTU
				if addr.Is6() {
					level, discover, getMTU = unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU
				}
				setOption(t, conn, level, discover, unix.IP_PMTUDISC_DO)
				if _, err := conn.Write(make([]byte, 1400)); err != nil {
					t.Fatalf("%s: first datagram: %v", family, err)
				}
				// The kernel wakes a reader with the error, and clears it.
				if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.EMSGSIZE) {
					t.Errorf("%s: read = %v, want EMSGSIZE", family, err)
				}
				if got := getOption(t, conn, level, getMTU); got != mtu {
					t.Errorf("%s: the application knows a path MTU of %d, want %d", family, got, mtu)
				}
				if _, err := conn.Write(make([]byte, 1400)); !errors.Is(err, syscall.EMSGSIZE) {
					t.Errorf("%s: second datagram: %v, want EMSGSIZE", family, err)
				}
				sendAndReceive(t, conn, family+", small enough", make([]byte, mtu-48))
				setOption(t, conn, level, discover, unix.IP_PMTUDISC_DONT)
				if where == "client" {
					// The server learns of it the same way, by losing a reply.
					if _, err := conn.Write(make([]byte, 1400)); err != nil {
						t.Fatal(err)
					}
					c.awaitMTU(t, addr, mtu)
				}
				sendAndReceive(t, conn, family+", fragmented", make([]byte, 1400))
			}
		})
	}
}

func sendAndReceive(t *testing.T, conn net.Conn, what string, b []byte) {
	t.Helper()
	if _, err := conn.Write(b); err != nil {
		t.Errorf("%s: write: %v", what, err)
		return
	}
	if n, err := conn.Read(make([]byte, 65536)); err != nil || n != len(b) {
		t.Errorf("%s: %d of %d bytes back: %v", what, n, len(b), err)
	}
}

// awaitMTU waits until the server knows that this is the MTU of the path on which it answers addr.
func (c *carried) awaitMTU(t *testing.T, addr netip.Addr, mtu int) {
	t.Helper()
	to := net.ParseIP(lab.Client4)
	if addr.Is6() {
		to = net.ParseIP(lab.Client6)
	}
	for end := time.Now().Add(30 * time.Second); ; runtime.Gosched() {
		routes, err := c.Server.Netlink().RouteGet(to)
		if err == nil && len(routes) == 1 && routes[0].MTU == mtu {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the server's route to %s: %v, %v, want an MTU of %d", to, routes, err, mtu)
		}
	}
}

func setMTU(t *testing.T, h *lab.Host, dev string, mtu int) {
	t.Helper()
	l, err := h.Netlink().LinkByName(dev)
	if err == nil {
		err = h.Netlink().LinkSetMTU(l, mtu)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func onRaw(t *testing.T, conn syscall.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
}

func setOption(t *testing.T, conn syscall.Conn, level, name, value int) {
	t.Helper()
	onRaw(t, conn, func(fd int) error { return unix.SetsockoptInt(fd, level, name, value) })
}

// receiveErrors makes the application see errors that are not hard errors for a socket (icmp_err_convert).
func receiveErrors(t *testing.T, conn syscall.Conn, dst netip.Addr) {
	t.Helper()
	if dst.Is6() {
		setOption(t, conn, unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
	} else {
		setOption(t, conn, unix.SOL_IP, unix.IP_RECVERR, 1)
	}
}

func getOption(t *testing.T, conn syscall.Conn, level, name int) (value int) {
	t.Helper()
	onRaw(t, conn, func(fd int) (err error) { value, err = unix.GetsockoptInt(fd, level, name); return err })
	return value
}

// dialPing returns an ICMP socket of the application.
func (c *carried) dialPing(t *testing.T, addr netip.Addr) *net.UDPConn {
	t.Helper()
	var conn net.Conn
	if err := c.app.Do(func() (err error) { conn, err = ping.Dial(t.Context(), netip.AddrPortFrom(addr, 0)); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UDPConn)
}

// echoRequest returns an echo request. The kernel fills in identifier and checksum.
func echoRequest(dst netip.Addr, seq byte, size int) []byte {
	b := make([]byte, 8+size)
	_, _ = rand.Read(b[8:])
	b[0], b[7] = 8, seq
	if dst.Is6() {
		b[0] = 128
	}
	return b
}

func TestRelayPings(t *testing.T) {
	c := carry(t)
	mayPing(c.Client)
	for family, addr := range bothServers {
		conn := c.dialPing(t, addr)
		for seq, size := range []int{0, 1, 56, 1472, 1473, 5000, 65507} {
			want := echoRequest(addr, byte(seq), size)
			if _, err := conn.Write(want); err != nil {
				t.Fatalf("%s: %d bytes: %v", family, size, err)
			}
			got := make([]byte, 65536)
			n, err := conn.Read(got)
			if err != nil || n != len(want) || got[0] == want[0] || !bytes.Equal(got[6:n], want[6:]) {
				t.Errorf("%s: %d bytes there, %d back: %v", family, len(want), n, err)
			}
		}
	}
	if s := c.pings.Stats(); s.Flows != 2 || s.Total != 2 {
		t.Errorf("%+v, want one flow for each family", s)
	}
}

// Nobody has this address: netstack must not answer for it.
func TestRelayPingsNobody(t *testing.T) {
	c := carry(t)
	mayPing(c.Client)
	for _, ip := range []string{"ipv4", "ipv6"} {
		c.Router.Sysctl("net."+ip+".neigh.eth1.mcast_solicit", "1")
		c.Router.Sysctl("net."+ip+".neigh.eth1.retrans_time_ms", "10")
	}
	for family, addr := range map[string]netip.Addr{"ipv4": netip.MustParseAddr("203.0.113.77"), "ipv6": netip.MustParseAddr("2001:db8:2::77")} {
		conn := c.dialPing(t, addr)
		receiveErrors(t, conn, addr)
		if _, err := conn.Write(echoRequest(addr, 1, 56)); err != nil {
			t.Fatal(err)
		}
		// The router asks in vain who has the address, and says so.
		if n, err := conn.Read(make([]byte, 1500)); !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("%s: read = %d, %v, want EHOSTUNREACH", family, n, err)
		}
	}
}

func TestRelayPingForbidden(t *testing.T) {
	c := carry(t)
	for family, addr := range bothServers {
		conn := c.dialPing(t, addr)
		if _, err := conn.Write(echoRequest(addr, 1, 56)); err != nil {
			t.Fatal(err)
		}
		want := map[string]error{"ipv4": syscall.EHOSTUNREACH, "ipv6": syscall.EACCES}[family]
		if n, err := conn.Read(make([]byte, 1500)); !errors.Is(err, want) {
			t.Errorf("%s: read = %d, %v, want %v", family, n, err, want)
		}
	}
}

// A probe with a small TTL ends at the router. The application learns of that, and which of its probes it was.
func TestRelayTraceroute(t *testing.T) {
	c := carry(t)
	mayPing(c.Client)
	near := map[string]string{"ipv4": lab.Near4, "ipv6": lab.Near6}
	for family, addr := range bothServers {
		for kind, conn := range map[string]*net.UDPConn{"udp": c.dialUDP(t, addr, 33434), "icmp": c.dialPing(t, addr)} {
			level, ttl := unix.SOL_IP, unix.IP_TTL
			if addr.Is6() {
				level, ttl = unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS
			}
			receiveErrors(t, conn, addr)
			for _, hops := range []int{1, 64, 1} {
				setOption(t, conn, level, ttl, hops)
				probe := echoRequest(addr, byte(hops), 24)
				if _, err := conn.Write(probe); err != nil {
					t.Fatalf("%s, %s: %v", family, kind, err)
				}
				_, err := conn.Read(make([]byte, 1500))
				if hops > 1 {
					if want := map[string]error{"udp": syscall.ECONNREFUSED, "icmp": nil}[kind]; !errors.Is(err, want) {
						t.Errorf("%s, %s, %d hops: %v, want %v", family, kind, hops, err, want)
					}
					drainErrors(t, conn)
					continue
				}
				if !errors.Is(err, syscall.EHOSTUNREACH) {
					t.Errorf("%s, %s: read = %v, want EHOSTUNREACH", family, kind, err)
				}
				from := drainErrors(t, conn)
				if len(from) != 1 || from[0].addr != near[family] || kind == "icmp" && from[0].seq != byte(hops) {
					t.Errorf("%s, %s: time exceeded %+v, want %s, sequence number %d", family, kind, from, near[family], hops)
				}
			}
		}
	}
}

type offence struct {
	addr string
	seq  byte // if the probe was an echo request
}

// drainErrors returns what is in a socket's error queue.
func drainErrors(t *testing.T, conn *net.UDPConn) (all []offence) {
	t.Helper()
	onRaw(t, conn, func(fd int) error {
		for {
			probe, oob := make([]byte, 100), make([]byte, 500)
			n, oobn, _, _, err := unix.Recvmsg(fd, probe, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err == unix.EAGAIN {
				return nil
			}
			if err != nil {
				return err
			}
			msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
			if err != nil {
				return err
			}
			for _, m := range msgs {
				if m.Header.Type != unix.IP_RECVERR && m.Header.Type != unix.IPV6_RECVERR {
					continue
				}
				o := offence{}
				if n >= 8 {
					o.seq = probe[7]
				}
				sa := m.Data[16:]
				if m.Header.Level == unix.SOL_IP {
					o.addr = netip.AddrFrom4([4]byte(sa[4:8])).String()
				} else {
					o.addr = netip.AddrFrom16([16]byte(sa[8:24])).String()
				}
				all = append(all, o)
			}
		}
	})
	return all
}
