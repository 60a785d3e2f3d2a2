package main

import (
	"net/netip"
	"testing"

	"pinproxy/netstack/host"
	"pinproxy/netstack/lab"
)

// Which addresses hosts behind a gateway may reach, and which sources are such hosts.
func TestGuard(t *testing.T) {
	n := lab.ForTest(t)
	top := n.Topology()
	top.Client.Own("192.0.2.77/32")
	var g *guard
	if err := top.Client.Do(func() (err error) { g, err = newGuard([]string{"eth0"}, false); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = g.close() }()
	for dst, want := range map[string]error{
		"203.0.113.2":         nil,
		"2001:db8:2::2":       nil,
		"192.0.2.1":           nil,
		"127.0.0.1":           errLoopback,
		"127.8.8.8":           errLoopback,
		"::1":                 errLoopback,
		"::ffff:127.0.0.1":    errForm,
		"::ffff:203.0.113.2":  errForm,
		"169.254.169.254":     errLink,
		"fe80::1":             errLink,
		"224.0.0.1":           errMany,
		"ff02::1":             errMany,
		"0.0.0.0":             errMany,
		"::":                  errMany,
		"255.255.255.255":     errMany,
		lab.Client4:           errOwn,
		lab.Client6:           errOwn,
		"198.51.100.255":      errOwn, // the broadcast address of its network
		"198.51.100.1":        nil,
		"192.0.2.77":          errOwn,
		"2001:db8:1::":        errOwn, // anycast: this host is a router of that network
		"2001:db8:ffff::1234": nil,
	} {
		if dst == "2001:db8:1::" {
			top.Client.Forward()
		}
		if err := g.forbid(netip.AddrPortFrom(netip.MustParseAddr(dst), 443)); err != want {
			t.Errorf("forbid(%s) = %v, want %v", dst, err, want)
		}
		if want == errLink && netip.MustParseAddr(dst).Is4() {
			want = nil
		}
		if err := g.forbid(netip.AddrPortFrom(netip.MustParseAddr(dst), dnsPort)); err != want {
			t.Errorf("forbid(%s) = %v for DNS, want %v", dst, err, want)
		}
	}
	for src, want := range map[string]bool{
		host.Addr4.String():  false,
		host.Addr6.String():  false,
		host.Guest4.String(): true, // masqueraded
		host.Guest6.String(): true,
		lab.Client4:          true, // another host's packet with NAT; this host's own are so with --strict only
		lab.Client6:          true,
		"198.51.100.77":      true,
		"2001:db8:1::77":     true,
		"10.1.2.3":           true,
	} {
		if got := g.behind(netip.MustParseAddr(src)); got != want {
			t.Errorf("behind(%s) = %v", src, got)
		}
		strict := &guard{g.where, true}
		if src == lab.Client4 || src == lab.Client6 {
			want = false
		}
		if got := strict.behind(netip.MustParseAddr(src)); got != want {
			t.Errorf("with --strict behind(%s) = %v", src, got)
		}
	}
	var none *guard
	if none.behind(netip.MustParseAddr("10.1.2.3")) || none.forbid(netip.MustParseAddrPort("127.0.0.1:443")) != nil {
		t.Error("without a gateway nobody is behind it")
	}
}
