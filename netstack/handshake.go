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

// handshakeTimeout limits the time between our SYN-ACK and the application's ACK. A local kernel answers within
// microseconds, a host behind this one within a round trip. Silence means it is gone.
const handshakeTimeout = 10 * time.Second

// listener is a gVisor endpoint in LISTEN that no packet reaches by itself, because it is not in the demultiplexer.
// It is shown the SYNs that are to be answered, for any destination, and does the handshake. The application's ACK
// makes it call back. No goroutine waits for the ACK, whereas gVisor's Forwarder uses one for each.
type listener struct {
	*tcp.Endpoint
	stack *Stack
	queue waiter.Queue
	ready waiter.Entry
}

// listenerKey holds the properties that connections inherit from their listener.
type listenerKey struct {
	proto   tcpip.NetworkProtocolNumber
	receive int // bytes
	mss     int // the largest segment that the application may send; 0: what the device carries
}

// shared is the port flags of all endpoints (SO_REUSEADDR). They allow a connection to begin on a 4-tuple whose last
// endpoint has not finished its clean-up. The gate knows when that is safe.
var shared = ports.Flags{TupleOnly: true}

// listenerOf returns the listener for key. Buffers and paths come in few sizes, so listeners are few and are kept.
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
	l.SocketOptions().SetReuseAddress(true)
	l.SocketOptions().SetV6Only(true)
	l.SocketOptions().SetReceiveBufferSize(int64(key.receive), false)
	_ = l.SetSockOptInt(tcpip.MaxSegOption, key.mss) // fails for 0
	// Nothing reaches it even while it is briefly in the demultiplexer: gVisor takes no packet to a loopback address
	// from a device.
	loopback := tcpip.FullAddress{Addr: header.IPv4Loopback}
	if key.proto == header.IPv6ProtocolNumber {
		loopback.Addr = header.IPv6Loopback
	}
	terr = l.Bind(loopback)
	if terr == nil {
		// The callers of AcceptFunc limit the handshakes under way. At a limit of its own, gVisor would answer with
		// SYN cookies, which carry nothing of the handshake's options but the MSS.
		terr = l.Listen(math.MaxInt32)
	}
	if terr != nil {
		l.Close()
		return nil, terr
	}
	s.gv.UnregisterTransportEndpoint([]tcpip.NetworkProtocolNumber{key.proto}, tcp.ProtocolNumber, l.TransportEndpointInfo.ID, l.Endpoint, shared, 0)
	l.ready.Init(l, waiter.ReadableEvents)
	l.queue.EventRegister(&l.ready)
	return l, nil
}

// closeListeners is called once no handshake is under way.
func (s *Stack) closeListeners() {
	s.listenMu.Lock()
	defer s.listenMu.Unlock()
	for _, l := range s.listeners {
		l.queue.EventUnregister(&l.ready) // Close notifies with the listener locked
		l.Close()
	}
}

// NotifyEvent implements waiter.EventListener: handshakes are done. The new endpoint is locked during the call, so
// its flow goes on elsewhere.
func (l *listener) NotifyEvent(waiter.EventMask) {
	for {
		ep, queue, terr := l.Accept(nil)
		if terr != nil {
			return // no more
		}
		l.stack.shaken(ep.(*tcp.Endpoint), queue)
	}
}

// shaken lets the flow of an endpoint go on once the handshake is done.
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

// leave ends the handshake of f and reports whether one was under way. Unless the flow becomes open, it is forgotten,
// and its endpoint at the same moment: a SYN that comes next begins another flow.
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
	if f.shaking != nil {
		s.unregister(f.id, f.shaking)
	} else {
		f.synAck <- nil
	}
	if s.flows[f.id] == f {
		delete(s.flows, f.id)
	}
	return true
}

// AcceptFunc answers the handshake. Once the application has confirmed it, which takes as long as its kernel needs,
// then is called with the connection and owns it. If the application gives up, or is silent for ten seconds, then is
// called with an error, which is ECONNRESET if its connection was made and it has reset it at once. The call comes on
// another goroutine, possibly before AcceptFunc returns; only errors of our own are reported on the caller's goroutine.
// The flow is not done before then has returned.
func (f *Flow) AcceptFunc(then func(Conn, error)) {
	f.Turn()
	f.Detach()
	if !f.answer(answering, then) {
		then(nil, ErrGone)
		f.Done()
		return
	}
	synAck := f.synAck
	if err := f.shake(); err != nil {
		if f.stack.leave(f, answered) {
			f.resume(nil, err)
		}
		return
	}
	// Write the SYN-ACK here, not where gVisor writes it with the endpoint locked. The application's kernel answers
	// before the write returns, and until the lock is free gVisor's processor retries again and again
	// (processor.start). That takes milliseconds if the scheduler has put the writer aside for the application.
	if pkt := <-synAck; pkt != nil {
		f.stack.send(pkt)
	}
}

// shake shows gVisor the SYN. Either a SYN-ACK results, or f leaves the handshake.
func (f *Flow) shake() error {
	syn := f.takeSYN()
	if syn == nil {
		return ErrGone
	}
	defer syn.DecRef()
	key := listenerKey{proto: syn.NetworkProtocolNumber, receive: int(f.stack.receiveBuffer.Load())}
	if path := f.stack.cfg.Path; path != nil {
		if mtu := path(f.src.Addr()); mtu > 0 {
			key.mss = f.far(syn, mtu)
		}
	}
	l, err := f.stack.listenerOf(key)
	if err != nil {
		return err
	}
	if err := f.stack.expect(f); err != nil {
		return err
	}
	f.stack.tcp.QueuePacket(l.Endpoint, f.id, syn)
	return nil
}

// expect records that the handshake of f is under way. It fails if there is no room, or if the application has given
// up since f was answered.
func (s *Stack) expect(f *Flow) error {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.phase != answering {
		return ErrGone
	}
	if len(s.answering) >= s.maxParked {
		return fmt.Errorf("netstack has no room for the handshake: %w", syscall.ENOBUFS)
	}
	f.asked = now
	s.answering[f] = struct{}{}
	return nil
}

// takeSYNACK keeps the first SYN-ACK of a flow, which acknowledges ack, for AcceptFunc. It reports whether the packet
// goes no further.
func (s *Stack) takeSYNACK(id stack.TransportEndpointID, pkt *stack.PacketBuffer, ack uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.flows[id]
	if f != nil && (f.phase == open || f.shaking != nil) {
		return false // gVisor repeats it
	}
	ep, ok := s.endpoint(id).(*tcp.Endpoint)
	if !ok {
		return false
	}
	if f == nil || f.phase != answering || ack != f.isn+1 {
		// The application gave up before gVisor came to its SYN. The endpoint must go before that of the next SYN from
		// the same port comes.
		s.unregister(id, ep)
		s.workers.all.Go(ep.Abort) // it is locked now
		return true
	}
	f.shaking = ep
	f.iss = header.TCP(pkt.TransportHeader().Slice()).SequenceNumber()
	f.window.sent = f.iss + 1
	s.shaking[ep] = f
	f.synAck <- pkt.IncRef()
	return true
}

// resume calls the function that AcceptFunc was given.
func (f *Flow) resume(c Conn, err error) {
	then := f.then
	f.then = nil
	if err != nil {
		err = fmt.Errorf("answer %s: %w", f.src, err)
	}
	then(c, err)
	f.Done()
}

// lapse ends the handshakes that have taken longer than limit, with err. This is cheaper than a timer for each.
func (s *Stack) lapse(limit time.Duration, err error) {
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
		s.workers.do(task{flow: f, err: err})
	}
}

// relinquish ends a handshake that the application has given up, for err, and reports whether one was under way. It is
// called on the goroutine that reads the device.
func (s *Stack) relinquish(f *Flow, err error) bool {
	if !s.leave(f, answered) {
		return false
	}
	s.workers.do(task{flow: f, ep: f.shaking, err: err}) // an endpoint that is just being made: see takeSYNACK
	return true
}

// Accept is AcceptFunc for callers that wait.
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
