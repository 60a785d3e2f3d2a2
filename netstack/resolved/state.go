package resolved

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"
)

// stubs are resolved's own addresses, which lead back to us.
var stubs = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 53}), netip.AddrFrom4([4]byte{127, 0, 0, 54})}

// read returns the networks in which resolved would look up names if our link did not exist. fallback says that
// there are no servers except resolved's fallback servers.
func (b bus) read(ctx context.Context, link int, ours netip.Addr) (all []scope, fallback bool, err error) {
	global, err := b.getAll(ctx, managerPath, manager)
	if err != nil {
		return nil, false, err
	}
	scopes := map[int]*scope{0: {defaultRoute: true, dnssec: global.text("DNSSEC"), tls: global.text("DNSOverTLS")}}
	at := func(link int) *scope {
		if scopes[link] == nil {
			scopes[link] = &scope{link: link}
		}
		return scopes[link]
	}
	servers := slices.DeleteFunc(global.servers("DNS"), func(s linkServer) bool {
		return s.link == link || s.addr.Addr() == ours || slices.Contains(stubs, s.addr.Addr())
	})
	if fallback = len(servers) == 0; fallback {
		servers = global.servers("FallbackDNS")
		fallback = len(servers) > 0
	}
	for _, s := range servers {
		sc := at(s.link)
		sc.servers = append(sc.servers, s.server)
	}
	var domains []struct {
		Link  int32
		Name  string
		Route bool
	}
	global.store("Domains", &domains)
	for _, d := range domains {
		if sc := scopes[int(d.Link)]; sc != nil {
			sc.domains = append(sc.domains, canonical(d.Name))
		}
	}
	for index, sc := range scopes {
		if index != 0 {
			v, err := b.link(ctx, index)
			if _, answered := errors.AsType[dbus.Error](err); err != nil && !answered {
				return nil, false, err // resolved is slow: without this interface's servers we would answer that there are none
			}
			if err != nil || v.mask("ScopesMask")&scopeDNS == 0 { // it is disappearing, or down
				continue
			}
			// A resolved without this property (before version 240) asks every interface for names in no domain.
			_, has := v["DefaultRoute"]
			sc.defaultRoute = !has || v.flag("DefaultRoute")
			sc.dnssec, sc.tls = v.text("DNSSEC"), v.text("DNSOverTLS")
		}
		all = append(all, *sc)
	}
	slices.SortFunc(all, func(a, b scope) int { return a.link - b.link })
	return all, fallback, nil
}

// canonical returns a name in the form in which queries are compared.
func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
