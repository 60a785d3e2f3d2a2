package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"pinproxy/netstack"
	"pinproxy/netstack/dns"
	"pinproxy/netstack/host"
	"pinproxy/netstack/link"
	"pinproxy/netstack/resolved"
	"pinproxy/proxy"
	"pinproxy/proxy/sockdiag"
	"pinproxy/rules"
)

const (
	drainGrace  = 5 * time.Second // for flows that still move bytes when we are told to end
	undoTimeout = 5 * time.Second // for undoing the host's changes
	dnsPort     = 53
)

// runDir is the directory that systemd's RuntimeDirectory=pinproxy makes.
const runDir = "/run/pinproxy"

// stateDir returns the directory of the state file and the control socket. It is systemd's RuntimeDirectory= if
// there is one, the first if there are more (systemd.exec(5), $RUNTIME_DIRECTORY).
func stateDir() string {
	dir, _, _ := strings.Cut(os.Getenv("RUNTIME_DIRECTORY"), ":")
	return cmp.Or(dir, runDir)
}

// hostConfig translates what the rules ask for into the host's terms.
func hostConfig(o options, log *slog.Logger) host.Config {
	c := host.Config{
		Link:     o.tun,
		QueueLen: link.QueueLen,
		Captures: o.set.Static(),
		DNS:      o.set.HasNames(),
		Strict:   o.strict,
		Gateways: o.gateways,
		Reserve:  o.set.PinPorts().Ranges(),
		StateDir: stateDir(),
		Log:      log,
	}
	for _, ports := range o.set.PortSets() {
		c.PortSets = append(c.PortSets, ports.Ranges())
	}
	return c
}

// serve pins for the whole host until stop ends, and then ends in order. When now ends, it ends at once. In both
// cases it leaves the host as it was.
func serve(stop, now context.Context, o options, h *handover, stderr io.Writer) (err error) {
	log := newLog(stderr, o)
	site, err := listenHTTP(stop, o, log)
	if err != nil {
		return err
	}
	if site != nil {
		defer func() { _ = site.Close() }()
	}
	stop, hangups, restore := listenForHangups(stop)
	defer restore()
	for _, note := range h.Notes {
		log.Info("keeps more privileges than it needs: " + note)
	}
	for _, warning := range h.unreadable() {
		log.Warn(warning)
	}
	defer outliveReader()()
	lock, err := host.Hold(stop)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	ended := endStranded()
	left, err := lock.Cleanup(stop, stateDir())
	for _, line := range append(ended, left...) {
		log.Info("cleaned up after a killed pinproxy", "did", line)
	}
	if damaged, ok := err.(*host.DamagedError); ok { // alone: nothing else went wrong
		log.Warn("ports that a killed pinproxy reserved may stay reserved", "err", damaged.Error(), "hint", damaged.Hint())
	} else if err != nil {
		return err
	}

	dev, err := h.open(link.Config{Name: o.tun, Offload: o.offload})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	if o.offload && !dev.Offload() {
		log.Warn("the kernel gives the device no offloads: it will be slower", "link", dev.Name())
	}
	owners, err := h.owners()
	if err != nil {
		return err
	}
	memory := sockdiag.Memory{Find: owners}
	return capture(stop, now, o, dev, proxy.Sockets{Mark: host.Mark, Owners: memory.Owners}, h.Bus, lock, site, hangups, log)
}

// outliveReader keeps us alive when nobody reads the log any more, as when the journal is restarted. Without it, Go
// ends a process on SIGPIPE if standard output or error is a broken pipe, and the host's changes would stay. The
// returned function ends the protection.
func outliveReader() func() {
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	return func() { signal.Stop(broken) }
}

// capture puts the parts together and runs them.
func capture(stop, now context.Context, o options, dev *link.Link, sockets proxy.Sockets, bus resolved.Handed, lock *host.Lock, site net.Listener, hangups <-chan struct{}, log *slog.Logger) (err error) {
	began := time.Now()
	config := hostConfig(o, log)
	config.Link, config.MTU = dev.Name(), dev.MTU()
	h, err := host.New(config)
	if err != nil {
		return err
	}
	guard, err := newGuard(o.gateways, o.strict)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, guard.close()) }()
	names := rules.NewNames(o.set)
	learn := &learner{names: names, routes: h, log: log}
	relay := dns.NewRelay(sockets.DialPlain, learn, log)
	resolver := dns.NewResolver(sockets.DialPlain, learn.refresh, log)
	learn.asking = resolver.Asking
	lookups, err := newResolved(dev.Name(), bus, o.set, learn, guard, log)
	if err != nil {
		return err
	}
	var stack *netstack.Stack // set before the first flow
	pins := proxy.New(proxy.Config{
		Names:       names,
		Dialer:      sockets,
		Log:         log,
		DialTimeout: o.dialTimeout,
		Quiet:       debug.FreeOSMemory,
		Share:       func(up, down int) { stack.SetBuffer(up, down) },
		Busy:        shareCPUs,
		Yield:       func() { stack.Yield() },
		GiveWay:     func() { stack.GiveWay() },
		Direct:      func(dst netip.AddrPort) bool { return dst.Port() == dnsPort && names.HasNames() },
		Behind:      guard.behind,
		Forbid:      guard.forbid,
		Wrap: func(src, dst netip.AddrPort, c proxy.Conn) proxy.Conn {
			if dst.Port() == dnsPort && names.HasNames() {
				return dns.Tap(dns.Asker{Host: src.Addr(), Resolver: dst}, c, learn, log)
			}
			return c
		},
	})
	stack, err = netstack.New(dev, netstack.Config{
		Path:  guard.paths(),
		Group: func(dst netip.AddrPort) any { return names.Decide(dst).Rule },
		Datagrams: func(d *netstack.Datagram) {
			if !lookups.handle(d) && guard.lets(d) {
				relay.Handle(d)
			}
		},
	})
	if err != nil {
		return err
	}

	health := &health{link: dev.Name()}
	c := &control{strict: o.strict, low: mayBindLow(), began: began, health: health, names: names, pins: pins, dialer: sockets, stack: stack.Stats, yield: stack.GiveWay}

	// The parts go on while flows end in order, so stop does not reach them.
	ctx, cancel := context.WithCancel(context.WithoutCancel(stop))
	defer cancel()
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return relay.Serve(ctx) })
	parts.Go(func() error { return lookups.queries.Serve(ctx) })
	parts.Go(func() error {
		return stack.Serve(ctx, func(ctx context.Context, f *netstack.Flow) {
			if !lookups.carry(ctx, f) {
				pins.Handle(ctx, f)
			}
		})
	})
	parts.Go(func() error {
		return watchdog(ctx, watchdogEvery(os.Getenv), func() {
			_, _, _, _ = pins.Stats(), names.Set(), stack.Stats(), relay.Stats()
		}, func() { notify("WATCHDOG=1") })
	})
	if site != nil {
		m := &exporter{c: c, dns: relay.Stats, withheld: learn.withheld.Load}
		parts.Go(func() error { return serveSite(ctx, site, o, m, log) })
	}
	select {
	case <-stack.Ready():
	case <-ctx.Done():
		return parts.Wait()
	}
	undo, err := h.Apply(ctx)
	if err != nil {
		cancel()
		return errors.Join(err, parts.Wait())
	}
	for _, w := range h.Warnings() {
		warn(log, w)
	}
	for _, w := range pointless(o.set, o.rules.files) {
		log.Warn(w)
	}
	if l, path, remove := openControl(ctx, o, log); l != nil {
		parts.Go(func() error {
			if err := c.serve(ctx, l); err != nil {
				log.Warn("the control socket has failed", "err", err.Error())
			}
			return nil // nothing else needs it
		})
		lock.Announce(path)
		defer func() { err = errors.Join(err, remove()) }()
	}
	parts.Go(func() error { return h.Run(ctx) })
	parts.Go(func() error { return learn.expire(ctx) })
	parts.Go(func() error { return lookups.link.Run(ctx) })
	lookups.await(ctx)
	parts.Go(func() error {
		return resolver.Run(ctx, o.set.Names(), func() {
			health.set(healthCapturing)
			ready(log, dev, o.set)
		})
	})
	reload := &reloader{options: o, log: log, learn: learn, host: h, pins: pins, resolver: resolver, resolved: lookups, behind: guard.behind}
	parts.Go(func() error { return reload.run(ctx, hangups) })

	select {
	case <-stop.Done():
		health.set(healthEnding)
		notify("STOPPING=1")
		log.Info("ending", "flows", pins.Stats().Live)
		lookups.withdraw(now)
		_ = h.Stop(now)
		pins.Drain(now, drainGrace)
		lookups.revert(now)
	case <-ctx.Done(): // a part has failed
		_ = h.Stop(now)
	}
	// The netstack resets what is still open, which needs the device. So the device goes down afterwards.
	cancel()
	err = parts.Wait()
	endStranded() // only if somebody has deleted the device: the netstack's resets did not get there
	undone, done := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer done()
	return errors.Join(err, undo(undone))
}

// warn logs what is missing from the host's changes.
func warn(log *slog.Logger, err error) {
	if demand, ok := errors.AsType[*host.DemandError](err); ok {
		log.Warn(demand.What, "hint", demand.Hint)
		return
	}
	log.Warn(err.Error())
}

// pointless returns a warning for each rule that no connection of a whole host follows: loopback is captured by nobody.
// A command's rules may be for it, by --host-loopback. And for each file that has no rule: it may have been emptied by
// accident.
func pointless(set *rules.Set, files []string) (warnings []string) {
	full := make(map[string]bool)
	for _, r := range set.Rules() {
		file, _ := r.Source()
		full[file] = true
		if name := r.Host().Name(); r.Host().Prefix().Addr().IsLoopback() || name == "localhost" || strings.HasSuffix(name, ".localhost") {
			warnings = append(warnings, fmt.Sprintf("rule %s pins nothing: connections to loopback stay in the kernel", r))
		}
	}
	for _, file := range files {
		if !full[file] {
			warnings = append(warnings, fmt.Sprintf("rules file %s has no rule", file))
		}
	}
	return warnings
}

// ready says that connections are being captured.
func ready(log *slog.Logger, dev *link.Link, set *rules.Set) {
	log.Info("ready", "link", dev.Name(), "offload", dev.Offload(), "rules", len(set.Rules()))
	notify("READY=1")
}

// dryRun prints the changes that serve would make to this host in its current state.
func dryRun(ctx context.Context, o options, stdout io.Writer) error {
	c := hostConfig(o, nil)
	facts, err := host.Look(c.Link)
	if err != nil {
		return err
	}
	resolved, comments := resolve(ctx, o.set)
	c.Captures = append(c.Captures, resolved...)
	if facts.Gateways, err = host.LookGateways(o.gateways); err != nil {
		return err
	}
	steps, err := host.Plan(c, facts)
	if err != nil {
		return err
	}
	for _, w := range steps.Warnings {
		comments = append(comments, "warning: "+w.Error())
		if demand, ok := errors.AsType[*host.DemandError](w); ok {
			comments = append(comments, "hint: "+demand.Hint)
		}
	}
	for _, w := range pointless(o.set, o.rules.files) {
		comments = append(comments, "warning: "+w)
	}
	text := steps.String()
	for _, line := range comments {
		text += "# " + line + "\n"
	}
	return printText(stdout, text)
}

// resolve looks up the exact names of set as any program would. It returns as comments what can't be planned.
func resolve(ctx context.Context, set *rules.Set) (captures []host.Capture, comments []string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, name := range set.Names() {
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		if err != nil {
			comments = append(comments, fmt.Sprintf("no route for %s: %s", name, err))
		}
		for _, a := range addrs {
			if a = a.Unmap(); a.IsLoopback() {
				continue // as when pinproxy runs
			}
			for _, s := range set.NameSets(name) {
				captures = append(captures, host.Capture{Dst: netip.PrefixFrom(a, a.BitLen()), Set: s})
			}
		}
	}
	if set.HasNames() {
		comments = append(comments, "and such a route for each address that DNS answers tell of the rules' names, while pinproxy runs")
	}
	return captures, comments
}
