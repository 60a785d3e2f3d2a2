package check

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/cmd/pinproxy/terminal"
	"pinproxy/netstack/host"
	"pinproxy/proxy"
	"pinproxy/proxy/sockdiag"
	"pinproxy/rules"
)

// What `check` concludes from its findings. This is pure logic, so that tests can cover every situation by
// describing it.

// situation is what was found out about connections to one address.
type situation struct {
	dst   netip.AddrPort
	name  string        // that the rules were asked for; may be empty
	rule  *rules.Rule   // the most specific; nil if none matches
	lost  []*rules.Rule // others that match
	given bool          // the rules come from the command line

	running bool             // a pinproxy is running
	pid     int              // its PID; 0 if that can't be told
	ending  bool             // it captures no new connections any more
	askErr  error            // why its control socket does not answer
	theirs  string           // the rule it has; "" if none, provided askErr is nil
	instead *monitor.Instead // what it follows instead; nil: theirs

	way     host.Way // of a program's connection
	wayErr  error
	ahead   host.Ahead // other programs' rules that are asked before the running pinproxy's, if that does not capture it
	past    host.Way   // of one that pinproxy makes, from no port in particular
	pastErr error

	ports   []portState // of the pin, in the order tried: the last one is free, or none is
	untried int         // further ports of the pin
	waiting int         // flows that wait for the pin
}

// portState is what is known of a source port towards the destination.
type portState struct {
	local      netip.AddrPort // unspecified address if the pin has none, and bind allows that
	reserved   bool           // in ip_local_reserved_ports
	ephemeral  bool           // in ip_local_port_range
	privileged bool           // the process that would bind it may not
	mayEnd     bool           // the process that would dial from it can end what is over (CAP_NET_ADMIN)
	way        host.Way       // of a dial from it
	wayErr     error
	bindErr    error         // what bind said
	held       *monitor.Held // by a flow of the running pinproxy to this destination
	resting    time.Duration // how much longer the running pinproxy lets it rest
	used       bool          // the last connection from it to this destination was the running pinproxy's
	sockets    []socketState
	passed     bool // a connection to the destination was just made from it
}

// socketState is a socket on a port.
type socketState struct {
	sockdiag.Socket
	owner sockdiag.Process // PID 0: none, or not visible
	ours  bool             // the running pinproxy's
	same  bool             // its other end is the destination, so no second connection can be made
	lasts bool             // it is a TIME_WAIT, and this kernel ends none before its time; the proxy may, if it made the connection
}

// obstacle is what keeps us from having a port. Empty: nothing.
type obstacle struct{ cause, hint string }

// obstacle finds what keeps the next connection from a port of the pin. The lease table comes before the kernel,
// because a flow's port has a socket, too. But a flow that waits for the kernel to free a port holds it meanwhile, or
// lets it rest between its attempts.
func (s situation) obstacle(p portState) obstacle {
	port := p.local.Port()
	if o, found := s.otherFamily(); found {
		return o
	}
	socket, inTheWay := p.inTheWay()
	switch {
	case s.isSelf(p):
		return obstacle{
			fmt.Sprintf("source and destination are the same address and port, %s: the connection would lead back to itself", s.dst),
			"take another source port for this destination",
		}
	case (p.held != nil || p.resting > 0) && inTheWay && !socket.same && !socket.ours:
		return p.takenBy(socket)
	case p.held != nil:
		return obstacle{fmt.Sprintf("port %d is held by flow %d from %s", port, p.held.Flow, p.held.Src), proxy.BusyHint(s.rule, false)}
	case p.resting > 0:
		return obstacle{
			fmt.Sprintf("port %d rests for %v more after its last flow to this destination", port, seconds(p.resting)),
			proxy.BusyHint(s.rule, true),
		}
	case p.privileged:
		return explained(syscall.EACCES, p.local, s.dst)
	case errors.Is(p.bindErr, syscall.EADDRNOTAVAIL):
		return explained(syscall.EADDRNOTAVAIL, p.local, s.dst)
	}
	if inTheWay {
		return p.takenBy(socket)
	}
	switch {
	case p.bindErr == nil, errors.Is(p.bindErr, syscall.EACCES): // EACCES is our own limit: the process that would bind the port may
	case errors.Is(p.bindErr, syscall.EADDRINUSE) && p.endable(): // as soon as somebody wants it
	default:
		return explained(p.bindErr, p.local, s.dst)
	}
	return obstacle{}
}

// endable says whether something that has the port is over and can be ended.
func (p portState) endable() bool {
	return slices.ContainsFunc(p.sockets, func(s socketState) bool { return s.ends(p) && !s.Beside(p.local.Addr()) })
}

// ends says whether the socket is over, and is ended when somebody wants the port, or connect gets past it. A running
// pinproxy sees to that for connections of its own whatever the kernel (proxy.Endings).
func (s socketState) ends(p portState) bool {
	return s.over() && p.mayEnd && (!s.lasts || s.same && p.used)
}

// over says whether no program has the socket any more.
func (s socketState) over() bool { return s.State.Over() && s.Orphan() }

// learn takes note of what a connection from the next port shows. If it was made, the TIME_WAIT of the last one to the
// destination is in nobody's way: connect gets past it where the destination speaks TCP timestamps.
func (s *situation) learn(made *Connection) {
	if made == nil || !made.OK {
		return
	}
	next := s.next()
	for i := range s.ports {
		s.ports[i].passed = s.ports[i].local.Port() == next.local.Port()
	}
}

// explained returns the cause that a flow's log line would have.
func explained(err error, pin, dst netip.AddrPort) obstacle {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = os.NewSyscallError("bind", errno)
	}
	err = proxy.Explain(err, pin, dst)
	return obstacle{err.Error(), proxy.Hint(err)}
}

// inTheWay finds the socket that matters most: the very 4-tuple, a listener, or any other socket if bind was
// refused.
func (p portState) inTheWay() (worst socketState, found bool) {
	rank := 0
	for _, s := range p.sockets {
		r := 0
		switch {
		case s.harmless(p):
		case s.same:
			r = 4
		case s.State == sockdiag.Listen:
			r = 3
		case !s.State.Over():
			r = 2
		default:
			r = 1
		}
		if r > rank {
			worst, rank = s, r
		}
	}
	return worst, rank > 0
}

// harmless says whether a socket is no obstacle. One on other addresses never is. Connections to other destinations
// can share a port if bind says so, and a socket that is over can be ended.
func (s socketState) harmless(p portState) bool {
	switch {
	case s.ends(p), s.same && s.over() && p.passed:
		return true
	case s.same:
		return false
	case s.Beside(p.local.Addr()):
		return true
	case s.State == sockdiag.Listen:
		return p.bindErr == nil
	}
	return p.bindErr == nil || s.ours
}

func (p portState) takenBy(s socketState) obstacle {
	port := p.local.Port()
	with, without := "CAP_NET_ADMIN is there", "without CAP_NET_ADMIN"
	if s.lasts {
		with, without = "pinproxy made that connection", "on this kernel, unless pinproxy made that connection"
	}
	switch {
	case s.over() && s.same && s.Left > 0:
		return obstacle{
			fmt.Sprintf("the last connection from %s to %s is in %s for %v more; connect gets past it if the destination speaks TCP timestamps, or %s", s.Local, s.Remote, s.State, seconds(s.Left), with),
			"a range of source ports in the rule goes on with the next one",
		}
	case s.over():
		o := obstacle{fmt.Sprintf("the last connection from %s to %s is in %s", s.Local, s.Remote, s.State), "a range of source ports in the rule goes on with the next one"}
		if s.Left > 0 {
			o.cause += fmt.Sprintf(" for %v more, which can't be cut short %s", seconds(s.Left), without)
		}
		return o
	case s.owner.PID == 0:
		return obstacle{
			fmt.Sprintf("port %d is taken by a program of user %d, which %s", port, s.UID, s),
			fmt.Sprintf("see which by: sudo ss -tanp sport = :%d", port),
		}
	}
	return obstacle{
		fmt.Sprintf("port %d is taken by %s, which %s", port, s.owner, s),
		s.owner.Remedy(),
	}
}

// verdict is what follows from a situation.
type verdict struct {
	pinned bool // a program's connection would leave from its pin now
	free   bool // the pin could be had, whoever captures the connection
	port   uint16
	taken  obstacle // what is in the way of the pin
	obstacle
}

// judge says whether a connection would leave from its pin now, and if not, what is in the way. It looks first at
// the destination, then at the capture, then at the port.
func judge(s situation) verdict {
	v := verdict{}
	if s.rule != nil {
		v.port, v.taken = s.choose()
		v.free = v.taken.cause == "" && !s.way.Local
	}
	v.obstacle = s.uncaptured()
	if v.cause == "" {
		v.obstacle = v.taken
	}
	v.pinned = v.cause == ""
	return v
}

// choose returns the port that a connection gets, or 0 if none is free, and what is in the way of the first port.
func (s situation) choose() (uint16, obstacle) {
	if o, found := s.otherFamily(); found {
		return 0, o
	}
	if s.away() {
		return 0, s.noRoute()
	}
	if len(s.ports) == 0 {
		return 0, obstacle{cause: "the pin has no port"}
	}
	p := s.next()
	o := s.obstacle(p)
	switch n := len(s.ports) + s.untried; {
	case o.cause == "" && p.wayErr != nil: // a dial that finds no route does not go on to another port
		return 0, s.unroutable(p)
	case o.cause == "":
		return p.local.Port(), o
	case n > 1 && !s.hasNoSource(p):
		o.cause = fmt.Sprintf("none of the first %d of the pin's %d ports is free; %s", len(s.ports), n, o.cause)
	}
	return 0, o
}

// next returns the first port that is free, or else the first.
func (s situation) next() portState {
	free := slices.IndexFunc(s.ports, func(p portState) bool { return s.obstacle(p).cause == "" })
	return s.ports[max(free, 0)]
}

// source is the source address of a dial.
func (p portState) source() netip.Addr {
	if p.local.Addr().IsUnspecified() && p.way.Source.IsValid() {
		return p.way.Source
	}
	return p.local.Addr()
}

// isSelf says whether the connection would be to itself: for a connection to an address of this host, the kernel uses
// that same address as the source.
func (s situation) isSelf(p portState) bool {
	if p.local.Port() != s.dst.Port() {
		return false
	}
	return p.local.Addr() == s.dst.Addr() || p.local.Addr().IsUnspecified() && s.way.Local
}

// hasNoSource reports whether it is the pin's address that can't be had, whatever the port.
func (s situation) hasNoSource(p portState) bool {
	_, other := s.otherFamily()
	return other || s.rule.Pin().Addr().IsValid() && errors.Is(p.bindErr, syscall.EADDRNOTAVAIL)
}

// otherFamily says whether the pin's source address and the destination are of different families.
func (s situation) otherFamily() (obstacle, bool) {
	source := s.rule.Pin().Addr()
	if !source.IsValid() || source.Is4() == s.dst.Addr().Is4() {
		return obstacle{}, false
	}
	other := "IPv6"
	if source.Is4() {
		other = "IPv4"
	}
	return obstacle{
		fmt.Sprintf("source address %s is of the other family", source),
		fmt.Sprintf("most programs go on to the name's %s addresses; to have this one pinned as well, leave the source address out of the rule", other),
	}, true
}

// away says whether this host has no route to the address, whoever connects.
func (s situation) away() bool {
	routed := func(p portState) bool { return p.wayErr == nil }
	return s.wayErr != nil || s.pastErr != nil && !slices.ContainsFunc(s.ports, routed)
}

func (s situation) noRoute() obstacle {
	return obstacle{cause: fmt.Sprintf("this host has no route to %s: %v", s.dst.Addr(), terminal.Cause(cmp.Or(s.wayErr, s.pastErr)))}
}

// unroutable says why a dial from a port fails before a packet is sent, though the host has a route.
func (s situation) unroutable(p portState) obstacle {
	from, get := fmt.Sprintf("source port %d", p.local.Port()), fmt.Sprintf("ip route get %s", s.dst.Addr())
	if source := s.rule.Pin().Addr(); source.IsValid() {
		from += fmt.Sprintf(" of %s", source)
		get += fmt.Sprintf(" from %s", source)
	}
	return obstacle{
		fmt.Sprintf("no way to %s from %s: %v", s.dst.Addr(), from, terminal.Cause(p.wayErr)),
		fmt.Sprintf("%s mark %#x ipproto tcp sport %d dport %d", get, host.Mark, p.local.Port(), s.dst.Port()),
	}
}

// uncaptured says why a connection does not come to the running pinproxy at all, or not by this rule.
func (s situation) uncaptured() obstacle {
	switch {
	case s.way.Local && len(s.ports) == 1 && s.untried == 0 && s.isSelf(s.ports[0]):
		return s.obstacle(s.ports[0])
	case s.way.Local:
		return obstacle{cause: fmt.Sprintf("%s is this host itself: such connections are not captured", s.dst.Addr())}
	case s.wayErr != nil:
		return s.noRoute()
	case s.rule == nil && s.given:
		return obstacle{cause: "none of the rules that were given is for this destination"}
	case !s.running && s.rule == nil:
		return obstacle{"no pinproxy is running, and no rule was given", "pinproxy check --rule RULE …, or start pinproxy"}
	case !s.running:
		return obstacle{"no pinproxy is running", fmt.Sprintf("sudo pinproxy --rule %s", terminal.Quote(s.rule.String()))}
	case s.instead != nil && (s.rule != nil || s.way.Ours): // a rule that is gone decides for a minute, but captures nothing
		return s.misnamed()
	case s.askErr == nil && s.rule == nil:
		return obstacle{cause: "no rule is for this destination"}
	case s.askErr == nil && s.theirs == "":
		return obstacle{"the running pinproxy has no rule for this destination", "give it this rule: in a file of --rules and by SIGHUP, or at a new start"}
	case s.askErr == nil && !samePin(s.theirs, s.rule):
		return obstacle{fmt.Sprintf("the running pinproxy goes by another rule, %s", s.theirs), "give it this rule: in a file of --rules and by SIGHUP, or at a new start"}
	case !s.way.Ours && s.ending:
		return obstacle{"the running pinproxy is ending and captures no new connections", "start it again once it has ended, within seconds"}
	case !s.way.Ours && s.ahead.Priorities != "":
		return obstacle{fmt.Sprintf("the running pinproxy does not capture it: %v", s.ahead), s.ahead.Hint()}
	case !s.way.Ours:
		return obstacle{"the running pinproxy does not capture it: the kernel's route does not lead into its device", "its log says why"}
	case s.askErr != nil:
		o := obstacle{cause: fmt.Sprintf("the running pinproxy captures it, but can't be asked by which rule: %v", s.askErr)}
		var ask *monitor.AskError
		if errors.As(s.askErr, &ask) {
			o.hint = ask.Hint()
		}
		return o
	}
	return obstacle{}
}

// misnamed says why a connection does not follow the name's rule, or its lack of one: it shows only the address.
func (s situation) misnamed() obstacle {
	if s.instead.Name != "" {
		return obstacle{
			fmt.Sprintf("the running pinproxy takes %s for an address of %s, and goes by the rule %s", s.dst.Addr(), s.instead.Name, s.instead.Rule),
			"names that share an address need the same pin, as a connection does not show which one was meant",
		}
	}
	o := obstacle{
		fmt.Sprintf("the running pinproxy has seen no DNS answer that says that %s is an address of %s", s.dst.Addr(), s.name),
		"it does not see what comes from a file or a cache; a rule for the address does without",
	}
	if s.instead.Rule != "" {
		o.cause += ", and goes by the rule " + s.instead.Rule
	}
	return o
}

// samePin says whether a rule's text demands the same source as rule.
func samePin(text string, rule *rules.Rule) bool {
	r, err := rules.Parse(text)
	return err == nil && r.Pin().Equal(rule.Pin())
}

// whyLost says why a matching rule loses to the winner.
func whyLost(winner, loser *rules.Rule) string {
	w, l := winner.Host(), loser.Host()
	switch {
	case w == l:
		return fmt.Sprintf("it is for more ports: %d, not %d", loser.Ports().Len(), winner.Ports().Len())
	case l.Any():
		return "* is the least specific host"
	case w.Name() != "" && l.Prefix().IsValid():
		return "a name is more specific than addresses"
	case w.Name() != "" && !w.Wildcard():
		return "an exact name is more specific than a wildcard"
	case w.Name() != "":
		return fmt.Sprintf("*.%s is the longer wildcard", w.Name())
	}
	return fmt.Sprintf("%s is the longer prefix", w.Prefix())
}

// seconds rounds up, so that what waits this long is free by then.
func seconds(d time.Duration) time.Duration { return (d + time.Second - 1).Truncate(time.Second) }
