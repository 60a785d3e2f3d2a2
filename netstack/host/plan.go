package host

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Rule priorities, all in 4000-4999: after `local` (0), before Tailscale's (5210), wg-quick's (32764)
// and main (32766). The package comment draws them.
const (
	prefMark     = 4000
	prefSelf     = 4001
	prefSelfGone = 4002
	prefGuard    = 4003 // and on
	prefCapture  = 4010 // or after the last guard
	prefEnd      = 4999
)

// Routing tables.
const (
	tableSelf    = 40000
	tableDNS     = 40001
	tablePortSet = 40002 // and one more for each further port set
)

const (
	protoTCP = 6
	protoUDP = 17
	portDNS  = 53
)

var everyPort = PortRange{1, 65535}

// Steps is a list of changes to the host, in the order they are made.
type Steps struct {
	List     []Step
	Warnings []error // what is not done, and why
}

// Step is one change. Its text is the line a person would type for it.
type Step interface {
	String() string
	// Undo is the line that takes the change back, "" if it goes with the device.
	Undo() string
}

// String returns one line a step.
func (s Steps) String() string {
	var b strings.Builder
	for _, step := range s.List {
		b.WriteString(step.String())
		b.WriteByte('\n')
	}
	return b.String()
}

// Plan returns the changes that [Host.Apply] makes. It is pure. Errors are the configuration's.
func Plan(c Config, f Facts) (Steps, error) {
	c = c.withDefaults()
	if err := c.check(); err != nil {
		return Steps{}, err
	}
	var s Steps
	add, err := portsToReserve(c, f)
	if err != nil {
		s.Warnings = append(s.Warnings, err)
	}
	if !add.empty() {
		s.List = append(s.List, sysctl{sysctlReserved, newPorts(f.Reserved).or(add).String()})
	}
	s.List = append(s.List, planLink(c, f)...)
	s.List = append(s.List, planFamily(c, v4, f)...)
	if f.IPv6 {
		s.List = append(s.List, planFamily(c, v6, f)...)
	}
	return s, nil
}

// planLink makes the device ready. Both the order and the split matter: set together with "up",
// addrgenmode is looked at too late, and the device gets a link-local address and solicits routers.
func planLink(c Config, f Facts) []Step {
	list := []Step{device{c.Link}, linkSet{c.Link, c.MTU}, linkUp{c.Link}}
	if !f.IPv6Off {
		list = append(list, noMulticast{c.Link})
	}
	return list
}

// planFamily is all of one address family. The capture rules come last, so that whatever they do not
// mean is already let by; taken back in reverse they go first, for the same reason.
func planFamily(c Config, fam family, f Facts) []Step {
	tun := c.source(fam)
	var list []Step
	if fam == v6 && f.IPv6Off {
		list = append(list, sysctl{disableIPv6(c.Link), "0"})
	}
	list = append(list, addr{c.Link, tun})
	if fam == v6 {
		list = append(list, noMulticast{c.Link})
	}
	list = append(list, route{tun, c.Link, tableSelf, fam.all()})
	if c.DNS {
		list = append(list, route{tun, c.Link, tableDNS, fam.all()})
	}
	seen := map[Capture]bool{}
	for _, capture := range c.Captures {
		if fam.has(capture.Dst.Addr()) && !seen[capture] {
			seen[capture] = true
			list = append(list, route{tun, c.Link, tablePortSet + capture.Set, capture.Dst})
		}
	}
	for _, r := range planRules(c, fam, tun) {
		list = append(list, r)
	}
	return list
}

func planRules(c Config, fam family, tun netip.Addr) []rule {
	guards := planGuards(c, fam)
	first := max(prefCapture, prefGuard+len(guards))
	self := netip.PrefixFrom(tun, tun.BitLen())

	rules := []rule{{fam: fam, pref: prefEnd, action: nop}}
	rules = append(rules, guards...)
	rules = append(rules,
		rule{fam: fam, pref: prefMark, mark: c.Mark, action: skip},
		rule{fam: fam, pref: prefSelfGone, from: self, action: unreachable},
		rule{fam: fam, pref: prefSelf, from: self, action: lookup, table: tableSelf},
	)
	return append(rules, planCaptures(c, fam, first)...)
}

// planGuards is the rules for what passes by although a capture rule would mean it.
func planGuards(c Config, fam family) []rule {
	switch {
	case c.Strict:
		// Where any rule of the host looks at the ports of forwarded packets, IPv4's rp_filter looks
		// up the way back by protocol and ports (fib4_rules_early_flow_dissect), and the answers to
		// our own dials would seem to belong on the device. A program that binds a pin's port by
		// itself passes by as well, from the port that the pin wants.
		var guards []rule
		for _, r := range newPorts(c.Reserve).ranges() {
			if r.Last = min(r.Last, everyPort.Last-1); r.First > r.Last {
				continue // no rule can name port 65535: see tail
			}
			guards = append(guards, rule{fam: fam, pref: prefGuard + len(guards), lo: true, proto: protoTCP, sport: r, action: skip})
		}
		return guards
	case fam == v4:
		return []rule{{fam: fam, pref: prefGuard, not: true, from: netip.PrefixFrom(netip.IPv4Unspecified(), 32), lo: true, action: skip}}
	default:
		// fib6_rule_match: a rule with a source prefix matches no lookup without a source address.
		// So "any source at all" takes two rules, and "::/128" can never say "none yet".
		return []rule{
			{fam: fam, pref: prefGuard, from: netip.PrefixFrom(netip.IPv6Unspecified(), 1), lo: true, action: skip},
			{fam: fam, pref: prefGuard + 1, from: netip.MustParsePrefix("8000::/1"), lo: true, action: skip},
		}
	}
}

// planCaptures is the capture rules. Each has a priority of its own: the kernel takes a rule for a
// duplicate of a more specific one at the same priority (rule_exists, EEXIST).
func planCaptures(c Config, fam family, pref int) []rule {
	var rules []rule
	add := func(proto uint8, ports PortRange, act action, table int) {
		rules = append(rules, rule{fam: fam, pref: pref, lo: true, proto: proto, dport: ports, action: act, table: table})
		pref++
	}
	if c.DNS {
		dns := PortRange{portDNS, portDNS}
		add(protoUDP, dns, lookup, tableDNS)
		add(protoTCP, dns, lookup, tableDNS)
	}
	tails := []tail{}
	for i, set := range c.PortSets {
		for _, r := range newPorts(set).ranges() {
			if r.Last == everyPort.Last {
				tails = append(tails, tail{r.First, tablePortSet + i})
				continue
			}
			add(protoTCP, r, lookup, tablePortSet+i)
		}
	}
	// With the lower ends ascending, what is below one is below all that follow.
	slices.SortStableFunc(tails, func(a, b tail) int { return int(a.first) - int(b.first) })
	for _, t := range tails {
		if t.first > 1 {
			add(protoTCP, PortRange{1, t.first - 1}, skip, 0)
		}
		add(protoTCP, PortRange{}, lookup, t.table)
	}
	return rules
}

// tail is a range of ports that ends at 65535, which the kernel refuses to hear of
// (fib_rule_port_range_valid): it takes a rule that lets the ports below it by, and one that looks at
// no port.
type tail struct {
	first uint16
	table int
}

// portsToReserve returns the ports to be added to ip_local_reserved_ports. The error is a warning: all
// pins are used, but unreserved.
func portsToReserve(c Config, f Facts) (ports, error) {
	want := newPorts(c.Reserve)
	if want.empty() {
		return ports{}, nil
	}
	if c.StateDir == "" {
		return ports{}, fmt.Errorf("reserve ports %v: no directory for the state file: used unreserved", want)
	}
	local := newPorts([]PortRange{f.LocalPorts})
	if taken, all := want.and(local).len(), local.len(); taken > all/2 {
		return ports{}, fmt.Errorf("reserve ports %v: they are %d of the %d that the system gives to connections: used unreserved, so another program may be given one",
			want, taken, all)
	}
	return want.without(newPorts(f.Reserved)), nil
}
