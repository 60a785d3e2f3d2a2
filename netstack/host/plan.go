package host

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Rule priorities, all in 4000-4999: after `local` (0), before Tailscale's (5210), wg-quick's (32764) and main
// (32766). The package comment shows them.
const (
	prefMark     = 4000
	prefSelf     = 4001
	prefSelfGone = 4002
	prefGuard    = 4003 // and up
	prefCapture  = 4010 // and up
	prefStrict   = 4400 // replaces prefCapture, because there are more guards
	prefSplit    = 4900 // followed by the rules for port 65535
	prefEnd      = 4999
)

// With gateways, their capture rules take the place of the guards, which follow. The guards' `not` would
// otherwise also match whatever did not originate on this host: the kernel inverts a rule as a whole
// (fib_rule_match).
const (
	prefGuest       = 4003
	prefGuestGone   = 4004
	prefBehind      = 4005 // and up
	prefBehindSplit = 4350 // followed by the rules for port 65535
	prefBehindEnds  = 4370
	prefLinger      = 4399 // flows whose rule is gone; all share it, as each matches only its own packets
	prefLingerLast  = 4397 // those with one port, or both, that no rule can name; see lingering
	prefAfter       = 4400 // replaces prefGuard
	prefAfterOwn    = 4410 // replaces prefCapture
	prefAfterStrict = 4650 // replaces prefStrict
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
	// Undo is the line that reverts the change, or "" if the change goes with the device.
	Undo() string
}

// String returns one line per step.
func (s Steps) String() string {
	var b strings.Builder
	for _, step := range s.List {
		b.WriteString(step.String())
		b.WriteByte('\n')
	}
	return b.String()
}

// Plan returns the changes that [Host.Apply] makes. It is pure. Errors concern the configuration.
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
	s.Warnings = append(s.Warnings, gatewayWarnings(f)...)
	s.Warnings = append(s.Warnings, strictWarnings(c, f)...)
	s.List = append(s.List, planLink(c, f)...)
	s.List = append(s.List, planFamily(c, v4, f)...)
	if f.IPv6 {
		s.List = append(s.List, planFamily(c, v6, f)...)
	}
	return s, nil
}

// planLink prepares the device. Both the order and the split matter. If addrgenmode is set together with "up",
// the kernel evaluates it too late: the device gets a link-local address and solicits routers.
func planLink(c Config, f Facts) []Step {
	list := []Step{device{c.Link}, linkSet{c.Link, c.MTU, c.QueueLen}}
	list = append(list, planPaths(c, f.ReadOnly)...)
	list = append(list, linkUp{c.Link})
	if !f.IPv6Off {
		list = append(list, noMulticast{c.Link})
	}
	return list
}

// planFamily returns everything for one address family. The capture rules come last, so that all exceptions are
// already in place. For the same reason they go first when the plan is undone in reverse.
func planFamily(c Config, fam family, f Facts) []Step {
	var list []Step
	if fam == v6 && f.IPv6Off {
		list = append(list, sysctl{disableIPv6(c.Link), "0"})
	}
	// Masquerading takes the address that the kernel would choose for a packet into the device (inet_select_addr,
	// ipv6_dev_get_saddr). Our routes name theirs.
	guest := c.guest(fam)
	list = append(list, addr{c.Link, fam.source(), guest.IsValid()})
	if guest.IsValid() {
		list = append(list, addr{c.Link, guest, false})
	}
	if fam == v6 {
		list = append(list, noMulticast{c.Link})
	}
	for _, d := range c.forGood(fam) {
		list = append(list, route{c.Link, d})
	}
	rules, _ := planRules(c, fam, nil) // Config.check has looked for too many
	for _, r := range rules {
		list = append(list, r)
	}
	return list
}

// planRules returns the rules of a family, and how many do not fit. Rules in stand keep their priority. New
// rules get one that no rule in stand has.
func planRules(c Config, fam family, stand []rule) (rules []rule, over int) {
	guard, first := c.places()
	place := func(list []rule, from, end int) {
		more := 0
		list, more = placed(list, from, end, stand)
		rules, over = append(rules, list...), over+more
	}
	captures, ends := planCaptures(c, rule{fam: fam, lo: true})

	rules = []rule{{fam: fam, pref: prefEnd, action: nop}}
	place(planGuards(c, fam), guard, first)
	rules = append(rules,
		rule{fam: fam, pref: prefMark, mark: Mark, action: skip},
	)
	self := func(a netip.Addr, pref, gone int) {
		from := netip.PrefixFrom(a, a.BitLen())
		rules = append(rules,
			rule{fam: fam, pref: gone, from: from, action: unreachable},
			rule{fam: fam, pref: pref, from: from, lo: true, action: lookup, table: tableSelf},
		)
	}
	self(fam.source(), prefSelf, prefSelfGone)
	if guest := c.guest(fam); guest.IsValid() {
		self(guest, prefGuest, prefGuestGone)
	}
	place(captures, first, prefSplit)
	if len(ends) > 0 {
		rules = append(rules, rule{fam: fam, pref: prefSplit, lo: true, proto: protoTCP, dport: PortRange{1, everyPort.Last - 1}, action: skip})
		place(ends, prefSplit+1, prefEnd)
	}
	behind, splits, behindEnds := planGateways(c, fam)
	place(behind, prefBehind, prefBehindSplit)
	place(splits, prefBehindSplit, prefBehindEnds)
	place(behindEnds, prefBehindEnds, prefLingerLast)
	return rules, over
}

// places returns where the guards begin, and where the capture rules for this host's connections begin.
func (c Config) places() (guard, capture int) {
	switch {
	case len(c.Gateways) > 0 && c.Strict:
		return prefAfter, prefAfterStrict
	case len(c.Gateways) > 0:
		return prefAfter, prefAfterOwn
	case c.Strict:
		return prefGuard, prefStrict
	}
	return prefGuard, prefCapture
}

// planGateways is planCaptures for traffic that comes in through a gateway. splits let through, for each
// gateway, the ports that its ends do not apply to.
func planGateways(c Config, fam family) (captures, splits, ends []rule) {
	for _, name := range c.Gateways {
		own, last := planCaptures(c, rule{fam: fam, iif: name})
		captures, ends = append(captures, own...), append(ends, last...)
		if len(last) > 0 {
			splits = append(splits, rule{fam: fam, iif: name, proto: protoTCP, dport: PortRange{1, everyPort.Last - 1}, action: skip})
		}
	}
	return captures, splits, ends
}

// lingering is the rule for one flow from src to dst, of a host behind a gateway. A rule can't name port 65535. A
// request to delete a rule without a port matches any port (rule_find), and so would delete another flow's rule if
// that had the same priority.
func lingering(src, dst netip.AddrPort) rule {
	pref := prefLinger
	only := func(port uint16) PortRange {
		if port == everyPort.Last {
			pref--
			return PortRange{}
		}
		return PortRange{port, port}
	}
	sport, dport := only(src.Port()), only(dst.Port())
	return rule{
		fam: familyOf(src.Addr()), pref: pref, proto: protoTCP, action: lookup, table: tableSelf,
		from: netip.PrefixFrom(src.Addr(), src.Addr().BitLen()), sport: sport,
		to: netip.PrefixFrom(dst.Addr(), dst.Addr().BitLen()), dport: dport,
	}
}

// placed gives each rule in list its own priority, starting at from and below end. The kernel takes a rule for
// a duplicate of a more specific one at the same priority (rule_exists, EEXIST). The order of the rules does
// not matter.
func placed(list []rule, from, end int, stand []rule) (_ []rule, over int) {
	had := make(map[rule]int, len(stand))
	taken := make(map[int]bool, len(stand))
	for _, r := range stand {
		taken[r.pref] = true
		had[r.anywhere()] = r.pref
	}
	next := from
	for i := range list {
		if pref := had[list[i]]; from <= pref && pref < end {
			list[i].pref = pref
			continue
		}
		for taken[next] {
			next++
		}
		if next >= end {
			over++
		}
		list[i].pref = next
		next++
	}
	return list, over
}

// planGuards returns the rules, without priorities, for traffic that is let through although a capture rule
// would match.
func planGuards(c Config, fam family) []rule {
	switch {
	case c.Strict:
		// If any rule of the host looks at the ports of forwarded packets, IPv4's rp_filter looks up the
		// reverse path by protocol and ports (fib4_rules_early_flow_dissect), and the answers to our own dials
		// would seem to belong on the device. A program that binds a pin's port itself is let through as well,
		// since it uses the port the pin wants.
		var guards []rule
		for _, r := range newPorts(c.Reserve).or(newPorts(c.Leased)).ranges() {
			if r.Last = min(r.Last, everyPort.Last-1); r.First > r.Last {
				continue // no rule can name port 65535: see planCaptures
			}
			guards = append(guards, rule{fam: fam, lo: true, proto: protoTCP, sport: r, action: skip})
		}
		return guards
	case fam == v4:
		return []rule{{fam: fam, not: true, from: netip.PrefixFrom(netip.IPv4Unspecified(), 32), lo: true, action: skip}}
	default:
		// fib6_rule_match: a rule with a source prefix matches no lookup without a source address. So "any
		// source" takes two rules, and "::/128" can never mean "none yet".
		return []rule{
			{fam: fam, from: netip.PrefixFrom(netip.IPv6Unspecified(), 1), lo: true, action: skip},
			{fam: fam, from: netip.MustParsePrefix("8000::/1"), lo: true, action: skip},
		}
	}
}

// strictWarnings tells what strict rp_filter keeps Config.Strict from. That of the device is in the way where planPaths
// can't set it. That of the uplink is where the kernel looks up the path of an answer with the ports the wrong way
// round: then the answers to our own dials seem to belong on the device, if a rule captures all ports or the pin's, as
// no guard knows them.
func strictWarnings(c Config, f Facts) (list []error) {
	const hint = "sudo sysctl -w net.ipv4.conf.all.rp_filter=2"
	if !c.Strict || !f.StrictPath {
		return nil
	}
	if f.ReadOnly && len(c.Gateways) == 0 {
		list = append(list, &DemandError{"--strict: sysctls are read-only here, and a strict rp_filter may drop the answers to sockets that are bound to an address", hint})
	}
	if f.PortsUnswapped {
		list = append(list, &DemandError{"--strict: before Linux 5.4 a strict rp_filter may drop the answers to connections that a rule for all ports is for", hint})
	}
	return list
}

// planCaptures returns the capture rules, without priorities, with the other conditions taken from of. Their
// order does not matter, so a rule can come or go without the others: a lookup that one table does not answer
// continues with the next.
//
// The kernel refuses port 65535 (fib_rule_port_range_valid). A range that ends there becomes a rule for the
// ports below it, and a rule in ends, which looks at no port and follows a rule that lets all other ports
// through.
func planCaptures(c Config, of rule) (captures, ends []rule) {
	to := func(proto uint8, ports PortRange, table int) rule {
		r := of
		r.proto, r.dport, r.action, r.table = proto, ports, lookup, table
		return r
	}
	if c.DNS {
		dns := PortRange{portDNS, portDNS}
		captures = append(captures, to(protoUDP, dns, tableDNS), to(protoTCP, dns, tableDNS))
	}
	for i, set := range c.PortSets {
		table := tablePortSet + i
		for _, r := range newPorts(set).ranges() {
			switch {
			case r == everyPort:
				captures = append(captures, to(protoTCP, PortRange{}, table))
				continue
			case r.Last == everyPort.Last:
				ends = append(ends, to(protoTCP, PortRange{}, table))
				r.Last--
			}
			if r.First <= r.Last {
				captures = append(captures, to(protoTCP, r, table))
			}
		}
	}
	return captures, ends
}

// portsToReserve returns the ports to add to ip_local_reserved_ports. The error is a warning: the ports that it names
// are used, but unreserved.
func portsToReserve(c Config, f Facts) (ports, error) {
	want := newPorts(c.Reserve)
	if want.empty() {
		return ports{}, nil
	}
	if c.StateDir == "" {
		return ports{}, fmt.Errorf("ports %v are not reserved: no directory for the state file", want)
	}
	// No more than half of what programs are given is taken. The widest pins are left out, for one of them must not
	// cost all others their ports.
	local := newPorts([]PortRange{f.LocalPorts})
	taken, all := want.and(local), local.len()
	if taken.len() <= all/2 {
		return want.without(newPorts(f.Reserved)), nil
	}
	width := func(r PortRange) int {
		return int(min(r.Last, f.LocalPorts.Last)) - int(max(r.First, f.LocalPorts.First))
	}
	narrowestFirst := slices.Clone(c.Reserve)
	slices.SortStableFunc(narrowestFirst, func(a, b PortRange) int { return width(a) - width(b) })
	var kept ports
	for _, r := range narrowestFirst {
		more := kept.or(newPorts([]PortRange{r}).and(local))
		if more.len() > all/2 {
			break
		}
		kept = more
	}
	left := taken.without(kept)
	return want.without(left).without(newPorts(f.Reserved)),
		fmt.Errorf("ports %v are not reserved: the pins have %d of the %d in ip_local_port_range, too many to take; another program may be given one of them",
			left, taken.len(), all)
}
