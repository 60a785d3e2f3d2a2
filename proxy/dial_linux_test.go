package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"pinproxy/netstack/lab"
	"pinproxy/proxy/sockdiag"
)

func TestMain(m *testing.M) { lab.Main(m) }

// The server uses no timestamps, as behind an old firewall, and we close first. Without help the second connection on
// a 4-tuple could be made only after 60 s.
func TestTimeWaitIsNoObstacle(t *testing.T) {
	top := lab.ForTest(t).Topology()
	top.Server.Sysctl("net.ipv4.tcp_timestamps", "0")
	for _, addr := range []string{lab.Server4, lab.Server6} {
		dst := netip.AddrPortFrom(netip.MustParseAddr(addr), 7)
		server := top.Server.Serve(dst.String(), lab.Sink)
		from := netip.IPv4Unspecified()
		if dst.Addr().Is6() {
			from = netip.IPv6Unspecified()
		}
		pin := netip.AddrPortFrom(from, 63999)
		dialer := Sockets{Mark: 1, Endings: NewEndings()}
		for range 50 {
			var c Conn
			if err := top.Client.Do(func() (err error) { c, err = dialer.Dial(t.Context(), pin, dst); return err }); err != nil {
				t.Fatal(err)
			}
			_ = c.CloseWrite()
			_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
			if _, err := io.Copy(io.Discard, c); err != nil { // until the server has closed as well
				t.Fatal(err)
			}
			_ = c.Close()
		}
		seen := server.Seen()
		if len(seen) != 50 {
			t.Errorf("%s saw %d connections, want 50", addr, len(seen))
		}
		for _, src := range seen {
			if src.Port() != 63999 {
				t.Errorf("%s saw %s", addr, src)
			}
		}
	}
}

// Anything other than a TIME_WAIT is somebody's connection.
func TestLivingConnectionIsLeftAlone(t *testing.T) {
	top := lab.ForTest(t).Topology()
	dst := netip.MustParseAddrPort(lab.Server4 + ":7")
	top.Server.Serve(dst.String(), lab.Echo)
	open, err := top.Client.DialFrom(t.Context(), "tcp", ":63999", dst.String())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	err = top.Client.Do(func() error {
		_, err := Sockets{}.Dial(t.Context(), netip.MustParseAddrPort("0.0.0.0:63999"), dst)
		return err
	})
	if !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("dial on a living 4-tuple = %v, want EADDRNOTAVAIL", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	deadline, _ := ctx.Deadline()
	_ = open.SetDeadline(deadline)
	if _, err := open.Write([]byte("still")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(open, b); err != nil || string(b) != "still" {
		t.Errorf("the living connection answers %q, %v", b, err)
	}
	_ = open.(*net.TCPConn).SetLinger(0)
}

// A port that the kernel gave another program's connection is shared with it, towards another destination. A port
// that the kernel may not choose is not shared: bind's refusal stands.
func TestPortOfAnOrdinaryConnectionIsShared(t *testing.T) {
	lab.NeedKernel(t, 6, 3, "bind refuses such a port")
	top := lab.ForTest(t).Topology()
	top.Client.Sysctl("net.ipv4.ip_local_port_range", "40000 40000")
	for _, addr := range []string{lab.Server4, lab.Server6} {
		near := netip.AddrPortFrom(netip.MustParseAddr(addr), 7)
		far := netip.AddrPortFrom(near.Addr(), 8)
		top.Server.Serve(near.String(), lab.Echo)
		server := top.Server.Serve(far.String(), lab.Echo)
		other, err := top.Client.Dial(t.Context(), "tcp", near.String())
		if err != nil {
			t.Fatal(err)
		}
		from := netip.IPv4Unspecified()
		if far.Addr().Is6() {
			from = netip.IPv6Unspecified()
		}
		dial := func() (c Conn, err error) {
			err = top.Client.Do(func() error { c, err = Sockets{}.Dial(t.Context(), netip.AddrPortFrom(from, 40000), far); return err })
			return c, err
		}
		c, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		if got := addrPort(c.LocalAddr()).Port(); got != 40000 {
			t.Errorf("local port %d", got)
		}
		write(t, c, "hello")
		wantRead(t, c, "hello") // the server has accepted it
		closeByReset(c)

		top.Client.Sysctl("net.ipv4.ip_local_reserved_ports", "40000")
		if c, err = dial(); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("a reserved port: %v, %v; want bind's EADDRINUSE", c, err)
		}
		top.Client.Sysctl("net.ipv4.ip_local_reserved_ports", "")
		top.Client.Sysctl("net.ipv4.ip_local_port_range", "41000 41000")
		if c, err = dial(); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("a port out of the range: %v, %v; want bind's EADDRINUSE", c, err)
		}
		top.Client.Sysctl("net.ipv4.ip_local_port_range", "40000 40000")
		_ = other.(*net.TCPConn).SetLinger(0)
		_ = other.Close()
		for _, src := range server.Seen() {
			if src.Port() != 40000 {
				t.Errorf("the server saw %s", src)
			}
		}
		if n := len(server.Seen()); n != 1 {
			t.Errorf("the server saw %d connections, want 1", n)
		}
	}
}

// ofNobody is a Sockets.Owners that does not know this process.
func ofNobody(list []sockdiag.Socket) []sockdiag.Process { return make([]sockdiag.Process, len(list)) }

// occupy has another program listen.
func occupy(t *testing.T, h *lab.Host, network, local string) net.Listener {
	t.Helper()
	l, err := h.Listen(network, local)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// dialOrBlame dials an echo server from pin, and ends the connection by a reset once the server has accepted it. If it can't
// be made, it returns what is in the way.
func dialOrBlame(t *testing.T, h *lab.Host, pin, dst netip.AddrPort) (o Obstacle, err error) {
	t.Helper()
	err = h.Do(func() error {
		c, err := Sockets{}.Dial(t.Context(), pin, dst)
		if err != nil {
			o = Sockets{Owners: ofNobody}.Obstacle(pin, dst)
			return err
		}
		write(t, c, "hello")
		wantRead(t, c, "hello")
		closeByReset(c)
		return nil
	})
	return o, err
}

// A program that has a pin's port of IPv4 alone is neither in the way of a dial over IPv6 nor blamed when another one is.
func TestListenerOfTheOtherFamily(t *testing.T) {
	top := lab.ForTest(t).Topology()
	for _, test := range []struct{ from, server, network, other, own string }{
		{"[::]:63999", lab.Server6, "tcp4", "0.0.0.0:63999", "[::]:63999"},
		{"0.0.0.0:63999", lab.Server4, "tcp6", "[::]:63999", "0.0.0.0:63999"},
	} {
		pin, dst := netip.MustParseAddrPort(test.from), netip.AddrPortFrom(netip.MustParseAddr(test.server), 7)
		top.Server.Serve(dst.String(), lab.Echo)
		other := occupy(t, top.Client, test.network, test.other)
		if o, err := dialOrBlame(t, top.Client, pin, dst); err != nil {
			t.Errorf("%s beside a listener on %s: %v (%s)", pin, test.other, err, o.Cause)
		}
		own := occupy(t, top.Client, map[string]string{"tcp4": "tcp6", "tcp6": "tcp4"}[test.network], test.own)
		if o, err := dialOrBlame(t, top.Client, pin, dst); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(o.Cause, "listens on "+test.own) {
			t.Errorf("%s on the port of a listener on %s: %v, blamed: %q", pin, test.own, err, o.Cause)
		}
		_, _ = own.Close(), other.Close()
	}
}

// A program that has the pin's port on an address from which the dial would not leave is neither in its way nor blamed
// when another one is.
func TestListenerOnAnotherAddress(t *testing.T) {
	top := lab.ForTest(t).Topology()
	for _, test := range []struct{ from, server, other, own string }{
		{"0.0.0.0:63999", lab.Server4, "127.0.0.1:63999", lab.Client4 + ":63999"},
		{"[::]:63999", lab.Server6, "[::1]:63999", "[" + lab.Client6 + "]:63999"},
	} {
		pin, dst := netip.MustParseAddrPort(test.from), netip.AddrPortFrom(netip.MustParseAddr(test.server), 7)
		server := top.Server.Serve(dst.String(), lab.Echo)
		other := occupy(t, top.Client, "tcp", test.other)
		if o, err := dialOrBlame(t, top.Client, pin, dst); err != nil {
			t.Errorf("%s beside a listener on %s: %v (%s)", pin, test.other, err, o.Cause)
		}
		for _, src := range server.Seen() {
			if src.Port() != 63999 {
				t.Errorf("the server saw %s", src)
			}
		}
		own := occupy(t, top.Client, "tcp", test.own)
		if o, err := dialOrBlame(t, top.Client, pin, dst); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(o.Cause, "listens on "+test.own) {
			t.Errorf("%s on the port of a listener on %s: %v, blamed: %q", pin, test.own, err, o.Cause)
		}
		_, _ = own.Close(), other.Close()
	}
}

// What sockets may be bound to is another question (ip_nonlocal_bind).
func TestOwns(t *testing.T) {
	top := lab.ForTest(t).Topology()
	top.Client.Sysctl("net.ipv4.ip_nonlocal_bind", "1")
	top.Client.Sysctl("net.ipv6.ip_nonlocal_bind", "1")
	top.Client.Addr("eth0", "198.51.100.3/24") // a secondary one
	top.Client.Own("192.0.2.0/24")
	lone := lab.ForTest(t).Host("lone") // without a route
	for _, test := range []struct {
		host *lab.Host
		addr string
		want bool
	}{
		{top.Client, "127.0.0.1", true},
		{top.Client, "::1", true},
		{top.Client, lab.Client4, true},
		{top.Client, lab.Client6, true},
		{top.Client, "198.51.100.3", true},
		{top.Client, "192.0.2.99", true},
		{top.Client, lab.Near4, false},
		{top.Client, lab.Near6, false},
		{top.Client, "203.0.113.99", false},
		{top.Client, "2001:db8:99::", false},
		{lone, lab.Client4, false},
		{lone, lab.Client6, false},
	} {
		_ = test.host.Do(func() error {
			if got := (Sockets{}).Owns(netip.MustParseAddr(test.addr)); got != test.want {
				t.Errorf("%s has %s: %v", test.host.Name(), test.addr, got)
			}
			return nil
		})
	}
}

// The host's policy rules may give TCP, or the port, another source address than a socket of another kind would have.
func TestSourceByPolicyRule(t *testing.T) {
	top := lab.ForTest(t).Topology()
	top.Server.Sysctl("net.ipv4.tcp_timestamps", "0")
	top.Client.Addr("eth0", "198.51.100.3/32")
	top.Client.Addr("eth0", "2001:db8:1::3/128")
	for _, test := range []struct{ any, usual, own, via, dst string }{
		{"0.0.0.0", lab.Client4, "198.51.100.3", lab.Near4, lab.Server4},
		{"::", "2001:db8:1::3", lab.Client6, lab.Near6, lab.Server6},
	} {
		top.Client.RouteFrom(63999, test.own, test.via)
		own := netip.MustParseAddr(test.own)
		pin, dst := netip.AddrPortFrom(netip.MustParseAddr(test.any), 63999), netip.AddrPortFrom(netip.MustParseAddr(test.dst), 7)
		server := top.Server.Serve(dst.String(), lab.Sink)
		other := occupy(t, top.Client, "tcp", netip.AddrPortFrom(netip.MustParseAddr(test.usual), 63999).String())
		for range 2 { // the second time there is a TIME_WAIT
			if trial, err := try(t, top.Client, pin, dst); err != nil || trial.Local.Addr() != own {
				t.Errorf("%s beside a listener on %s: from %s, %v", pin, other.Addr(), trial.Local, err)
			}
		}
		for _, src := range server.Seen() {
			if src != netip.AddrPortFrom(own, 63999) {
				t.Errorf("the server saw %s", src)
			}
		}
	}
}

// Over IPv6 a router that forbids the connection looks like this host's own firewall, but must not be mistaken for
// it.
func TestForbiddenOnTheWay(t *testing.T) {
	top := lab.ForTest(t).Topology()
	top.Router.Firewall(lab.Filter{Reject: true})
	pin, dst := netip.MustParseAddrPort("[::]:63999"), netip.AddrPortFrom(netip.MustParseAddr(lab.Server6), 443)
	err := top.Client.Do(func() error { _, err := Sockets{}.Dial(t.Context(), pin, dst); return err })
	if err = explain(err, pin, dst); kindOf(err) != KindFirewall || !strings.Contains(err.Error(), "on the way") || hintOf(err) == "" {
		t.Errorf("%v (%v)", err, hintOf(err))
	}
}

// A connection of ours is told from others by its mark.
func TestMarked(t *testing.T) {
	top := lab.ForTest(t).Topology()
	ours := Sockets{Mark: 0x70}
	for _, addr := range []string{lab.Server4, lab.Server6} {
		dst := netip.AddrPortFrom(netip.MustParseAddr(addr), 7)
		top.Server.Serve(dst.String(), lab.Sink)
		for _, c := range []struct {
			by   Sockets
			want bool
		}{{ours, true}, {Sockets{Mark: 0x71}, false}, {Sockets{}, false}} {
			if err := top.Client.Do(func() error {
				conn, err := c.by.Dial(t.Context(), netip.AddrPort{}, dst)
				if err != nil {
					return err
				}
				defer conn.Close()
				local := addrPort(conn.LocalAddr())
				if got, known := ours.Marked(local, dst); got != c.want || !known {
					t.Errorf("%s, mark %#x: %v, known %v", dst, c.by.Mark, got, known)
				}
				local = netip.AddrPortFrom(local.Addr(), 1)
				if got, known := ours.Marked(local, dst); got || known {
					t.Errorf("%s from %s, which does not exist: %v, known %v", dst, local, got, known)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
}
