// Package check finds out what would happen to a connection to a target, and says it in words. With Config.Connect it
// makes connections; otherwise it changes nothing.
//
//	find      the running pinproxy, by its control socket; the rules; the host's settings
//	resolve   the target, as any program would
//	look      at each address: which rule, whether the kernel's route leads into the device, which of the pin's ports is
//	          free, and whose sockets are on the others: a situation
//	judge     a situation: pinned from which port, or what is in the way. Pure logic
//	report    all of it, as JSON or text. The deciding fact comes last
//
//	what goes wrong                          what is said
//	no pinproxy is running                   so, and which port a connection would have if one were
//	its control socket does not answer       why; what the kernel says is still told
//	it is in another network namespace       an error: what it knows and what the kernel says here do not belong together
//	the name can't be looked up              why, and that no program gets as far as connecting
//	we may not see whose a socket is         the user of it
package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/cmd/pinproxy/terminal"
	"pinproxy/netstack/host"
	"pinproxy/proxy"
	"pinproxy/proxy/sockdiag"
	"pinproxy/rules"
)

const (
	lookupTimeout = 10 * time.Second
	// triedPorts is how many ports of a pin are checked, each by a walk through the kernel's sockets.
	triedPorts = 32
)

// Config says what to look at.
type Config struct {
	Target      Target
	Rules       *rules.Set // nil: those of the running pinproxy
	Link        string     // name of the device, if no pinproxy is running that says it
	Socket      string     // control socket to ask on; "": the one that the running pinproxy says
	Connect     bool       // also connect
	DialTimeout time.Duration
}

// Target is where a connection goes.
type Target struct {
	Host string     // a name, canonical, or an address
	Addr netip.Addr // invalid if Host is a name
	Port uint16
}

func (t Target) String() string { return net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port))) }

// Name returns the name to look up in the rules.
func (t Target) Name() string {
	if t.Addr.IsValid() {
		return ""
	}
	return t.Host
}

// checker finds out about connections to a target.
type checker struct {
	Config
	instance *monitor.Instance // nil: none is running
	set      *rules.Set        // nil: no rules are known
	facts    host.Facts
	lowest   uint16 // lowest port that anybody may bind
	mayMark  bool   // we may set a socket's mark and end sockets
}

// Run finds out what would happen to a connection to the target. With Connect, it makes one.
func Run(ctx context.Context, config Config) (*Report, error) {
	c := &checker{Config: config}
	if err := c.find(ctx); err != nil {
		return nil, err
	}
	r := &Report{Target: c.Target.String(), Rules: c.rulesFrom(), PortRange: Range(c.facts.LocalPorts)}
	if c.instance != nil {
		about := c.instance.About
		r.Pinproxy = &Pinproxy{PID: cmp.Or(c.instance.PID, about.PID), Socket: c.instance.Path, Link: about.Link, Strict: about.Strict, Ending: about.Ending, apart: c.instance.PID == 0}
		if c.instance.Err != nil {
			r.Pinproxy.Error = c.instance.Err.Error()
		}
	}
	addrs, err := c.resolve(ctx)
	if err != nil {
		r.Error = err.Error()
	}
	var looked []situation
	for _, addr := range addrs {
		s, err := c.look(ctx, netip.AddrPortFrom(addr, c.Target.Port))
		if err != nil {
			return nil, err
		}
		var made *Connection
		if c.Connect {
			made = c.try(ctx, s)
			s.learn(made)
		}
		a := s.report(c.facts)
		a.Connect = made
		a.afterNAT()
		r.Addresses = append(r.Addresses, a)
		looked = append(looked, s)
	}
	for i, s := range looked { // when all are looked at, as it takes the port for a moment
		if a := r.Addresses[i]; c.Connect && a.Pinned && a.Connect.OK && s.rule.Cooldown() == 0 {
			a.Connect.Through = c.through(ctx, s, a.Connect.closes)
		}
	}
	r.conclude()
	return r, nil
}

// find finds the running pinproxy, the rules and the host's settings.
func (c *checker) find(ctx context.Context) (err error) {
	if c.instance, err = monitor.Find(ctx, c.Socket, "check …"); err != nil {
		return err
	}
	if i := c.instance; i != nil && i.About.Namespace != "" && i.About.Namespace != monitor.Namespace() {
		return &elsewhereError{i.About.PID, c.Target.String()}
	}
	c.set = c.Rules
	link := c.Link
	if c.instance != nil && c.instance.Err == nil {
		link = c.instance.About.Link
		if c.set == nil {
			if c.set, err = rulesOf(c.instance.About); err != nil {
				return err
			}
		}
	}
	if c.facts, err = host.Look(link); err != nil {
		return err
	}
	c.lowest = host.LowestUnprivileged()
	c.mayMark = mayMark()
	return nil
}

// elsewhereError says that the pinproxy that was asked is in another network namespace than we are. What it knows of
// its rules and ports, and what the kernel tells us of routes and sockets, do not belong together.
type elsewhereError struct {
	pid    int
	target string
}

func (e *elsewhereError) Error() string {
	return fmt.Sprintf("the pinproxy of --socket, pid %d, is in another network namespace, and check looks at this one", e.pid)
}

// Hint says how to check there.
func (e *elsewhereError) Hint() string {
	return fmt.Sprintf("sudo nsenter --net=/proc/%d/ns/net pinproxy check %s", e.pid, e.target)
}

// rulesOf returns the running pinproxy's rules as a set of ours.
func rulesOf(about monitor.About) (*rules.Set, error) {
	var list []*rules.Rule
	for _, j := range about.Rules {
		r, err := rules.ParseAt(j.Source, j.Line, j.Rule)
		if err != nil {
			return nil, fmt.Errorf("read the running pinproxy's rules: %w", err)
		}
		list = append(list, r)
	}
	return rules.NewSet(list)
}

func (c *checker) rulesFrom() string {
	switch {
	case c.Rules != nil:
		return "command line"
	case c.set != nil:
		return "pinproxy"
	}
	return ""
}

// resolve looks the target up as any program would. A running pinproxy sees the query and the answer, and captures
// what it has to before we get the answer. So what we find out then is what programs meet.
func (c *checker) resolve(ctx context.Context) ([]netip.Addr, error) {
	if c.Target.Addr.IsValid() {
		return []netip.Addr{c.Target.Addr}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", c.Target.Host)
	if err != nil {
		link := ""
		if c.instance != nil {
			link = c.instance.About.Link
		}
		return nil, fmt.Errorf("look up %s: %w", c.Target.Host, forbidden(reason(err), link))
	}
	var addrs []netip.Addr
	for _, a := range found {
		if a = a.Unmap(); !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs, nil
}

// forbidden adds to the reason of a failed lookup what it means if queries are captured: that they leave by link is new
// to a firewall that lets pass only what it knows.
func forbidden(reason error, link string) error {
	if link == "" || !strings.HasSuffix(reason.Error(), syscall.EPERM.Error()) {
		return reason
	}
	return fmt.Errorf("%w: a firewall of this host has to let pass what leaves by %s", reason, link)
}

// reason returns the reason of a failed lookup, without the name and the resolver's address.
func reason(err error) error {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return errors.New(dns.Err)
	}
	return err
}

// look finds out about connections to dst.
func (c *checker) look(ctx context.Context, dst netip.AddrPort) (situation, error) {
	s := situation{dst: dst, name: c.Target.Name(), running: c.instance != nil, given: c.Rules != nil}
	var answer monitor.Destination
	if s.running {
		s.pid, s.ending, s.askErr = c.instance.PID, c.instance.About.Ending, c.instance.Err
	}
	if s.running && s.askErr == nil {
		if answer, s.askErr = c.instance.Destination(ctx, dst, s.name, ""); s.askErr == nil {
			s.theirs, s.instead = answer.Rule, answer.Instead
			if c.Rules == nil && s.name == "" {
				s.name = answer.Name // what is known of the address decides
			}
		}
	}
	if c.set != nil {
		if list := c.set.Candidates(s.name, dst); len(list) > 0 {
			s.rule, s.lost = list[0], list[1:]
		}
	}
	s.way, s.wayErr = host.FindWay(host.Connection{Dst: dst})
	if errors.Is(s.wayErr, errors.ErrUnsupported) {
		return s, s.wayErr
	}
	if s.running && !s.way.Ours {
		s.ahead, _ = host.FindAhead(dst) // without it, the cause is told less well
	}
	s.past, s.pastErr = host.FindWay(host.Connection{Dst: dst, Mark: host.Mark})
	if s.rule == nil {
		return s, nil
	}
	if s.running && s.askErr == nil {
		if answer, s.askErr = c.instance.Destination(ctx, dst, s.name, s.rule.String()); s.askErr != nil {
			return s, nil
		}
	}
	return s, c.lookAtPorts(&s, answer.Pin)
}

// lookAtPorts checks the pin's ports in the order in which they would be tried, up to the first that is free.
func (c *checker) lookAtPorts(s *situation, table *monitor.Pin) error {
	order := s.order(table)
	for _, port := range order {
		p, err := c.lookAt(*s, port, table)
		if err != nil {
			return err
		}
		s.ports = append(s.ports, p)
		if s.obstacle(p).cause == "" || s.hasNoSource(p) {
			break
		}
	}
	if table != nil {
		s.waiting = table.Waiting
	}
	s.untried = s.rule.Pin().Ports().Len() - len(s.ports)
	return nil
}

// order returns the ports in the order in which the running pinproxy takes them: first those that are free for it,
// then the others.
func (s situation) order(table *monitor.Pin) []uint16 {
	var order []uint16
	if table != nil {
		order = append(order, table.Next...)
	}
	for _, r := range s.rule.Pin().Ports().Ranges() {
		for port := int(r.First); port <= int(r.Last) && len(order) < triedPorts; port++ {
			if !slices.Contains(order, uint16(port)) {
				order = append(order, uint16(port))
			}
		}
	}
	return order[:min(triedPorts, len(order))]
}

func (c *checker) lookAt(s situation, port uint16, table *monitor.Pin) (portState, error) {
	addr := s.bindAddr()
	p := portState{
		local:     netip.AddrPortFrom(addr, port),
		reserved:  contains(c.facts.Reserved, port),
		ephemeral: contains([]host.PortRange{c.facts.LocalPorts}, port),
		mayEnd:    c.mayMark || s.running, // a pinproxy without CAP_NET_ADMIN would not run
	}
	// A policy rule of the host's may be for this port alone.
	p.way, p.wayErr = host.FindWay(host.Connection{Dst: s.dst, Src: s.rule.Pin().Addr(), Port: port, Mark: host.Mark})
	from := p.source()
	p.bindErr = sockdiag.Bind(p.local)
	if errors.Is(p.bindErr, syscall.EADDRINUSE) && from != addr { // as a dial does
		p.local = netip.AddrPortFrom(from, port)
		p.bindErr = sockdiag.Bind(p.local)
	}
	switch {
	case port >= c.lowest:
	case !s.running:
		p.privileged = errors.Is(p.bindErr, syscall.EACCES)
	case s.askErr == nil: // /proc may not show it to us, or show another process by its number
		p.privileged = !c.instance.About.LowPorts
	}
	list, err := sockdiag.OnPort(port)
	if err != nil {
		return p, err
	}
	owners := sockdiag.Owners(list)
	for i, socket := range list {
		p.sockets = append(p.sockets, socketState{
			Socket: socket, owner: owners[i],
			ours:  s.running && (s.pid != 0 && owners[i].PID == s.pid || socket.Mark == host.Mark),
			lasts: socket.Left > 0 && !sockdiag.EndsTimeWait(),
			same:  socket.Remote == s.dst && (from.IsUnspecified() || socket.Local.Addr() == from),
		})
	}
	if table == nil {
		return p, nil
	}
	p.used = slices.Contains(table.Used, port)
	for _, h := range table.Held {
		if h.Port == port {
			p.held = &h
		}
	}
	for _, r := range table.Resting {
		if r.Port == port {
			p.resting = max(time.Until(r.Until), 0)
		}
	}
	return p, nil
}

// bindAddr is the address that a dial binds to: the pin's, or any.
func (s situation) bindAddr() netip.Addr {
	switch addr := s.rule.Pin().Addr(); {
	case addr.IsValid():
		return addr
	case s.dst.Addr().Is4():
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func contains(list []host.PortRange, port uint16) bool {
	return slices.ContainsFunc(list, func(r host.PortRange) bool { return r.First <= port && port <= r.Last })
}

// try makes the connection.
func (c *checker) try(ctx context.Context, s situation) *Connection {
	if s.rule == nil || len(s.ports) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.DialTimeout)
	defer cancel()
	v := judge(s)
	next := s.next()
	pin := netip.AddrPortFrom(s.bindAddr(), next.local.Port())
	sockets := proxy.Sockets{Endings: proxy.NewEndings()}
	if c.mayMark {
		sockets.Mark = host.Mark
	} else {
		pin = netip.AddrPortFrom(next.source(), pin.Port()) // the capture rules let this source pass
	}
	trial, err := sockets.Try(ctx, pin, s.dst)
	if err != nil {
		failed := &Connection{Cause: err.Error(), Hint: proxy.Hint(err), nat: proxy.ByNAT(err)}
		if next.held != nil && v.port == 0 { // a program would not be told of pinproxy's socket either
			failed.Cause, failed.Hint = fmt.Sprintf("%s: %v", v.taken.cause, terminal.Cause(err)), v.taken.hint
		}
		return failed
	}
	return &Connection{OK: true, Local: trial.Local.String(), Took: trial.Took.Seconds(), closes: trial.Closes}
}

// through makes a connection as programs do: into the device. A firewall of this host that has never heard of the
// device is in the way of its packets, and nothing but a connection shows that. Where a rule has a cooldown, one on the
// way may be in the way of a second connection so soon, so there is none.
func (c *checker) through(ctx context.Context, s situation, closes bool) *Connection {
	begun := time.Now()
	d := net.Dialer{Timeout: c.DialTimeout}
	conn, err := d.DialContext(ctx, "tcp", s.dst.String())
	took := time.Since(begun)
	if err == nil {
		tcp := conn.(*net.TCPConn)
		if closes {
			_ = tcp.CloseWrite()
		} else {
			_ = tcp.SetLinger(0) // without a FIN: the destination would not answer it, and the flow would keep its port
		}
		_ = tcp.SetReadDeadline(time.Now().Add(time.Second))
		_, _ = io.Copy(io.Discard, tcp) // until the port is free again for who comes next, or else until the flow is surely open
		_ = tcp.Close()
		return &Connection{OK: true, Took: took.Seconds()}
	}
	silent, ok := errors.AsType[net.Error](err)
	switch {
	case ok && silent.Timeout():
		return &Connection{Cause: fmt.Sprintf("no answer through %s within %s, though there was one to the pin", s.way.Link, c.DialTimeout), Hint: letPass(s.way.Link)}
	case errors.Is(err, fs.ErrPermission):
		return &Connection{Cause: terminal.Cause(err).Error(), Hint: letPass(s.way.Link)}
	}
	return &Connection{Cause: terminal.Cause(err).Error(), Hint: "see the log of the running pinproxy"}
}

func letPass(link string) string {
	return fmt.Sprintf("let this host's firewall pass what leaves and comes by %s, as by: nft insert rule inet filter output oifname %[1]s accept; or see the log of pinproxy, if it has a line for this", link)
}
