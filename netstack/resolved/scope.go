package resolved

import (
	"net/netip"
	"slices"

	"pinproxy/netstack/dns"
)

// The names of resolved's modes.
const (
	modeYes            = "yes"
	modeAllowDowngrade = "allow-downgrade"
	modeNo             = "no"
)

// scope is one network in which resolved looks up names: an interface's, or that of the global settings.
type scope struct {
	link         int // index of the interface; 0: global
	servers      []server
	domains      []string // lower case, no final dot; the root is ""
	defaultRoute bool     // for names that are in no scope's domain
	dnssec, tls  string
}

type server struct {
	addr netip.AddrPort // port 0: the protocol's default
	name string         // in the server's certificate
}

// scopesFor returns the scopes in which resolved looks up name: those with the longest domain that the name ends
// with, or else the default routes (dns_scope_good_domain).
func scopesFor(all []scope, name string) []scope {
	best, found := -1, []scope(nil)
	for _, s := range all {
		match := -1
		for _, d := range s.domains {
			if within(name, d) {
				match = max(match, labels(d))
			}
		}
		switch {
		case len(s.servers) == 0 || match < best:
		case match < 0 && !s.defaultRoute:
		case match > best:
			best, found = match, []scope{s}
		default:
			found = append(found, s)
		}
	}
	return found
}

// multicastOnly reports whether resolved asks no server for name. It leaves names below local to multicast DNS (RFC
// 6762), unless a network has a domain that they are in (dns_scope_good_domain).
func multicastOnly(all []scope, name string) bool {
	return within(name, "local") && !slices.ContainsFunc(all, func(s scope) bool {
		return len(s.servers) > 0 && slices.ContainsFunc(s.domains, func(d string) bool { return within(name, d) })
	})
}

// rivals returns the domains of interfaces that are in one of domains. For names in these, resolved asks the interface
// besides us, or alone, and takes the first answer. What it asks by the global settings is not bound to an interface, so
// policy rules bring it to us.
func rivals(all []scope, domains []string) (list []string) {
	for _, s := range all {
		if s.link == 0 || len(s.servers) == 0 {
			continue
		}
		for _, d := range s.domains {
			if subset([]string{d}, domains) {
				list = append(list, d)
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// upstreams returns the servers to ask for name. own lists the addresses of this host.
func upstreams(all []scope, name string, own []netip.Addr) [][]dns.Upstream {
	var lists [][]dns.Upstream
	for _, s := range scopesFor(all, name) {
		var list []dns.Upstream
		for _, srv := range s.servers {
			u := dns.Upstream{Addr: srv.addr, Link: s.link, TLS: s.tls == modeYes}
			if u.TLS {
				u.Name = srv.name
			}
			if u.Addr.Port() == 0 {
				port := uint16(53)
				if u.TLS {
					port = 853
				}
				u.Addr = netip.AddrPortFrom(u.Addr.Addr(), port)
			}
			if a := u.Addr.Addr(); a.IsLoopback() || slices.Contains(own, a.WithZone("")) {
				u.Link = 0 // the host's own addresses are not reached over an interface
			}
			list = append(list, u)
		}
		lists = append(lists, list)
	}
	return lists
}

// strictest returns the strictest DNSSEC mode of the scopes that the domains lead to.
func strictest(all []scope, domains []string) string {
	modes := []string{modeNo, modeAllowDowngrade, modeYes}
	best := 0
	for _, d := range domains {
		for _, s := range scopesFor(all, d) {
			best = max(best, slices.Index(modes, s.dnssec))
		}
	}
	return modes[best]
}
