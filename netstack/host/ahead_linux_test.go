package host

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What wg-quick adds when it starts after us has no priority, and so comes before our rules. Somebody must say so.
func TestRulesAhead(t *testing.T) {
	b := newBench(t)
	b.apply(web())
	b.run(time.Minute)
	b.awaitLook()
	if logs := b.logs.String(); strings.Contains(logs, "asked before") {
		t.Fatalf("warned of nothing:\n%s", logs)
	}
	for _, fam := range []family{v4, v6} {
		dst, bits := server4, 24
		if fam == v6 {
			dst, bits = server6, 64
		}
		link, err := b.Client.Netlink().LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		net := ipNet(netip.PrefixFrom(dst, bits).Masked())
		err = b.Client.Netlink().RouteAdd(&netlink.Route{Dst: net, LinkIndex: link.Attrs().Index, Table: 51820})
		if err != nil {
			t.Fatal(err)
		}
		vpn := netlink.NewRule()
		vpn.Family, vpn.Mark, vpn.Invert, vpn.Table = int(fam.af()), 51820, true, 51820
		if err := b.Client.Netlink().RuleAdd(vpn); err != nil {
			t.Fatal(err)
		}
		var found Ahead
		err = b.Client.Do(func() error {
			way, err := FindWay(Connection{Dst: netip.AddrPortFrom(dst, 443)})
			if err != nil || way.Ours {
				t.Errorf("captured all the same: %+v, %v", way, err)
			}
			found, err = FindAhead(netip.AddrPortFrom(dst, 443))
			return err
		})
		if err != nil || found != (Ahead{"3999", fam == v6}) {
			t.Errorf("found %+v, %v", found, err)
		}
		b.soon("warned", func() bool { return strings.Contains(b.logs.String(), found.Hint()) })
	}
	if n := strings.Count(b.logs.String(), "asked before"); n != 2 {
		t.Errorf("%d warnings, want one for each family:\n%s", n, b.logs)
	}
}

// A rule in the midst of ours comes before those that capture, or after them.
func TestRulesAmongOurs(t *testing.T) {
	b := newBench(t)
	b.apply(web())
	link, err := b.Client.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Client.Netlink().RouteAdd(&netlink.Route{Dst: ipNet(netip.PrefixFrom(server4, 32)), LinkIndex: link.Attrs().Index, Table: 100}); err != nil {
		t.Fatal(err)
	}
	dst := netip.AddrPortFrom(server4, 443)
	for priority, want := range map[int]Ahead{prefCapture - 1: {Priorities: "4009"}, prefSplit - 1: {}} {
		other := netlink.NewRule()
		other.Family, other.Priority, other.Table = unix.AF_INET, priority, 100
		if err := b.Client.Netlink().RuleAdd(other); err != nil {
			t.Fatal(err)
		}
		err := b.Client.Do(func() error {
			way, err := FindWay(Connection{Dst: dst})
			if err != nil {
				return err
			}
			found, err := FindAhead(dst)
			if found != want || way.Ours != (want == Ahead{}) {
				t.Errorf("%d: found %q, captured: %v", priority, found.Priorities, way.Ours)
			}
			return err
		})
		if err = errors.Join(err, b.Client.Netlink().RuleDel(other)); err != nil {
			t.Fatal(err)
		}
	}
}

// Tables: 100 has a default route, 101 one to the server only, 102 one elsewhere and a throw route to the server.
func TestAhead(t *testing.T) {
	_, other, _ := net.ParseCIDR("192.0.2.0/24")
	own := netip.MustParseAddr("198.51.100.9")
	server := netip.PrefixFrom(server4, 32)
	b := newBench(t)
	link, err := b.Client.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []netlink.Route{
		{Table: 100, Dst: ipNet(v4.all())},
		{Table: 101, Dst: ipNet(server)},
		{Table: 102, Dst: other},
		{Table: 102, Dst: ipNet(server), Type: unix.RTN_THROW},
	} {
		if r.Type != unix.RTN_THROW {
			r.LinkIndex = link.Attrs().Index
		}
		if err := b.Client.Netlink().RouteAdd(&r); err != nil {
			t.Fatal(err)
		}
	}
	rule := func(set func(*netlink.Rule)) netlink.Rule {
		r := netlink.NewRule()
		r.Priority, r.Family, r.Table = 90, unix.AF_INET, 100
		set(r)
		return *r
	}
	for name, test := range map[string]struct {
		rule netlink.Rule
		ours bool // leads our connections elsewhere
	}{
		"ours":                    {rule(func(r *netlink.Rule) { r.Protocol = Protocol }), false},
		"behind":                  {rule(func(r *netlink.Rule) { r.Priority = 5210 }), false},
		"local":                   {rule(func(r *netlink.Rule) { r.Table = unix.RT_TABLE_LOCAL }), false},
		"a VRF's":                 {rule(func(r *netlink.Rule) { r.Table = 0 }), false},
		"goto in front of us":     {rule(func(r *netlink.Rule) { r.Table, r.Goto = 0, 200 }), false},
		"a source of this host":   {rule(func(r *netlink.Rule) { r.Src = ipNet(netip.PrefixFrom(own, 32)) }), false},
		"a mark":                  {rule(func(r *netlink.Rule) { r.Mark = 1 }), false},
		"from another device":     {rule(func(r *netlink.Rule) { r.IifName = "eth1" }), false},
		"UDP":                     {rule(func(r *netlink.Rule) { r.IPProto = protoUDP }), false},
		"another destination":     {rule(func(r *netlink.Rule) { r.Dst = other }), false},
		"another port":            {rule(func(r *netlink.Rule) { r.Dport = netlink.NewRulePortRange(444, 500) }), false},
		"through a device":        {rule(func(r *netlink.Rule) { r.OifName = "eth1" }), false},
		"from one source port":    {rule(func(r *netlink.Rule) { r.Sport = netlink.NewRulePortRange(1, 2) }), false},
		"an empty table":          {rule(func(r *netlink.Rule) { r.Table = 103 }), false},
		"a table of others":       {rule(func(r *netlink.Rule) { r.Table = 102 }), false},
		"no default routes":       {rule(func(r *netlink.Rule) { r.SuppressPrefixlen = 0 }), false},
		"all":                     {rule(func(*netlink.Rule) {}), true},
		"a table of ours":         {rule(func(r *netlink.Rule) { r.Table = 101 }), true},
		"no default, but of ours": {rule(func(r *netlink.Rule) { r.Table, r.SuppressPrefixlen = 101, 0 }), true},
		"from a gateway":          {rule(func(r *netlink.Rule) { r.IifName = "lan0" }), true},
		"a source behind it":      {rule(func(r *netlink.Rule) { r.Src = other }), true},
		"our destination":         {rule(func(r *netlink.Rule) { r.Dst = ipNet(server) }), true},
		"our network":             {rule(func(r *netlink.Rule) { r.Dst = ipNet(netip.PrefixFrom(server4, 16).Masked()) }), true},
		"our port":                {rule(func(r *netlink.Rule) { r.Dport = netlink.NewRulePortRange(400, 443) }), true},
		"goto past us":            {rule(func(r *netlink.Rule) { r.Table, r.Goto = 0, 32766 }), true},
		"all but one source":      {rule(func(r *netlink.Rule) { r.Src, r.Invert = other, true }), true},
	} {
		h := &Host{
			cfg:    Config{PortSets: [][]PortRange{{{443, 443}}, {{444, 500}}}},
			routes: map[dest]bool{{tableSelf, v4.all()}: true, {tableDNS, v4.all()}: true, {tablePortSet, server}: true},
		}
		err := b.Client.Do(func() error {
			r, err := openRTNL()
			if err != nil {
				return err
			}
			defer r.close()
			leads, err := r.leads(v4, mayLead([]netlink.Rule{test.rule, test.rule}, []string{"lan0"}, []netip.Addr{own}))
			if a := ahead(v4, leads, h.captured); a.Priorities != "90" && test.ours || a.Priorities != "" && !test.ours {
				t.Errorf("%s: found %q", name, a.Priorities)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	if list := mayLead([]netlink.Rule{rule(func(r *netlink.Rule) { r.Src = other })}, nil, nil); len(list) > 0 {
		t.Error("a source address matters without a gateway")
	}
}
