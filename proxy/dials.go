package proxy

import (
	"net/netip"
	"sync"
)

// dials are the pinned dials under way. A flow that comes from the port of such a dial, to the same destination, may
// be that very dial. It was captured because somebody has deleted the policy rule that lets our mark pass. Without this
// check it would be dialed again, captured again, and take every port of the pin until the rule is back. The zero
// value is ready for use.
type dials struct {
	mu  sync.Mutex
	now map[dialKey]int
}

type dialKey struct {
	port uint16
	dst  netip.AddrPort
}

// add records a dial from port until it is removed. Port 0 means any port, which can't be recognized here: see loops.
func (d *dials) add(port uint16, dst netip.AddrPort) {
	if port == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now == nil {
		d.now = make(map[dialKey]int)
	}
	d.now[dialKey{port, dst}]++
}

// remove undoes add.
func (d *dials) remove(port uint16, dst netip.AddrPort) {
	if port == 0 {
		return
	}
	key := dialKey{port, dst}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now[key]--; d.now[key] == 0 {
		delete(d.now, key)
	}
}

// has reports whether a dial is under way. The dial's source address is not known before it ends: if it is captured, that
// is the device's address, which applications have too.
func (d *dials) has(port uint16, dst netip.AddrPort) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.now[dialKey{port, dst}] > 0
}

// marking is a Dialer that recognizes its sockets by their mark.
type marking interface {
	// Marked reports whether it made the socket that connects from local to remote, and whether that is known.
	Marked(local, remote netip.AddrPort) (ours, known bool)
}

// captured reports whether the flow is a pinned dial of our own. An application's port may by chance be that of such a
// dial, so the kernel is asked then.
func (l *live) captured() bool {
	if l.proxy.cfg.Apart || l.behind || !l.proxy.dials.has(l.flow.Src().Port(), l.flow.Dst()) {
		return false
	}
	ours, known := l.marked()
	return ours || !known
}

// loops reports whether the flow is a dial of our own from a port that the kernel chose. It asks the kernel, so it is
// called only before such a dial.
func (l *live) loops() bool {
	if l.proxy.cfg.Apart || l.behind {
		return false
	}
	ours, _ := l.marked()
	return ours
}

func (l *live) marked() (ours, known bool) {
	if d, ok := l.proxy.cfg.Dialer.(marking); ok {
		return d.Marked(l.flow.Src(), l.flow.Dst())
	}
	return false, false
}
