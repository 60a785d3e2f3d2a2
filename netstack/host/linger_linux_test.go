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

// No rule can name port 65535. The end of such a flow must not take away another flow's rule.
func TestLingerOnTheLastPort(t *testing.T) {
	for _, wrap := range []struct {
		name string
		flow func(src, dst uint16) [2]netip.AddrPort
	}{
		{"source", func(a, b uint16) [2]netip.AddrPort {
			return [2]netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.7"), a), netip.AddrPortFrom(server4, b)}
		}},
		{"destination", func(a, b uint16) [2]netip.AddrPort {
			return [2]netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.7"), b), netip.AddrPortFrom(server4, a)}
		}},
	} {
		t.Run(wrap.name, func(t *testing.T) {
			b := newBench(t)
			b.apply(web())
			flows := [][2]netip.AddrPort{wrap.flow(1000, 443), wrap.flow(65535, 443), wrap.flow(443, 65535), wrap.flow(65535, 65535)}
			for i := range flows {
				if err := b.host.Linger(flows[:i+1]); err != nil {
					t.Fatal(err)
				}
			}
			for i := len(flows); i > 0; i-- {
				if err := b.host.Linger(flows[:i]); err != nil {
					t.Fatal(err)
				}
				there := b.lingering()
				if len(there) != i || !slices.ContainsFunc(there, func(r netlink.Rule) bool { return placeOf(r) == lingering(flows[0][0], flows[0][1]).place() }) {
					t.Errorf("of %d flows, the first among them, there are %d rules: %v", i, len(there), there)
				}
			}
			if err := b.host.Linger(nil); err != nil || b.lingers() > 0 {
				t.Errorf("at the end: %v, %v", err, b.lingering())
			}
		})
	}
}
