package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"pinproxy/netstack"
	"pinproxy/netstack/dns"
	"pinproxy/netstack/host"
	"pinproxy/netstack/netns"
	"pinproxy/proxy"
	"pinproxy/proxy/ping"
	"pinproxy/proxy/sockdiag"
	"pinproxy/proxy/udp"
	"pinproxy/rules"
)

// One command: its namespaces take the place of policy routes, and everything it sends comes here.

// exactNamesWait is how long a connection at the start may wait for the first lookup of the rules' exact names, if
// it has to.
const exactNamesWait = 2 * time.Second

// defaultPath is the path that execvp(3) uses if PATH is not set.
const defaultPath = "/bin:/usr/bin"

// runCommand runs o.argv and returns its exit status. An error says that o.argv has not run.
func runCommand(o options, stderr io.Writer) (int, error) {
	path, ok := os.LookupEnv("PATH")
	if !ok {
		path = defaultPath
	}
	file, err := netns.LookPath(o.argv[0], path)
	if err != nil {
		return 0, err
	}
	if err := checkLowPorts(o.set); err != nil {
		return 0, err
	}
	log := newLog(stderr, o)
	out := &outward{resolvers: netns.NewResolvers(netns.ResolvConf), loopback: o.loopback}
	child, err := netns.Start(context.Background(), commandConfig(o, file, out, log))
	if err != nil {
		return 0, err
	}
	c, err := newCommand(child, o, out, log)
	if err != nil {
		return 0, errors.Join(err, child.Close())
	}
	return c.run()
}

// commandConfig returns the configuration of what the command sees.
func commandConfig(o options, file string, out *outward, log *slog.Logger) netns.Config {
	c := netns.Config{
		Path:    file,
		Argv:    o.argv,
		Link:    o.tun,
		Offload: o.offload,
		Addrs:   []netip.Addr{host.Addr4},
		Routes:  []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0)},
		Files:   out.resolvers.Files(),
	}
	ipv6, err := host.HasIPv6()
	if err != nil {
		log.Warn("look for IPv6: " + err.Error())
	}
	if ipv6 {
		c.Routes = append(c.Routes, netip.PrefixFrom(netip.IPv6Unspecified(), 0))
	}
	for _, a := range o.loopback {
		if a.Is6() && !ipv6 {
			c.Routes = append(c.Routes, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	if len(c.Routes) > 1 {
		c.Addrs = append(c.Addrs, host.Addr6)
	}
	if ipv6 && hasGlobalIPv6() {
		c.Addrs = append(c.Addrs, commandAddr6)
	}
	return c
}

// commandAddr6 is a further address of the device, the IPv6 dummy address (RFC 9780), where the host has a global
// address. Programs prefer IPv4 if they would reach a global address from a unique local one (RFC 6724), and
// [host.Addr6] is unique local. Of both the kernel takes the one of the destination's kind.
var commandAddr6 = netip.MustParseAddr("100:0:0:1::8")

// hasGlobalIPv6 reports whether an interface of the host has an IPv6 address that is neither unique local nor
// link-local. If the interfaces can't be read, none is assumed to have one.
func hasGlobalIPv6() bool {
	list, _ := net.InterfaceAddrs()
	return slices.ContainsFunc(list, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr().Is6() && p.Addr().IsGlobalUnicast() && !p.Addr().IsPrivate()
	})
}

// command carries a command's connections.
type command struct {
	*engine
	child *netns.Child
	out   *outward

	relay     *dns.Relay
	resolver  *dns.Resolver
	datagrams *udp.Relay
	pings     *udp.Relay
	tried     chan struct{} // closed when the exact names have been looked up
}

// newCommand puts the parts together. It starts nothing.
func newCommand(child *netns.Child, o options, out *outward, log *slog.Logger) (*command, error) {
	for _, w := range child.Warnings() {
		log.Info("not done for the command: " + w.Error())
	}
	dialer := proxy.Sockets{Owners: new(sockdiag.Memory).Owners, Endings: proxy.NewEndings()}
	c := &command{engine: newEngine(o, child.Link(), dialer, allRouted{}, log), child: child, out: out, tried: make(chan struct{})}
	c.relay = dns.NewRelay(out.dial, c.learn, log)
	c.resolver = dns.NewResolver(dialer.DialPlain, c.learn.refresh, quiet(log))
	c.datagrams = udp.New(out.dialUDP, log, udp.Timeouts{})
	c.pings = ping.NewRelay(out.dialPing, log)
	pins := c.proxyConfig()
	pins.Dialer = newAsideDialer(dialer)
	pins.Apart = true
	pins.Direct = func(netip.AddrPort) bool { return true }
	c.pins = proxy.New(pins)
	var err error
	c.stack, err = netstack.New(c.dev, netstack.Config{
		Group: c.group,
		Waits: commandWaits(child.Diag()),
		Datagrams: func(d *netstack.Datagram) {
			if _, ok := out.of(d.Dst()); !ok {
				d.Unreachable(syscall.ECONNREFUSED)
			} else if d.Dst().Port() == dnsPort {
				c.relay.Handle(d)
			} else {
				c.datagrams.Handle(d)
			}
		},
		Echoes: func(e *netstack.Echo) { c.pings.Handle(e) },
	})
	return c, err
}

// commandWaits returns a function that says whether a socket of the command still waits for its connection, or nil if
// the command's kernel can't be asked.
func commandWaits(diag int) func(src, dst netip.AddrPort) (waits, told bool) {
	if diag < 0 {
		return nil
	}
	return waiting(sockdiag.NewNamespace(diag).Find)
}

// run serves the command until it has ended, and returns its exit status.
func (c *command) run() (int, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return c.relay.Serve(ctx) })
	parts.Go(func() error { return c.datagrams.Serve(ctx) })
	parts.Go(func() error { return c.pings.Serve(ctx) })
	parts.Go(func() error { return logged(c.log, c.stack.Serve(ctx, c.handle)) })
	select {
	case <-c.stack.Ready():
	case <-ctx.Done():
		return 0, errors.Join(parts.Wait(), c.child.Close())
	}
	parts.Go(func() error { return c.learn.expire(ctx) })
	parts.Go(func() error { return c.resolver.Run(ctx, c.set.Names(), func() { close(c.tried) }) })
	if err := c.child.Exec(); err != nil {
		cancel()
		return 0, errors.Join(err, parts.Wait(), c.child.Close())
	}
	c.ready()
	status := c.child.Wait()
	hurry := c.child.Hurry()
	c.child.Drain(hurry)
	if c.datagrams.Stats().Total > 0 {
		lastDatagrams(hurry)
	}
	var err error
	if c.pins.Finish(hurry, drainGrace) {
		cancel()
		_ = parts.Wait() // logged already
		err = c.child.Close()
	} else {
		err = c.child.Leave() // the kernel closes what is open when we exit
	}
	if err != nil { // the status is the command's all the same
		c.log.Error("after the command's end: " + err.Error())
	}
	return status, nil
}

// lastDatagram is how long a datagram sent just before the command's end may be in transit inside pinproxy.
const lastDatagram = 50 * time.Millisecond

func lastDatagrams(ctx context.Context) {
	select {
	case <-time.After(lastDatagram):
	case <-ctx.Done():
	}
}

// quiet returns the log for lookups whose failure the command will see when it makes its own. It is nil unless a
// person wants to know.
func quiet(log *slog.Logger) *slog.Logger {
	if log.Enabled(context.Background(), slog.LevelInfo) {
		return log
	}
	return nil
}

// logged logs at once that the network is lost, because the command goes on.
func logged(log *slog.Logger, err error) error {
	if err != nil {
		log.Error("the command has lost its network: " + err.Error())
	}
	return err
}

// handle carries one connection, pinned or not.
func (c *command) handle(ctx context.Context, f *netstack.Flow) {
	dst, ok := c.out.of(f.Dst())
	if !ok {
		f.Reject(syscall.ECONNREFUSED)
		return
	}
	c.awaitNames(ctx, dst)
	c.pins.Handle(ctx, outwardFlow{f, dst})
}

// awaitNames waits for the first lookup of the exact names if dst may be an address of one that the command knows
// from somewhere other than DNS, such as /etc/hosts. The command itself does not wait.
func (c *command) awaitNames(ctx context.Context, dst netip.AddrPort) {
	if c.names.Decide(dst).Name != "" {
		return
	}
	select {
	case <-c.tried:
		return
	default:
	}
	select {
	case <-c.tried:
	case <-time.After(exactNamesWait):
	case <-ctx.Done():
	}
}

// outward maps the addresses that only the command sees to what they stand for on the host.
type outward struct {
	resolvers *netns.Resolvers
	loopback  []netip.Addr
}

// dnsTLSPort is the port of DNS over TLS (RFC 7858).
const dnsTLSPort = 853

// of returns where to dial for dst. A name server's stand-in serves only as a name server.
func (o *outward) of(dst netip.AddrPort) (netip.AddrPort, bool) {
	if real, ok := o.resolvers.Real(dst.Addr()); ok {
		return netip.AddrPortFrom(real, dst.Port()), dst.Port() == dnsPort || dst.Port() == dnsTLSPort
	}
	for _, a := range o.loopback {
		switch {
		case a != dst.Addr():
		case a.Is4():
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dst.Port()), true
		default:
			return netip.AddrPortFrom(netip.IPv6Loopback(), dst.Port()), true
		}
	}
	return dst, true
}

// dial is for the datagram relay.
func (o *outward) dial(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
	real, ok := o.of(dst)
	if !ok {
		return nil, fmt.Errorf("dial %s: %w", dst, syscall.ECONNREFUSED)
	}
	return proxy.Sockets{}.DialPlain(ctx, network, real)
}

// dialUDP is for datagrams that are not DNS.
func (o *outward) dialUDP(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
	return o.dial(ctx, "udp", dst)
}

// dialPing pings what the address stands for.
func (o *outward) dialPing(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
	real, _ := o.of(dst)
	return ping.Dial(ctx, real)
}

// outwardFlow is a flow whose real destination is dst.
type outwardFlow struct {
	*netstack.Flow
	dst netip.AddrPort
}

// Dst implements proxy.Flow.
func (f outwardFlow) Dst() netip.AddrPort { return f.dst }

// allRouted is the router for a command. It has nothing to do, because all of the command's connections come to us
// anyway.
type allRouted struct{}

// Add does nothing.
func (allRouted) Add(context.Context, []host.Capture) error { return nil }

// Remove does nothing.
func (allRouted) Remove(context.Context, []host.Capture) error { return nil }

// lowPortError says that pins are below 1024 and that we may not bind such ports.
type lowPortError struct {
	port uint16
	err  error
}

func (e *lowPortError) Error() string {
	return fmt.Sprintf("pin to source port %d: ports that low need CAP_NET_BIND_SERVICE", e.port)
}

func (e *lowPortError) Unwrap() error { return e.err }

func (e *lowPortError) Hint() string {
	return fmt.Sprintf("sudo setcap cap_net_bind_service=+ep %s, or sudo sysctl -w net.ipv4.ip_unprivileged_port_start=%d", ownPath(), e.port)
}

// checkLowPorts asks the kernel whether the lowest pin may be bound.
func checkLowPorts(set *rules.Set) error {
	ports := set.PinPorts().Ranges()
	if len(ports) == 0 || ports[0].First >= host.LowestUnprivileged() {
		return nil
	}
	if err := sockdiag.Bind(netip.AddrPortFrom(netip.IPv4Unspecified(), ports[0].First)); errors.Is(err, fs.ErrPermission) {
		return &lowPortError{ports[0].First, err}
	}
	return nil // any other failure concerns the flow, which waits
}
