package host

import (
	"errors"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// heard reads all pending notifications, and returns what they make worth checking. The notifications of a
// change made here are pending already; the kernel adds some others a little later.
func (b *bench) heard(about func(message) dirt) dirt {
	b.t.Helper()
	var all dirt
	buf := make([]byte, 32<<10)
	for readable(b.t, b.host.events.raw, 10*time.Millisecond) {
		d, err := b.host.events.read(b.t.Context(), buf, about)
		if err != nil {
			b.t.Fatal(err)
		}
		all |= d
	}
	return all
}

func TestEvents(t *testing.T) {
	b := newBench(t)
	b.apply(web())
	link := b.host.kernel.link
	b.heard(func(message) dirt { return 0 })

	routes := 0
	countRoutes := func(m message) dirt {
		if info, ok := parseRoute(m.data); ok && info.protocol == Protocol {
			routes++
		}
		return about(m, link, true)
	}
	if err := errors.Join(b.host.Add(t.Context(), many(1000)), b.host.Remove(t.Context(), many(1000))); err != nil {
		t.Fatal(err)
	}
	if d := b.heard(countRoutes); d != 0 || routes > 0 {
		t.Errorf("heard %d changes of our own: %b", routes, d)
	}

	foreign := func(name string, want dirt, ipv6 bool, change func() error) {
		t.Helper()
		if err := change(); err != nil {
			t.Fatal(name, err)
		}
		if got := b.heard(func(m message) dirt { return about(m, link, ipv6) }); got != want {
			t.Errorf("%s: worth looking at %b, want %b", name, got, want)
		}
	}
	h := b.Client.Netlink()
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	theirs := &netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(capture("2001:db8:9::/48", 0).Dst)}
	ours := &netlink.Route{Table: tablePortSet, Scope: netlink.SCOPE_LINK, Dst: ipNet(web().Captures[0].Dst)}
	end := rule{fam: v4, pref: prefEnd, action: nop}.theirs()
	address, err := netlink.ParseAddr("192.0.2.9/32")
	if err != nil {
		t.Fatal(err)
	}
	foreign("IPv6 route comes", dirtIPv6, false, func() error { return h.RouteAdd(theirs) })
	foreign("IPv6 route goes", 0, false, func() error { return h.RouteDel(theirs) })
	foreign("IPv6 route comes, we have IPv6", 0, true, func() error { return h.RouteAdd(theirs) })
	foreign("our route goes", dirtRoutes, true, func() error { return h.RouteDel(ours) })
	foreign("our rule goes", dirtRules, true, func() error { return h.RuleDel(end) })
	foreign("their address comes and goes", 0, true, func() error {
		return errors.Join(h.AddrAdd(eth0, address), h.AddrDel(eth0, address))
	})
	foreign("our address goes", dirtLink, true, func() error { return h.AddrDel(b.pin0(), addr{link: Link, addr: Addr4}.netlink()) })
	foreign("our device goes down", dirtLink|dirtRoutes, true, func() error { return h.LinkSetDown(b.pin0()) })
}

// If the kernel has dropped notifications, everything is worth checking.
func TestEventsOverflow(t *testing.T) {
	b := newBench(t)
	b.apply(web())
	raw, err := b.host.events.file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1) })
	if err != nil {
		t.Fatal(err)
	}
	r := rule{fam: v4, pref: 9000, action: nop}.theirs()
	for range 50 {
		if err := errors.Join(b.Client.Netlink().RuleAdd(r), b.Client.Netlink().RuleDel(r)); err != nil {
			t.Fatal(err)
		}
	}
	if d := b.heard(func(message) dirt { return 0 }); d != dirtAll {
		t.Errorf("worth looking at %b", d)
	}
}
