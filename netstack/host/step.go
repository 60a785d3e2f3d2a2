package host

import (
	"fmt"
	"net/netip"
	"strings"
)

// family is an IP version.
type family int

const (
	v4 family = 4
	v6 family = 6
)

// ip returns the ip command for the family.
func (f family) ip() string {
	if f == v6 {
		return "ip -6"
	}
	return "ip"
}

// all returns the prefix of every address.
func (f family) all() netip.Prefix {
	if f == v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

func (f family) has(a netip.Addr) bool { return a.Is4() == (f == v4) }

// source returns the device's address, the source for sockets that have none.
func (f family) source() netip.Addr {
	if f == v6 {
		return Addr6
	}
	return Addr4
}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return v4
	}
	return v6
}

// device represents the creation of the device, which is not our job.
type device struct{ name string }

func (s device) String() string { return fmt.Sprintf("ip tuntap add dev %s mode tun", s.name) }
func (s device) Undo() string   { return "" }

// linkSet keeps the device silent: no link-local address (so no router solicitation), no multicast.
type linkSet struct {
	link     string
	mtu      int
	queueLen int // 0: left alone
}

func (s linkSet) String() string {
	queueLen := ""
	if s.queueLen > 0 {
		queueLen = fmt.Sprintf(" txqueuelen %d", s.queueLen)
	}
	return fmt.Sprintf("ip link set dev %s mtu %d%s multicast off addrgenmode none", s.link, s.mtu, queueLen)
}
func (s linkSet) Undo() string { return "" }

// linkUp sets the device up. Its undo drops every route on the device at once.
type linkUp struct{ link string }

func (s linkUp) String() string { return fmt.Sprintf("ip link set dev %s up", s.link) }
func (s linkUp) Undo() string   { return fmt.Sprintf("ip link set dev %s down", s.link) }

// addr is an address of the device, without a prefix route. For IPv6 it is usable at once.
type addr struct {
	link string
	addr netip.Addr
	last bool // the kernel chooses it as a source only if a route says so, while the device has another one
}

func (s addr) String() string {
	line := fmt.Sprintf("%s addr add %v/%d dev %s noprefixroute", familyOf(s.addr).ip(), s.addr, s.addr.BitLen(), s.link)
	switch {
	case s.addr.Is6() && s.last:
		line += " nodad preferred_lft 0"
	case s.addr.Is6():
		line += " nodad"
	case s.last:
		line += " scope link"
	}
	return line
}

func (s addr) Undo() string {
	return fmt.Sprintf("%s addr del %v/%d dev %s", familyOf(s.addr).ip(), s.addr, s.addr.BitLen(), s.link)
}

// noMulticast deletes the ff00::/8 route that a device gets when it comes up and when it gets an IPv6 address
// (addrconf_add_mroute). With that route, multicast that names no interface would enter the device as soon as
// the host's other interfaces came up later than ours.
type noMulticast struct{ link string }

func (s noMulticast) String() string {
	return fmt.Sprintf("ip -6 route flush ff00::/8 dev %s table local", s.link)
}
func (s noMulticast) Undo() string { return "" }

// sysctl sets a sysctl, named with slashes as in /proc/sys.
type sysctl struct{ key, value string }

const sysctlReserved = "net/ipv4/ip_local_reserved_ports"

func disableIPv6(link string) string { return "net/ipv6/conf/" + link + "/disable_ipv6" }

func (s sysctl) String() string {
	key := s.key
	if !strings.Contains(key, ".") { // as in the name of a VLAN device; sysctl(8) accepts both
		key = strings.ReplaceAll(key, "/", ".")
	}
	return fmt.Sprintf("sysctl -w %s=%s", key, s.value)
}
func (s sysctl) Undo() string { return "" } // the previous value is not known here

// route leads dst into the device, in a table of ours.
type route struct {
	link string
	dest
}

func (s route) String() string {
	fam := s.family()
	return fmt.Sprintf("%s route add %s dev %s table %d proto %d src %v metric %d congctl %s",
		fam.ip(), formatPrefix(s.dst), s.link, s.table, Protocol, fam.source(), metric, congestion)
}

// metric is that of our routes, worse than all others'. For the kernel it means nothing, as they are alone in their
// tables. But some programs look for the best route in all tables: strongSwan took its own source address from ours
// (kernel_netlink_net.c), and sent IKE into the device.
const metric = 40000

// congestion is the congestion control over the device, which loses nothing while its queue has room. If the
// host uses BBR, it would pace this traffic too (tcp_ca_dst_init). Reno is in every kernel, and allowed in
// every namespace.
const congestion = "reno"

// dest identifies a route of ours among the others.
type dest struct {
	table int
	dst   netip.Prefix
}

func (d dest) family() family { return familyOf(d.dst.Addr()) }

// del returns the line that deletes the route.
func (d dest) del() string {
	return fmt.Sprintf("%s route del %s table %d proto %d", d.family().ip(), formatPrefix(d.dst), d.table, Protocol)
}

// formatPrefix formats a prefix as ip(8) does.
func formatPrefix(p netip.Prefix) string {
	switch p.Bits() {
	case 0:
		return "default"
	case p.Addr().BitLen():
		return p.Addr().String()
	}
	return p.String()
}

func (s route) Undo() string { return "" }

// action is what a rule does.
type action int

const (
	lookup      action = iota // in table; continues if nothing is found there
	skip                      // jumps over the capture rules
	unreachable               // ENETUNREACH
	nop                       // does nothing: a jump target
)

// rule is a policy rule. A zero field means that the rule does not look at it.
type rule struct {
	fam          family
	pref         int
	not          bool
	from, to     netip.Prefix
	mark         uint32
	lo           bool   // originated on this host
	iif          string // came in through the device with this name, whichever it is
	proto        uint8
	sport, dport PortRange
	action       action
	table        int
}

func (s rule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s rule add pref %d", s.fam.ip(), s.pref)
	if s.not {
		b.WriteString(" not")
	}
	if s.from.IsValid() {
		fmt.Fprintf(&b, " from %s", formatPrefix(s.from))
	}
	if s.to.IsValid() {
		fmt.Fprintf(&b, " to %s", formatPrefix(s.to))
	}
	if s.mark != 0 {
		fmt.Fprintf(&b, " fwmark %#x", s.mark)
	}
	if s.lo {
		b.WriteString(" iif lo")
	}
	if s.iif != "" {
		fmt.Fprintf(&b, " iif %s", s.iif)
	}
	switch s.proto {
	case protoTCP:
		b.WriteString(" ipproto tcp")
	case protoUDP:
		b.WriteString(" ipproto udp")
	}
	if s.sport != (PortRange{}) {
		fmt.Fprintf(&b, " sport %s", formatRange(s.sport))
	}
	if s.dport != (PortRange{}) {
		fmt.Fprintf(&b, " dport %s", formatRange(s.dport))
	}
	switch s.action {
	case lookup:
		fmt.Fprintf(&b, " lookup %d", s.table)
	case skip:
		fmt.Fprintf(&b, " goto %d", prefEnd)
	case unreachable:
		b.WriteString(" unreachable")
	case nop:
		b.WriteString(" nop")
	}
	fmt.Fprintf(&b, " protocol %d", Protocol)
	return b.String()
}

func (s rule) Undo() string {
	return fmt.Sprintf("%s rule del pref %d protocol %d", s.fam.ip(), s.pref, Protocol)
}

// anywhere returns the rule without its priority.
func (s rule) anywhere() rule {
	s.pref = 0
	return s
}

// lingers reports whether the rule is one of Linger's.
func (s rule) lingers() bool { return prefLingerLast <= s.pref && s.pref <= prefLinger }

// captures reports whether the rule belongs to the capture block: it makes connections enter the device, or
// limits a rule that does.
func (s rule) captures() bool {
	return (s.lo || s.iif != "") && !s.from.IsValid() && (s.action == lookup || s.dport != PortRange{})
}

// capturesOwn reports the same for this host's connections only, not those of hosts behind a gateway.
func (s rule) capturesOwn() bool { return s.captures() && s.lo }

func (s rule) isOther() bool { return !s.captures() }
