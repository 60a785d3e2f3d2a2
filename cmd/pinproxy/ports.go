package main

import (
	"cmp"
	"net/netip"
	"os"
	"slices"
	"time"

	"pinproxy/netstack/host"
	"pinproxy/proxy/sockdiag"
	"pinproxy/rules"
)

const (
	// maxPinListed is how many ports a pin may have for its free ones to be listed as well.
	maxPinListed = 32
	// maxPortsListed and maxHolders limit the list.
	maxPortsListed = 4096
	maxHolders     = 16
)

// What holds a port. The words are those of JSON.
const (
	portFree     = "free"
	portFlow     = "flow"
	portTimeWait = "time_wait" // a connection that is over, in any of the states for that
	portResting  = "resting"   // nobody, but it is not given out again yet (cooldown)
	portForeign  = "foreign"   // a program other than pinproxy
)

// portJSON is a source port of a pin, and what holds it. A port serves many destinations, so it may have many
// holders.
type portJSON struct {
	Rule    string       `json:"rule"`
	Port    uint16       `json:"port"`
	State   string       `json:"state"`   // of the holder that matters most: foreign, flow, resting, time_wait, free
	Waiting int          `json:"waiting"` // flows, if the pin has no other port
	Holders []holderJSON `json:"holders"`
	More    int          `json:"more"` // holders that are not listed
}

type holderJSON struct {
	State   string  `json:"state"`
	Local   string  `json:"local,omitempty"`
	Remote  string  `json:"remote,omitempty"`
	Flow    uint64  `json:"flow,omitempty"`
	Left    float64 `json:"left,omitempty"` // remaining seconds of a TIME_WAIT or a rest
	PID     int     `json:"pid,omitempty"`
	Process string  `json:"process,omitempty"`
	UID     *uint32 `json:"uid,omitempty"`  // of a program that may not be named
	Text    string  `json:"text,omitempty"` // what a program does there
}

// ports fills in which ports the pins have, and what holds them.
func (c *control) ports(s *statusJSON) {
	var all []rules.PortRange
	for _, r := range s.list {
		all = append(all, r.Pin().Ports().Ranges()...)
	}
	union := rules.NewPortSet(all...)
	inForce := make(map[string]bool, len(s.list))
	for _, r := range s.list {
		inForce[r.String()] = true
	}
	onPort := make(map[uint16][]holderJSON)
	flows := make(map[[2]netip.AddrPort]bool, len(s.Flows))
	ruleOf := make(map[uint64]string)
	for _, f := range s.Flows {
		c.yield()
		local, err := netip.ParseAddrPort(f.Local)
		if err != nil || f.Rule == "" {
			continue
		}
		flows[[2]netip.AddrPort{local, f.Upstream}] = true
		ruleOf[f.ID] = f.Rule
		onPort[local.Port()] = append(onPort[local.Port()], holderJSON{State: portFlow, Local: f.Local, Remote: f.Upstream.String(), Flow: f.ID})
	}
	for _, h := range c.sockets(union, flows) {
		onPort[h.port] = append(onPort[h.port], h.holderJSON)
	}
	for _, h := range c.rests(s) {
		onPort[h.port] = append(onPort[h.port], h.holderJSON)
	}
	for i, r := range s.list {
		state := &s.Rules[i]
		state.Free = state.Ports
		for _, port := range portsOf(r.Pin().Ports(), onPort) {
			c.yield()
			p := portJSON{Rule: r.String(), Port: port, State: portFree, Holders: []holderJSON{}}
			for _, h := range onPort[port] {
				// A flow whose rule has been changed, or is gone, keeps its port, which is not free for that.
				if rule := ruleOf[h.Flow]; h.Flow == 0 || rule == p.Rule || !inForce[rule] {
					p.Holders = append(p.Holders, h)
				}
			}
			p.settle()
			if state.Ports == 1 {
				p.Waiting = state.Waiting
			}
			if p.State == portForeign || p.State == portFlow {
				state.Free--
			}
			if len(s.Ports) < maxPortsListed {
				s.Ports = append(s.Ports, p)
			}
		}
	}
}

// portsOf lists a pin's ports that are worth a line: all of them or, if there are many, those with a holder.
func portsOf(pin rules.PortSet, on map[uint16][]holderJSON) (list []uint16) {
	if pin.Len() > maxPinListed {
		for port := range on {
			if pin.Contains(port) {
				list = append(list, port)
			}
		}
		slices.Sort(list)
		return list
	}
	for _, r := range pin.Ranges() {
		for port := int(r.First); port <= int(r.Last); port++ {
			list = append(list, uint16(port))
		}
	}
	return list
}

// settle puts the holder that matters most first, and sets the port's state to that holder's.
func (p *portJSON) settle() {
	rank := func(h holderJSON) int {
		return slices.Index([]string{portForeign, portFlow, portResting, portTimeWait}, h.State)
	}
	slices.SortStableFunc(p.Holders, func(a, b holderJSON) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Flow, b.Flow), cmp.Compare(b.Left, a.Left))
	})
	if len(p.Holders) > 0 {
		p.State = p.Holders[0].State
	}
	if p.More = max(len(p.Holders)-maxHolders, 0); p.More > 0 {
		p.Holders = p.Holders[:maxHolders]
	}
}

// rests lists the ports that a cooldown keeps from one destination. A rest of less than a second may be a pause before
// a port is tried again.
func (c *control) rests(s *statusJSON) (found []portHolder) {
	if !slices.ContainsFunc(s.list, func(r *rules.Rule) bool { return r.Cooldown() > 0 }) {
		return nil
	}
	for _, r := range c.pins.Rests() {
		if left := r.Until.Sub(s.Now); left >= time.Second {
			found = append(found, portHolder{r.Local.Port(), holderJSON{
				State: portResting, Local: r.Local.String(), Remote: r.Remote.String(), Left: left.Round(100 * time.Millisecond).Seconds(),
			}})
		}
	}
	return found
}

// portHolder is a holder of a port.
type portHolder struct {
	port uint16
	holderJSON
}

// sockets asks the kernel what else than flows is on the ports. If the kernel can't tell, everything else is still
// reported.
func (c *control) sockets(ports rules.PortSet, flows map[[2]netip.AddrPort]bool) (found []portHolder) {
	list, err := sockdiag.OnPorts(func(port uint16) bool {
		c.yield()
		return ports.Contains(port)
	})
	if err != nil {
		return nil
	}
	var owned []sockdiag.Socket
	for _, s := range list {
		switch a := s.Local.Addr(); {
		case a.IsLoopback(), a == host.Addr4, a == host.Addr6:
			// A dial leaves from another address. The last two are applications' ends of flows.
		case flows[[2]netip.AddrPort{s.Local, s.Remote}], s.Mark != 0 && s.Mark == c.dialer.Mark && !s.Orphan():
			// Those that no flow has are being dialed, or have just ended.
		case s.State.Over() && s.Orphan():
			found = append(found, portHolder{s.Local.Port(), holderJSON{
				State: portTimeWait, Local: s.Local.String(), Remote: s.Remote.String(), Left: s.Left.Round(100 * time.Millisecond).Seconds(),
			}})
		case !s.Orphan():
			owned = append(owned, s)
		}
	}
	owners := c.dialer.Owners(owned)
	for i, s := range owned {
		p := owners[i]
		if p.PID == os.Getpid() {
			continue // being dialed, or just ended
		}
		h := holderJSON{State: portForeign, Local: s.Local.String(), PID: p.PID, Process: p.Name, Text: s.String()}
		if s.Remote.Port() != 0 {
			h.Remote = s.Remote.String()
		}
		if p.PID == 0 {
			uid := s.UID
			h.UID = &uid
		}
		found = append(found, portHolder{s.Local.Port(), h})
	}
	return found
}
