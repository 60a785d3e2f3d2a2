package resolved

import (
	"context"
	"net/netip"
	"slices"
)

// Address families, as Linux numbers them.
const (
	familyIPv4 int32 = 2
	familyIPv6 int32 = 10
)

// settings are what the link is to have at resolved.
type settings struct {
	server       netip.Addr
	domains      []string
	defaultRoute bool
	dnssec       string
}

// wire are the domains as D-Bus has them: for routing, not for search.
func (s settings) wire() []domain {
	list := make([]domain, len(s.domains))
	for i, d := range s.domains {
		if d == "" {
			d = "."
		}
		list[i] = domain{d, true}
	}
	return list
}

// stand reports whether v are these settings. An interface of an older resolved has fewer.
func (s settings) stand(v values) bool {
	same := func(name, want string) bool { _, has := v[name]; return !has || v.text(name) == want }
	_, hasRoute := v["DefaultRoute"]
	return slices.Equal(v.addresses(), []netip.Addr{s.server}) &&
		sameDomains(v.domains(), s.wire()) &&
		(!hasRoute || v.flag("DefaultRoute") == s.defaultRoute) &&
		same("DNSSEC", s.dnssec) && same("DNSOverTLS", modeNo)
}

func sameDomains(a, b []domain) bool {
	if len(a) != len(b) {
		return false
	}
	for _, d := range a {
		if !slices.Contains(b, domain{canonicalDomain(d.Name), d.Route}) {
			return false
		}
	}
	return true
}

func canonicalDomain(name string) string {
	if name = canonical(name); name == "" {
		return "."
	}
	return name
}

// apply has resolved take the settings over. The domains come last: then all is ready for the names.
func (s settings) apply(ctx context.Context, b bus, link int) error {
	index := int32(link)
	family := familyIPv4
	if s.server.Is6() {
		family = familyIPv6
	}
	for _, step := range []struct {
		method string
		args   []any
	}{
		{"SetLinkDefaultRoute", []any{index, s.defaultRoute}},
		{"SetLinkLLMNR", []any{index, modeNo}},
		{"SetLinkMulticastDNS", []any{index, modeNo}},
		{"SetLinkDNSOverTLS", []any{index, modeNo}},
		{"SetLinkDNSSEC", []any{index, s.dnssec}},
		{"SetLinkDNS", []any{index, []address{{family, s.server.AsSlice()}}}},
		{"SetLinkDomains", []any{index, s.wire()}},
	} {
		if err := ignoreUnknown(b.set(ctx, step.method, step.args...)); err != nil {
			return err
		}
	}
	return nil
}

// ignoreUnknown leaves out that an older resolved does not have the method.
func ignoreUnknown(err error) error {
	if isError(err, "org.freedesktop.DBus.Error.UnknownMethod") {
		return nil
	}
	return err
}
