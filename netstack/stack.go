package netstack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"pinproxy/netstack/link"
)

// nicID is the only network interface of the stack.
const nicID tcpip.NICID = 1

// maxParked is how many SYNs may wait for an answer at a time. Each one has a goroutine, the handler's.
const maxParked = 32768

// Config of a Stack. The zero value is usable.
type Config struct {
	// Datagrams is called for every UDP datagram, on the goroutine that reads the device, so it must not block. Nil:
	// UDP is answered with ICMP port unreachable.
	Datagrams func(*Datagram)
	// Echoes is called for every ICMP and ICMPv6 echo request, on the same goroutine. Nil: they are answered with
	// ICMP administratively prohibited.
	Echoes func(*Echo)
	// Path returns the largest packet, in bytes, that can be sent to an application on another host; 0 means that the
	// application is on this host. It is called once for each flow, when the flow is accepted. Nil: all applications
	// are on this host, and RACK, which lossy links need, is off.
	Path func(src netip.Addr) int
	// Waits asks the kernel of the application at src whether it still waits for its connection to dst. told is false if
	// that kernel can't be asked. It is called about once a second for each flow that has not been answered, until it
	// can't tell, from one goroutine. It may take some microseconds. Nil: nobody can be asked.
	Waits func(src, dst netip.AddrPort) (waits, told bool)
	// Answer is called for the SYN-ACK of a server at src, which a client at dst waits for that never gets it, on the
	// goroutine that reads the device, so it must not block. Nil: nobody is told.
	Answer func(src, dst netip.AddrPort)
	// Group returns the group that a destination belongs to, as a comparable value. When there are so many
	// connections that they begin one after another, the groups are served in turn and the members of a group share
	// its turn. Group is called for each SYN, on the goroutine that reads the device. Nil: all destinations are one
	// group.
	Group func(dst netip.AddrPort) any
}

// Stats are counters since the start.
type Stats struct {
	Flows   uint64 // SYNs that became flows
	Parked  int    // flows that wait for an answer now
	Open    int    // flows known now, including parked ones
	Dropped uint64 // SYNs dropped for lack of room

	Endpoints int // connections that gVisor has now, including those in their handshake or still closing
}

// Handler decides on one flow. It must answer it with Accept, Reject or Drop. It may run for as long as the
// connection lives, or detach the flow (Flow.Detach). ctx ends when the application gives the flow up before it is
// answered, when the stack stops, or when the handler returns.
type Handler func(ctx context.Context, f *Flow)

// Stack is a gVisor stack, from creation to Destroy, on one link.
//
// New starts nothing. Serve runs the stack once. All other methods may be called from any goroutine while it runs.
type Stack struct {
	link *link.Link
	cfg  Config

	gv  *stack.Stack
	tcp tcpProtocol

	receiveBuffer, sendBuffer atomic.Int64 // set by SetBuffer

	ready chan struct{}

	total, dropped atomic.Uint64
	handlers       sync.WaitGroup // one for each flow whose handler has not returned, or that is detached and not done
	workers        workers
	turns          *turns
	rounds         rounds
	asides         asides
	replies        replies

	listenMu  sync.Mutex
	listeners map[listenerKey]*listener

	mu    sync.Mutex
	flows map[stack.TransportEndpointID]*Flow

	maxParked         int
	parked, answering map[*Flow]struct{}
	shaking           map[*tcp.Endpoint]*Flow // flows in answering, from the SYN-ACK on

	serve   *service // nil before Serve
	stopped bool     // no more flows are parked
}

// service is one run of Serve.
type service struct {
	ctx    context.Context
	handle Handler
}

// New prepares a stack on l. The caller keeps ownership of the link and closes it after Serve has returned.
func New(l *link.Link, c Config) (*Stack, error) { return newStack(l, c, stack.Options{}) }

// silence drops gVisor's log. It would go to stderr, among our own lines or a command's. All that it says here is that
// a SYN was given up while it was answered.
var silence = sync.OnceFunc(func() { log.SetTarget(nowhere{}) })

type nowhere struct{}

func (nowhere) Emit(int, log.Level, time.Time, string, ...any) {}

// newStack is New with gVisor's clock and random numbers taken from options.
func newStack(l *link.Link, c Config, options stack.Options) (*Stack, error) {
	options.NetworkProtocols = []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol}
	options.TransportProtocols = []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6}
	silence()
	s := &Stack{
		link:    l,
		cfg:     c,
		ready:   make(chan struct{}),
		workers: workers{tasks: make(chan task)},
		flows:   make(map[stack.TransportEndpointID]*Flow),

		listeners: make(map[listenerKey]*listener),
		maxParked: maxParked,
		parked:    make(map[*Flow]struct{}),
		answering: make(map[*Flow]struct{}),
		shaking:   make(map[*tcp.Endpoint]*Flow),
		gv:        stack.New(options),
	}
	s.turns = newTurns(s)
	s.replies.send = s.send
	if err := s.tune(); err != nil {
		return nil, err
	}
	s.tcp = s.gv.TransportProtocolInstance(tcp.ProtocolNumber).(tcpProtocol)
	s.receiveBuffer.Store(tcp.DefaultReceiveBufferSize)
	s.gv.SetTransportProtocolHandler(tcp.ProtocolNumber, s.handleTCP)
	s.gv.SetTransportProtocolHandler(udp.ProtocolNumber, s.handleUDP)
	s.gv.SetTransportProtocolHandler(icmp.ProtocolNumber4, s.handleICMP)
	s.gv.SetTransportProtocolHandler(icmp.ProtocolNumber6, s.handleICMP)
	return s, nil
}

// tune sets the few options that differ from gVisor's defaults.
func (s *Stack) tune() error {
	// The other end of every connection is this machine's kernel or a host one hop away, and the link neither
	// reorders packets nor delivers late duplicates. TIME_WAIT would protect against nothing here and hold each
	// closed endpoint in memory for 60 s.
	timeWait := tcpip.TCPTimeWaitTimeoutOption(0)
	if err := s.gv.SetTransportProtocolOption(tcp.ProtocolNumber, &timeWait); err != nil {
		return fmt.Errorf("set netstack's TIME_WAIT: %s", err)
	}
	if s.cfg.Path != nil {
		return nil
	}
	// Packets to this machine's kernel are lost only when it is short of memory. RACK's tail loss probe fires after
	// two round trips. With hundreds of busy flows, round trips are as uneven as the scheduler, and a sixth of all
	// packets were sent twice.
	recovery := tcpip.TCPRecovery(0)
	if err := s.gv.SetTransportProtocolOption(tcp.ProtocolNumber, &recovery); err != nil {
		return fmt.Errorf("set netstack's loss recovery: %s", err)
	}
	return nil
}

// SetBuffer sets the buffer sizes, in bytes, of connections that are accepted from now on: receive for data that has
// not been read yet, send for data that the application has not acknowledged yet. A connection never gets larger
// buffers later, because its window scale is chosen when it is accepted. Open connections keep their sizes, which
// their applications have been told. 0, the initial value, means gVisor's default: 1 MiB, and up to 4 MiB for a fast
// connection.
func (s *Stack) SetBuffer(receive, send int) {
	size, most := receive, receive
	if receive == 0 {
		size, most = tcp.DefaultReceiveBufferSize, tcp.MaxBufferSize
	}
	sizes := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: size, Max: most}
	_ = s.gv.SetTransportProtocolOption(tcp.ProtocolNumber, &sizes) // fails only for sizes below the minimum
	// Endpoints take their receive size from their listener, whatever the option says. Their send size is set in
	// newConn: if a limit for all endpoints fell below the size that some of them have, their writers would wait
	// forever (updateSndBufferUsage).
	s.sendBuffer.Store(int64(send))
	s.receiveBuffer.Store(int64(size))
}

// Serve reads the link and calls h for each flow, on a goroutine of its own. When ctx ends, it returns nil once every
// handler has returned, every detached flow is done and gVisor's goroutines are gone. When the link fails, it returns
// the link's error. It can be called once.
func (s *Stack) Serve(ctx context.Context, h Handler) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	if s.serve != nil {
		s.mu.Unlock()
		return errors.New("serve netstack: already serving")
	}
	s.serve = &service{ctx: ctx, handle: h}
	s.mu.Unlock()

	if err := s.turns.open(); err != nil {
		return fmt.Errorf("serve netstack: %w", err)
	}
	defer s.turns.close()
	if err := s.rounds.open(); err != nil {
		return fmt.Errorf("serve netstack: %w", err)
	}
	defer s.rounds.close()
	if err := s.asides.open(); err != nil {
		return fmt.Errorf("serve netstack: %w", err)
	}
	defer s.asides.close()
	if err := s.attach(); err != nil {
		return err
	}
	close(s.ready)
	err := s.watch(ctx)
	cancel()
	s.destroy()
	s.workers.wait()
	return err
}

// watch returns when ctx ends or the link fails.
func (s *Stack) watch(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.sweep()
		case err := <-s.link.Failed():
			return fmt.Errorf("serve netstack: %w", err)
		case <-ctx.Done():
			return nil
		}
	}
}

// Ready is closed once Serve takes packets.
func (s *Stack) Ready() <-chan struct{} { return s.ready }

// attach creates the NIC. The default handlers are already set by then, so no packet meets a stack without them.
func (s *Stack) attach() error {
	if err := s.gv.CreateNIC(nicID, &gate{LinkEndpoint: s.link.Endpoint(), stack: s}); err != nil {
		return fmt.Errorf("attach netstack to %s: %s", s.link.Name(), err)
	}
	// Every address is ours: accept packets for any destination, and send answers from any source.
	if err := s.gv.SetPromiscuousMode(nicID, true); err != nil {
		return fmt.Errorf("set netstack promiscuous: %s", err)
	}
	if err := s.gv.SetSpoofing(nicID, true); err != nil {
		return fmt.Errorf("let netstack spoof: %s", err)
	}
	s.gv.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	return nil
}

// stopTimeout is how long a handshake may take once the stack stops. A handshake that is given up is not necessarily
// reset, so the time is long enough for destroy's own reset to come first. A test that stops thousands of stacks
// shortens it.
var stopTimeout = 50 * time.Millisecond

// destroy ends everything that Serve began. It resets the endpoints while the link still takes packets, so that
// applications learn of it.
func (s *Stack) destroy() {
	ended := make(chan struct{})
	go s.awaitHandlers(ended)
	for waiting := true; waiting; {
		for _, ep := range s.gv.RegisteredEndpoints() {
			reset(ep)
		}
		select {
		case <-ended:
			waiting = false
		case <-time.After(stopTimeout / 5): // an endpoint may have appeared after we looked
			s.lapse(stopTimeout, ErrGone)
		}
	}
	// Stop the reader first: RemoveNIC waits for it under a lock that the packet being delivered may need.
	s.replies.close()
	s.link.Endpoint().Attach(nil)
	s.gv.RemoveNIC(nicID)
	s.closeListeners()
	s.gv.Destroy()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.flows {
		f.releaseSYN()
	}
	clear(s.flows)
}

// reset ends an endpoint with a reset, even in SYN-RCVD: the application may have seen our SYN-ACK, and gVisor sends
// no reset in that state unless asked to (closeLocked).
func reset(ep stack.TransportEndpoint) {
	if e, ok := ep.(tcpip.Endpoint); ok {
		e.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: true})
	}
	ep.Abort()
}

// awaitHandlers closes ended when no handler runs and none will start.
func (s *Stack) awaitHandlers(ended chan<- struct{}) {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.handlers.Wait()
	close(ended)
}

// Stats returns the counters.
func (s *Stack) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{
		Flows: s.total.Load(), Parked: len(s.parked), Open: len(s.flows), Dropped: s.dropped.Load(),
		// To list gVisor's endpoints would take a millisecond for each thousand.
		Endpoints: int(s.gv.Stats().TCP.CurrentConnected.Value()) + len(s.shaking),
	}
}

// context returns Serve's context. Serve runs as long as there are flows.
func (s *Stack) context() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.serve.ctx
}

// handleTCP receives the segments that belong to no endpoint. A SYN becomes a parked flow; anything else is left to
// gVisor, which answers with a reset.
func (s *Stack) handleTCP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.TCP(pkt.TransportHeader().Slice())
	if len(h) < header.TCPMinimumSize || len(h) != int(h.DataOffset()) ||
		h.Flags()&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn {
		return false
	}
	if n := pkt.Network(); !pkt.RXChecksumValidated &&
		!h.IsChecksumValid(n.SourceAddress(), n.DestinationAddress(), pkt.Data().Checksum(), uint16(pkt.Data().Size())) {
		return false
	}
	if f := s.park(id, h.SequenceNumber(), pkt); f != nil && s.turns.begin(f) {
		s.start(f)
	}
	return true
}

// park registers a new flow. It returns nil if the SYN is to be ignored.
func (s *Stack) park(id stack.TransportEndpointID, isn uint32, pkt *stack.PacketBuffer) *Flow {
	key := s.turns.line(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serve == nil || s.stopped {
		return nil
	}
	if old := s.flows[id]; old != nil && !old.retired {
		return nil // its endpoint is about to be registered
	}
	if len(s.parked) >= s.maxParked {
		s.dropped.Add(1)
		return nil
	}
	f := newFlow(s, id, isn, pkt)
	f.line = key
	f.number = s.total.Add(1)
	s.flows[id] = f
	s.parked[f] = struct{}{}
	s.handlers.Add(1)
	return f
}

// start runs the handler of f on a worker. It reports false if the flow has been given up in the meantime.
func (s *Stack) start(f *Flow) bool {
	ctx := s.begin(f)
	if ctx == nil {
		f.Drop()
		f.Done()
		return false
	}
	s.workers.do(task{flow: f, ctx: ctx})
	return true
}

// begin returns the context for the handler of f, which giveUp ends. It returns nil if the handler must not run any
// more.
func (s *Stack) begin(f *Flow) (ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.phase == parked && !s.stopped {
		ctx, f.giveUp = context.WithCancel(s.serve.ctx)
	}
	return ctx
}

// tcpProtocol is gVisor's TCP protocol, whose type is not exported.
type tcpProtocol interface {
	stack.TransportProtocol
	QueuePacket(stack.TransportEndpoint, stack.TransportEndpointID, *stack.PacketBuffer)
}

// protocolOf returns the network protocol of an address.
func protocolOf(a tcpip.Address) tcpip.NetworkProtocolNumber {
	if a.Len() == header.IPv4AddressSize {
		return header.IPv4ProtocolNumber
	}
	return header.IPv6ProtocolNumber
}

// endpoint returns gVisor's endpoint for a 4-tuple, or nil.
func (s *Stack) endpoint(id stack.TransportEndpointID) stack.TransportEndpoint {
	return s.gv.FindTransportEndpoint(protocolOf(id.RemoteAddress), tcp.ProtocolNumber, id, nicID)
}

// known returns the flow of a 4-tuple, or nil.
func (s *Stack) known(id stack.TransportEndpointID) *Flow {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flows[id]
}

// forget takes f out of the table, unless another flow has taken its place. It reports whether f was there. s.mu must
// not be held.
func (s *Stack) forget(f *Flow) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flows[f.id] != f {
		return false
	}
	delete(s.flows, f.id)
	return true
}
