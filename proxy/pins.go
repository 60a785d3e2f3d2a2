package proxy

import (
	"net/netip"
	"time"

	"pinproxy/proxy/lease"
	"pinproxy/rules"
)

// PinInfo is a snapshot of a pin's ports towards a destination.
type PinInfo struct {
	Held    []PinHeld    // ports that flows have, by port; the first few of them
	Resting []PinResting // ports that are not given out before a certain time; the first few of them
	Next    []uint16     // free ports, in the order in which flows get them; the first few of them
	Used    []uint16     // those of Next that a flow has had within the last minutes
	Waiting int          // how many flows wait for one
}

// PinHeld is a port that a flow holds.
type PinHeld struct {
	Port  uint16
	Flow  uint64 // FlowInfo.ID
	Since time.Time
}

// PinResting is a port that was given back and rests.
type PinResting struct {
	Port  uint16
	Until time.Time
}

// Pin returns which ports of pin are held by flows to dst, and which one the next flow would get. Flows that have all
// ports are not in its way if the kernel would give it another source address. It knows only flows: ask the kernel what
// else holds a port.
func (p *Proxy) Pin(pin rules.Pin, dst netip.AddrPort) PinInfo {
	v := p.leases.Look(dst, p.pinNow(pin, dst))
	info := PinInfo{Next: v.Next, Used: v.Used, Waiting: v.Waiting}
	for _, h := range v.Held {
		info.Held = append(info.Held, PinHeld{Port: h.Local.Port(), Flow: flowOf(h.Holder), Since: h.Since})
	}
	for _, r := range v.Rests {
		info.Resting = append(info.Resting, PinResting{Port: r.Local.Port(), Until: r.Until})
	}
	return info
}

// Rests lists the ports that rest, each towards one destination. With many destinations it takes milliseconds, and
// others may run in between (Config.GiveWay).
func (p *Proxy) Rests() []lease.Resting { return p.leases.Rests(p.cfg.GiveWay) }

func flowOf(h lease.Holder) uint64 {
	if l, ok := h.(*live); ok {
		return l.id
	}
	return 0
}
