package host

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// lingers returns how many rules of Linger there are, of both families.
func (b *bench) lingers() int {
	b.t.Helper()
	return len(b.lingering())
}

func (b *bench) lingering() (list []netlink.Rule) {
	b.t.Helper()
	for _, fam := range []family{v4, v6} {
		rules, err := ourRules(b.Client.Netlink(), fam)
		if err != nil {
			b.t.Fatal(err)
		}
		list = append(list, slices.DeleteFunc(rules, func(r netlink.Rule) bool { return !placeOf(r).lingers() })...)
	}
	return list
}

// flowsBehind returns flows of a host behind a gateway, of both families.
func flowsBehind(ports ...uint16) (flows [][2]netip.AddrPort) {
	for _, port := range ports {
		flows = append(flows,
			[2]netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.7"), port), netip.AddrPortFrom(server4, 443)},
			[2]netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("2001:db8:7::7"), port), netip.AddrPortFrom(server6, 443)})
	}
	return flows
}

// Whoever deletes some of these rules may leave others at the same priority.
func TestLingerIsRepaired(t *testing.T) {
	b := newBench(t)
	b.apply(web())
	if err := b.host.Linger(flowsBehind(1000, 2000, 3000)); err != nil {
		t.Fatal(err)
	}
	all := b.lingering()
	if len(all) != 6 {
		t.Fatalf("%d rules: %v", len(all), all)
	}
	for i := range all {
		if i == 1 || i == 4 {
			if err := b.Client.Netlink().RuleDel(&all[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	repaired, err := b.host.look(dirtRules)
	if err != nil || len(repaired) != 2 || b.lingers() != 6 {
		t.Errorf("repaired %v, %v; %d rules", repaired, err, b.lingers())
	}
	if repaired, err := b.host.look(dirtRules); err != nil || len(repaired) > 0 {
		t.Errorf("then repaired %v, %v", repaired, err)
	}
}
