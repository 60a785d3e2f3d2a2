package netstack

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// handshakeTimeout bounds the time between our SYN-ACK and the application's
// ACK. A local kernel answers within microseconds, a host behind this one within
// a round trip; silence means it is gone.
const handshakeTimeout = 10 * time.Second

// ErrGone says that the application has given the connection up, or the flow
// has been answered already.
var ErrGone = errors.New("the application has given up")

type phase uint8

const (
	parked    phase = iota // SYN held, nothing said
	answering              // SYN-ACK on its way
	open                   // gVisor has an endpoint
	answered               // rejected, dropped or given up
)

// Flow is one SYN of an application, to be answered once: by Accept, Reject or
// Drop. The first answer counts, later ones do nothing. Its methods may be
// called from any goroutine.
type Flow struct {
	number   uint64
	stack    *Stack
	id       stack.TransportEndpointID
	src, dst netip.AddrPort
	isn      uint32
	line     lineKey
	giveUp   func() // ends the handler's context; nil: it has not begun
	detached bool   // it goes on when its handler has returned

	remote bool // the application is on another host

	request chan *tcp.ForwarderRequest // nil: it does not come
	synAck  chan *stack.PacketBuffer   // our first, from gVisor to who writes it

	synMu sync.Mutex
	syn   *stack.PacketBuffer // nil once released

	// forwarded is closed when gVisor's forwarder is done with the SYN. It
	// ignores another on the same 4-tuple until then, so a flow that comes after
	// one whose handshake is not over waits for it.
	forwarded chan struct{}   // nil once open
	after     <-chan struct{} // forwarded of the predecessor, or nil

	reply reply

	// Guarded by stack.mu.
	phase   phase
	ended   bool          // the application's FIN or RST has been seen
	retired bool          // the application has begun another connection on this 4-tuple
	sent    bool          // the SYN-ACK has been taken from gVisor
	lastSYN time.Time     // while parked
	pause   time.Duration // between the last two SYNs; 0 after one
	asked   time.Time     // when the forwarder was given the SYN
	queue   *waiter.Queue // by which the handshake is ended; nil once it is over
}

func newFlow(s *Stack, id stack.TransportEndpointID, isn uint32, syn *stack.PacketBuffer) *Flow {
	return &Flow{
		stack:   s,
		id:      id,
		src:     netip.AddrPortFrom(addr(id.RemoteAddress), id.RemotePort),
		dst:     netip.AddrPortFrom(addr(id.LocalAddress), id.LocalPort),
		isn:     isn,
		syn:     syn.IncRef(),
		request: make(chan *tcp.ForwarderRequest, 1),
		synAck:  make(chan *stack.PacketBuffer, 1),

		forwarded: make(chan struct{}),
		lastSYN:   time.Now(),
	}
}

func addr(a tcpip.Address) netip.Addr {
	ip, _ := netip.AddrFromSlice(a.AsSlice())
	return ip
}

// Number counts the flows of a stack in the order their SYNs came, from 1.
func (f *Flow) Number() uint64 { return f.number }

// Src is the application's address and port.
func (f *Flow) Src() netip.AddrPort { return f.src }

// Dst is the address and port the application connects to.
func (f *Flow) Dst() netip.AddrPort { return f.dst }

// answer moves the flow out of the parked phase; false: somebody else did.
func (f *Flow) answer(to phase) bool {
	f.stack.mu.Lock()
	defer f.stack.mu.Unlock()
	if f.phase != parked {
		return false
	}
	f.phase = to
	delete(f.stack.parked, f)
	return true
}

// An application that still waits sends its SYN again: 1 s after the first (RFC
// 6298), or 3 s on older systems (RFC 1122), then after pauses that are the same or
// twice as long.
const (
	firstPause = 3500 * time.Millisecond
	pauseSlack = 2 * time.Second
)

// silentLocked says whether a parked flow's application has given up: closing a
// socket in SYN_SENT sends nothing, but its SYNs stop coming.
func (f *Flow) silentLocked(now time.Time) bool {
	return now.Sub(f.lastSYN) > max(firstPause, 2*f.pause+pauseSlack)
}

// abandonLocked takes a parked flow, whose application has given up, out of the
// table. Call abandoned once s.mu is not held any more.
func (s *Stack) abandonLocked(f *Flow) {
	f.phase = answered
	delete(s.parked, f)
	delete(s.flows, f.id)
}

func (f *Flow) abandoned() {
	if f.giveUp != nil {
		f.giveUp()
	}
	f.releaseSYN()
}

// sweep abandons the parked flows whose applications have fallen silent.
func (s *Stack) sweep() {
	now := time.Now()
	var gone []*Flow
	s.mu.Lock()
	for f := range s.parked {
		if f.silentLocked(now) {
			s.abandonLocked(f)
			gone = append(gone, f)
		}
	}
	s.mu.Unlock()
	for _, f := range gone {
		f.abandoned()
	}
	s.lapse(handshakeTimeout)
}

// lapse ends the answers that have taken so long: those of which gVisor's forwarder has said nothing, as of a SYN that it drops
// at its bound, and those that the application says nothing to. It is cheaper than a timer for each. gVisor's handshake
// waits for its queue to be notified, looks whether the endpoint is connected, and gives up if it is not. A
// notification before it waits is lost, so this is to be called again.
func (s *Stack) lapse(limit time.Duration) {
	now := time.Now()
	var late []*waiter.Queue
	s.mu.Lock()
	for id, f := range s.expected {
		if now.Sub(f.asked) > limit {
			delete(s.expected, id)
			f.request <- nil
		}
	}
	for f := range s.answering {
		if now.Sub(f.asked) > limit {
			late = append(late, f.queue)
		}
	}
	s.mu.Unlock()
	for _, q := range late {
		q.Notify(waiter.WritableEvents)
	}
}

// opened also lets go of what is needed up to there.
func (f *Flow) opened() {
	f.stack.mu.Lock()
	defer f.stack.mu.Unlock()
	f.phase = open
	f.stack.shakenLocked(f)
	f.request, f.synAck, f.forwarded, f.after = nil, nil, nil, nil
}

// Accept answers the handshake and returns the connection, once the application
// has confirmed it. It takes as long as the application's kernel needs, at most
// ten seconds. The caller owns the Conn.
func (f *Flow) Accept() (Conn, error) {
	f.Turn()
	if !f.answer(answering) {
		return nil, ErrGone
	}
	c, err := f.handshake()
	if err != nil {
		f.stack.forget(f)
		return nil, fmt.Errorf("answer %s: %w", f.src, err)
	}
	return c, nil
}

func (f *Flow) handshake() (Conn, error) {
	c := newConn(f)
	r, err := f.forward(&c.wq)
	if err != nil {
		close(f.forwarded)
		return nil, err
	}
	ep, terr := r.CreateEndpoint(&c.wq)
	r.Complete(false)
	close(f.forwarded)
	if terr != nil {
		f.stack.shaken(f)
		return nil, ErrGone // it reset the handshake, or fell silent
	}
	c.open(ep)
	return c, nil
}

// forward gives the parked SYN to gVisor's forwarder and returns its request. With a queue there is to be a handshake, which
// is under way until it is said to be over.
func (f *Flow) forward(queue *waiter.Queue) (*tcp.ForwarderRequest, error) {
	syn := f.takeSYN()
	if syn == nil {
		return nil, ErrGone
	}
	defer syn.DecRef()
	if f.after != nil {
		<-f.after
	}
	if f.stack.cfg.Path != nil {
		if mtu := f.stack.cfg.Path(f.src.Addr()); mtu > 0 {
			f.far(syn, mtu)
		}
	}
	f.stack.expect(f, queue)
	if !f.stack.fwd.Load().HandlePacket(f.id, syn) {
		f.stack.unexpect(f)
		return nil, fmt.Errorf("netstack refuses the SYN: %w", syscall.EINVAL) // a bad checksum
	}
	r := <-f.request
	if r == nil {
		f.stack.shaken(f)
		if err := f.stack.context().Err(); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("netstack drops the SYN: %w", os.ErrDeadlineExceeded)
	}
	return r, nil
}

// expect says whose the forwarder's next request for the 4-tuple of f is.
func (s *Stack) expect(f *Flow, queue *waiter.Queue) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	f.asked = now
	s.expected[f.id] = f
	if queue != nil {
		f.queue = queue
		s.answering[f] = struct{}{}
	}
}

// unexpect takes that back.
func (s *Stack) unexpect(f *Flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.expected[f.id] == f {
		delete(s.expected, f.id)
	}
	s.shakenLocked(f)
}

// shaken says that the handshake is over.
func (s *Stack) shaken(f *Flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shakenLocked(f)
}

func (s *Stack) shakenLocked(f *Flow) {
	delete(s.answering, f)
	f.queue = nil
}

// deliver is the forwarder's handler, on a goroutine of its own: it brings a
// request to its flow, and the flow's SYN-ACK to the device.
func (s *Stack) deliver(r *tcp.ForwarderRequest) {
	s.mu.Lock()
	f := s.expected[r.ID()]
	delete(s.expected, r.ID())
	if f != nil {
		s.handlers.Add(1) // beside the one of f, which waits for the request
		defer s.handlers.Done()
	}
	s.mu.Unlock()
	if f == nil { // it has stopped waiting
		r.Complete(true)
		return
	}
	synAck, forwarded := f.synAck, f.forwarded // opened lets go of them
	f.request <- r
	select {
	case pkt := <-synAck:
		s.send(pkt)
	case <-forwarded:
		select {
		case pkt := <-synAck:
			s.send(pkt)
		default: // rejected
		}
	}
}

// takeSYNACK keeps the first SYN-ACK of a flow for deliver, and reports whether
// it did. gVisor writes it with the endpoint locked. The application's kernel
// answers before the write has returned, and until the lock is free gVisor's
// processor tries again and again to get it (processor.start): milliseconds, if the
// scheduler has put the writer aside for the application.
func (s *Stack) takeSYNACK(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.flows[id]
	if f == nil || f.phase != answering || f.sent {
		return false
	}
	f.sent = true
	f.synAck <- pkt.IncRef()
	return true
}

// send writes a packet, whose reference it takes over, to the device. A failure is
// a packet lost, which gVisor repeats.
func (s *Stack) send(pkt *stack.PacketBuffer) {
	var pkts stack.PacketBufferList
	pkts.PushBack(pkt)
	_, _ = s.link.Endpoint().WritePackets(pkts)
	pkts.DecRef()
}

// Turn returns when it is the flow's turn to do something that takes some 10 µs or more: at once, unless many flows have something
// to do. The flow must not be done.
func (f *Flow) Turn() { f.stack.turns.wait(f) }

// Detach says that the handler will return before it is done with the flow: the Stack
// waits for Done then. It is called on the handler's goroutine.
func (f *Flow) Detach() { f.detached = true }

// Done says that a flow that has been detached is over.
func (f *Flow) Done() { f.stack.handlers.Done() }

// Reject lets the application's connect() fail with errno: ECONNREFUSED,
// EHOSTUNREACH, ENETUNREACH, or EACCES for what is administratively prohibited
// (which an application reads as EHOSTUNREACH). Any other counts as EHOSTUNREACH.
func (f *Flow) Reject(errno syscall.Errno) {
	if !f.answer(answered) {
		return
	}
	if errno == syscall.ECONNREFUSED {
		if r, err := f.forward(nil); err == nil {
			r.Complete(true)
		}
		close(f.forwarded)
	} else if syn := f.takeSYN(); syn != nil {
		f.stack.insist(syn, errno)
	}
	f.stack.forget(f)
}

// Drop leaves the application without an answer. Its next SYN, if it still
// wants, is a new flow.
func (f *Flow) Drop() {
	if !f.answer(answered) {
		return
	}
	f.stack.forget(f)
	f.releaseSYN()
}

// takeSYN hands the parked packet and its reference to the caller.
func (f *Flow) takeSYN() *stack.PacketBuffer {
	f.synMu.Lock()
	defer f.synMu.Unlock()
	syn := f.syn
	f.syn = nil
	return syn
}

func (f *Flow) releaseSYN() {
	if syn := f.takeSYN(); syn != nil {
		syn.DecRef()
	}
}
