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
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/netstack"
	"pinproxy/netstack/dns"
	"pinproxy/netstack/host"
	"pinproxy/netstack/link"
	"pinproxy/netstack/netns"
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
		Reserve:  pinRanges(o.set),
		StateDir: stateDir(),
		Log:      log,
	}
	for _, ports := range o.set.PortSets() {
		c.PortSets = append(c.PortSets, ports.Ranges())
	}
	return c
}

// pinRanges returns the ranges of all pins, each once. The set's own union would join those that touch, of which one
// may be reserved without the other.
func pinRanges(set *rules.Set) (ranges []rules.PortRange) {
	for _, r := range set.Rules() {
		ranges = append(ranges, r.Pin().Ports().Ranges()...)
	}
	slices.SortFunc(ranges, func(a, b rules.PortRange) int {
		return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	})
	return slices.Compact(ranges)
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
	// Programs that are told of the end connect again at once. So that is done when they are captured.
	stranded := findStranded()
	tell := sync.OnceFunc(func() { logCleanup(log, stranded.end()) })
	defer tell()
	left, err := lock.Cleanup(stop, stateDir())
	logCleanup(log, left)
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
	guard, err := newGuard(o.gateways, o.strict)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, guard.close()) }()
	s, err := newService(o, h, dev, guard, log)
	if err != nil {
		return err
	}
	s.lock, s.site, s.hangups, s.tellStranded = lock, site, hangups, tell
	return s.run(stop, now)
}

func logCleanup(log *slog.Logger, lines []string) {
	for _, line := range lines {
		log.Info("cleaned up after a killed pinproxy", "did", line)
	}
}

// outliveReader keeps us alive when nobody reads the log any more, as when the journal is restarted. Without it, Go
// ends a process on SIGPIPE if standard output or error is a broken pipe, and the host's changes would stay. The
// returned function ends the protection.
func outliveReader() func() {
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	return func() { signal.Stop(broken) }
}

// service pins for the whole host.
type service struct {
	*engine
	lock    *host.Lock
	site    net.Listener // of --http; nil without it
	hangups <-chan struct{}

	tellStranded func() // ends the connections through a killed pinproxy

	host     *host.Host
	guard    *guard
	relay    *dns.Relay
	resolver *dns.Resolver
	lookups  *resolvedNames
	sockets  *sockdiag.Namespace // the host's; nil without sock_diag
	monitor  *monitor.Monitor
}

// newService puts the parts together. It starts nothing.
func newService(o options, handed *handover, dev *link.Link, guard *guard, log *slog.Logger) (*service, error) {
	began := time.Now()
	config := hostConfig(o, log)
	config.Link, config.MTU = dev.Name(), dev.MTU()
	h, err := host.New(config)
	if err != nil {
		return nil, err
	}
	owners, err := handed.owners()
	if err != nil {
		return nil, err
	}
	memory := sockdiag.Memory{Find: owners}
	dialer := proxy.Sockets{Mark: host.Mark, Owners: memory.Owners, Endings: proxy.NewEndings()}
	s := &service{engine: newEngine(o, dev, dialer, h, log), host: h, guard: guard}
	s.relay = dns.NewRelay(dialer.DialPlain, s.learn, log)
	s.resolver = dns.NewResolver(dialer.DialPlain, s.learn.refresh, log)
	s.learn.asking = s.resolver.Asking
	if s.lookups, err = newResolved(s.engine, handed.Bus, guard); err != nil {
		return nil, err
	}
	pins := s.proxyConfig()
	pins.GiveWay = func() { s.stack.GiveWay() }
	pins.Direct = s.asks
	pins.Behind = guard.behind
	pins.Forbid = guard.forbid
	s.pins = proxy.New(pins)
	s.stack, err = netstack.New(dev, netstack.Config{
		Path:   guard.paths(),
		Group:  s.group,
		Waits:  s.waits(),
		Answer: (&answers{log: log}).captured,
		Datagrams: func(d *netstack.Datagram) {
			if !s.lookups.handle(d) && guard.lets(d) {
				s.relay.Handle(d)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	s.learn.yield = s.stack.StepAside
	s.monitor = monitor.New(monitor.Config{
		Version: strings.TrimSpace(version()), Link: dev.Name(), Strict: o.strict, LowPorts: mayBindLow(), Began: began,
		Names: s.names, Pins: s.pins, Dialer: dialer, Stack: s.stack.Stats, DNS: s.relay.Stats, Withheld: s.learn.withheld.Load,
		Yield: s.stack.GiveWay, Log: log,
	})
	return s, nil
}

// waits returns a function that says whether a socket of this host still waits for its connection, or nil if the kernel
// can't be asked.
func (s *service) waits() func(src, dst netip.AddrPort) (waits, told bool) {
	var err error
	if s.sockets, err = sockdiag.OpenNamespace(); err != nil {
		s.sockets = nil
		return nil
	}
	return waiting(s.sockets.Find)
}

// run captures until stop ends, and then ends in order.
func (s *service) run(stop, now context.Context) (err error) {
	if s.sockets != nil {
		defer s.sockets.Close()
	}
	// The parts go on while flows end in order, so stop does not reach them.
	ctx, cancel := context.WithCancel(context.WithoutCancel(stop))
	defer cancel()
	parts, ctx := errgroup.WithContext(ctx)
	s.start(ctx, parts)
	select {
	case <-s.stack.Ready():
	case <-ctx.Done():
		return parts.Wait()
	}
	undo, err := s.host.Apply(ctx)
	if err != nil {
		cancel()
		return errors.Join(err, parts.Wait())
	}
	warn(s.log, s.host, s.set, s.rules.files)
	remove := s.answer(ctx, parts)
	defer func() { err = errors.Join(err, remove()) }()
	s.maintain(ctx, parts)

	select {
	case <-stop.Done():
		s.monitor.Ending()
		notify("STOPPING=1")
		s.log.Info("ending", "flows", s.pins.Stats().Live)
		s.lookups.withdraw(now)
		_ = s.host.Stop(now)
		s.pins.Drain(now, drainGrace)
		s.lookups.revert(now)
	case <-ctx.Done(): // a part has failed
		_ = s.host.Stop(now)
	}
	// The netstack resets what is still open, which needs the device. So the device goes down afterwards.
	cancel()
	err = parts.Wait()
	findStranded().end() // only if somebody has deleted the device: the netstack's resets did not get there
	undone, done := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer done()
	return errors.Join(err, undo(undone))
}

// start starts what carries flows and queries, and what watches that.
func (s *service) start(ctx context.Context, parts *errgroup.Group) {
	parts.Go(func() error { return s.relay.Serve(ctx) })
	parts.Go(func() error { return s.lookups.queries.Serve(ctx) })
	parts.Go(func() error {
		return s.stack.Serve(ctx, func(ctx context.Context, f *netstack.Flow) {
			if !s.lookups.carry(ctx, f) {
				s.pins.Handle(ctx, f)
			}
		})
	})
	parts.Go(func() error {
		return watchdog(ctx, watchdogEvery(os.Getenv), func() {
			_, _, _, _ = s.pins.Stats(), s.names.Set(), s.stack.Stats(), s.relay.Stats()
		}, func() { notify("WATCHDOG=1") })
	})
	if s.site != nil {
		parts.Go(func() error {
			name, _, _ := net.SplitHostPort(s.http)
			s.monitor.ServeSite(ctx, s.site, name)
			return nil
		})
	}
}

// answer starts answering on the control socket, if there can be one, and returns what removes it.
func (s *service) answer(ctx context.Context, parts *errgroup.Group) (remove func() error) {
	l, path, remove := openControl(ctx, s.options, s.log)
	if l == nil {
		return func() error { return nil }
	}
	parts.Go(func() error {
		if err := s.monitor.Serve(ctx, l); err != nil {
			s.log.Warn("the control socket has failed", "err", err.Error())
		}
		return nil // nothing else needs it
	})
	s.lock.Announce(path)
	return remove
}

// maintain starts what keeps the host, the names and the rules up to date. It waits for systemd-resolved a little.
func (s *service) maintain(ctx context.Context, parts *errgroup.Group) {
	parts.Go(func() error { return s.host.Run(ctx) })
	parts.Go(func() error { return s.learn.expire(ctx) })
	parts.Go(func() error { return s.lookups.link.Run(ctx) })
	s.lookups.await(ctx)
	parts.Go(func() error {
		return s.resolver.Run(ctx, s.set.Names(), func() {
			s.monitor.Capturing()
			s.tellStranded()
			s.ready()
			notify("READY=1")
		})
	})
	reload := &reloader{
		options: s.options, log: s.log, learn: s.learn, host: s.host, pins: s.pins,
		resolver: s.resolver, resolved: s.lookups, behind: s.guard.behind,
	}
	parts.Go(func() error { return reload.run(ctx, s.hangups) })
}

// warn logs what is missing from the host's changes, and which rules pin nothing.
func warn(log *slog.Logger, h *host.Host, set *rules.Set, files []string) {
	for _, err := range h.Warnings() {
		if demand, ok := errors.AsType[*host.DemandError](err); ok {
			log.Warn(demand.What, "hint", demand.Hint)
		} else {
			log.Warn(err.Error())
		}
	}
	for _, w := range pointless(set, files) {
		log.Warn(w)
	}
	if conf, err := os.ReadFile(netns.ResolvConf); err == nil && askedOutside(set, string(conf)) {
		log.Warn("wildcards' names leave unpinned: Docker's name server asks for them outside of this container",
			"hint", "docker run --dns ADDRESS: then it asks that name server from within")
	}
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

// askedOutside reports whether names that only a wildcard means are looked up where we don't see it. Docker's own name
// server (127.0.0.11, on all networks but the default one) asks the servers that it has from its host's resolv.conf in
// its host's network namespace, and notes so in the container's:
// https://github.com/moby/moby/blob/master/libnetwork/resolver.go.
func askedOutside(set *rules.Set, resolvConf string) bool {
	return strings.Contains(resolvConf, "\n# ExtServers: [") && strings.Contains(resolvConf, "host(") &&
		slices.ContainsFunc(set.Rules(), func(r *rules.Rule) bool { return r.Host().Wildcard() })
}
