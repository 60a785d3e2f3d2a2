package main

import (
	"log/slog"
	"net/netip"
	"runtime/debug"

	"pinproxy/netstack"
	"pinproxy/netstack/dns"
	"pinproxy/netstack/link"
	"pinproxy/proxy"
	"pinproxy/proxy/sockdiag"
	"pinproxy/rules"
)

// engine is what pinning for a whole host and for one command have in common: flows from a device, decided by rules
// and by what is learned of names.
type engine struct {
	options
	log    *slog.Logger
	dev    *link.Link
	dialer proxy.Sockets
	names  *rules.Names
	learn  *learner
	pins   *proxy.Proxy
	stack  *netstack.Stack // set before the first flow
}

// newEngine leaves pins and stack to its caller.
func newEngine(o options, dev *link.Link, dialer proxy.Sockets, routes router, log *slog.Logger) *engine {
	if o.offload && !dev.Offload() {
		log.Warn("the kernel gives the device no offloads: it will be slower", "link", dev.Name())
	}
	names := rules.NewNames(o.set)
	return &engine{
		options: o, log: log, dev: dev, dialer: dialer,
		names: names, learn: &learner{names: names, routes: routes, log: log},
	}
}

// proxyConfig is the common part of the configuration of pins.
func (e *engine) proxyConfig() proxy.Config {
	taps := dns.NewTapper(e.learn, e.log)
	return proxy.Config{
		Names:       e.names,
		Dialer:      e.dialer,
		Log:         e.log,
		DialTimeout: e.dialTimeout,
		Quiet:       debug.FreeOSMemory,
		Share:       func(up, down int) { e.stack.SetBuffer(up, down) },
		Busy:        shareCPUs,
		Yield:       func() { e.stack.Yield() },
		Wrap: func(src, dst netip.AddrPort, c proxy.Conn) proxy.Conn {
			if e.asks(dst) {
				return taps.Tap(dns.Asker{Host: src.Addr(), Resolver: dst}, c)
			}
			return c
		},
	}
}

// asks says whether connections to dst may ask for the rules' names.
func (e *engine) asks(dst netip.AddrPort) bool { return dst.Port() == dnsPort && e.names.HasNames() }

// group returns the rule for dst: SYNs of one rule wait in one line.
func (e *engine) group(dst netip.AddrPort) any { return e.names.Decide(dst).Rule }

// ready logs that connections are being captured.
func (e *engine) ready() {
	e.log.Info("ready", "link", e.dev.Name(), "offload", e.dev.Offload(), "rules", len(e.set.Rules()))
}

// waiting returns a function that says whether an application still waits for its connection, as find's kernel knows it.
func waiting(find func(local, remote netip.AddrPort) (sockdiag.Socket, bool, error)) func(src, dst netip.AddrPort) (waits, told bool) {
	return func(src, dst netip.AddrPort) (waits, told bool) {
		s, found, err := find(src, dst)
		return found && s.State == sockdiag.SynSent, err == nil
	}
}
