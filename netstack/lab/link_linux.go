package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link joins a and b by a veth pair with the given addresses ("198.51.100.1/24"). Both ends are up and ready to
// carry IPv4 and IPv6. The devices are named eth0, eth1, … in the order in which a host gets them. Link returns the
// two names.
func (n *Net) Link(a *Host, addrsA []string, b *Host, addrsB []string) (ethA, ethB string) {
	n.helper()
	ethA, ethB = a.nextLink(), b.nextLink()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = ethA
	// Hardware addresses are numbered, so that link-local addresses are the same in every run.
	attrs.HardwareAddr = net.HardwareAddr{2, 0, 0, 0, byte(n.links), 1}
	veth := &netlink.Veth{
		LinkAttrs:        attrs,
		PeerName:         ethB,
		PeerHardwareAddr: net.HardwareAddr{2, 0, 0, 0, byte(n.links), 2},
		PeerNamespace:    netlink.NsFd(b.ns),
	}
	n.links++
	n.check(fmt.Sprintf("link %s to %s", a.name, b.name), a.nl.LinkAdd(veth))
	a.linkUp(ethA, addrsA)
	b.linkUp(ethB, addrsB)
	a.linkReady(ethA)
	b.linkReady(ethB)
	return ethA, ethB
}

func (h *Host) nextLink() string {
	h.links++
	return fmt.Sprintf("eth%d", h.links-1)
}

func (h *Host) linkUp(name string, addrs []string) {
	h.net.helper()
	h.check("set "+name+" up", h.nl.LinkSetUp(h.link(name)))
	for _, a := range addrs {
		h.Addr(name, a)
	}
}

// linkReady waits until the device is operational and its link-local address is usable. Until then IPv6 neighbour
// discovery does not work.
func (h *Host) linkReady(name string) {
	h.net.helper()
	h.check("wait for "+name, poll(func() error {
		link := h.link(name)
		if link.Attrs().OperState != netlink.OperUp {
			return fmt.Errorf("operational state is %v", link.Attrs().OperState)
		}
		addrs, err := h.nl.AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
				return h.solicitable(name, a.IP)
			}
		}
		return errors.New("no link-local address")
	}))
}

// solicitable returns an error until the device listens to the multicast group (RFC 4291, section 2.7.1) that
// neighbours use to ask for addr. Even without duplicate address detection, the kernel joins the group a moment
// later, on a work queue (addrconf_dad_work). A neighbour that asks earlier repeats its question only after a
// second.
func (h *Host) solicitable(link string, addr net.IP) error {
	group := fmt.Sprintf(" ff0200000000000000000001ff%x ", []byte(addr[13:]))
	return h.Do(func() error {
		groups, err := os.ReadFile("/proc/thread-self/net/igmp6")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(groups)) {
			if fields := strings.Fields(line); len(fields) > 1 && fields[1] == link && strings.Contains(line, group) {
				return nil
			}
		}
		return fmt.Errorf("neighbours cannot ask for %v yet", addr)
	})
}

// poll calls f until it returns nil, for at most five seconds.
func poll(f func() error) error {
	end := time.Now().Add(5 * time.Second)
	for {
		err := f()
		if err == nil || time.Now().After(end) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

func (h *Host) link(name string) netlink.Link {
	h.net.helper()
	link, err := h.nl.LinkByName(name)
	h.check("find "+name, err)
	return link
}

// Addr adds an address with its prefix length to a device that is up. The address is usable when Addr returns.
func (h *Host) Addr(link, addr string) {
	h.net.helper()
	a, err := netlink.ParseAddr(addr)
	h.check("parse address", err)
	if a.IP.To4() == nil {
		a.Flags |= unix.IFA_F_NODAD
	}
	h.check("add address "+addr, h.nl.AddrAdd(h.link(link), a))
	if a.IP.To4() == nil && link != "lo" {
		h.check("wait for address "+addr, poll(func() error { return h.solicitable(link, a.IP) }))
	}
}

// Route adds a route to dst, a prefix or "default" (of via's family), via a gateway's address. via may also be a
// device instead of a gateway.
func (h *Host) Route(dst, via string) {
	h.net.helper()
	r := &netlink.Route{}
	gw, err := netip.ParseAddr(via)
	if err == nil {
		r.Gw = net.IP(gw.AsSlice())
	} else {
		r.LinkIndex = h.link(via).Attrs().Index
	}
	switch {
	case dst != "default":
		_, r.Dst, err = net.ParseCIDR(dst)
		h.check("parse route", err)
	case gw.Is6():
		r.Dst = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	default:
		r.Dst = &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	}
	h.check(fmt.Sprintf("add route %s via %s", dst, via), h.nl.RouteAdd(r))
}

// RouteFrom gives TCP from a port a default route of its own, which has src as its source address: a table, which is
// numbered like the port, and a policy rule.
func (h *Host) RouteFrom(port uint16, src, via string) {
	h.net.helper()
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Table = unix.AF_INET, 100, int(port)
	if strings.Contains(via, ":") {
		rule.Family = unix.AF_INET6
	}
	rule.IPProto, rule.Sport = unix.IPPROTO_TCP, netlink.NewRulePortRange(port, port)
	h.check("add rule", h.nl.RuleAdd(rule))
	h.check("add route via "+via, h.nl.RouteAdd(&netlink.Route{Table: rule.Table, Src: net.ParseIP(src), Gw: net.ParseIP(via)}))
}

// Swallow drops what comes in from a device to be forwarded, until release is called.
func (h *Host) Swallow(dev string) (release func()) {
	h.net.helper()
	var rules []*netlink.Rule
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rule := netlink.NewRule()
		rule.Family, rule.Priority, rule.IifName, rule.Type = family, 1, dev, unix.FR_ACT_BLACKHOLE
		h.check("drop what comes from "+dev, h.nl.RuleAdd(rule))
		rules = append(rules, rule)
	}
	return func() {
		h.net.helper()
		for _, rule := range rules {
			h.check("forward what comes from "+dev, h.nl.RuleDel(rule))
		}
	}
}

// Own makes every address of the prefixes an address of the host itself (`ip route add local PREFIX dev lo`).
// Neighbours on a link learn this for IPv4 only. For IPv6, give them routes via an ordinary address of the host.
func (h *Host) Own(prefixes ...string) {
	h.net.helper()
	for _, p := range prefixes {
		_, dst, err := net.ParseCIDR(p)
		h.check("parse prefix", err)
		h.check("add local route "+p, h.nl.RouteAdd(&netlink.Route{
			Dst: dst, LinkIndex: h.link("lo").Attrs().Index, Table: unix.RT_TABLE_LOCAL,
			Type: unix.RTN_LOCAL, Scope: localScope(p),
		}))
	}
}

// localScope returns the scope that iproute2 gives a local route. IPv6 has no scopes.
func localScope(prefix string) netlink.Scope {
	if strings.Contains(prefix, ":") {
		return netlink.SCOPE_UNIVERSE
	}
	return netlink.SCOPE_HOST
}

// Counters returns how many packets a device has received and sent.
func (h *Host) Counters(link string) (rx, tx uint64) {
	h.net.helper()
	s := h.link(link).Attrs().Statistics
	return s.RxPackets, s.TxPackets
}
