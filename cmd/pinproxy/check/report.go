package check

import (
	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/cmd/pinproxy/terminal"
	"pinproxy/netstack/host"
)

// Report is what `check` says. It is printed unchanged as JSON, and as text by Text. The manual documents the fields.
// Fields may be added, but are neither renamed nor given another meaning. Durations are in seconds.
type Report struct {
	Target    string    `json:"target"`
	Pinned    bool      `json:"pinned"`          // the exit status: whether it holds for every address that can be reached
	Error     string    `json:"error,omitempty"` // why the name can't be looked up
	Rules     string    `json:"rules,omitempty"` // "command line" or "pinproxy"; absent without rules
	Pinproxy  *Pinproxy `json:"pinproxy"`        // null: none is running
	PortRange Range     `json:"ip_local_port_range"`
	Addresses []Address `json:"addresses"`
	Chosen    string    `json:"chosen"` // how the source port is chosen, in a sentence
}

// Pinproxy is the running one.
type Pinproxy struct {
	PID    int    `json:"pid"`
	Socket string `json:"socket"`
	Link   string `json:"link,omitempty"`
	Strict bool   `json:"strict"`
	Ending bool   `json:"ending,omitempty"`
	Error  string `json:"error,omitempty"` // why the socket does not answer

	apart bool // the PID is from another PID namespace
}

// Range is a range of ports, both included.
type Range struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// Address is one address of the target.
type Address struct {
	Address  string           `json:"address"`
	Pinned   bool             `json:"pinned"`
	Cause    string           `json:"cause,omitempty"` // why not
	Hint     string           `json:"hint,omitempty"`
	Name     string           `json:"name,omitempty"` // the name that led to the rule
	Rule     *monitor.RuleRef `json:"rule"`
	Lost     []Lost           `json:"lost"`
	Captured bool             `json:"captured"`
	Local    bool             `json:"local"` // this host itself
	Route    Route            `json:"route"` // of a program's connection
	Dial     Route            `json:"dial"`  // of a connection from the pin
	Pin      *Pin             `json:"pin"`
	Connect  *Connection      `json:"connect,omitempty"` // with --connect
	Chosen   string           `json:"chosen"`

	away bool // this host has no route to it
}

// Lost is a rule that matches too, but is less specific.
type Lost struct {
	monitor.RuleRef
	Why string `json:"why"`
}

// Route is where the kernel sends a connection.
type Route struct {
	Link   string `json:"link,omitempty"`
	Source string `json:"source,omitempty"`
	Error  string `json:"error,omitempty"`
}

// Pin is the state of the pin.
type Pin struct {
	Pin      string `json:"pin"`
	Free     bool   `json:"free"`     // a port could be had now
	Port     uint16 `json:"port"`     // the next port; 0 if none is free
	Waiting  int    `json:"waiting"`  // flows
	Untried  int    `json:"untried"`  // ports not looked at
	Reserved int    `json:"reserved"` // how many of its ports are in ip_local_reserved_ports
	InRange  int    `json:"in_range"` // how many are in ip_local_port_range
	Ports    []Port `json:"ports"`
}

// Port is a port of the pin.
type Port struct {
	Port       uint16   `json:"port"`
	Free       bool     `json:"free"`
	Cause      string   `json:"cause,omitempty"`
	Hint       string   `json:"hint,omitempty"`
	Reserved   bool     `json:"reserved"`
	InRange    bool     `json:"in_range"`
	Privileged bool     `json:"privileged"` // and nobody there may bind it
	Flow       uint64   `json:"flow,omitempty"`
	Rests      float64  `json:"rests,omitempty"`
	Sockets    []Socket `json:"sockets"`
}

// Socket is a socket on that port.
type Socket struct {
	State   string  `json:"state"`
	Local   string  `json:"local"`
	Remote  string  `json:"remote"`
	PID     int     `json:"pid,omitempty"`
	Process string  `json:"process,omitempty"`
	UID     uint32  `json:"uid"`
	Left    float64 `json:"left,omitempty"`
	Matters bool    `json:"matters"`
	Why     string  `json:"why"`

	text string
}

// Connection is a connection that was tried.
type Connection struct {
	OK    bool    `json:"ok"`
	Local string  `json:"local,omitempty"` // read back from the socket
	Took  float64 `json:"took,omitempty"`
	Cause string  `json:"cause,omitempty"`
	Hint  string  `json:"hint,omitempty"`

	Through *Connection `json:"through,omitempty"` // the same by way of the device, if the connection would be pinned

	closes bool // proxy.Trial.Closes
	nat    bool // proxy.ByNAT
}

// afterNAT corrects what was found before a connection showed what NAT makes of the pin.
func (a *Address) afterNAT() {
	if c := a.Connect; a.Pinned && c != nil && c.nat {
		a.Pinned, a.Cause, a.Hint = false, c.Cause, c.Hint
		a.Chosen = "By its rule, but then this host's NAT chooses another."
	}
}

// ok says whether what was tried succeeded.
func (c *Connection) ok() bool { return c == nil || c.OK && c.Through.ok() }

// report returns what follows from the situation, with what led to it.
func (s situation) report(facts host.Facts) Address {
	v := judge(s)
	a := Address{
		Address: s.dst.Addr().String(), Pinned: v.pinned, Cause: v.cause, Hint: v.hint, Name: s.name,
		Captured: s.running && s.way.Ours, Local: s.way.Local, Route: routeReport(s.way, s.wayErr), Dial: routeReport(s.past, s.pastErr),
		Lost: []Lost{}, Chosen: s.chosen(v, facts), away: s.away(),
	}
	if s.rule == nil {
		return a
	}
	rule := monitor.ReferTo(s.rule)
	a.Rule = &rule
	for _, r := range s.lost {
		a.Lost = append(a.Lost, Lost{monitor.ReferTo(r), whyLost(s.rule, r)})
	}
	if len(s.ports) > 0 {
		next := s.next()
		a.Dial = routeReport(next.way, next.wayErr)
	}
	ports := s.rule.Pin().Ports()
	a.Pin = &Pin{
		Pin: s.rule.Pin().String(), Free: v.free, Port: v.port, Waiting: s.waiting, Untried: s.untried, Ports: []Port{},
		Reserved: ports.LenIn(facts.Reserved...), InRange: ports.LenIn(facts.LocalPorts),
	}
	for _, p := range s.ports {
		a.Pin.Ports = append(a.Pin.Ports, p.report(s))
	}
	return a
}

func (p portState) report(s situation) Port {
	o := s.obstacle(p)
	r := Port{
		Port: p.local.Port(), Free: o.cause == "", Cause: o.cause, Hint: o.hint, Reserved: p.reserved, InRange: p.ephemeral,
		Privileged: p.privileged, Rests: p.resting.Seconds(), Sockets: []Socket{},
	}
	if p.held != nil {
		r.Flow = p.held.Flow
	}
	for _, k := range p.sockets {
		r.Sockets = append(r.Sockets, Socket{
			State: k.State.String(), Local: k.Local.String(), Remote: k.Remote.String(), PID: k.owner.PID, Process: k.owner.Name, UID: k.UID,
			Left: k.Left.Seconds(), Matters: !k.harmless(p), Why: k.why(p), text: k.text(),
		})
	}
	return r
}

func routeReport(w host.Way, err error) Route {
	if err != nil {
		return Route{Error: terminal.Cause(err).Error()}
	}
	r := Route{Link: w.Link}
	if w.Source.IsValid() {
		r.Source = w.Source.String()
	}
	return r
}

// conclude decides for all addresses. It skips those to which this host has no route, as programs do.
func (r *Report) conclude() {
	reached := 0
	r.Pinned = true
	for _, a := range r.Addresses {
		if a.away {
			continue
		}
		reached++
		if !a.Pinned || !a.Connect.ok() {
			r.Pinned = false
		}
	}
	r.Pinned = r.Pinned && reached > 0
	switch {
	case len(r.Addresses) == 0:
		r.Addresses = []Address{}
		r.Chosen = "Not at all: the name has no address, so no program gets as far as connecting."
	default:
		r.Chosen = r.Addresses[0].Chosen
		for _, a := range r.Addresses {
			if !a.away {
				r.Chosen = a.Chosen
				break
			}
		}
	}
}
