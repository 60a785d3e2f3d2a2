package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Run puts back any of our changes that someone removes, and captures IPv6 while the host has it. It returns
// nil when ctx ends or everything is undone. The error is [ErrLinkGone] when the device has disappeared. Call
// it once, after Apply.
func (h *Host) Run(parent context.Context) error {
	h.mu.Lock()
	events, kernel := h.events, h.kernel
	h.mu.Unlock()
	if kernel == nil {
		return errUndone
	}
	g, ctx := errgroup.WithContext(parent)
	g.Go(func() error { return h.listen(ctx, events, kernel.link) })
	g.Go(func() error { return h.keep(ctx) })
	err := g.Wait()
	if errors.Is(err, ErrLinkGone) {
		return err
	}
	h.mu.Lock()
	undone := h.kernel == nil // and the sockets were closed meanwhile
	h.mu.Unlock()
	if undone || parent.Err() != nil {
		return nil
	}
	return err
}

// listen turns notifications into checks.
func (h *Host) listen(ctx context.Context, e *events, link int) error {
	buf := make([]byte, 32<<10)
	for {
		d, err := e.read(ctx, buf, func(m message) dirt {
			return about(m, link, h.captures(v6)) | h.aboutGateways(m)
		})
		if err != nil {
			return err
		}
		if d != 0 {
			h.lookSoon(d)
		}
	}
}

func (h *Host) captures(fam family) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.on(fam)
}

// keep runs checks when there is a cause, and regularly.
func (h *Host) keep(ctx context.Context) error {
	var pace pacer
	trouble := ""  // what the last check could not do
	due := dirtAll // covers whatever happened since Apply
	timer := time.NewTimer(0)
	defer timer.Stop()
	regular := time.NewTicker(h.every)
	defer regular.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case d := <-h.wake:
			if due == 0 {
				timer.Reset(pace.next(time.Now()))
			}
			due |= d
		case <-regular.C:
			due = dirtAll | dirtRegular
			timer.Reset(0)
		case <-timer.C:
			checked := due
			repaired, err := h.look(checked)
			if err == nil && checked&dirtRules != 0 {
				h.warnAhead()
			}
			due = 0
			if len(repaired) > 0 || err != nil {
				pace.repaired(time.Now())
			}
			if len(repaired) > 0 {
				h.cfg.Log.Warn("put back what somebody took away", "what", repaired[0].String(), "and_more", len(repaired)-1)
			}
			switch {
			case errors.Is(err, ErrLinkGone), errors.Is(err, errUndone):
				return err
			case err != nil:
				if err.Error() != trouble {
					h.cfg.Log.Warn("cannot put back what somebody took away", "err", err)
				}
				trouble = err.Error()
				due = checked &^ dirtRegular // nothing may report that it is possible now
				timer.Reset(pace.next(time.Now()))
			default:
				trouble = ""
			}
		}
	}
}

// look repairs what is missing among d and returns the steps that restored it.
func (h *Host) look(d dirt) (repaired []Step, err error) {
	h.looking.Lock()
	defer h.looking.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.kernel == nil {
		return nil, errUndone
	}
	var errs []error
	try := func(found []Step, err error) {
		repaired = append(repaired, found...)
		errs = append(errs, err)
	}
	if d&dirtLink != 0 {
		found, err := h.lookLink()
		if errors.Is(err, ErrLinkGone) {
			return nil, err
		}
		try(found, err)
		d |= dirtRoutes // a moment of being down is enough to lose them
	}
	if d&dirtIPv6 != 0 {
		// May find that all of IPv6 has to come back, and restores it.
		errs = append(errs, h.lookIPv6(d&dirtRegular != 0))
	}
	if d&dirtRoutes != 0 {
		try(h.lookRoutes())
	}
	if d&dirtRules != 0 {
		try(h.lookRules())
	}
	if d&dirtReserved != 0 {
		try(h.lookReserved())
	}
	if d&dirtGateways != 0 {
		try(h.lookPaths())
	}
	return repaired, errors.Join(errs...)
}

// lookLink ensures that the device is up, has IPv6 if the host has, and has its addresses.
func (h *Host) lookLink() (repaired []Step, err error) {
	up, err := h.kernel.up()
	if err != nil {
		return nil, err
	}
	put := func(s Step) error {
		err := h.kernel.do(s)
		if err == nil {
			repaired = append(repaired, s)
		}
		return err
	}
	if !up {
		if err := put(linkUp{h.cfg.Link}); err != nil {
			return nil, err
		}
	}
	if h.on(v6) && h.kernel.ipv6Off() {
		// The kernel has deleted the address, and the routes that name it.
		has, err := hasIPv6(h.dump, h.kernel.link)
		switch {
		case err != nil:
			return repaired, fmt.Errorf("look for IPv6: %w", err)
		case has:
			err = put(sysctl{disableIPv6(h.cfg.Link), "0"})
		default: // switched off for the whole host: no flow is left that could come back
			err = h.loseIPv6()
		}
		if err != nil {
			return repaired, err
		}
	}
	for _, fam := range []family{v4, v6} {
		there, err := h.kernel.addrs(fam)
		if err != nil {
			return repaired, err
		}
		for _, s := range h.parts[fam] {
			if s, ok := s.(addr); ok && !slices.Contains(there, s.addr) {
				if err := put(s); err != nil {
					return repaired, err
				}
			}
		}
	}
	// This route came back with the device or the address.
	return repaired, h.kernel.do(noMulticast{h.cfg.Link})
}

// lookIPv6 starts to capture IPv6 when the host gets it, and stops when it is gone. A route that is gone for a
// moment, while the host roams, must not end flows: only the second regular check in a row without it counts.
func (h *Host) lookIPv6(regular bool) error {
	if err := h.takeBackLeft(); err != nil {
		return err // it would be in the way of new rules
	}
	has, err := hasIPv6(h.dump, h.kernel.link)
	if err != nil {
		return fmt.Errorf("look for IPv6: %w", err)
	}
	switch {
	case has && !h.on(v6):
		h.noIPv6 = false
		h.cfg.Log.Info("the host has got IPv6: capturing it")
		return h.addIPv6()
	case has || !h.on(v6):
		h.noIPv6 = false
	case regular && h.noIPv6:
		return h.loseIPv6()
	case regular:
		h.noIPv6 = true
	}
	return nil
}

func (h *Host) addIPv6() error {
	err := h.install(v6, planFamily(h.cfg, v6, Facts{IPv6Off: h.kernel.ipv6Off()}))
	if err == nil && h.stopped {
		err = h.takeBackRules(rule.capturesOwn, v6)
	}
	if err == nil {
		var learned []dest
		for d := range h.routes {
			if d.dst.Addr().Is6() {
				learned = append(learned, d)
			}
		}
		_, err = h.kernel.addRoutes(learned)
	}
	if err != nil {
		return errors.Join(err, h.dropIPv6())
	}
	return nil
}

func (h *Host) loseIPv6() error {
	h.noIPv6 = false
	h.cfg.Log.Info("the host has no IPv6 any more: not capturing it")
	return h.dropIPv6()
}

// dropIPv6 takes back everything of IPv6. Rules that can't be deleted are tried again: see takeBackLeft.
func (h *Host) dropIPv6() error {
	var routes []dest
	for d := range h.routes {
		if d.dst.Addr().Is6() {
			routes = append(routes, d)
		}
	}
	var errs []error
	undo := func(kind func(rule) bool) {
		for _, s := range slices.Backward(h.parts[v6]) {
			if r, ok := s.(rule); ok && kind(r) {
				if err := h.kernel.undo(r); err != nil {
					errs, h.left = append(errs, err), append(h.left, r)
				}
			}
		}
	}
	undo(rule.captures)
	errs = append(errs, h.kernel.delRoutes(routes), h.takeBackOthers(v6))
	undo(rule.isOther) // last, as in takeBack
	delete(h.parts, v6)
	return errors.Join(errs...)
}

// lookRoutes adds the missing routes, and deletes those that Remove could not delete. It lists the present ones without
// blocking Add and Remove. A route that they change meanwhile may look missing, but then turns out to exist (EEXIST).
func (h *Host) lookRoutes() (repaired []Step, err error) {
	families := map[family]bool{v4: h.on(v4), v6: h.on(v6)}
	tables := []int{tableSelf, tableDNS}
	for i := range h.cfg.PortSets {
		tables = append(tables, tablePortSet+i)
	}
	there := make(map[dest]bool, len(h.routes)) // true if it has the right source address
	h.mu.Unlock()
	for _, table := range tables {
		for fam, on := range families {
			if on && err == nil {
				err = h.dump.dumpRoutes(fam, table, func(r routeInfo) {
					if r.protocol == Protocol {
						there[r.dest] = r.src == fam.source()
					}
				})
			}
		}
	}
	h.mu.Lock()
	if err != nil {
		return nil, err
	}
	var missing, wrong, unwanted []dest
	for d := range h.routes {
		right, found := there[d]
		switch {
		case right || !h.on(familyOf(d.dst.Addr())):
		case found: // deleting an address removes it from IPv6 routes (rt6_remove_prefsrc)
			wrong = append(wrong, d)
		default:
			missing = append(missing, d)
		}
	}
	for d := range there {
		if _, wanted := h.routes[d]; !wanted {
			unwanted = append(unwanted, d)
		}
	}
	slices.SortFunc(missing, compareDests) // an error ends adding: the same each time, and IPv6's after all of IPv4
	slices.SortFunc(wrong, compareDests)
	added, err := h.kernel.addRoutes(missing)
	if err == nil {
		err = h.kernel.replaceRoutes(wrong)
	}
	err = errors.Join(err, h.kernel.delRoutes(unwanted))
	for _, d := range slices.Concat(missing[:added], wrong) { // added is how many, not which
		repaired = append(repaired, route{h.cfg.Link, d})
	}
	return repaired, err
}

// lookRules adds the missing rules, in plan order, and notes other programs' rules for warnAhead.
func (h *Host) lookRules() (repaired []Step, err error) {
	for _, fam := range []family{v4, v6} {
		if !h.on(fam) {
			continue
		}
		list, err := allRules(h.kernel.nl, fam)
		if err != nil {
			return repaired, err
		}
		there := make(map[rule]bool, len(list))
		for _, k := range list {
			if k.Protocol == Protocol {
				there[placeOf(k)] = true
			}
		}
		var own []netip.Addr
		if len(h.cfg.Gateways) > 0 {
			if own, err = addrs(h.kernel.nl, nil, fam); err != nil {
				return repaired, err
			}
		}
		h.others[fam] = mayLead(list, h.cfg.Gateways, own)
		for _, s := range h.parts[fam] {
			r, ok := s.(rule)
			if !ok || h.stopped && r.capturesOwn() || there[r.place()] {
				continue
			}
			if err := h.kernel.do(r); err != nil && !errors.Is(err, unix.EEXIST) {
				return repaired, err
			}
			repaired = append(repaired, r)
		}
	}
	return repaired, nil
}

// place returns what tells the rule from all other rules of ours in its family: its priority, and if it shares
// that, also its flow.
func (s rule) place() rule {
	place := rule{pref: s.pref}
	if s.lingers() {
		place.from, place.to, place.sport, place.dport = s.from, s.to, s.sport, s.dport
	}
	return place
}

// placeOf is the same for a rule as the kernel lists it.
func placeOf(k netlink.Rule) rule {
	ports := func(r *netlink.RulePortRange) PortRange {
		if r == nil {
			return PortRange{}
		}
		return PortRange{r.Start, r.End}
	}
	return rule{pref: k.Priority, from: prefixOf(k.Src), to: prefixOf(k.Dst), sport: ports(k.Sport), dport: ports(k.Dport)}.place()
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a, bits)
}

// lookReserved reserves our ports again.
func (h *Host) lookReserved() (repaired []Step, err error) {
	if h.reserved == nil {
		return nil, nil
	}
	now, err := h.reserved.ports()
	if err != nil || h.mine.without(now).empty() {
		return nil, err
	}
	if err := h.reserved.set(now.or(h.mine)); err != nil {
		return nil, err
	}
	return []Step{sysctl{sysctlReserved, now.or(h.mine).String()}}, nil
}
