package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// snapshotSysctls are the settings that pinproxy changes, or must not change.
var snapshotSysctls = []string{
	"net/ipv4/ip_forward",
	"net/ipv4/ip_local_port_range",
	"net/ipv4/ip_local_reserved_ports",
	"net/ipv4/conf/all/rp_filter",
	"net/ipv4/conf/all/src_valid_mark",
	"net/ipv6/conf/all/forwarding",
	"net/ipv6/conf/all/disable_ipv6",
}

// Snapshot returns the host's links, addresses, policy rules, the routes of all tables, and the relevant sysctls.
// There is one item per line, in a fixed order, without what changes by itself (counters, lifetimes, indices). Two
// snapshots of an unchanged host are equal. An attribute that Snapshot has no word for appears as a number.
func (h *Host) Snapshot() string {
	h.net.helper()
	var lines []string
	err := error(netlink.ErrDumpInterrupted)
	for try := 0; try < 10 && errors.Is(err, netlink.ErrDumpInterrupted); try++ { // changed while being read
		err = h.Do(func() (err error) {
			lines, err = h.snapshot()
			return err
		})
	}
	h.check("take snapshot", err)
	return strings.Join(lines, "\n") + "\n"
}

// snapshot reads the state of the host. The thread must be in the host's namespace.
func (h *Host) snapshot() (lines []string, err error) {
	links, err := h.nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := make(map[uint32]string)
	for _, l := range links {
		names[uint32(l.Attrs().Index)] = l.Attrs().Name
	}
	addrs, err := h.nl.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	lines = append(sorted(linkLines(links, names)), sorted(addrLines(addrs, names))...)
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		rules, err := dump(family, unix.RTM_GETRULE, unix.RTM_NEWRULE, ruleLine, names)
		if err != nil {
			return nil, fmt.Errorf("list rules: %w", err)
		}
		routes, err := dump(family, unix.RTM_GETROUTE, unix.RTM_NEWROUTE, routeLine, names)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		lines = append(lines, rules...) // the kernel's order matters for rules
		lines = append(lines, sorted(routes)...)
	}
	for _, key := range snapshotSysctls {
		value, err := os.ReadFile(sysctlPath(key))
		if err != nil {
			return nil, err
		}
		lines = append(lines, fmt.Sprintf("sysctl %s = %s", key, strings.TrimSpace(string(value))))
	}
	return lines, nil
}

func sorted(s []string) []string {
	slices.Sort(s)
	return s
}

func linkLines(links []netlink.Link, names map[uint32]string) (lines []string) {
	for _, l := range links {
		a := l.Attrs()
		line := fmt.Sprintf("link %s %s mtu %d %v", a.Name, l.Type(), a.MTU, a.Flags)
		if a.MasterIndex != 0 {
			line += " master " + names[uint32(a.MasterIndex)]
		}
		lines = append(lines, line)
	}
	return lines
}

func addrLines(addrs []netlink.Addr, names map[uint32]string) (lines []string) {
	for _, a := range addrs {
		line := fmt.Sprintf("addr %s dev %s scope %v flags %#x", a.IPNet, names[uint32(a.LinkIndex)], a.Scope, a.Flags)
		if a.Peer != nil && a.Peer.String() != a.IPNet.String() {
			line += " peer " + a.Peer.String()
		}
		lines = append(lines, line)
	}
	return lines
}

// dump requests all objects of a family, through a socket of this thread's namespace, and formats each as a line.
// Objects for which line returns "" are left out. Package netlink's own lists lose some attributes (a rule's
// action).
func dump(family uint8, get, want int, line func(*nl.RtMsg, map[uint16][]byte, map[uint32]string) string, names map[uint32]string) ([]string, error) {
	req := nl.NewNetlinkRequest(get, unix.NLM_F_DUMP)
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: family}})
	msgs, err := req.Execute(unix.NETLINK_ROUTE, uint16(want))
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, m := range msgs {
		msg := nl.DeserializeRtMsg(m)
		list, err := nl.ParseRouteAttr(m[msg.Len():])
		if err != nil {
			return nil, err
		}
		attrs := make(map[uint16][]byte)
		for _, a := range list {
			attrs[a.Attr.Type] = a.Value
		}
		if l := line(msg, attrs, names); l != "" {
			lines = append(lines, l)
		}
	}
	return lines, nil
}

// words formats one line. Formatted attributes are removed from the map; those left at the end are written as
// numbers.
type words struct {
	strings.Builder
	attrs map[uint16][]byte
}

// take writes " word text" if the attribute is present.
func (w *words) take(attr uint16, word string, text func([]byte) string) {
	if b, ok := w.attrs[attr]; ok {
		delete(w.attrs, attr)
		fmt.Fprintf(w, " %s %s", word, text(b))
	}
}

// skip omits the attribute if it has this value.
func (w *words) skip(attr uint16, value uint32) {
	if b, ok := w.attrs[attr]; ok && number(b) == fmt.Sprint(value) {
		delete(w.attrs, attr)
	}
}

func (w *words) rest() string {
	var left []uint16
	for a := range w.attrs {
		left = append(left, a)
	}
	slices.Sort(left)
	for _, a := range left {
		fmt.Fprintf(w, " attribute-%d %x", a, w.attrs[a])
	}
	return w.String()
}

func number(b []byte) string {
	switch len(b) {
	case 1:
		return fmt.Sprint(b[0])
	case 2:
		return fmt.Sprint(binary.NativeEndian.Uint16(b))
	case 4:
		return fmt.Sprint(binary.NativeEndian.Uint32(b))
	default:
		return fmt.Sprintf("%x", b)
	}
}

func hexNumber(b []byte) string { return fmt.Sprintf("%#x", binary.NativeEndian.Uint32(b)) }

func numberRange(b []byte) string {
	return fmt.Sprintf("%d-%d", binary.NativeEndian.Uint16(b), binary.NativeEndian.Uint16(b[2:]))
}

func cString(b []byte) string { return strings.TrimRight(string(b), "\x00") }

func address(b []byte) string {
	a, _ := netip.AddrFromSlice(b)
	return a.String()
}

// prefix returns a formatter for an address, with the length from the message header.
func prefix(bits uint8) func([]byte) string {
	return func(b []byte) string { return fmt.Sprintf("%s/%d", address(b), bits) }
}

func familyName(family uint8) string {
	if family == unix.AF_INET6 {
		return "-6"
	}
	return "-4"
}

// Masks of a rule's ports, since Linux 6.15 (include/uapi/linux/fib_rules.h). golang.org/x/sys has no names for
// them.
const (
	fraSportMask = 28
	fraDportMask = 29
)

func ruleLine(msg *nl.RtMsg, attrs map[uint16][]byte, _ map[uint32]string) string {
	w := &words{attrs: attrs}
	fmt.Fprintf(w, "%s rule", familyName(msg.Family))
	if _, ok := attrs[nl.FRA_PRIORITY]; !ok {
		w.WriteString(" priority 0")
	}
	w.take(nl.FRA_PRIORITY, "priority", number)
	if msg.Flags&netlink.FibRuleInvert != 0 {
		w.WriteString(" not")
	}
	w.take(nl.FRA_SRC, "from", prefix(msg.Src_len))
	w.take(nl.FRA_DST, "to", prefix(msg.Dst_len))
	if msg.Tos != 0 {
		fmt.Fprintf(w, " tos %#x", msg.Tos)
	}
	w.take(nl.FRA_FWMARK, "fwmark", hexNumber)
	w.take(nl.FRA_FWMASK, "mask", hexNumber)
	w.take(nl.FRA_IIFNAME, "iif", cString)
	w.take(nl.FRA_OIFNAME, "oif", cString)
	w.take(nl.FRA_UID_RANGE, "uidrange", func(b []byte) string { return number(b[:4]) + "-" + number(b[4:]) })
	w.take(nl.FRA_IP_PROTO, "ipproto", number)
	w.take(nl.FRA_SPORT_RANGE, "sport", numberRange)
	w.take(nl.FRA_DPORT_RANGE, "dport", numberRange)
	switch msg.Type {
	case nl.FR_ACT_TO_TBL:
		w.take(nl.FRA_TABLE, "lookup", number)
	case nl.FR_ACT_GOTO:
		w.take(nl.FRA_GOTO, "goto", number)
	case nl.FR_ACT_NOP:
		w.WriteString(" nop")
	case nl.FR_ACT_BLACKHOLE:
		w.WriteString(" blackhole")
	case nl.FR_ACT_UNREACHABLE:
		w.WriteString(" unreachable")
	case nl.FR_ACT_PROHIBIT:
		w.WriteString(" prohibit")
	default:
		fmt.Fprintf(w, " action-%d", msg.Type)
	}
	// Values that the kernel sends of its own accord to say that there is none.
	w.skip(nl.FRA_TABLE, 0)
	w.skip(nl.FRA_SUPPRESS_PREFIXLEN, 0xffffffff)
	w.skip(nl.FRA_SUPPRESS_IFGROUP, 0xffffffff)
	w.skip(fraSportMask, 0xffff)
	w.skip(fraDportMask, 0xffff)
	w.take(nl.FRA_SUPPRESS_PREFIXLEN, "suppress_prefixlength", number)
	w.take(nl.FRA_SUPPRESS_IFGROUP, "suppress_ifgroup", number)
	w.take(nl.FRA_PROTOCOL, "proto", number)
	return w.rest()
}

var routeTypes = map[uint8]string{
	unix.RTN_UNICAST: "unicast", unix.RTN_LOCAL: "local", unix.RTN_BROADCAST: "broadcast",
	unix.RTN_ANYCAST: "anycast", unix.RTN_MULTICAST: "multicast", unix.RTN_BLACKHOLE: "blackhole",
	unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit", unix.RTN_THROW: "throw",
}

func routeLine(msg *nl.RtMsg, attrs map[uint16][]byte, names map[uint32]string) string {
	if msg.Flags&unix.RTM_F_CLONED != 0 {
		return "" // the routing cache
	}
	delete(attrs, unix.RTA_CACHEINFO)
	delete(attrs, unix.RTA_EXPIRES)
	if pref := attrs[unix.RTA_PREF]; len(pref) == 1 && pref[0] == 0 {
		delete(attrs, unix.RTA_PREF) // medium
	}
	link := func(b []byte) string { return names[binary.NativeEndian.Uint32(b)] }
	w := &words{attrs: attrs}
	fmt.Fprintf(w, "%s route", familyName(msg.Family))
	w.take(unix.RTA_TABLE, "table", number)
	w.WriteString(" " + routeTypes[msg.Type])
	if msg.Dst_len == 0 {
		w.WriteString(" default")
	}
	w.take(unix.RTA_DST, "to", prefix(msg.Dst_len))
	w.take(unix.RTA_SRC, "from", prefix(msg.Src_len))
	w.take(unix.RTA_GATEWAY, "via", address)
	w.take(unix.RTA_OIF, "dev", link)
	w.take(unix.RTA_PREFSRC, "src", address)
	w.take(unix.RTA_PRIORITY, "metric", number)
	fmt.Fprintf(w, " proto %d scope %d", msg.Protocol, msg.Scope)
	if msg.Flags != 0 {
		fmt.Fprintf(w, " flags %#x", msg.Flags)
	}
	return w.rest()
}
