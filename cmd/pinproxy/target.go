package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"pinproxy/rules"
)

// target is the target of `check`.
type target struct {
	host string     // a name, canonical, or an address
	addr netip.Addr // invalid if host is a name
	port uint16
}

func (t target) String() string { return net.JoinHostPort(t.host, strconv.Itoa(int(t.port))) }

// name returns the name to look up in the rules.
func (t target) name() string {
	if t.addr.IsValid() {
		return ""
	}
	return t.host
}

// parseTarget reads HOST:PORT. HOST is written as in a rule, but without "*" and prefixes.
func parseTarget(text string) (target, error) {
	fail := func(format string, args ...any) (target, error) {
		return target{}, &usageError{fmt.Sprintf("HOST:PORT %q: ", text) + fmt.Sprintf(format, args...), "pinproxy check " + meantTarget(text)}
	}
	if scheme, _, ok := strings.Cut(text, "://"); ok {
		return fail("it begins with a host, not with %q", scheme+"://")
	}
	h, p, err := net.SplitHostPort(text)
	if err != nil {
		if strings.Count(text, ":") > 1 && !strings.Contains(text, "[") {
			return fail("an IPv6 address stands in brackets")
		}
		return fail("the port is missing")
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil || port == 0 {
		return fail("%q is not a port from 1 to 65535", p)
	}
	t := target{host: h, port: uint16(port)}
	if addr, err := netip.ParseAddr(h); err == nil {
		if addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast() {
			return fail("no connection can be captured to this address")
		}
		t.addr = addr.Unmap()
		t.host = t.addr.String()
		return t, nil
	}
	r, err := rules.Parse(h + ":" + p + "=1")
	var syntax *rules.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return fail("%s", syntax.Msg)
	case err != nil:
		return target{}, err
	case r.Host().Name() == "" || r.Host().Wildcard():
		return fail("a name or an address is needed")
	}
	t.host = r.Host().Name()
	return t, nil
}

// meantTarget guesses the target that was meant, from the rule that would have been meant. If that can't be told, it
// returns an example.
func meantTarget(text string) string {
	const pin = "=1"
	_, err := rules.Parse(text + pin)
	if syntax, ok := errors.AsType[*rules.SyntaxError](err); ok {
		if meant, ok := strings.CutSuffix(syntax.Hint, pin); ok {
			if t, err := parseTarget(meant); err == nil {
				return quote(t.String())
			}
		}
	}
	return "www.bank.example:443"
}
