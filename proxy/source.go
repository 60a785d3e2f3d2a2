package proxy

import (
	"net/netip"
	"slices"

	"pinproxy/proxy/lease"
	"pinproxy/proxy/sockdiag"
	"pinproxy/rules"
)

// A pin without a source address leaves the choice to the kernel, and the lease table takes it for one address. But the
// choice changes: a VPN comes up, the default route moves to another uplink, DHCP gives another address. Flows from
// before keep their address and their port, often without hope. The next one has another 4-tuple and need not wait
// for them.

// sourced is a Dialer that knows from which address a connection would leave.
type sourced interface {
	Source(port uint16, dst netip.AddrPort) (netip.Addr, error)
}

// Source asks the kernel.
func (s Sockets) Source(port uint16, dst netip.AddrPort) (netip.Addr, error) {
	return sockdiag.Source(port, dst, s.Mark)
}

// pinNow returns the pin to lease towards dst: with the source address that the kernel would choose now, if all ports
// are busy and one of them is so from another address. As long as a port is free the kernel is not asked.
func (p *Proxy) pinNow(pin rules.Pin, dst netip.AddrPort) rules.Pin {
	d, ok := p.cfg.Dialer.(sourced)
	if !ok || pin.Addr().IsValid() {
		return pin
	}
	busy := p.leases.Busy(dst, pin)
	if busy == nil {
		return pin
	}
	var chosen netip.Addr
	for _, h := range busy.Held {
		l, ok := h.Holder.(*live)
		if !ok {
			continue
		}
		local := l.leavesFrom()
		if !local.IsValid() || local == chosen {
			continue
		}
		from, err := d.Source(h.Local.Port(), dst)
		if err != nil {
			return pin
		}
		if chosen = from; chosen != local {
			return pin.From(chosen)
		}
	}
	return pin
}

// pinBehind returns the pin to lease towards dst after the kernel has refused the port: with the source address that it
// chooses now, if a flow has leased the port with that one. Only there is the wait for it in order, and is it asked to
// make room.
func (p *Proxy) pinBehind(pin rules.Pin, dst netip.AddrPort, port uint16) rules.Pin {
	d, ok := p.cfg.Dialer.(sourced)
	if !ok || pin.Addr().IsValid() {
		return pin
	}
	from, err := d.Source(port, dst)
	if err != nil {
		return pin
	}
	now := pin.From(from)
	if slices.ContainsFunc(p.leases.Held(dst, now), func(h lease.Held) bool { return h.Local.Port() == port }) {
		return now
	}
	return pin
}

// leavesFrom returns the source address of the upstream socket; the invalid one while there is none.
func (l *live) leavesFrom() netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.local.Addr()
}
