package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"pinproxy/cmd/pinproxy/check"
	"pinproxy/cmd/pinproxy/terminal"
	"pinproxy/rules"
)

// parseTarget reads HOST:PORT. HOST is written as in a rule, but without "*" and prefixes.
func parseTarget(text string) (check.Target, error) {
	fail := func(format string, args ...any) (check.Target, error) {
		return check.Target{}, &usageError{fmt.Sprintf("HOST:PORT %q: ", text) + fmt.Sprintf(format, args...), "pinproxy check " + meantTarget(text)}
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
	t := check.Target{Host: h, Port: uint16(port)}
	if addr, err := netip.ParseAddr(h); err == nil {
		if addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast() {
			return fail("no connection can be captured to this address")
		}
		t.Addr = addr.Unmap()
		t.Host = t.Addr.String()
		return t, nil
	}
	r, err := rules.Parse(h + ":" + p + "=1")
	var syntax *rules.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return fail("%s", syntax.Msg)
	case err != nil:
		return check.Target{}, err
	case r.Host().Name() == "" || r.Host().Wildcard():
		return fail("a name or an address is needed")
	}
	t.Host = r.Host().Name()
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
				return terminal.Quote(t.String())
			}
		}
	}
	return "www.bank.example:443"
}
