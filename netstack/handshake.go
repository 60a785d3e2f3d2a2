package netstack

import (
	"fmt"
	"math"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/ports"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// handshakeTimeout bounds the time between our SYN-ACK and the application's
// ACK. A local kernel answers within microseconds, a host behind this one within
// a round trip; silence means it is gone.
const handshakeTimeout = 10 * time.Second

// listener is a gVisor endpoint in LISTEN that no packet reaches by itself: it is not in the demultiplexer. It is shown the SYNs
// that are to be answered, of any destination, does the handshake, and has the application's ACK call us back. Nothing waits for
// that meanwhile, where gVisor's Forwarder has a goroutine for each.
type listener struct {
	*tcp.Endpoint
	stack *Stack
	queue waiter.Queue
	ready waiter.Entry
}

// listenerKey is what connections have from the listener they came from.
type listenerKey struct {
	proto   tcpip.NetworkProtocolNumber
	receive int // bytes
}

// shared are the port flags of all endpoints (SO_REUSEADDR): a connection may begin on a 4-tuple whose last one is not
// done with its clean-up yet. The gate knows when.
var shared = ports.Flags{TupleOnly: true}

// listenerOf returns the listener of such connections. There are few, as buffers have few sizes, so they stay.
func (s *Stack) listenerOf(key listenerKey) (*listener, error) {
	s.listenMu.Lock()
	defer s.listenMu.Unlock()
	if l := s.listeners[key]; l != nil {
		return l, nil
	}
	l, terr := s.listen(key)
	if terr != nil {
		return nil, fmt.Errorf("listen in netstack: %w", errnoOf(terr))
	}
	s.listeners[key] = l
	return l, nil
}

func (s *Stack) listen(key listenerKey) (*listener, tcpip.Error) {
	l := &listener{stack: s}
	ep, terr := s.gv.NewEndpoint(tcp.ProtocolNumber, key.proto, &l.queue)
	if terr != nil {
		return nil, terr
	}
	l.Endpoint = ep.(*tcp.Endpoint)
	l.ready.Init(l, waiter.ReadableEvents)
	l.queue.EventRegister(&l.ready)
	l.SocketOptions().SetReuseAddress(true)
	l.SocketOptions().SetV6Only(true)
	l.SocketOptions().SetReceiveBufferSize(int64(key.receive), false)
	// Nor for the moment in which it is: gVisor takes nothing to a loopback address from a device.
	loopback := tcpip.FullAddress{Addr: header.IPv4Loopback}
	if key.proto == header.IPv6ProtocolNumber {
		loopback.Addr = header.IPv6Loopback
	}
	terr = l.Bind(loopback)
	if terr == nil {
		// What is under way is bounded by who calls AcceptFunc. At its own bound gVisor would answer by cookies, which can't say what
		// the handshake is about, but for the MSS.
		terr = l.Listen(math.MaxInt32)
	}
	if terr != nil {
		l.Close()
		return nil, terr
	}
	s.gv.UnregisterTransportEndpoint([]tcpip.NetworkProtocolNumber{key.proto}, tcp.ProtocolNumber, l.TransportEndpointInfo.ID, l.Endpoint, shared, 0)
	return l, nil
}

// closeListeners is called when no handshake is under way any more.
func (s *Stack) closeListeners() {
	s.listenMu.Lock()
	defer s.listenMu.Unlock()
	for _, l := range s.listeners {
		l.queue.EventUnregister(&l.ready) // Close notifies with the listener locked
		l.Close()
	}
}

// NotifyEvent implements waiter.EventListener: handshakes are done. The new endpoint is locked, so its flow goes on elsewhere.
func (l *listener) NotifyEvent(waiter.EventMask) {
	for {
		ep, queue, terr := l.Accept(nil)
		if terr != nil {
			return // there is no more
		}
		l.stack.shaken(ep.(*tcp.Endpoint), queue)
	}
}

// shaken has the flow of an endpoint go on, whose handshake is done.
func (s *Stack) shaken(ep *tcp.Endpoint, queue *waiter.Queue) {
	s.mu.Lock()
	f := s.shaking[ep]
	s.mu.Unlock()
	if f != nil && s.leave(f, open) {
		s.workers.do(task{flow: f, ep: ep, queue: queue})
		return
	}
	s.workers.all.Go(func() { reset(ep) }) // it has been given up
}

// leave ends the handshake of f, and reports whether one was under way. A flow that is not open then is forgotten.
func (s *Stack) leave(f *Flow, to phase) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.phase != answering {
		return false
	}
	f.phase = to
	delete(s.answering, f)
	delete(s.shaking, f.shaking)
	if to == open {
		return true
	}
	if f.shaking == nil {
		f.synAck <- nil
	}
	if s.flows[f.id] == f {
		delete(s.flows, f.id)
	}
	return true
}

// AcceptFunc answers the handshake. Once the application has confirmed it, which takes as long as its kernel needs, then is
// called with the connection, which it owns. If the application gives up, or says nothing for ten seconds, it is called with an
// error. It is called on another goroutine, but for errors of our own, and maybe before AcceptFunc returns. The flow is not done before then has returned.
func (f *Flow) AcceptFunc(then func(Conn, error)) {
	f.Turn()
	if !f.answer(answering) {
		then(nil, ErrGone)
		return
	}
	f.Detach()
	f.then = then
	synAck := f.synAck
	if err := f.shake(); err != nil {
		if f.stack.leave(f, answered) {
			f.resume(nil, err)
		}
		return
	}
	// It is written here, not where gVisor writes it, which is with the endpoint locked. The application's kernel answers before the
	// write has returned, and until the lock is free gVisor's processor would try again and again to get it
	// (processor.start): milliseconds, if the scheduler has put the writer aside for the application.
	if pkt := <-synAck; pkt != nil {
		f.stack.send(pkt)
	}
}

// shake shows gVisor the SYN. A SYN-ACK comes of it, or f leaves the handshake.
func (f *Flow) shake() error {
	syn := f.takeSYN()
	if syn == nil {
		return ErrGone
	}
	defer syn.DecRef()
	if path := f.stack.cfg.Path; path != nil {
		if mtu := path(f.src.Addr()); mtu > 0 {
			f.far(syn, mtu)
		}
	}
	l, err := f.stack.listenerOf(listenerKey{syn.NetworkProtocolNumber, int(f.stack.receiveBuffer.Load())})
	if err != nil {
		return err
	}
	if !f.stack.expect(f) {
		return fmt.Errorf("netstack has no room for the handshake: %w", syscall.ENOBUFS)
	}
	f.stack.tcp.QueuePacket(l.Endpoint, f.id, syn)
	return nil
}

// expect says that the handshake of f is under way, if there is room.
func (s *Stack) expect(f *Flow) bool {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.answering) >= s.cfg.MaxParked {
		return false
	}
	f.asked = now
	s.answering[f] = struct{}{}
	return true
}

// takeSYNACK keeps the first SYN-ACK of a flow for AcceptFunc, and reports whether it did.
func (s *Stack) takeSYNACK(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.flows[id]
	if f == nil || f.phase != answering || f.shaking != nil {
		return false
	}
	f.shaking, _ = s.endpoint(id).(*tcp.Endpoint)
	s.shaking[f.shaking] = f
	f.synAck <- pkt.IncRef()
	return true
}

// resume calls what AcceptFunc was given.
func (f *Flow) resume(c Conn, err error) {
	then := f.then
	f.then = nil
	if err != nil {
		err = fmt.Errorf("answer %s: %w", f.src, err)
	}
	then(c, err)
	f.Done()
}

// lapse ends the handshakes that have taken so long. It is cheaper than a timer for each.
func (s *Stack) lapse(limit time.Duration) {
	now := time.Now()
	var late []*Flow
	s.mu.Lock()
	for f := range s.answering {
		if now.Sub(f.asked) > limit {
			late = append(late, f)
		}
	}
	s.mu.Unlock()
	for _, f := range late {
		if !s.leave(f, answered) {
			continue
		}
		if f.shaking != nil {
			reset(f.shaking)
		}
		s.workers.do(task{flow: f, err: ErrGone})
	}
}

// relinquish ends a handshake that the application has given up, and reports whether one was under way. It is called on the goroutine
// that reads the device.
func (s *Stack) relinquish(f *Flow) bool {
	if !s.leave(f, answered) {
		return false
	}
	s.unregister(f.id)
	s.workers.do(task{flow: f, ep: f.shaking, err: ErrGone})
	return true
}

// Accept is AcceptFunc for who waits.
func (f *Flow) Accept() (Conn, error) {
	type result struct {
		Conn
		err error
	}
	done := make(chan result, 1)
	f.AcceptFunc(func(c Conn, err error) { done <- result{c, err} })
	r := <-done
	return r.Conn, r.err
}
