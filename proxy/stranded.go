package proxy

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"pinproxy/proxy/lease"
)

// A flow whose source address has left the host receives nothing any more, and its kernel does not report that. Like
// any program's connection it waits for its peer, since an address may come back with the link or the DHCP lease. But
// all that time it holds its source port towards the destination. So it is reset if the address stays away while
// another flow waits for that very port.
const (
	strandedLook  = time.Second
	strandedAfter = 10 * time.Second
)

// addressed is a Dialer that knows which addresses the host has.
type addressed interface {
	// Owns reports whether a socket could be bound to addr; true if that can't be told.
	Owns(addr netip.Addr) bool
}

// Owns asks the kernel, by binding a socket that sends nothing.
func (s Sockets) Owns(addr netip.Addr) bool {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	if err == nil {
		_ = c.Close()
	}
	return !errors.Is(err, syscall.EADDRNOTAVAIL)
}

// When an application has closed its connection but the upstream has not, the application's kernel silently forgets
// the connection a minute later (tcp_fin_timeout). Our end would wait for the upstream, forever if the upstream is at
// fault. So while another flow waits for its port, the application's end is probed too.
type prober interface {
	breakable
	Probe() // makes it find out, in a while, whether it is broken
}

// deserted reports whether the application has closed and its kernel no longer knows the connection, as far as we
// have found out.
func (l *live) deserted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	app, ok := l.app.(prober)
	if !ok || l.up.state != over {
		return false
	}
	app.Probe()
	return app.Broken()
}

// rescue looks at the flows in the way of a waiting flow, from time to time until it is stopped.
type rescue struct {
	owns    func(netip.Addr) bool
	holders []lease.Held

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
}

// rescue starts a rescue. The caller stops it.
func (l *live) rescue(holders []lease.Held) *rescue {
	r := &rescue{holders: holders}
	d, ok := l.proxy.cfg.Dialer.(addressed)
	if !ok {
		return r
	}
	r.owns = d.Owns
	r.mu.Lock()
	defer r.mu.Unlock()
	r.timer = time.AfterFunc(strandedLook, r.look)
	return r
}

func (r *rescue) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
	if r.timer != nil {
		r.timer.Stop()
	}
}

func (r *rescue) look() {
	for _, h := range r.holders {
		switch l, ok := h.Holder.(*live); {
		case !ok:
		case l.stranded(r.owns, time.Now()):
			l.abort("its source address left the host, and a flow waited for its port")
		case l.deserted():
			l.abort("its application is gone, and a flow waited for its port")
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.stopped {
		r.timer.Reset(strandedLook)
	}
}

// stranded reports whether the flow's source address has been seen to be gone for strandedAfter. A flow that waits
// for its port may give up before that and come again, so the flow itself remembers.
func (l *live) stranded(owns func(netip.Addr) bool, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.app == nil:
		return false
	case owns(l.local.Addr()):
		l.gone = time.Time{}
		return false
	case l.gone.IsZero():
		l.gone = now
	}
	return now.Sub(l.gone) >= strandedAfter
}
