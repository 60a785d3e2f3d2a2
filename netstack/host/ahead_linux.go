package host

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// FindAhead returns the rules of other programs that lead a connection to dst elsewhere before ours are asked.
func FindAhead(dst netip.AddrPort) (Ahead, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return Ahead{}, err
	}
	defer nl.Close()
	r, err := openRTNL()
	if err != nil {
		return Ahead{}, err
	}
	defer r.close()
	addr := dst.Addr().Unmap()
	fam := familyOf(addr)
	list, err := allRules(nl, fam)
	if err != nil {
		return Ahead{}, err
	}
	leads, err := r.leads(fam, mayLead(list, nil, nil))
	return ahead(fam, leads, func(p netip.Prefix, ports PortRange) bool {
		return p.Contains(addr) && overlap(ports, PortRange{dst.Port(), dst.Port()})
	}), err
}

// mayLead picks the rules of other programs that are asked before ours, and that captured connections may match. Those
// of this host have no source address, mark or device yet. Those of hosts behind gateways have a source address, which
// is none of own.
func mayLead(list []netlink.Rule, gateways []string, own []netip.Addr) []netlink.Rule {
	last := lastCapture(list)
	return slices.DeleteFunc(list, func(r netlink.Rule) bool {
		behind := len(gateways) > 0 && r.IifName != "lo"
		switch {
		case r.Priority >= last, r.Protocol == Protocol:
			return true
		case r.Goto <= prefMark && (r.Table == 0 || r.Table == unix.RT_TABLE_LOCAL): // leads nowhere, or is for VRFs (l3mdev)
			return true
		case r.Invert: // wg-quick's is for all but one mark
			return false
		case r.Src != nil && (!behind || isOneOf(prefixOf(r.Src), own)):
			return true
		}
		return r.Mark != 0 || r.OifName != "" || r.Sport != nil || r.IPProto != 0 && r.IPProto != protoTCP ||
			r.IifName != "" && r.IifName != "lo" && !slices.Contains(gateways, r.IifName)
	})
}

// lastCapture returns the priority of the last of our capture rules; that of our first rule if there are none.
func lastCapture(list []netlink.Rule) int {
	last := prefMark
	for _, r := range list {
		if r.Protocol == Protocol && r.IifName != "" && r.Table >= tableDNS {
			last = max(last, r.Priority)
		}
	}
	return last
}

func isOneOf(p netip.Prefix, list []netip.Addr) bool {
	return p.IsSingleIP() && slices.Contains(list, p.Addr())
}

// lead is what a rule leads elsewhere.
type lead struct {
	priority int
	to       []netip.Prefix
	ports    PortRange
}

// leads looks at the tables that rules of a family name. A table has no say about what it has no route to.
func (r *rtnl) leads(fam family, rules []netlink.Rule) (leads []lead, err error) {
	tables := make(map[int][]netip.Prefix)
	for _, rule := range rules {
		all := fam.all()
		l := lead{priority: rule.Priority, to: []netip.Prefix{all}, ports: everyPort}
		if rule.Dst != nil && !rule.Invert {
			all = prefixOf(rule.Dst)
			l.to = []netip.Prefix{all}
		}
		if rule.Dport != nil && !rule.Invert {
			l.ports = PortRange{rule.Dport.Start, rule.Dport.End}
		}
		if rule.Goto <= prefMark {
			routes, known := tables[rule.Table]
			if !known {
				err := r.dumpRoutes(fam, rule.Table, func(i routeInfo) {
					if i.typ != unix.RTN_THROW {
						routes = append(routes, i.dst)
					}
				})
				if err != nil {
					return leads, err
				}
				tables[rule.Table] = routes
			}
			l.to = nil
			for _, dst := range routes {
				if dst.Bits() > rule.SuppressPrefixlen && dst.Overlaps(all) {
					l.to = append(l.to, narrower(dst, all))
				}
			}
		}
		leads = append(leads, l)
	}
	return leads, nil
}

// narrower returns what two prefixes that overlap have in common.
func narrower(a, b netip.Prefix) netip.Prefix {
	if a.Bits() > b.Bits() {
		return a
	}
	return b
}

// ahead names the rules that lead captured connections elsewhere. means reports whether there may be connections to
// a prefix and one of the ports.
func ahead(fam family, leads []lead, means func(netip.Prefix, PortRange) bool) Ahead {
	var found []string
	last := -1
	for _, l := range leads { // by priority
		if l.priority == last || !slices.ContainsFunc(l.to, func(p netip.Prefix) bool { return means(p, l.ports) }) {
			continue
		}
		last = l.priority
		if len(found) == 8 {
			found = append(found, "…")
			break
		}
		found = append(found, strconv.Itoa(last))
	}
	return Ahead{Priorities: strings.Join(found, ", "), IPv6: fam == v6 && len(found) > 0}
}

// warnAhead warns of other programs' rules that lead captured connections elsewhere, when they change. What can't be
// looked at now is looked at next time.
func (h *Host) warnAhead() {
	h.looking.Lock()
	defer h.looking.Unlock()
	for _, fam := range []family{v4, v6} {
		if h.dump == nil {
			return // undone
		}
		leads, err := h.dump.leads(fam, h.others[fam])
		if err != nil {
			return
		}
		var a Ahead
		h.mu.Lock()
		if h.on(fam) {
			a = ahead(fam, leads, h.captured)
		}
		h.mu.Unlock()
		if a.Priorities != "" && h.ahead[fam] != a {
			h.cfg.Log.Warn(a.String()+"; connections may leave unpinned", "hint", a.Hint())
		}
		h.ahead[fam] = a
	}
}

// captured reports whether some captures are for a part of p and of ports. Those of port 53 are for all addresses,
// wherever resolvers are, so they count only beside all of p.
func (h *Host) captured(p netip.Prefix, ports PortRange) bool {
	if h.cfg.DNS && p.Bits() == 0 && overlap(ports, PortRange{portDNS, portDNS}) {
		return true
	}
	tables := make(map[int]bool)
	for i, set := range h.cfg.PortSets {
		if !slices.ContainsFunc(set, func(r PortRange) bool { return overlap(r, ports) }) {
			continue
		}
		tables[tablePortSet+i] = true
		for bits := range p.Bits() + 1 {
			if around, err := p.Addr().Prefix(bits); err == nil {
				if _, there := h.routes[dest{tablePortSet + i, around}]; there {
					return true
				}
			}
		}
	}
	if p.IsSingleIP() || len(tables) == 0 {
		return false
	}
	for d := range h.routes {
		if tables[d.table] && p.Overlaps(d.dst) {
			return true
		}
	}
	return false
}

func overlap(a, b PortRange) bool { return a.First <= b.Last && b.First <= a.Last }
