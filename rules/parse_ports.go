package rules

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// servicePort returns the port that people mean by a service's name, or "". It does not read /etc/services, so that
// a rule means the same on every machine.
func servicePort(name string) string {
	switch strings.ToLower(name) {
	case "ssh":
		return "22"
	case "smtp":
		return "25"
	case "http":
		return "80"
	case "ldap":
		return "389"
	case "https":
		return "443"
	case "smtps":
		return "465"
	case "ldaps":
		return "636"
	case "imaps":
		return "993"
	case "mysql":
		return "3306"
	case "rdp":
		return "3389"
	case "postgres", "postgresql":
		return "5432"
	}
	return ""
}

// isPorts reports whether s could be meant as a list of ports.
func isPorts(s string) bool { return s != "" && strings.Trim(s, "0123456789,-") == "" }

// ports = "*" | range { "," range }; without the "*" if anyPort is false.
func (p *parser) ports(list part, anyPort bool) (PortSet, *SyntaxError) {
	switch {
	case list.s == "*" && anyPort:
		return NewPortSet(PortRange{1, maxPort}), nil
	case list.s == "" && anyPort:
		return PortSet{}, p.fail(list.at, p.with(list, "443"), "the destination ports are missing")
	case list.s == "":
		return PortSet{}, p.fail(list.at, "", "the pin's source port is missing")
	}
	if i := strings.IndexByte(list.s, ';'); i >= 0 {
		return PortSet{}, p.fail(list.at+i, p.with(list, strings.ReplaceAll(list.s, ";", ",")),
			`ports are separated by ",", not by ";"`)
	}

	items := list.split(",")
	ranges := make([]PortRange, len(items))
	for i, item := range items {
		switch {
		case item.s == "":
			return PortSet{}, p.fail(item.at, p.with(list, withoutEmpty(items)), `a port is missing beside ","`)
		case item.s == "*" && anyPort:
			return PortSet{}, p.fail(item.at, p.with(list, "*"), `"*" already is every port`)
		case item.s == "*":
			return PortSet{}, p.fail(item.at, "", `a pin names its source ports, "*" names none`)
		}
		r, err := p.portRange(item)
		if err != nil {
			return PortSet{}, err
		}
		ranges[i] = r
	}
	if err := p.overlap(list, items, ranges, anyPort); err != nil {
		return PortSet{}, err
	}
	return NewPortSet(ranges...), nil
}

func withoutEmpty(items []part) string {
	var kept []string
	for _, item := range items {
		if item.s != "" {
			kept = append(kept, item.s)
		}
	}
	return strings.Join(kept, ",")
}

// overlap refuses a list that names a port twice: one of the two is a typing error.
func (p *parser) overlap(list part, items []part, ranges []PortRange, anyPort bool) *SyntaxError {
	order := make([]int, len(ranges))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(ranges[a].First, ranges[b].First) })
	for i := 1; i < len(order); i++ {
		a, b := order[i-1], order[i]
		if ranges[b].First > ranges[a].Last {
			continue
		}
		port := ranges[b].First
		if a > b {
			a, b = b, a // point at the range that was written later
		}
		merged := NewPortSet(ranges...)
		fixed := rangesText(merged.ranges)
		if anyPort {
			fixed = merged.String()
		}
		if items[a].s == items[b].s {
			return p.fail(items[b].at, p.with(list, fixed), "%s is listed twice", items[b].s)
		}
		return p.fail(items[b].at, p.with(list, fixed), "%s overlaps %s: both have port %d", items[b].s, items[a].s, port)
	}
	return nil
}

// range = PORT [ "-" PORT ]
func (p *parser) portRange(item part) (PortRange, *SyntaxError) {
	i := strings.IndexByte(item.s, '-')
	if i < 0 {
		port, err := p.port(item)
		return PortRange{port, port}, err
	}
	low, high := item.cut(i, 1)
	switch {
	case low.s == "":
		return PortRange{}, p.fail(low.at, "", `the first port of the range is missing before "-"`)
	case high.s == "":
		return PortRange{}, p.fail(high.at, p.with(item, low.s), `the last port of the range is missing after "-"`)
	}
	first, err := p.port(low)
	if err != nil {
		return PortRange{}, err
	}
	last, err := p.port(high)
	if err != nil {
		return PortRange{}, err
	}
	if last < first {
		return PortRange{}, p.fail(item.at, p.with(item, high.s+"-"+low.s), "the range %s runs backwards", item.s)
	}
	return PortRange{first, last}, nil
}

// port reads 1 to 65535, in digits without leading zeros, so that there is one way to write a port.
func (p *parser) port(number part) (uint16, *SyntaxError) {
	if strings.Trim(number.s, "0123456789") != "" {
		return 0, p.fail(number.at, p.with(number, portMeant(number.s)), "%q is not a port number", number.s)
	}
	digits := strings.TrimLeft(number.s, "0")
	if digits == "" {
		return 0, p.fail(number.at, "", "port 0 does not exist")
	}
	port, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || port > maxPort {
		return 0, p.fail(number.at, "", "port %s is above %d", digits, maxPort)
	}
	if digits != number.s {
		return 0, p.fail(number.at, p.with(number, digits), "port %s begins with a zero", number.s)
	}
	return uint16(port), nil
}

// portMeant guesses the port meant by something else.
func portMeant(s string) string {
	if port := servicePort(s); port != "" {
		return port
	}
	if strings.Count(s, ":") == 1 || strings.Contains(s, "..") { // other programs write a range as 8000:8010 or 8000..8010
		return strings.NewReplacer("...", "-", "..", "-", ":", "-").Replace(s)
	}
	if port, protocol, ok := strings.Cut(s, "/"); ok && strings.EqualFold(protocol, "tcp") {
		return port
	}
	return s // not a port either, so there is no hint
}
