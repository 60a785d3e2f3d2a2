package monitor

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
	// MaxPinListed is how many ports a pin may have for its free ones to be listed as well.
	MaxPinListed = 32
	// maxPortsListed and maxHolders limit the list.
	maxPortsListed = 4096
	maxHolders     = 16
)

// What holds a port. The words are those of JSON.
const (
	PortFree     = "free"
	PortFlow     = "flow"
	PortTimeWait = "time_wait" // a connection that is over, in any of the states for that
	PortResting  = "resting"   // nobody, but it is not given out again yet (cooldown)
	PortForeign  = "foreign"   // a program other than pinproxy
)

// Port is a source port of a pin, and what holds it. A port serves many destinations, so it may have many
// holders.
type Port struct {
	Rule    string   `json:"rule"`
	Port    uint16   `json:"port"`
	State   string   `json:"state"`   // of the holder that matters most: foreign, flow, resting, time_wait, free
	Waiting int      `json:"waiting"` // flows, if the pin has no other port
	Holders []Holder `json:"holders"`
	More    int      `json:"more"` // holders that are not listed
}

// Holder is something that has a port.
type Holder struct {
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
func (m *Monitor) ports(s *Status) {
	var all []rules.PortRange
	for _, r := range s.list {
		all = append(all, r.Pin().Ports().Ranges()...)
	}
	union := rules.NewPortSet(all...)
	inForce := make(map[string]bool, len(s.list))
	for _, r := range s.list {
		inForce[r.String()] = true
	}
	onPort := make(map[uint16][]Holder)
	flows := make(map[[2]netip.AddrPort]bool, len(s.Flows))
	ruleOf := make(map[uint64]string)
	for _, f := range s.Flows {
		m.Yield()
		local, err := netip.ParseAddrPort(f.Local)
		if err != nil || f.Rule == "" {
			continue
		}
		flows[[2]netip.AddrPort{local, f.Upstream}] = true
		ruleOf[f.ID] = f.Rule
		onPort[local.Port()] = append(onPort[local.Port()], Holder{State: PortFlow, Local: f.Local, Remote: f.Upstream.String(), Flow: f.ID})
	}
	for _, h := range m.sockets(union, flows) {
		onPort[h.port] = append(onPort[h.port], h.Holder)
	}
	for _, h := range m.rests(s) {
		onPort[h.port] = append(onPort[h.port], h.Holder)
	}
	for i, r := range s.list {
		state := &s.Rules[i]
		state.Free = state.Ports
		for _, port := range portsOf(r.Pin().Ports(), onPort) {
			m.Yield()
			p := Port{Rule: r.String(), Port: port, State: PortFree, Holders: []Holder{}}
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
			if p.State == PortForeign || p.State == PortFlow {
				state.Free--
			}
			if len(s.Ports) < maxPortsListed {
				s.Ports = append(s.Ports, p)
			}
		}
	}
}

// portsOf lists a pin's ports that are worth a line: all of them or, if there are many, those with a holder.
func portsOf(pin rules.PortSet, on map[uint16][]Holder) (list []uint16) {
	if pin.Len() > MaxPinListed {
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
func (p *Port) settle() {
	rank := func(h Holder) int {
		return slices.Index([]string{PortForeign, PortFlow, PortResting, PortTimeWait}, h.State)
	}
	slices.SortStableFunc(p.Holders, func(a, b Holder) int {
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
func (m *Monitor) rests(s *Status) (found []portHolder) {
	if !slices.ContainsFunc(s.list, func(r *rules.Rule) bool { return r.Cooldown() > 0 }) {
		return nil
	}
	for _, r := range m.Pins.Rests() {
		if left := r.Until.Sub(s.Now); left >= time.Second {
			found = append(found, portHolder{r.Local.Port(), Holder{
				State: PortResting, Local: r.Local.String(), Remote: r.Remote.String(), Left: left.Round(100 * time.Millisecond).Seconds(),
			}})
		}
	}
	return found
}

// portHolder is a holder of a port.
type portHolder struct {
	port uint16
	Holder
}

// sockets asks the kernel what else than flows is on the ports. If the kernel can't tell, everything else is still
// reported.
func (m *Monitor) sockets(ports rules.PortSet, flows map[[2]netip.AddrPort]bool) (found []portHolder) {
	list, err := sockdiag.OnPorts(func(port uint16) bool {
		m.Yield()
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
		case flows[[2]netip.AddrPort{s.Local, s.Remote}], s.Mark != 0 && s.Mark == m.Dialer.Mark && !s.Orphan():
			// Those that no flow has are being dialed, or have just ended.
		case s.State.Over() && s.Orphan():
			found = append(found, portHolder{s.Local.Port(), Holder{
				State: PortTimeWait, Local: s.Local.String(), Remote: s.Remote.String(), Left: s.Left.Round(100 * time.Millisecond).Seconds(),
			}})
		case !s.Orphan():
			owned = append(owned, s)
		}
	}
	owners := m.Dialer.Owners(owned)
	for i, s := range owned {
		p := owners[i]
		if p.PID == os.Getpid() {
			continue // being dialed, or just ended
		}
		h := Holder{State: PortForeign, Local: s.Local.String(), PID: p.PID, Process: p.Name, Text: s.String()}
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
