package udp

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// ICMPError is what a router or a host has said about a datagram, by ICMP or ICMPv6
// (as the datagram's family is). It is the same type as netstack's.
type ICMPError = struct {
	From       netip.Addr // who said it; the zero value: the destination itself
	Type, Code uint8
	Info       uint32 // the next hop's MTU in bytes if the datagram was too big; where the problem is if there is one with a header
	About      []byte // the beginning of the payload it was said about; may be empty
}

// Datagram is what the application has sent. Its methods are called on several
// goroutines, and all but Payload and Release any number of times: one
// Datagram stands for its socket until the next one comes.
type Datagram interface {
	Src() netip.AddrPort // the application
	Dst() netip.AddrPort // whom it means
	TTL() uint8          // time to live or hop limit; 0: unknown
	DontFragment() bool  // nobody on the way may fragment it

	// Payload is valid until Release, which the relay calls once.
	Payload() []byte
	Release()

	// Reply sends a datagram from Dst to Src. It copies b, which is at most 65535
	// bytes long, and does not block for long.
	Reply(b []byte) error

	// Unreachable tells the application that the datagram can't be delivered.
	Unreachable(errno syscall.Errno)

	// ICMP passes on what was said about the datagram. About is not kept.
	ICMP(e ICMPError)
}

// Dialer opens a connected datagram socket of pinproxy's own, which is never
// captured, to where dst is to be reached: dst itself, or what stands for it.
// The caller closes it. On Linux it should be a *net.UDPConn: of anything else the
// relay sees no ICMP errors, path MTU or TTL.
type Dialer func(ctx context.Context, dst netip.AddrPort) (net.Conn, error)

// Limits bounds a Relay. The zero value of a field stands for its default.
type Limits struct {
	Flows      int           // sockets at a time (4096)
	PerSource  int           // of them for one address of applications (Flows)
	Unanswered time.Duration // how long a flow stays that was never answered (30s)
	Answered   time.Duration // how long one stays that both ends have spoken on (180s)
}

func (l Limits) withDefaults() Limits {
	if l.Flows <= 0 {
		l.Flows = 4096
	}
	if l.PerSource <= 0 || l.PerSource > l.Flows {
		l.PerSource = l.Flows
	}
	if l.Unanswered <= 0 {
		l.Unanswered = 30 * time.Second // nf_conntrack_udp_timeout
	}
	if l.Answered <= 0 {
		l.Answered = 180 * time.Second // RFC 4787, REQ-5: 2 min at least, 5 min recommended
	}
	return l
}

// Stats are counters since the start.
type Stats struct {
	Flows   int    // now
	Total   uint64 // that were begun
	Evicted uint64 // that had to make room
	Dropped uint64 // datagrams that found no room in a queue
}

// Relay carries datagrams. Its methods are safe for concurrent use.
type Relay struct {
	dial Dialer
	log  *throttle
	lim  Limits

	ctx    context.Context // of the dials; ends with Serve
	cancel context.CancelFunc
	wg     sync.WaitGroup // grows while a flow is in the table

	total, evicted, dropped atomic.Uint64
	queued                  atomic.Int64 // bytes that wait in all flows

	mu      sync.Mutex // taken after a flow's, if both
	closed  bool
	flows   map[key]*flow
	all     order
	sources map[netip.Addr]*order
}

type key struct{ src, dst netip.AddrPort }

// New returns a relay that sends over the sockets of dial. A nil log discards.
func New(dial Dialer, log *slog.Logger, lim Limits) *Relay {
	ctx, cancel := context.WithCancel(context.Background())
	return &Relay{
		dial: dial, log: newThrottle(log), lim: lim.withDefaults(),
		ctx: ctx, cancel: cancel,
		flows: make(map[key]*flow), sources: make(map[netip.Addr]*order),
	}
}

// Handle takes d over and returns without waiting for the network. Datagrams that
// come before Serve are carried; after it they are dropped.
func (r *Relay) Handle(d Datagram) {
	if dst := d.Dst().Addr(); !carried(dst) {
		if dst.IsLinkLocalUnicast() {
			d.Unreachable(syscall.ENETUNREACH)
		}
		d.Release()
		return
	}
	f, out := r.flow(d)
	if out != nil {
		out.close()
	}
	if f != nil {
		f.send(d)
	}
}

// carried says whether there is a single host that dst means.
func carried(dst netip.Addr) bool {
	switch {
	case dst.IsUnspecified(), dst.IsMulticast(), dst.IsLoopback(), dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return false
	case dst.Is6() && dst.IsLinkLocalUnicast():
		return false // on which link?
	}
	return true
}

// flow returns that of d, unless it begins one with d, and one that had to make room
// for it. After Serve it drops d.
func (r *Relay) flow(d Datagram) (f, out *flow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		d.Release()
		return nil, nil
	}
	k := key{d.Src(), d.Dst()}
	if f := r.flows[k]; f != nil {
		f.touchLocked()
		return f, nil
	}
	src := r.sources[k.src.Addr()]
	if src == nil {
		src = new(order)
		r.sources[k.src.Addr()] = src
	}
	switch {
	case src.len() >= r.lim.PerSource:
		out = src.oldest()
	case len(r.flows) >= r.lim.Flows:
		out = r.all.oldest()
	}
	if out != nil {
		r.removeLocked(out)
		r.evicted.Add(1)
		r.sources[k.src.Addr()] = src // it may have been its last one
	}
	f = newFlow(r, k, src, d)
	r.flows[k] = f
	r.total.Add(1)
	r.wg.Go(f.run)
	return nil, out
}

// removeLocked takes f out of the table; it reports whether f was there.
func (r *Relay) removeLocked(f *flow) bool {
	if r.flows[f.key] != f {
		return false
	}
	delete(r.flows, f.key)
	r.all.remove(&f.inAll)
	f.source.remove(&f.inSource)
	if f.source.len() == 0 {
		delete(r.sources, f.key.src.Addr())
	}
	return true
}

func (r *Relay) remove(f *flow) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.removeLocked(f)
}

// makeRoom ends the flow that is missed least.
func (r *Relay) makeRoom() {
	r.mu.Lock()
	out := r.all.oldest()
	if out != nil {
		r.removeLocked(out)
		r.evicted.Add(1)
	}
	r.mu.Unlock()
	if out != nil {
		out.close()
	}
}

// Stats returns the counters.
func (r *Relay) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Stats{Flows: len(r.flows), Total: r.total.Load(), Evicted: r.evicted.Load(), Dropped: r.dropped.Load()}
}

// Serve returns nil when ctx has ended, every socket is closed and every
// goroutine of the relay is gone. It is called once.
func (r *Relay) Serve(ctx context.Context) error {
	<-ctx.Done()
	r.cancel()
	r.mu.Lock()
	r.closed = true
	flows := make([]*flow, 0, len(r.flows))
	for _, f := range r.flows {
		flows = append(flows, f)
	}
	r.mu.Unlock()
	for _, f := range flows {
		r.remove(f)
		f.close()
	}
	r.wg.Wait()
	return nil
}
