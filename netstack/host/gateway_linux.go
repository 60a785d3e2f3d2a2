package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netconf is what the kernel reports of a device's settings (struct netconfmsg and its attributes).
type netconf struct{ forwarding, rpFilter int32 }

// everyDevice is the index of net.ipv4.conf.all (NETCONFA_IFINDEX_ALL).
const everyDevice = -1

// Attributes of RTM_NEWNETCONF (include/uapi/linux/netconf.h).
const (
	netconfaIndex      = 1
	netconfaForwarding = 2
	netconfaRPFilter   = 3
)

// dumpNetconf returns the settings of all devices of a family, by index. Unlike /proc/sys it reports on the
// network namespace of the socket, whatever the thread's is.
func (r *rtnl) dumpNetconf(fam family) (map[int]netconf, error) {
	r.buf = r.buf[:0]
	end := r.begin(unix.RTM_GETNETCONF, unix.NLM_F_DUMP)
	r.buf = append(r.buf, fam.af(), 0, 0, 0)
	end()
	if err := r.send(); err != nil {
		return nil, fmt.Errorf("list device settings: %w", err)
	}
	found := map[int]netconf{}
	var err error
	rerr := r.receive(func(m message) bool {
		switch {
		case m.seq != r.seq:
		case m.typ == unix.NLMSG_DONE || m.typ == unix.NLMSG_ERROR:
			if errno := m.errno(); errno != 0 {
				err = errno
			}
			return false
		case m.typ == unix.RTM_NEWNETCONF && len(m.data) >= 4:
			index, conf := parseNetconf(m.data)
			found[index] = conf
		}
		return true
	})
	if err = errors.Join(err, rerr); err != nil {
		return nil, fmt.Errorf("list device settings: %w", err)
	}
	return found, nil
}

func parseNetconf(b []byte) (index int, conf netconf) {
	for typ, value := range attributes(b[4:]) {
		if len(value) != 4 {
			continue
		}
		switch n := int32(binary.NativeEndian.Uint32(value)); typ {
		case netconfaIndex:
			index = int(n)
		case netconfaForwarding:
			conf.forwarding = n
		case netconfaRPFilter:
			conf.rpFilter = n
		}
	}
	return index, conf
}

// lookGateways returns the current state of the gateways.
func lookGateways(h *netlink.Handle, r *rtnl, names []string) ([]Gateway, error) {
	if len(names) == 0 {
		return nil, nil
	}
	conf4, err := r.dumpNetconf(v4)
	if err != nil {
		return nil, err
	}
	conf6, err := r.dumpNetconf(v6)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, err
	}
	var list []Gateway
	for _, name := range names {
		g := Gateway{Name: name}
		switch link, err := h.LinkByName(name); {
		case err == nil && link.Attrs().Name != name: // see checkNames
		case err == nil:
			g.Index = link.Attrs().Index
			g.Forward4 = conf4[g.Index].forwarding > 0
			g.Forward6 = conf6[everyDevice].forwarding > 0 // ip6_forward is not per device
			g.IPv6 = speaksIPv6(h, link)
			g.VRF = vrfOf(h, link)
		case !isNotFound(err):
			return nil, fmt.Errorf("look at gateway %s: %w", name, err)
		}
		list = append(list, g)
	}
	return list, nil
}

// speaksIPv6 reports whether a device has an address of IPv6 beyond its link. If it can't be told there is one warning
// less.
func speaksIPv6(h *netlink.Handle, link netlink.Link) bool {
	list, _ := h.AddrList(link, netlink.FAMILY_V6)
	return slices.ContainsFunc(list, func(a netlink.Addr) bool { return a.IP.IsGlobalUnicast() })
}

// vrfOf returns the name of the VRF that a device belongs to, or "". If it can't be told there is one warning less.
func vrfOf(h *netlink.Handle, link netlink.Link) string {
	if link.Attrs().MasterIndex == 0 {
		return ""
	}
	master, err := h.LinkByIndex(link.Attrs().MasterIndex)
	if err != nil || master.Type() != "vrf" {
		return ""
	}
	return master.Attrs().Name
}

func isNotFound(err error) bool {
	_, ok := errors.AsType[netlink.LinkNotFoundError](err)
	return ok
}

// checkNames refuses a device's alternative names. A policy rule with such a name applies to a device that is there
// when the rule is made. But when the device comes back, the kernel looks for it by its own name only
// (fib_rules_event).
func checkNames(h *netlink.Handle, names []string) error {
	for _, name := range names {
		if link, err := h.LinkByName(name); err == nil && link.Attrs().Name != name {
			return &DemandError{
				fmt.Sprintf("gateway %s: is another name of %s, and no name for a policy rule", name, link.Attrs().Name),
				"pinproxy --gateway " + link.Attrs().Name + " …",
			}
		}
	}
	return nil
}

// LookGateways returns the state of the gateways in the network namespace of the calling thread.
func LookGateways(names []string) ([]Gateway, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	defer h.Close()
	if err := checkNames(h, names); err != nil {
		return nil, err
	}
	r, err := openRTNL()
	if err != nil {
		return nil, err
	}
	defer r.close()
	return lookGateways(h, r, names)
}

// lookPaths restores the device's settings to those of the plan. It logs gateways that have come or gone,
// and forwarding that was switched on or off. h.mu is held.
func (h *Host) lookPaths() (repaired []Step, err error) {
	plan := planPaths(h.cfg, h.kernel.readOnly)
	if len(plan) == 0 {
		return nil, nil
	}
	conf, err := h.dump.dumpNetconf(v4)
	if err != nil {
		return nil, err
	}
	own := conf[h.kernel.link]
	for _, s := range plan {
		s := s.(sysctl)
		if s.key == rpFilter(h.cfg.Link) && own.rpFilter == 2 || s.key == forwarding(h.cfg.Link) && own.forwarding == 1 {
			continue
		}
		if err := h.kernel.do(s); err != nil {
			return repaired, err
		}
		repaired = append(repaired, s)
	}
	now, err := lookGateways(h.kernel.nl, h.dump, h.cfg.Gateways)
	if err != nil {
		return repaired, err
	}
	for i, g := range now {
		h.tell(h.gateways[i], g)
	}
	h.gateways = now
	return repaired, nil
}

// tell logs what has become of a gateway. The policy rules refer to it by name, so any device with that name
// counts (fib_rules_event).
func (h *Host) tell(was, is Gateway) {
	switch {
	case is.Index == 0 && was.Index != 0:
		h.cfg.Log.Warn("gateway is gone: captured again when it is back", "gateway", is.Name)
		return
	case is.Index == 0:
		return
	case was.Index == 0:
		h.cfg.Log.Info("gateway has appeared: what its hosts send is captured", "gateway", is.Name)
	case was.Index != is.Index:
		h.cfg.Log.Info("gateway is another device now: what its hosts send is captured", "gateway", is.Name)
	}
	old := map[string]bool{}
	if was.Index != 0 {
		for _, err := range was.demands(h.on(v6)) {
			old[err.Error()] = true
		}
	}
	demands := is.demands(h.on(v6))
	for _, err := range demands {
		if demand, ok := errors.AsType[*DemandError](err); ok && !old[demand.What] {
			h.cfg.Log.Warn(demand.What, "hint", demand.Hint)
		}
	}
	if len(demands) == 0 && len(old) > 0 {
		h.cfg.Log.Info("this host forwards what the hosts behind a gateway send", "gateway", is.Name)
	}
}

// Gateways returns the gateways as of the last check.
func (h *Host) Gateways() []Gateway {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Gateway(nil), h.gateways...)
}

// isGateway reports whether a notification about the device with this index and name may concern a gateway.
func (h *Host) isGateway(index int, name string) bool {
	for _, want := range h.cfg.Gateways {
		if want == name {
			return true
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range h.gateways {
		if g.Index == index && index != 0 { // it may have been renamed
			return true
		}
	}
	return false
}
