package lab_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// Facts 12 and 13: how policy rules capture connections. Two hosts own the same destinations and answer with their
// name. The main table leads to one. Table 7001 leads to the other, which stands for the TUN.
//
//	inner ── eth2 client eth0 ── plain     192.0.2.1, 2001:db8:cafe::1
//	                     eth1 ── captured  192.0.2.1, 2001:db8:cafe::1
type fork struct {
	*lab.Host // client
	inner     *lab.Host
	v4, v6    side
}

// side holds what differs between the families.
type side struct {
	name   string
	family int
	own    string // the client's address towards plain
	tun    string // and towards captured, like the TUN's address
	dst    string
}

const captureTable = 7001

func newFork(t *testing.T) *fork {
	n := lab.ForTest(t)
	f := &fork{
		Host: n.Host("client"), inner: n.Host("inner"),
		v4: side{"IPv4", unix.AF_INET, "198.51.100.1", "203.0.113.1", "192.0.2.1"},
		v6: side{"IPv6", unix.AF_INET6, "2001:db8:1::1", "2001:db8:2::1", "2001:db8:cafe::1"},
	}
	plain, captured := n.Host("plain"), n.Host("captured")
	n.Link(f.Host, []string{"198.51.100.1/24", "2001:db8:1::1/64"}, plain, []string{"198.51.100.2/24", "2001:db8:1::2/64"})
	n.Link(f.Host, []string{"203.0.113.1/24", "2001:db8:2::1/64"}, captured, []string{"203.0.113.2/24", "2001:db8:2::2/64"})
	n.Link(f.Host, []string{"192.0.2.129/28", "2001:db8:3::1/64"}, f.inner, []string{"192.0.2.130/28", "2001:db8:3::2/64"})
	f.Forward()
	f.inner.Route("default", "192.0.2.129")
	f.inner.Route("default", "2001:db8:3::1")
	for _, h := range []*lab.Host{plain, captured} {
		h.Own("192.0.2.1/32", "2001:db8:cafe::1/128")
		for _, addr := range []string{":443", ":80"} {
			h.Serve(addr, func(c net.Conn) { sayName(c, h.Name()) })
		}
	}
	plain.Route("default", "198.51.100.1")
	plain.Route("default", "2001:db8:1::1")
	captured.Route("default", "203.0.113.1")
	captured.Route("default", "2001:db8:2::1")
	f.Route("192.0.2.1/32", "198.51.100.2")
	f.Route("2001:db8:cafe::1/128", "2001:db8:1::2")
	for dst, via := range map[string]string{"192.0.2.1/32": "203.0.113.2", "2001:db8:cafe::1/128": "2001:db8:2::2"} {
		route := &netlink.Route{Dst: ipNet(dst), Gw: net.ParseIP(via), Table: captureTable}
		if err := f.Netlink().RouteAdd(route); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// sayName answers every byte with a name.
func sayName(c net.Conn, name string) {
	for b := make([]byte, 1); ; {
		if _, err := c.Read(b); err != nil {
			return
		}
		if _, err := io.WriteString(c, name); err != nil {
			return
		}
	}
}

func ipNet(prefix string) *net.IPNet {
	_, n, err := net.ParseCIDR(prefix)
	if err != nil {
		panic(err)
	}
	return n
}

func addrPort(addr string, port uint16) string {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), port).String()
}

// onBothSides checks a fact on either family, with its own network.
func onBothSides(t *testing.T, fact func(t *testing.T, f *fork, s side)) {
	t.Parallel()
	for _, pick := range []func(*fork) side{
		func(f *fork) side { return f.v4 }, func(f *fork) side { return f.v6 },
	} {
		f := newFork(t)
		s := pick(f)
		t.Run(s.name, func(t *testing.T) { fact(t, f, s) })
	}
}

// rule returns a rule of the family with a priority, modified by the options.
func (s side) rule(priority int, options ...func(*netlink.Rule)) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Priority = s.family, priority
	for _, o := range options {
		o(r)
	}
	return r
}

func from(prefix string) func(*netlink.Rule) {
	return func(r *netlink.Rule) { r.Src = ipNet(prefix) }
}

func iif(name string) func(*netlink.Rule)   { return func(r *netlink.Rule) { r.IifName = name } }
func lookup(table int) func(*netlink.Rule)  { return func(r *netlink.Rule) { r.Table = table } }
func goTo(priority int) func(*netlink.Rule) { return func(r *netlink.Rule) { r.Goto = priority } }
func nop(r *netlink.Rule)                   { r.Type = nl.FR_ACT_NOP }

func tcpTo(first, last uint16) func(*netlink.Rule) {
	return func(r *netlink.Rule) {
		r.IPProto, r.Dport = unix.IPPROTO_TCP, netlink.NewRulePortRange(first, last)
	}
}

func (f *fork) add(t *testing.T, rules ...*netlink.Rule) {
	t.Helper()
	for _, r := range rules {
		if err := f.Netlink().RuleAdd(r); err != nil {
			t.Fatalf("add rule %d: %v", r.Priority, err)
		}
	}
}

func (f *fork) del(t *testing.T, rules ...*netlink.Rule) {
	t.Helper()
	for _, r := range rules {
		if err := f.Netlink().RuleDel(r); err != nil {
			t.Fatalf("delete rule %d: %v", r.Priority, err)
		}
	}
}

// open connects and returns the connection and the name of the host that answers.
func open(t *testing.T, h *lab.Host, local, remote string) (net.Conn, string) {
	t.Helper()
	c, err := h.DialFrom(t.Context(), "tcp", local, remote)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	who, err := ask(c)
	if err != nil {
		t.Fatal(err)
	}
	return c, who
}

func (f *fork) expect(t *testing.T, h *lab.Host, local, remote, want string) net.Conn {
	t.Helper()
	c, who := open(t, h, local, remote)
	if who != want {
		t.Errorf("%s from %q to %s ended at %s, want %s", h.Name(), local, remote, who, want)
	}
	return c
}

// Fact 12: the rule applies to sockets that connect and to packets that are forwarded.
func TestRuleByPortCaptures(t *testing.T) {
	onBothSides(t, func(t *testing.T, f *fork, s side) {
		f.add(t, s.rule(100, tcpTo(443, 443), lookup(captureTable)))
		f.expect(t, f.Host, "", addrPort(s.dst, 443), "captured")
		f.expect(t, f.Host, "", addrPort(s.dst, 80), "plain")
		f.expect(t, f.inner, "", addrPort(s.dst, 443), "captured")
		f.expect(t, f.inner, "", addrPort(s.dst, 80), "plain")
	})
}

// unbound returns the rules that capture only sockets without a source address.
//
// IPv4: fib4_rule_match compares the address with the rule's, and no address is 0.0.0.0. Once the source is known,
// ip_route_connect looks up the route again, so the flow needs a rule for its new source.
//
// IPv6: for a socket without an address, fib6_rule_match never matches a rule with `from`, whatever the prefix, not
// even ::/128. So `from ::/1` and `from 8000::/1` can tell sockets apart, as guards before the capture.
func unbound(s side) (guards, captures []*netlink.Rule) {
	carry := s.rule(100, from(s.tun+"/32"), lookup(captureTable))
	if s.family == unix.AF_INET {
		return nil, []*netlink.Rule{carry, s.rule(103, from("0.0.0.0/32"), tcpTo(443, 443), lookup(captureTable))}
	}
	carry.Src = ipNet(s.tun + "/128")
	return []*netlink.Rule{
			s.rule(104, nop), // first: the target of a goto must exist
			s.rule(101, iif("lo"), from("::/1"), goTo(104)),
			s.rule(102, iif("lo"), from("8000::/1"), goTo(104)),
		}, []*netlink.Rule{
			carry, s.rule(103, tcpTo(443, 443), lookup(captureTable)),
		}
}

// Fact 12: sockets with a source address of their own are not captured.
func TestOnlyUnboundSocketsAreCaptured(t *testing.T) {
	onBothSides(t, func(t *testing.T, f *fork, s side) {
		guards, captures := unbound(s)
		f.add(t, guards...)
		f.add(t, captures...)
		c := f.expect(t, f.Host, "", addrPort(s.dst, 443), "captured")
		if got := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().String(); got != s.tun {
			t.Errorf("captured flow has source %s, want %s", got, s.tun)
		}
		f.expect(t, f.Host, addrPort(s.own, 0), addrPort(s.dst, 443), "plain")
		f.expect(t, f.Host, ":63999", addrPort(s.dst, 443), "captured") // a port alone is not an address
		f.expect(t, f.Host, "", addrPort(s.dst, 80), "plain")

		f.add(t, s.rule(50, tcpTo(1, 1), lookup(captureTable))) // any change makes sockets look up their route again
		if who, err := ask(c); who != "captured" {
			t.Errorf("captured flow went on to %s, %v", who, err)
		}
	})
}

// Fact 12: without the rule for the TUN's address even the first packet goes astray.
func TestFromZeroAloneDoesNotCarryTheFlow(t *testing.T) {
	t.Parallel()
	f := newFork(t)
	f.add(t, f.v4.rule(103, from("0.0.0.0/32"), tcpTo(443, 443), lookup(captureTable)))
	c := f.expect(t, f.Host, "", "192.0.2.1:443", "plain")
	if got := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().String(); got != f.v4.tun {
		t.Errorf("source is %s, want %s all the same", got, f.v4.tun)
	}
}

// Fact 12: fib6_rule_match.
func TestFromUnspecifiedNeverMatchesIPv6(t *testing.T) {
	t.Parallel()
	f := newFork(t)
	f.add(t, f.v6.rule(100, from(f.v6.tun+"/128"), lookup(captureTable)))
	for i, prefix := range []string{"::/128", "::/1", "8000::/1"} {
		f.add(t, f.v6.rule(101+i, from(prefix), tcpTo(443, 443), lookup(captureTable)))
		if prefix == "::/128" {
			f.expect(t, f.Host, addrPort(f.v6.own, 0), addrPort(f.v6.dst, 443), "plain")
		}
		f.expect(t, f.Host, "", addrPort(f.v6.dst, 443), "plain")
	}
	f.expect(t, f.Host, addrPort(f.v6.own, 0), addrPort(f.v6.dst, 443), "captured") // by ::/1
}

// Facts 12 and 13: a flow that is captured midway reaches a host that does not know it, and is reset.
func TestCapturingALiveFlowKillsIt(t *testing.T) {
	onBothSides(t, func(t *testing.T, f *fork, s side) {
		c := f.expect(t, f.Host, "", addrPort(s.dst, 443), "plain")
		f.add(t, s.rule(100, tcpTo(443, 443), lookup(captureTable)))
		if who, err := ask(c); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("live flow is at %q, %v, want ECONNRESET", who, err)
		}
	})
}

// Facts 12 and 13: the rules for unbound sockets leave live flows alone, both when added and when removed.
func TestLiveFlowsSurviveStartAndStop(t *testing.T) {
	onBothSides(t, func(t *testing.T, f *fork, s side) {
		before := f.Snapshot()
		c := f.expect(t, f.Host, "", addrPort(s.dst, 443), "plain")
		alive := func() {
			t.Helper()
			if who, err := ask(c); who != "plain" {
				t.Errorf("live flow is at %q, %v", who, err)
			}
		}
		guards, captures := unbound(s)
		for _, r := range append(guards, captures...) {
			f.add(t, r)
			alive()
		}
		f.expect(t, f.Host, "", addrPort(s.dst, 443), "captured")
		for _, r := range append(captures, guards...) { // captures first
			f.del(t, r)
			alive()
		}
		if diff := cmp.Diff(before, f.Snapshot()); diff != "" {
			t.Error(diff)
		}
	})
}

// Fact 12: if a guard is removed before its capture, live flows are captured.
func TestGuardsThatGoFirstKillLiveFlows(t *testing.T) {
	t.Parallel()
	f := newFork(t)
	c := f.expect(t, f.Host, "", addrPort(f.v6.dst, 443), "plain")
	guards, captures := unbound(f.v6)
	f.add(t, guards...)
	f.add(t, captures...)
	f.del(t, guards...)
	if who, err := ask(c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("live flow is at %q, %v, want ECONNRESET", who, err)
	}
}

// Fact 12: fib_rule_port_range_valid rejects every range that ends at the last port.
func TestRulePortRangesEndBeforeTheLastPort(t *testing.T) {
	onBothSides(t, func(t *testing.T, f *fork, s side) {
		for _, p := range []struct {
			first, last uint16
			want        error
		}{
			{1, 65534, nil},
			{1, 65535, unix.EINVAL},
			{8000, 65535, unix.EINVAL},
			{65535, 65535, unix.EINVAL},
			{0, 80, unix.EINVAL},
		} {
			err := f.Netlink().RuleAdd(s.rule(100, tcpTo(p.first, p.last), lookup(captureTable)))
			if !errors.Is(err, p.want) {
				t.Errorf("dport %d-%d: %v, want %v", p.first, p.last, err, p.want)
			}
		}
	})
}

// Fact 12: with NLM_F_EXCL, rule_exists considers a rule without a prefix equal to one that has a prefix and is
// otherwise the same. The other order is accepted.
func TestRuleWithoutPrefixCollidesWithMoreSpecificOnes(t *testing.T) {
	onBothSides(t, func(t *testing.T, f *fork, s side) {
		wide := s.rule(100, tcpTo(443, 443), lookup(captureTable))
		narrow := s.rule(100, tcpTo(443, 443), lookup(captureTable))
		narrow.Dst = ipNet(map[string]string{"IPv4": "192.0.2.0/24", "IPv6": "2001:db8:cafe::/48"}[s.name])
		f.add(t, narrow)
		if err := f.Netlink().RuleAdd(wide); !errors.Is(err, unix.EEXIST) {
			t.Errorf("the wide one second: %v, want EEXIST", err)
		}
		f.del(t, narrow)
		f.add(t, wide, narrow)
	})
}
