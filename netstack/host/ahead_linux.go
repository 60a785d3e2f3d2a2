package host

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// FindAhead returns the rules of other programs that a connection to dst may meet before it meets ours.
func FindAhead(dst netip.Addr) (Ahead, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return Ahead{}, err
	}
	defer nl.Close()
	list, err := allRules(nl, familyOf(dst.Unmap()))
	if err != nil {
		return Ahead{}, err
	}
	return ahead(list, nil, func(p netip.Prefix) bool { return p.Contains(dst.Unmap()) }), nil
}

// ahead picks the rules that may lead captured connections past ours. A rule is harmless if it asks for what they do not
// have: a source address, a mark, another device, another destination. means reports whether there may be connections to
// a prefix.
func ahead(list []netlink.Rule, gateways []string, means func(netip.Prefix) bool) (a Ahead) {
	var found []string
	for _, r := range list {
		switch {
		case r.Priority >= prefMark, r.Protocol == Protocol:
			continue
		case r.Goto <= prefMark && (r.Table == 0 || r.Table == unix.RT_TABLE_LOCAL): // leads nowhere, or is for VRFs (l3mdev)
			continue
		case r.Invert: // wg-quick's is for all but one mark
		case r.Src != nil, r.Mark != 0, r.OifName != "", r.Sport != nil, r.IPProto != 0 && r.IPProto != protoTCP,
			r.IifName != "" && r.IifName != "lo" && !slices.Contains(gateways, r.IifName),
			r.Dst != nil && !means(prefixOf(r.Dst)):
			continue
		}
		if len(found) == 8 {
			found = append(found, "…")
			break
		}
		found = append(found, strconv.Itoa(r.Priority))
		a.IPv6 = r.Family == unix.AF_INET6
	}
	a.Priorities = strings.Join(found, ", ")
	return a
}

// warnAhead warns of other programs' rules that are asked before ours, when they change.
func (h *Host) warnAhead(fam family, list []netlink.Rule) {
	a := ahead(list, h.cfg.Gateways, func(p netip.Prefix) bool {
		for d := range h.routes {
			if d.dst.Overlaps(p) {
				return true
			}
		}
		return false
	})
	if a.Priorities != "" && h.ahead[fam] != a {
		h.cfg.Log.Warn(a.String()+"; connections may leave unpinned", "hint", a.Hint())
	}
	h.ahead[fam] = a
}
