package check

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/cmd/pinproxy/terminal"
	"pinproxy/netstack/host"
	"pinproxy/proxy/sockdiag"
	"pinproxy/rules"
)

// Text returns the report for people: one fact a line, with the deciding one last.
func (r Report) Text() string {
	var b strings.Builder
	fmt.Fprintln(&b, r.Target)
	if r.Error != "" {
		line(&b, "error", "%s", r.Error)
	}
	line(&b, "pinproxy", "%s", r.who())
	for _, a := range r.Addresses {
		b.WriteByte('\n')
		a.text(&b, r)
	}
	fmt.Fprintf(&b, "\nHow is my source port chosen? %s\n", r.Chosen)
	return terminal.PrintableLines(b.String())
}

func line(b *strings.Builder, what, format string, args ...any) {
	fmt.Fprintf(b, "  %-9s "+format+"\n", append([]any{what}, args...)...)
}

// who says which pinproxy is running.
func (r Report) who() string {
	p := r.Pinproxy
	switch {
	case p == nil:
		return "none is running"
	case p.Error != "" && p.PID == 0:
		return "in another PID namespace, but can't " + p.Error
	case p.Error != "":
		return fmt.Sprintf("pid %d, but can't %s", p.PID, p.Error)
	}
	text := fmt.Sprintf("pid %d", p.PID)
	if p.apart {
		text += " in another PID namespace"
	}
	text += ", link " + p.Link
	if p.Strict {
		text += ", strict"
	}
	if p.Ending {
		text += ", ending"
	}
	return text
}

func (a Address) text(b *strings.Builder, r Report) {
	fmt.Fprintln(b, a.Address)
	if a.Name != "" && !strings.HasPrefix(r.Target, a.Name+":") {
		line(b, "name", "%s", a.Name)
	}
	switch {
	case a.Rule != nil:
		line(b, "rule", "%s", a.Rule.Text())
	case r.Rules != "":
		line(b, "rule", "none")
	}
	for _, l := range a.Lost {
		line(b, "not", "%s: %s", l.Text(), l.Why)
	}
	line(b, "captured", "%s", a.capturedText())
	if a.Pin != nil {
		if a.Dial.Error == "" && !a.Local {
			line(b, "way", "through %s, from %s", a.Dial.Link, a.Dial.Source)
		}
		a.Pin.text(b, r)
	}
	if c := a.Connect; c != nil {
		c.text(b, "connected", "from "+c.Local)
		if c.Through != nil {
			c.Through.text(b, "through", a.Route.Link)
		}
	}
	if a.Pinned {
		line(b, "pinned", "yes")
		return
	}
	line(b, "pinned", "no: %s", a.Cause)
	if a.Hint != "" && (a.Connect == nil || a.Connect.Hint != a.Hint) {
		line(b, "hint", "%s", a.Hint)
	}
}

func (c *Connection) text(b *strings.Builder, what, by string) {
	if c.OK {
		line(b, what, "%s, in %s", by, terminal.Short(monitor.Seconds(c.Took)))
		return
	}
	line(b, what, "no: %s", c.Cause)
	if c.Hint != "" {
		line(b, "hint", "%s", c.Hint)
	}
}

func (a Address) capturedText() string {
	switch {
	case a.Captured:
		return "yes, into " + a.Route.Link
	case a.Local:
		return "no: it is this host itself"
	case a.Route.Error != "":
		return "no: " + a.Route.Error
	}
	return "no, it goes through " + a.Route.Link
}

func (p *Pin) text(b *strings.Builder, r Report) {
	for _, port := range p.Ports {
		state := "free"
		if !port.Free {
			state = strings.TrimPrefix(port.Cause, fmt.Sprintf("port %d is ", port.Port))
		}
		line(b, "port", "%d: %s", port.Port, state)
		line(b, "", "%s", port.standing(r.PortRange))
		for _, s := range port.Sockets {
			line(b, "", "%s: %s", s.text, s.Why)
		}
	}
	if n := p.Untried + len(p.Ports); n > 1 {
		line(b, "ports", "%d in the pin: %d reserved, %d inside ip_local_port_range", n, p.Reserved, p.InRange)
	}
	switch {
	case p.Waiting == 1:
		line(b, "waiting", "1 flow")
	case p.Waiting > 1:
		line(b, "waiting", "%d flows", p.Waiting)
	}
}

// standing says whether the kernel may hand the port to others.
func (p Port) standing(r Range) string {
	local := fmt.Sprintf("ip_local_port_range (%d-%d)", r.First, r.Last)
	switch {
	case p.Reserved && p.InRange:
		return "reserved, so that no program gets it by chance; inside " + local
	case p.Reserved:
		return "reserved; outside " + local
	case p.InRange:
		return "not reserved: any program may get it by chance, as it is inside " + local
	}
	return "not reserved; outside " + local
}

// text says whose socket it is and what it does.
func (s socketState) text() string {
	who := "the kernel"
	switch {
	case s.owner.PID != 0:
		who = s.owner.String()
	case !s.over():
		who = fmt.Sprintf("a program of user %d", s.UID)
	}
	if s.Left > 0 {
		return fmt.Sprintf("%s %s, for %v more", who, s.Socket, seconds(s.Left))
	}
	return fmt.Sprintf("%s %s", who, s.Socket)
}

// why says whether a socket is in the way, and why.
func (s socketState) why(p portState) string {
	switch {
	case s.same && s.ends(p):
		return "harmless: it is ended when the port is wanted"
	case s.same && s.over() && p.passed:
		return "harmless: a connection was just made past it"
	case s.same && s.over():
		return "in the way, unless the destination speaks TCP timestamps"
	case s.same:
		return "in the way, as it is to this very destination"
	case s.Local.Addr().Is4() != p.local.Addr().Is4() && s.Beside(p.local.Addr()):
		return "harmless: it is of the other family"
	case s.over() && p.bindErr == nil:
		return "harmless: it is to another destination"
	case s.ends(p):
		return "harmless: it is ended when the port is wanted"
	case s.State == sockdiag.Listen && p.bindErr == nil, s.Beside(p.local.Addr()):
		return "harmless: it is on another address"
	case s.harmless(p):
		return "harmless: the port is shared with it"
	}
	return "in the way of all destinations"
}

// chosen answers "how is my source port chosen?" in a sentence.
func (s situation) chosen(v verdict, facts host.Facts) string {
	switch {
	case v.pinned:
		return fmt.Sprintf("By its rule: pinproxy takes the connection over and dials from port %d of %s%s.", v.port, s.next().source(), s.among())
	case s.away():
		return fmt.Sprintf("Not at all: connect fails, as this host has no route: %v.", terminal.Cause(cmp.Or(s.wayErr, s.pastErr)))
	case s.running && s.way.Ours && errors.Is(s.askErr, fs.ErrPermission):
		return "By a rule of the running pinproxy, which takes the connection; this user may not ask by which."
	case s.running && s.way.Ours && s.askErr != nil:
		return "By a rule of the running pinproxy, which takes the connection, but can't be asked by which."
	case s.running && s.way.Ours && s.instead != nil && s.instead.Rule != "":
		return fmt.Sprintf("By the running pinproxy's rule %s.", s.instead.Rule)
	case s.running && s.way.Ours && s.rule != nil && s.theirs == s.rule.String() && s.waits():
		return fmt.Sprintf("By its rule, but no port is free now: %s.", s.otherwise())
	case s.running && s.way.Ours && s.rule != nil && s.theirs == s.rule.String():
		return "By its rule, but the pin cannot be used: the connection fails."
	case s.running && s.way.Ours && s.theirs != "":
		return fmt.Sprintf("By the running pinproxy's rule %s.", s.theirs)
	}
	local := facts.LocalPorts
	return fmt.Sprintf("By the kernel: any port of ip_local_port_range (%d-%d) that is free towards the destination and not reserved, a different one each time.", local.First, local.Last)
}

// among says why it is this port.
func (s situation) among() string {
	switch n := s.rule.Pin().Ports().Len(); n {
	case 1:
		return ", the only one of its pin"
	default:
		return fmt.Sprintf(", of the pin's %d the least recently used that is free", n)
	}
}

// otherwise says what the rule does with a connection that finds no port.
func (s situation) otherwise() string {
	var ways []string
	for _, w := range s.rule.Busy() {
		switch w.Way {
		case rules.Wait:
			ways = append(ways, fmt.Sprintf("it waits for one, %v at most", w.For))
		case rules.Reclaim:
			ways = append(ways, fmt.Sprintf("it waits for one, and has a flow that is idle for %v ended", w.For))
		case rules.OtherAddress:
			ways = append(ways, "it goes to another address of the name")
		case rules.Any:
			ways = append(ways, "it leaves from any port")
		case rules.Fail:
			ways = append(ways, "it fails")
		}
	}
	return strings.Join(ways, ", then ")
}

// waits reports that the port has another user, so that the rule's busy list is used.
func (s situation) waits() bool {
	p := s.next()
	_, taken := p.inTheWay()
	return p.held != nil || p.resting > 0 || taken
}
