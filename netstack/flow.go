package netstack

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// ErrGone means that the application has given the connection up, or that the flow has already been answered.
var ErrGone = errors.New("the application has given up")

// errReset means that the application's connection was made, and reset at once.
var errReset = fmt.Errorf("the application has reset: %w", syscall.ECONNRESET)

// errUnconfirmed means that nothing came back to our answer. The kernel of an application that has given up would reset
// it, so the packets are lost on the way: in a firewall of this host, or with the network of a host behind a gateway.
var errUnconfirmed = fmt.Errorf("not confirmed within %v: %w", handshakeTimeout, syscall.ETIMEDOUT)

type phase uint8

const (
	parked    phase = iota // SYN held, nothing sent
	answering              // handshake under way
	open                   // gVisor has an endpoint
	answered               // rejected, dropped or given up
)

// Flow is one SYN of an application. It is answered once, by Accept, Reject or Drop: the first answer counts, later
// ones do nothing. Its methods may be called from any goroutine.
type Flow struct {
	number   uint64
	stack    *Stack
	id       stack.TransportEndpointID
	src, dst netip.AddrPort
	isn      uint32
	line     lineKey
	giveUp   func() // ends the handler's context; nil if it has not begun, or the flow is no longer parked

	remote bool // the application is on another host
	signed bool

	synMu sync.Mutex
	syn   *stack.PacketBuffer // nil once released

	// Used during the handshake.
	synAck chan *stack.PacketBuffer // our first SYN-ACK, from gVisor to whoever writes it; nil if there is none
	then   func(Conn, error)        // AcceptFunc's argument

	reply  reply
	urgent urgent
	iss    uint32 // our initial sequence number, from the first SYN-ACK on

	// Guarded by stack.mu.
	phase   phase
	ended   bool          // the application's FIN or RST, or our RST, has been seen
	retired bool          // the application has begun another connection on this 4-tuple
	shaking *tcp.Endpoint // gVisor's endpoint, once its SYN-ACK has been taken; nil once open
	window  window        // of an application on another host
	lastSYN time.Time     // while parked
	pause   time.Duration // between the last two SYNs; 0 after only one
	word    word          // of the application's kernel, while parked
	asked   time.Time     // when gVisor was shown the SYN
}

func newFlow(s *Stack, id stack.TransportEndpointID, isn uint32, syn *stack.PacketBuffer) *Flow {
	return &Flow{
		stack:   s,
		id:      id,
		src:     netip.AddrPortFrom(addr(id.RemoteAddress), id.RemotePort),
		dst:     netip.AddrPortFrom(addr(id.LocalAddress), id.LocalPort),
		isn:     isn,
		signed:  signed(header.TCP(syn.TransportHeader().Slice()).Options()),
		syn:     syn.IncRef(),
		synAck:  make(chan *stack.PacketBuffer, 1),
		lastSYN: time.Now(),
	}
}

// signed reports whether a segment with these options has an MD5 signature (RFC 2385) or is authenticated by TCP-AO
// (RFC 5925).
func signed(options []byte) bool {
	const md5, ao = 19, 29
	for len(options) > 0 {
		switch kind := options[0]; {
		case kind == header.TCPOptionEOL:
			return false
		case kind == header.TCPOptionNOP:
			options = options[1:]
		case kind == md5, kind == ao:
			return true
		case len(options) < 2 || options[1] < 2 || int(options[1]) > len(options):
			return false
		default:
			options = options[options[1]:]
		}
	}
	return false
}

func addr(a tcpip.Address) netip.Addr {
	ip, _ := netip.AddrFromSlice(a.AsSlice())
	return ip
}

// Number is the position of the flow among the flows of its stack, in the order their SYNs arrived, from 1.
func (f *Flow) Number() uint64 { return f.number }

// Src is the application's address and port.
func (f *Flow) Src() netip.AddrPort { return f.src }

// Dst is the address and port the application connects to.
func (f *Flow) Dst() netip.AddrPort { return f.dst }

// Signed reports whether the application signs its segments. Its kernel then takes only signed ones for answers, for
// which netstack has no key, apart from what Reject says by ICMP.
func (f *Flow) Signed() bool { return f.signed }

// answer moves the flow out of the parked phase. It returns false if it had already left it. The argument of AcceptFunc
// comes with it, because the application may give up at once.
func (f *Flow) answer(to phase, then func(Conn, error)) bool {
	f.stack.mu.Lock()
	defer f.stack.mu.Unlock()
	if f.phase != parked {
		return false
	}
	f.phase, f.then = to, then
	f.giveUp = nil // holds a context
	delete(f.stack.parked, f)
	return true
}

// send writes a packet to the device and takes over its reference. A failed write is a lost packet, which gVisor
// retransmits.
func (s *Stack) send(pkt *stack.PacketBuffer) {
	var pkts stack.PacketBufferList
	pkts.PushBack(pkt)
	_, _ = s.link.Endpoint().WritePackets(pkts)
	pkts.DecRef()
}

// Turn waits until it is the flow's turn to do something that takes some 10 µs or more. It returns at once unless
// many flows have something to do. The flow must not be done.
func (f *Flow) Turn() { f.stack.turns.wait(f) }

// Detach announces that the handler, or the function passed to AcceptFunc, will return before it is done with the
// flow. The Stack then waits for Done.
func (f *Flow) Detach() { f.stack.handlers.Add(1) }

// Go runs work on a goroutine of its own, whose stack has usually grown already. Serve waits for it. The flow must
// not be done.
func (f *Flow) Go(work func()) { f.stack.workers.do(task{flow: f, work: work}) }

// Done announces that a detached flow is over.
func (f *Flow) Done() { f.stack.handlers.Done() }

// Reject makes the application's connect() fail with errno: ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, or EACCES for
// what is administratively prohibited (which the application sees as EHOSTUNREACH). Any other errno counts as
// EHOSTUNREACH.
func (f *Flow) Reject(errno syscall.Errno) {
	if !f.answer(answered, nil) {
		return
	}
	f.stack.forget(f) // first: once answered, the application may try again from the same port
	if syn := f.takeSYN(); syn != nil {
		if errno == syscall.ECONNREFUSED {
			f.stack.tcp.HandleUnknownDestinationPacket(f.id, syn)
			syn.DecRef()
		} else {
			f.stack.insist(syn, errno)
		}
	}
}

// Drop leaves the application without an answer. If it still wants to connect, its next SYN is a new flow.
func (f *Flow) Drop() {
	if !f.answer(answered, nil) {
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
