package host

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
)

// Host is a host whose connections are captured. Its methods are safe for concurrent use.
type Host struct {
	cfg   Config        // guarded by mu where Replace changes it
	every time.Duration // interval of the regular checks of everything
	wake  chan dirt     // for reports that something is missing; capacity 1

	// looking serializes repairs, and guards what only they use. Locked before mu.
	looking sync.Mutex
	dump    *rtnl // for listings, so that Add need not wait for them
	events  *events
	noIPv6  bool                      // the last check found no IPv6 on the host, although we capture it
	others  map[family][]netlink.Rule // other programs' rules that are asked before ours, at the last check
	ahead   map[family]Ahead          // those of them that lead captured connections elsewhere

	mu       sync.Mutex
	kernel   *kernel           // nil before Apply and after its undo
	parts    map[family][]Step // what is in place, except routes; part 0 is the device
	routes   map[dest]bool     // what is wanted; true if permanent, out of Remove's reach
	stopped  bool              // no more capture rules
	left     []rule            // of IPv6, which could not be deleted when its capture ended; in reverse plan order
	reserved *reserved         // nil if nothing was reserved
	mine     ports             // what we reserved
	warnings []error
	gateways []Gateway // as of the last check
}

var errUndone = errors.New("host changes are not applied")

// anyFamily is the key of the steps that belong to neither family.
const anyFamily family = 0

// regularly is how often everything is checked without a cause: after a suspend, say, or after someone has
// reread all of sysctl.conf.
const regularly = time.Minute

// New returns a host that is still unchanged. Errors concern the configuration.
func New(c Config) (*Host, error) {
	c = c.withDefaults()
	if err := c.check(); err != nil {
		return nil, err
	}
	return &Host{cfg: c, every: regularly, wake: make(chan dirt, 1), others: map[family][]netlink.Rule{}, ahead: map[family]Ahead{}}, nil
}

// Apply makes all changes, in the network namespace of the calling thread. When it returns, connections are
// captured. The device must exist and someone must read from it. If a change fails, the earlier ones are
// undone. Before Apply, clean up after a killed predecessor: [Lock.Cleanup].
//
// The undo function reverts everything, whatever else has happened to it. It may be called from any thread and
// more than once. It sets the device down. Let the open flows of captured connections end first: see
// [Host.Stop].
func (h *Host) Apply(ctx context.Context) (undo func(context.Context) error, err error) {
	h.looking.Lock()
	defer h.looking.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.kernel != nil {
		return nil, errors.New("apply host changes: already applied")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := h.open(); err != nil {
		return nil, err
	}
	facts, err := look(h.dump, h.cfg.Link, h.kernel.link)
	if err == nil {
		err = checkNames(h.kernel.nl, h.cfg.Gateways)
	}
	if err == nil {
		facts.Gateways, err = lookGateways(h.kernel.nl, h.dump, h.cfg.Gateways)
	}
	if err == nil {
		h.reserve(facts)
		h.gateways = facts.Gateways
		h.warnings = append(h.warnings, gatewayWarnings(facts)...)
		h.warnings = append(h.warnings, strictWarnings(h.cfg, facts)...)
		err = h.installAll(facts)
	}
	if err != nil {
		return nil, errors.Join(err, h.takeBack())
	}
	return h.undo, nil
}

// open opens all sockets.
func (h *Host) open() (err error) {
	h.parts, h.routes, h.stopped, h.left, h.warnings = map[family][]Step{}, map[dest]bool{}, false, nil, nil
	if h.kernel, err = openKernel(h.cfg); err != nil {
		h.kernel = nil
		return err
	}
	if h.dump, err = openRTNL(); err == nil {
		h.events, err = openEvents(h.kernel.rtnl.port)
	}
	if err != nil {
		h.close()
	}
	return err
}

func (h *Host) close() {
	h.kernel.close()
	h.kernel = nil
	if h.dump != nil {
		h.dump.close()
		h.dump = nil
	}
	if h.events != nil {
		h.events.close()
		h.events = nil
	}
	if h.reserved != nil {
		h.reserved.close()
		h.reserved = nil
	}
}

// reserve reserves the pins' ports. A failure causes a warning and does not prevent the start.
func (h *Host) reserve(f Facts) {
	want, err := portsToReserve(h.cfg, f)
	if err != nil {
		h.warnings = append(h.warnings, err)
	}
	if want.empty() {
		return
	}
	if err := h.reservePorts(want); err != nil {
		h.warnings = append(h.warnings, err)
	}
}

func (h *Host) reservePorts(want ports) error {
	err := h.openReserved()
	if err == nil {
		h.mine, err = h.reserved.add(want)
	}
	if err != nil {
		return unreserved(want, err)
	}
	return nil
}

func (h *Host) openReserved() error {
	namespace, err := Namespace()
	if err != nil {
		return err
	}
	h.reserved, err = openReserved(StateFile(h.cfg.StateDir, namespace))
	return err
}

func (h *Host) installAll(f Facts) error {
	err := h.install(anyFamily, planLink(h.cfg, f))
	if err == nil {
		err = h.install(v4, planFamily(h.cfg, v4, f))
	}
	if err == nil && f.IPv6 {
		err = h.install(v6, planFamily(h.cfg, v6, f))
	}
	return err
}

// install makes the changes of one part in order and records them.
func (h *Host) install(part family, list []Step) error {
	var routes []dest
	flush := func() error {
		defer func() { routes = routes[:0] }()
		_, err := h.kernel.addRoutes(routes)
		return err
	}
	h.parts[part] = []Step{} // the part is on from now, if only so that it is undone
	for _, s := range list {
		if r, ok := s.(route); ok {
			h.routes[r.dest] = true
			routes = append(routes, r.dest)
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		if err := h.kernel.do(s); err != nil {
			return err
		}
		h.parts[part] = append(h.parts[part], s)
	}
	return flush()
}

// Warnings returns what Apply did not do, and why.
func (h *Host) Warnings() []error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.warnings)
}

// Stop ends the capture of new connections, and keeps what captured connections need. For hosts behind a
// gateway that is every rule: all their packets look alike to the kernel. An orderly shutdown is Stop, end the
// flows, undo.
func (h *Host) Stop(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.kernel == nil {
		return nil
	}
	h.stopped = true
	return h.takeBackRules(rule.capturesOwn, v6, v4)
}

func (h *Host) undo(context.Context) error {
	h.looking.Lock()
	defer h.looking.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.kernel == nil {
		return nil
	}
	return h.takeBack()
}

// takeBack undoes everything and closes all sockets. The capture rules of both families go first, while their guards
// are still in place. The routes go when the device is set down. The rules that hold back what still has the device's
// address go after that address: until then it would leave by the uplink. IPv4 lets nothing leave afterwards. IPv6
// does not ask whether a socket's source is still an address of the host, so there a socket that has outlived the
// flows' end sends its last packets by the uplink.
func (h *Host) takeBack() error {
	errs := []error{
		h.takeBackRules(rule.captures, v6, v4),
		h.takeBackOthers(anyFamily),
		h.takeBackOthers(v6),
		h.takeBackOthers(v4),
		h.takeBackRules(rule.isOther, v6, v4),
		h.takeBackLeft(),
	}
	if h.reserved != nil {
		_, err := h.reserved.remove(h.mine)
		errs = append(errs, err)
	}
	h.close()
	return errors.Join(errs...)
}

// takeBackRules deletes the rules of one kind from families.
func (h *Host) takeBackRules(kind func(rule) bool, families ...family) error {
	var errs []error
	for _, fam := range families {
		for _, s := range slices.Backward(h.parts[fam]) {
			if r, ok := s.(rule); ok && kind(r) {
				errs = append(errs, h.kernel.undo(s))
			}
		}
	}
	return errors.Join(errs...)
}

// takeBackLeft deletes the rules that could not be deleted before.
func (h *Host) takeBackLeft() error {
	var errs []error
	h.left = slices.DeleteFunc(h.left, func(r rule) bool {
		err := h.kernel.undo(r)
		errs = append(errs, err)
		return err == nil
	})
	return errors.Join(errs...)
}

// takeBackOthers undoes everything in a part that is not a rule.
func (h *Host) takeBackOthers(part family) error {
	var errs []error
	for _, s := range slices.Backward(h.parts[part]) {
		if _, ok := s.(rule); !ok {
			errs = append(errs, h.kernel.undo(s))
		}
	}
	return errors.Join(errs...)
}

// on reports whether a family is captured.
func (h *Host) on(fam family) bool { return h.parts[fam] != nil }

// atOnce is how many routes Add and Remove change before they let others use the kernel and check their
// context.
const atOnce = 1000

// Add makes connections to the captures' destinations enter the device, and returns when they do. Existing
// captures stay. IPv6 captures are kept on a host without IPv6 until it gets IPv6. After an error [Host.Run]
// completes the rest as soon as it can. The error is ctx's if that ended.
func (h *Host) Add(ctx context.Context, list []Capture) error {
	for _, c := range list {
		if err := h.cfg.checkCapture(c); err != nil {
			return err
		}
	}
	return h.change(ctx, list, func(d dest) bool {
		if _, known := h.routes[d]; !known { // true stays true
			h.routes[d] = false
		}
		return true
	}, h.addRoutes)
}

// Remove undoes Add for new connections. A missing capture is not an error. The captures in Config.Captures
// stay. After an error [Host.Run] removes the rest as soon as it can.
func (h *Host) Remove(ctx context.Context, list []Capture) error {
	return h.change(ctx, list, func(d dest) bool {
		forGood := h.routes[d]
		if !forGood {
			delete(h.routes, d)
		}
		return !forGood
	}, func(l []dest) error { return h.kernel.delRoutes(l) })
}

// change asks want about each capture and then updates the kernel.
func (h *Host) change(ctx context.Context, list []Capture, want func(dest) bool, follow func([]dest) error) error {
	var dests []dest
	for part := range slices.Chunk(list, atOnce) {
		if err := ctx.Err(); err != nil {
			return err
		}
		dests = dests[:0]
		h.mu.Lock()
		if h.kernel == nil {
			h.mu.Unlock()
			return errUndone
		}
		for _, c := range part {
			d := destOf(c)
			if want(d) && h.on(d.family()) {
				dests = append(dests, d)
			}
		}
		err := follow(dests)
		h.mu.Unlock()
		if err != nil {
			h.lookSoon(dirtAll)
			return err
		}
	}
	return nil
}

// lookSoon makes Run check d.
func (h *Host) lookSoon(d dirt) {
	for {
		select {
		case h.wake <- d:
			return
		case more := <-h.wake:
			d |= more
		}
	}
}
