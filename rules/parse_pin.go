package rules

import (
	"net/netip"
	"strings"
)

// pin = [ ADDRESS ":" ] range { "," range }
func (p *parser) pin(pin part, host Host) (Pin, *SyntaxError) {
	if pin.s == "" {
		return Pin{}, p.fail(pin.at, "", `the pin is missing after "="`)
	}
	if i := strings.IndexByte(pin.s, '='); i >= 0 {
		for _, option := range []string{"busy", "cooldown"} {
			if ports, found := strings.CutSuffix(pin.s[:i], option); found {
				ports = strings.TrimRight(ports, ",;")
				sign := part{pin.s[len(ports) : i-len(option)], pin.at + len(ports)}
				return Pin{}, p.fail(sign.at, p.with(sign, " "), "a blank stands before an option")
			}
		}
		return Pin{}, p.fail(pin.at+i, "", `only one "=" stands between ports and pin`)
	}
	address, ports, err := p.source(pin)
	if err != nil {
		return Pin{}, err
	}
	var addr netip.Addr
	if address.s != "" {
		if addr, err = p.sourceAddr(address, ports, host); err != nil {
			return Pin{}, err
		}
	}
	set, err := p.ports(ports, false)
	if err != nil {
		return Pin{}, err
	}
	return newPin(addr, set), nil
}

// source splits the pin into its address ("" when it has none) and its ports.
func (p *parser) source(pin part) (address, ports part, err *SyntaxError) {
	if strings.HasPrefix(pin.s, "[") {
		i := strings.IndexByte(pin.s, ']')
		if i < 0 {
			return address, ports, p.fail(pin.at, p.closeBracket(pin), `"[" has no "]"`)
		}
		address, rest := pin.cut(i+1, 0)
		if !strings.HasPrefix(rest.s, ":") {
			return address, ports, p.fail(rest.at, "", "the pin's source port is missing after its address")
		}
		_, ports = rest.cut(0, 1)
		return address, ports, nil
	}
	last := strings.LastIndexByte(pin.s, ':')
	if last < 0 {
		if _, err := netip.ParseAddr(pin.s); err == nil {
			return address, ports, p.fail(pin.end(), "", "the pin's source port is missing after its address")
		}
		return part{"", pin.at}, pin, nil
	}
	address, ports = pin.cut(last, 1)
	switch {
	case looksIPv6(address.s):
		return address, ports, p.fail(address.at, p.with(address, "["+address.s+"]"), "an IPv6 address stands in brackets")
	case looksIPv6(pin.s):
		return address, ports, p.fail(pin.end(), "", "the pin's source port is missing after its address")
	case address.s == "" || address.s == "*":
		superfluous := part{pin.s[:last+1], pin.at}
		return address, ports, p.fail(pin.at, p.with(superfluous, ""), `without a source address the pin has no ":"`)
	case isPorts(address.s):
		// Other programs write a range as 8000:8010; the method port says so.
		return part{"", pin.at}, pin, nil
	}
	return address, ports, nil
}

// sourceAddr reads the pin's address and refuses one that no flow to host could leave from.
func (p *parser) sourceAddr(address, ports part, host Host) (netip.Addr, *SyntaxError) {
	l := p.literal(address)
	if l.sized {
		return netip.Addr{}, p.fail(l.length.at-1, p.instead(l, l.addr.s, ""), "a pin has one source address, not a prefix of them")
	}
	addr, err := p.address(l)
	if err != nil {
		return addr, err
	}
	portsOnly := p.with(part{p.text[address.at:ports.at], address.at}, "")
	switch {
	case addr.IsUnspecified():
		return addr, p.fail(l.addr.at, portsOnly, "%s is no source address; leave it out to use any", addr)
	case addr.IsMulticast(), addr == broadcast:
		return addr, p.fail(l.addr.at, "", "nothing can be sent from %s", addr)
	case addr.Is6() && addr.IsLinkLocalUnicast():
		return addr, p.fail(l.addr.at, "", "the link-local address %s needs a zone, which rules don't have", addr)
	case host.prefix.IsValid() && host.prefix.Addr().BitLen() != addr.BitLen():
		return addr, p.fail(l.addr.at, portsOnly, "no connection to %s leaves from %s", host, addr)
	}
	return addr, nil
}
