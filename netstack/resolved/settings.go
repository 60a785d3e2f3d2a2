package resolved

import (
	"context"
	"net/netip"
	"slices"
)

// Address families, with Linux's numbers.
const (
	familyIPv4 int32 = 2
	familyIPv6 int32 = 10
)

// settings are the settings that the link is to have in resolved.
type settings struct {
	server       netip.Addr
	domains      []string
	defaultRoute bool
	dnssec       string
}

// wire returns the domains as D-Bus encodes them: for routing, not for search.
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

// stand reports whether v has these settings. An interface of an older resolved has fewer.
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

// apply makes resolved adopt the settings. The domains come last: by then everything is ready for the names.
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

// ignoreUnknown ignores the error of an older resolved that does not have the method.
func ignoreUnknown(err error) error {
	if isError(err, "org.freedesktop.DBus.Error.UnknownMethod") {
		return nil
	}
	return err
}
