package host

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// way returns where h sends c.
func way(t *testing.T, h *lab.Host, c Connection) (w Way, err error) {
	t.Helper()
	_ = h.Do(func() error {
		w, err = FindWay(c)
		return nil
	})
	return w, err
}

// What FindWay reports as captured is what enters the device: capture_linux_test.go has the same connections.
func TestFindWay(t *testing.T) {
	b := newBench(t)
	b.apply(web())
	for _, a := range servers {
		own, tun, local := netip.MustParseAddr(lab.Client4), Addr4, netip.MustParseAddr(lab.Client4)
		if a.Is6() {
			own, tun, local = netip.MustParseAddr(lab.Client6), Addr6, netip.MustParseAddr(lab.Client6)
		}
		direct := Way{Link: "eth0", Source: own}
		to := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
		for _, test := range []struct {
			what string
			c    Connection
			want Way
		}{
			{"a program's", Connection{Dst: to(443)}, Way{Ours: true, Link: Link, Source: tun}},
			{"to another port", Connection{Dst: to(80)}, direct},
			{"from a bound socket", Connection{Dst: to(443), Src: own}, direct},
			{"of our own", Connection{Dst: to(443), Mark: Mark}, direct},
			{"of our own, bound", Connection{Dst: to(443), Src: own, Mark: Mark}, direct},
			{"to this host", Connection{Dst: netip.AddrPortFrom(local, 443)}, Way{Local: true, Link: "lo", Source: local}},
		} {
			got, err := way(t, b.Client, test.c)
			if test.c.Src.IsValid() {
				got.Source = own // a bound socket asks for none
			}
			if got != test.want || err != nil {
				t.Errorf("%v, %s: %+v, %v, want %+v", a, test.what, got, err, test.want)
			}
		}
	}
}

func TestFindNoWay(t *testing.T) {
	lone := lab.ForTest(t).Host("lone")
	for _, addr := range []string{"203.0.113.2:443", "[2001:db8::1]:443"} {
		if got, err := way(t, lone, Connection{Dst: netip.MustParseAddrPort(addr)}); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("%s: %+v, %v", addr, got, err)
		}
	}
	top := lab.ForTest(t).Topology()
	for typ, want := range map[int]error{unix.RTN_UNREACHABLE: unix.EHOSTUNREACH, unix.RTN_PROHIBIT: unix.EACCES, unix.RTN_BLACKHOLE: unix.EINVAL} {
		for _, addr := range []string{lab.Server4, lab.Server6} {
			dst := netip.MustParseAddr(addr)
			undo := deadEnd(t, top.Client, netip.PrefixFrom(dst, dst.BitLen()), typ)
			if got, err := way(t, top.Client, Connection{Dst: netip.AddrPortFrom(dst, 443)}); !errors.Is(err, want) {
				t.Errorf("%s over a route of type %d: %+v, %v, want %v", addr, typ, got, err, want)
			}
			undo()
		}
	}
	if got, err := way(t, top.Client, Connection{Dst: netip.MustParseAddrPort(lab.Server4 + ":443"), Src: netip.MustParseAddr("192.0.2.1")}); err == nil {
		t.Errorf("from an address that is not on the host: %+v", got)
	}
}

// deadEnd adds a route that leads nowhere.
func deadEnd(t *testing.T, h *lab.Host, dst netip.Prefix, typ int) (undo func()) {
	t.Helper()
	route := &netlink.Route{Dst: ipNet(dst), Type: typ}
	if err := h.Netlink().RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := h.Netlink().RouteDel(route); err != nil {
			t.Fatal(err)
		}
	}
}
