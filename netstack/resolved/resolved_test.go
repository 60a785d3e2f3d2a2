package resolved

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"pinproxy/netstack/dns"
)

func TestFold(t *testing.T) {
	for _, test := range []struct {
		names string
		most  int
		want  string
	}{
		{"", 4, ""},
		{"bank.example www.bank.example a.b.bank.example", 4, "a.b.bank.example bank.example www.bank.example"},
		{"bank.example www.bank.example a.b.bank.example", 2, "bank.example"},
		{"www.bank.example mail.bank.example", 4, "mail.bank.example www.bank.example"},
		{"bank.example xbank.example", 4, "bank.example xbank.example"},
		{"b a a", 2, "a b"},
		{"a.b.example c.b.example d.example", 2, "b.example d.example"},
		{"a.b.c.example d.e.example f.g.example h.org", 3, "example org"}, // all of the longest are cut
		{"a b c", 2, "."},
	} {
		got := fold(strings.Fields(test.names), test.most)
		want := strings.Fields(test.want)
		if test.want == "." {
			want = []string{""} // the root
		}
		if !slices.Equal(got, want) {
			t.Errorf("fold(%q, %d) = %q, want %q", test.names, test.most, got, want)
		}
	}
}

// After folding, every name is still below a domain, and there are not too many domains.
func TestFoldMany(t *testing.T) {
	var names []string
	for i := range 3000 {
		names = append(names, fmt.Sprintf("h%d.n%d.d%d.example", i, i%700, i%300))
	}
	for _, most := range []int{1, 2, 256, 299, 300, 3000} {
		list := fold(names, most)
		if len(list) > most || len(list) == 0 || !subset(names, list) {
			t.Errorf("at most %d domains: got %d, all names below them: %v", most, len(list), subset(names, list))
		}
	}
}

func TestWithin(t *testing.T) {
	for _, test := range []struct {
		name, domain string
		want         bool
	}{
		{"www.bank.example", "bank.example", true},
		{"bank.example", "bank.example", true},
		{"xbank.example", "bank.example", false},
		{"example", "bank.example", false},
		{"bank.example", "", true},
		{"", "", true},
	} {
		if got := within(test.name, test.domain); got != test.want {
			t.Errorf("within(%q, %q) = %v", test.name, test.domain, got)
		}
	}
}

func srv(addrs ...string) (list []server) {
	for _, a := range addrs {
		list = append(list, server{addr: netip.AddrPortFrom(netip.MustParseAddr(a), 0)})
	}
	return list
}

// networks are those of a laptop in an office, with a VPN.
var networks = []scope{
	{link: 0, servers: srv("192.0.2.1"), domains: []string{"lab.example"}, defaultRoute: true, dnssec: modeNo, tls: modeNo},
	{link: 2, servers: srv("198.51.100.1", "198.51.100.2"), domains: []string{"office.example"}, defaultRoute: true, dnssec: modeAllowDowngrade, tls: modeNo},
	{link: 3, servers: srv("203.0.113.1"), domains: []string{"bank.example", "vpn.office.example"}, dnssec: modeYes, tls: modeYes},
	{link: 4, domains: []string{"www.bank.example"}, defaultRoute: true, dnssec: modeNo},
	{link: 5, servers: srv("127.0.0.1", "198.51.100.9"), domains: []string{"local.example"}, dnssec: modeNo, tls: "opportunistic"},
}

// resolved asks no server for names below local, unless a network claims them.
func TestMulticastOnly(t *testing.T) {
	claims := func(domain string) []scope {
		return append(slices.Clone(networks), scope{link: 6, servers: srv("203.0.113.9"), domains: []string{domain}})
	}
	idle := append(slices.Clone(networks), scope{link: 6, domains: []string{"local"}})
	for _, test := range []struct {
		all  []scope
		name string
		want bool
	}{
		{networks, "printer.local", true},
		{networks, "local", true},
		{networks, "www.bank.example", false},
		{networks, "other.example", false},
		{networks, "xlocal", false},
		{claims("local"), "printer.local", false},
		{claims(""), "printer.local", false},
		{claims("corp.local"), "www.corp.local", false},
		{claims("corp.local"), "printer.local", true},
		{idle, "printer.local", true},
	} {
		if got := multicastOnly(test.all, test.name); got != test.want {
			t.Errorf("multicastOnly(%q) = %v with %v", test.name, got, test.all)
		}
	}
}

func TestRivals(t *testing.T) {
	all := append(slices.Clone(networks), scope{link: 6, servers: srv("203.0.113.9"), domains: []string{"office.example", "a.lab.example"}})
	for names, want := range map[string]string{
		"office.example":                 "office.example vpn.office.example",
		"vpn.office.example":             "vpn.office.example",
		"www.office.example":             "",
		"lab.example":                    "a.lab.example", // our policy rules reach what the global settings lead to
		"www.bank.example":               "",              // an interface without servers
		"bank.example":                   "bank.example",
		"bank.example a.b.local.example": "bank.example",
	} {
		if got := strings.Join(rivals(all, strings.Fields(names)), " "); got != want {
			t.Errorf("rivals(%q) = %q, want %q", names, got, want)
		}
	}
}

func TestUpstreams(t *testing.T) {
	networks[2].servers[0].name = "dns.bank.example"
	networks[1].servers[1].addr = netip.MustParseAddrPort("198.51.100.2:5353")
	own := []netip.Addr{netip.MustParseAddr("198.51.100.9")}
	ap := netip.MustParseAddrPort
	office := []dns.Upstream{{Addr: ap("198.51.100.1:53"), Link: 2}, {Addr: ap("198.51.100.2:5353"), Link: 2}}
	vpn := []dns.Upstream{{Addr: ap("203.0.113.1:853"), Link: 3, TLS: true, Name: "dns.bank.example"}}
	global := []dns.Upstream{{Addr: ap("192.0.2.1:53")}}
	for name, want := range map[string][][]dns.Upstream{
		"other.example":          {global, office},
		"www.office.example":     {office},
		"git.vpn.office.example": {vpn},
		"www.bank.example":       {vpn},
		"x.lab.example":          {global},
		"x.local.example":        {{{Addr: ap("127.0.0.1:53")}, {Addr: ap("198.51.100.9:53")}}},
	} {
		if diff := cmp.Diff(want, upstreams(networks, name, own), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestStrictest(t *testing.T) {
	for domains, want := range map[string]string{
		"x.lab.example":              modeNo,
		"other.example":              modeAllowDowngrade,
		"x.lab.example bank.example": modeYes,
		"":                           modeNo,
	} {
		if got := strictest(networks, strings.Fields(domains)); got != want {
			t.Errorf("%q: %s, want %s", domains, got, want)
		}
	}
}
