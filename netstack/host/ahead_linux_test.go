package host

import (
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
			found, err = FindAhead(dst)
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

func TestAheadHarmless(t *testing.T) {
	_, other, _ := net.ParseCIDR("192.0.2.0/24")
	means := func(p netip.Prefix) bool { return p.Contains(server4) }
	rule := func(set func(*netlink.Rule)) netlink.Rule {
		r := netlink.NewRule()
		r.Priority, r.Family, r.Table = 100, unix.AF_INET, 100
		set(r)
		return *r
	}
	for name, r := range map[string]netlink.Rule{
		"ours":                 rule(func(r *netlink.Rule) { r.Protocol = Protocol }),
		"behind":               rule(func(r *netlink.Rule) { r.Priority = 5210 }),
		"local":                rule(func(r *netlink.Rule) { r.Table = unix.RT_TABLE_LOCAL }),
		"a VRF's":              rule(func(r *netlink.Rule) { r.Table = 0 }),
		"goto in front of us":  rule(func(r *netlink.Rule) { r.Table, r.Goto = 0, 200 }),
		"a source":             rule(func(r *netlink.Rule) { r.Src = other }),
		"a mark":               rule(func(r *netlink.Rule) { r.Mark = 1 }),
		"from another device":  rule(func(r *netlink.Rule) { r.IifName = "eth1" }),
		"UDP":                  rule(func(r *netlink.Rule) { r.IPProto = protoUDP }),
		"another destination":  rule(func(r *netlink.Rule) { r.Dst = other }),
		"through a device":     rule(func(r *netlink.Rule) { r.OifName = "eth1" }),
		"from one source port": rule(func(r *netlink.Rule) { r.Sport = netlink.NewRulePortRange(1, 2) }),
	} {
		if a := ahead([]netlink.Rule{r}, []string{"lan0"}, means); a.Priorities != "" {
			t.Errorf("%s: %v", name, a)
		}
	}
	for name, r := range map[string]netlink.Rule{
		"all":                rule(func(*netlink.Rule) {}),
		"from a gateway":     rule(func(r *netlink.Rule) { r.IifName = "lan0" }),
		"our destination":    rule(func(r *netlink.Rule) { r.Dst = ipNet(netip.PrefixFrom(server4, 32)) }),
		"goto past us":       rule(func(r *netlink.Rule) { r.Table, r.Goto = 0, 32766 }),
		"all but one source": rule(func(r *netlink.Rule) { r.Src, r.Invert = other, true }),
	} {
		if a := ahead([]netlink.Rule{r}, []string{"lan0"}, means); a.Priorities != "100" {
			t.Errorf("%s: %v", name, a)
		}
	}
}
