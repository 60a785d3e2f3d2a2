package rules

import "strings"

// host = NAME | "*." NAME | IPv4[/LEN] | "[" IPv6[/LEN] "]" | "*"
func (p *parser) host(host part) (Host, *SyntaxError) {
	switch {
	case host.s == "*":
		return Host{}, nil
	case strings.HasPrefix(host.s, "*."):
		_, below := host.cut(0, len("*."))
		name, err := p.name(host, below)
		return Host{name: name, wildcard: true}, err
	case strings.HasPrefix(host.s, "["), strings.Contains(host.s, "/"), looksIPv4(host.s):
		return p.prefix(host)
	}
	name, err := p.name(host, host)
	return Host{name: name}, err
}

// name reads a host name, which is the whole host or what follows its "*.".
func (p *parser) name(host, name part) (string, *SyntaxError) {
	switch i := strings.IndexByte(name.s, '*'); {
	case i >= 0:
		candidate := ""
		if i == 0 {
			candidate = p.with(host, "*."+strings.TrimLeft(name.s, "*."))
		}
		return "", p.fail(name.at+i, candidate, `a wildcard is "*." before a name, once`)
	case name.s == "":
		return "", p.fail(name.at, "", `the name is missing after "*."`)
	case strings.HasPrefix(name.s, "."):
		return "", p.fail(name.at, p.with(host, "*."+strings.TrimLeft(name.s, ".")), "a name can't begin with a dot")
	case looksIPv4(name.s): // after "*."
		return "", p.fail(name.at, p.with(host, name.s), "%q is no name, and only names have a wildcard", name.s)
	}
	ascii, bad := nameToASCII(name.s)
	if bad != nil {
		candidate := ""
		if bad.meant != "" {
			candidate = p.with(name, bad.meant)
		}
		return "", p.fail(name.at+bad.at, candidate, "%s", bad.msg)
	}
	if looksIPv4(ascii) { // in non-ASCII digits
		return "", p.fail(name.at, p.with(name, ascii), "%q is an address in other digits than 0 to 9", name.s)
	}
	return ascii, nil
}
