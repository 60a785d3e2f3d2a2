package rules

import (
	"math/bits"
	"net/netip"
	"strconv"
	"strings"
)

// broadcast is the only IPv4 address that is neither multicast nor any host's.
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// looksIPv4 reports whether s is meant as an IPv4 address. No name ends in a number (WHATWG URL "ends in a number";
// RFC 1123 section 2.1 has top-level domains of letters).
func looksIPv4(s string) bool {
	s = strings.TrimSuffix(s, ".")
	last := s[strings.LastIndexByte(s, '.')+1:]
	return last != "" && strings.Trim(last, "0123456789") == ""
}

// looksIPv6 reports whether s is an IPv6 address without brackets, perhaps with a prefix length or a zone.
func looksIPv6(s string) bool {
	s, _, _ = strings.Cut(s, "/")
	addr, err := netip.ParseAddr(s)
	return err == nil && addr.Is6()
}

// literal is an address in the text of a rule.
type literal struct {
	whole  part // with brackets and prefix length
	addr   part
	length part // what follows "/"
	sized  bool // whether there is a "/"
}

// literal takes an address apart. The caller has checked that brackets, if any, are a pair.
func (p *parser) literal(whole part) literal {
	l := literal{whole: whole, addr: whole}
	if strings.HasPrefix(whole.s, "[") {
		l.addr = part{whole.s[1 : len(whole.s)-1], whole.at + 1}
	}
	l.length = part{"", l.addr.end()}
	if i := strings.IndexByte(l.addr.s, '/'); i >= 0 {
		l.addr, l.length = l.addr.cut(i, 1)
		l.sized = true
	}
	return l
}

// instead returns the rule with another address in place of the literal, for use as a hint.
func (p *parser) instead(l literal, addr, length string) string {
	if length != "" {
		addr += "/" + length
	}
	if strings.Contains(addr, ":") {
		addr = "[" + addr + "]"
	}
	return p.with(l.whole, addr)
}

// address reads the literal's address and refuses what neither a host nor a pin may have.
func (p *parser) address(l literal) (netip.Addr, *SyntaxError) {
	bracketed := strings.HasPrefix(l.whole.s, "[")
	addr, err := netip.ParseAddr(l.addr.s)
	switch {
	case l.addr.s == "":
		return addr, p.fail(l.addr.at, "", "the address is missing")
	case err != nil && bracketed:
		return addr, p.fail(l.addr.at, p.instead(l, l.addr.s, l.length.s), "%q is not an IPv6 address", l.addr.s)
	case err != nil && strings.Trim(l.addr.s, "0123456789.") == "":
		return addr, p.fail(l.addr.at, "", "%q is not an IPv4 address", l.addr.s)
	case err != nil && looksIPv4(l.addr.s):
		return addr, p.fail(l.addr.at, "", "%q is no address, and a name can't end in a number", l.addr.s)
	case err != nil && l.sized:
		return addr, p.fail(l.addr.at, p.instead(l, l.addr.s, ""), "%q is no address, and only an address has a prefix length", l.addr.s)
	case err != nil:
		return addr, p.fail(l.addr.at, "", "%q is no address", l.addr.s)
	case addr.Zone() != "":
		return addr, p.fail(l.addr.at+strings.IndexByte(l.addr.s, '%'), p.instead(l, addr.WithZone("").String(), l.length.s),
			"a rule's addresses have no zone, but here is %q", addr.Zone())
	case addr.Is4In6():
		length := ""
		if n, err := strconv.Atoi(l.length.s); err == nil {
			length = strconv.Itoa(n - 96)
		}
		return addr, p.fail(l.addr.at, p.instead(l, addr.Unmap().String(), length), "%s is an IPv4 address written as an IPv6 one", addr)
	case addr.Is4() && bracketed:
		return addr, p.fail(l.whole.at, p.instead(l, l.addr.s, l.length.s), "only IPv6 addresses stand in brackets")
	}
	return addr, nil
}

// prefix reads the destination addresses of a rule.
func (p *parser) prefix(host part) (Host, *SyntaxError) {
	l := p.literal(host)
	addr, err := p.address(l)
	if err != nil {
		return Host{}, err
	}
	length := addr.BitLen()
	if l.sized {
		if length, err = p.prefixLength(l, addr); err != nil {
			return Host{}, err
		}
	}

	prefix := netip.PrefixFrom(addr, length)
	masked := prefix.Masked()
	switch {
	case masked != prefix:
		return Host{}, p.fail(l.addr.at, p.with(host, Host{prefix: masked}.String()), "%s has bits set beyond its prefix length", prefix)
	case addr.IsUnspecified() && prefix.IsSingleIP():
		return Host{}, p.fail(l.addr.at, p.instead(l, l.addr.s, "0"), "no connection goes to %s", addr)
	case addr.IsMulticast(), addr == broadcast:
		return Host{}, p.fail(l.addr.at, "", "no TCP connection goes to %s", addr)
	}
	return Host{prefix: prefix}, nil
}

// prefixLength reads the prefix length of a literal of addr's family.
func (p *parser) prefixLength(l literal, addr netip.Addr) (int, *SyntaxError) {
	family := "IPv6"
	if addr.Is4() {
		family = "IPv4"
	}
	if l.length.s == "" {
		return 0, p.fail(l.length.at, "", `the prefix length is missing after "/"`)
	}
	if mask, err := netip.ParseAddr(l.length.s); err == nil && mask.Is4() && addr.Is4() {
		return 0, p.fail(l.length.at, p.with(l.length, maskLength(mask)), "%s is a mask, not a prefix length", mask)
	}
	n, err := strconv.ParseUint(l.length.s, 10, 64)
	if err != nil || n > uint64(addr.BitLen()) {
		return 0, p.fail(l.length.at, "", "an %s prefix length is 0 to %d, not %q", family, addr.BitLen(), l.length.s)
	}
	if digits := strconv.FormatUint(n, 10); digits != l.length.s {
		return 0, p.fail(l.length.at, p.with(l.length, digits), "prefix length %s begins with a zero", l.length.s)
	}
	return int(n), nil
}

// maskLength returns the prefix length that mask stands for, or mask itself if it has a hole.
func maskLength(mask netip.Addr) string {
	b := mask.As4()
	word := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	ones := bits.LeadingZeros32(^word)
	if word<<ones != 0 {
		return mask.String()
	}
	return strconv.Itoa(ones)
}
