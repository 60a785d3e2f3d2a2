package udp

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// ICMPError is what a router or host reported about a datagram by ICMP or ICMPv6, according to the datagram's
// family. It is the same type as netstack's.
type ICMPError = struct {
	From       netip.Addr // the sender of the report; the zero value: the destination itself
	Type, Code uint8
	Info       uint32 // datagram too big: the next hop's MTU in bytes; problem with a header: where the problem is
	About      []byte // the beginning of the payload concerned; may be empty
}

// Datagram is a datagram sent by the application. Its methods are called on several goroutines. All but Payload and
// Release may be called any number of times: one Datagram represents its socket until the next one comes.
type Datagram interface {
	Src() netip.AddrPort // the application
	Dst() netip.AddrPort // its destination as the application sees it
	TTL() uint8          // time to live or hop limit; 0: unknown
	DontFragment() bool  // must not be fragmented on the way

	// Payload is valid until Release, which the relay calls once.
	Payload() []byte
	Release()

	// Reply sends a datagram from Dst to Src. It copies b, which is at most 65535 bytes long, and does not block for
	// long.
	Reply(b []byte) error

	// Unreachable tells the application that the datagram can't be delivered.
	Unreachable(errno syscall.Errno)

	// ICMP passes on what was reported about the datagram. It does not keep About.
	ICMP(e ICMPError)
}

// Dialer opens a connected datagram socket of pinproxy's own, which is never captured. It connects to the address at
// which dst is reached: dst itself, or whatever stands for it. The caller closes the socket. On Linux it should be a
// *net.UDPConn: with anything else the relay sees no ICMP errors, path MTU or TTL.
type Dialer func(ctx context.Context, dst netip.AddrPort) (net.Conn, error)

// maxFlows is how many flows, each with a socket, there are at a time.
const maxFlows = 4096

// Timeouts are how long an unused flow stays. 0 stands for the default.
type Timeouts struct {
	Unanswered time.Duration // if it was never answered: 30 s, as nf_conntrack_udp_timeout
	Answered   time.Duration // if both ends have sent: 180 s; RFC 4787, REQ-5, asks for 2 min and recommends 5
}

// Stats are counters since the start.
type Stats struct {
	Flows   int    // current
	Total   uint64 // flows begun
	Evicted uint64 // flows evicted to make room
	Dropped uint64 // datagrams for which a queue had no room
}

// Relay carries datagrams. Its methods are safe for concurrent use.
type Relay struct {
	dial     Dialer
	log      *throttle
	timeouts Timeouts
	most     int // maxFlows

	ctx    context.Context // of the dials; ends with Serve
	cancel context.CancelFunc
	wg     sync.WaitGroup // grows while a flow runs

	total, evicted, dropped atomic.Uint64
	queued                  atomic.Int64 // bytes queued in all flows

	mu     sync.Mutex // if both are taken, a flow's mu comes first
	closed bool
	flows  map[key]*flow
	order  order
}

type key struct{ src, dst netip.AddrPort }

// New returns a relay that sends over sockets opened by dial. A nil log discards.
func New(dial Dialer, log *slog.Logger, t Timeouts) *Relay {
	ctx, cancel := context.WithCancel(context.Background())
	return &Relay{
		dial: dial, log: newThrottle(log), most: maxFlows,
		timeouts: Timeouts{cmp.Or(t.Unanswered, 30*time.Second), cmp.Or(t.Answered, 180*time.Second)},
		ctx:      ctx, cancel: cancel, flows: make(map[key]*flow),
	}
}

// Handle takes over d and returns without waiting for the network. Datagrams that arrive before Serve are carried;
// those that arrive after it are dropped.
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

// carried reports whether dst identifies a single host.
func carried(dst netip.Addr) bool {
	switch {
	case dst.IsUnspecified(), dst.IsMulticast(), dst.IsLoopback(), dst == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return false
	case dst.Is6() && dst.IsLinkLocalUnicast():
		return false // on which link?
	}
	return true
}

// flow returns the flow of d. If there is none, it begins one with d and returns nil and the flow that had to make
// room, if any. After Serve it drops d.
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
	if len(r.flows) >= r.most {
		out = r.evictLocked()
	}
	f = newFlow(r, k, d)
	r.flows[k] = f
	r.total.Add(1)
	r.wg.Go(f.run)
	return nil, out
}

// removeLocked removes f from the table, if it is there.
func (r *Relay) removeLocked(f *flow) {
	if r.flows[f.key] == f {
		delete(r.flows, f.key)
		r.order.remove(f)
	}
}

func (r *Relay) remove(f *flow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removeLocked(f)
}

// evictLocked removes the flow that comes first in the eviction order, and returns it; nil if there is none.
func (r *Relay) evictLocked() *flow {
	out := r.order.oldest()
	if out != nil {
		r.removeLocked(out)
		r.evicted.Add(1)
	}
	return out
}

// makeRoom ends a flow.
func (r *Relay) makeRoom() {
	r.mu.Lock()
	out := r.evictLocked()
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

// Serve returns nil when ctx has ended, every socket is closed and every goroutine of the relay has ended. It is
// called once.
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
