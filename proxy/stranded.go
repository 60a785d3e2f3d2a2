package proxy

import (
	"net/netip"
	"sync"
	"time"

	"pinproxy/proxy/sockdiag"
	"pinproxy/rules"
)

// A flow whose source address has left the host receives nothing any more, and its kernel does not report that. Like
// any program's connection it waits for its peer, since an address may come back with the link or the DHCP lease. But
// all that time it holds its source port towards the destination. So it is reset if the address stays away while
// another flow wants a port of the pin.
const (
	strandedLook  = time.Second
	strandedAfter = 10 * time.Second
	// wantedFor is how long a port is wanted after a flow has failed for the lack of one: long enough to find one.
	wantedFor = strandedAfter + 2*strandedLook
)

// addressed is a Dialer that knows which addresses the host has.
type addressed interface {
	// Owns reports whether the host has the address; true if that can't be told.
	Owns(addr netip.Addr) bool
}

// Owns asks the kernel.
func (s Sockets) Owns(addr netip.Addr) bool {
	owned, err := sockdiag.Owns(addr, s.Mark)
	return owned || err != nil
}

// When an application has closed its connection but the upstream has not, the application's kernel silently forgets
// the connection a minute later (tcp_fin_timeout). Our end would wait for the upstream, forever if the upstream is at
// fault. So while another flow wants its port, the application's end is probed too. The same holds if the upstream
// takes nothing: then what the application has sent keeps us from reading its end.
type prober interface {
	breakable
	Probe() // makes it find out, in a while, whether it is broken
}

// deserted reports whether the application has gone and its kernel no longer knows the connection, as far as we have
// found out.
func (l *live) deserted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	app, ok := l.app.(prober)
	if !ok || l.up.state != over && l.writing.Load() == 0 {
		return false
	}
	app.Probe()
	return app.Broken()
}

// rescues are under way for pins of which flows want a port, and all are busy. The zero value is ready for use.
type rescues struct {
	mu  sync.Mutex
	all map[rescueKey]*rescue
}

type rescueKey struct {
	rule *rules.Rule
	from netip.Addr // of the pin, see pinNow
	dst  netip.AddrPort
}

// rescue looks, from time to time, at the flows that have the pin's ports. One does it for all flows that want one.
type rescue struct {
	proxy *Proxy
	key   rescueKey

	// Guarded by Proxy.rescues.mu.
	waiters int
	until   time.Time // wantedFor after a flow has failed
	timer   *time.Timer
}

// rescue begins a rescue that lasts until stop is called, or takes part in one.
func (p *Proxy) rescue(key rescueKey) *rescue {
	p.rescues.mu.Lock()
	defer p.rescues.mu.Unlock()
	r := p.rescueLocked(key)
	r.waiters++
	return r
}

// rescueLater is rescue for a flow that has failed. Its program may try again.
func (p *Proxy) rescueLater(key rescueKey) {
	p.rescues.mu.Lock()
	defer p.rescues.mu.Unlock()
	p.rescueLocked(key).until = time.Now().Add(wantedFor)
}

func (p *Proxy) rescueLocked(key rescueKey) *rescue {
	r := p.rescues.all[key]
	if r == nil {
		r = &rescue{proxy: p, key: key}
		if p.rescues.all == nil {
			p.rescues.all = make(map[rescueKey]*rescue)
		}
		p.rescues.all[key] = r
		r.timer = time.AfterFunc(strandedLook, r.look)
	}
	return r
}

func (r *rescue) stop() {
	r.proxy.rescues.mu.Lock()
	defer r.proxy.rescues.mu.Unlock()
	r.waiters--
	r.endLocked()
}

// endLocked ends the rescue if nobody wants a port any more, which it reports.
func (r *rescue) endLocked() bool {
	if r.waiters > 0 || time.Now().Before(r.until) {
		return false
	}
	r.timer.Stop()
	if r.proxy.rescues.all[r.key] == r {
		delete(r.proxy.rescues.all, r.key)
	}
	return true
}

// look ends as many of the flows that may be ended as there are flows that wait, or one.
func (r *rescue) look() {
	p := r.proxy
	p.rescues.mu.Lock()
	left := max(r.waiters, 1)
	p.rescues.mu.Unlock()
	ended := false
	owns, pin := p.owns(), r.key.rule.Pin()
	if r.key.from.IsValid() {
		pin = pin.From(r.key.from)
	}
	for _, h := range p.leases.Held(r.key.dst, pin) {
		p.cfg.GiveWay()
		l, ok := h.Holder.(*live)
		if !ok {
			continue
		}
		reason := ""
		switch { // each is asked, so that it knows for how long
		case l.stranded(owns, time.Now()):
			reason = "its source address left the host, and a flow waited for its port"
		case l.deserted():
			reason = "its application is gone, and a flow waited for its port"
		}
		if reason != "" && left > 0 {
			left--
			ended = true
			go l.abort(reason) // may wait for bytes under way
		}
	}
	p.rescues.mu.Lock()
	defer p.rescues.mu.Unlock()
	if ended {
		r.until = time.Time{} // there is a port for whoever comes next
	}
	if !r.endLocked() {
		r.timer.Reset(strandedLook)
	}
}

// owns returns Owns of the dialer, which is asked about each address once.
func (p *Proxy) owns() func(netip.Addr) bool {
	d, ok := p.cfg.Dialer.(addressed)
	if !ok {
		return func(netip.Addr) bool { return true }
	}
	known := make(map[netip.Addr]bool)
	return func(addr netip.Addr) bool {
		owned, ok := known[addr]
		if !ok {
			owned = d.Owns(addr)
			known[addr] = owned
		}
		return owned
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
