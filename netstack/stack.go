package netstack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

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

// DefaultMaxParked is how many SYNs may wait for an answer at a time. Each has a
// goroutine, the handler's.
const DefaultMaxParked = 32768

// Config of a Stack. The zero value is usable.
type Config struct {
	// Datagrams is called for every UDP datagram, on the goroutine that reads
	// the device: it must not block. Nil: UDP is answered with ICMP port unreachable.
	Datagrams func(*Datagram)
	// Echoes is called for every ICMP and ICMPv6 echo request, on that goroutine too.
	// Nil: they are answered with ICMP administratively prohibited.
	Echoes func(*Echo)
	// Path says how large packets to an application on another host may be, in
	// bytes; 0: it is on this one. It is called once a flow, when it is accepted. Nil: all
	// are on this one, and RACK is off, which lossy links need.
	Path func(src netip.Addr) int
	// Group says of a destination with which others it shares a turn, where there are so many connections that they
	// begin one after another: the groups are served in turns. It is called on the goroutine that reads the device, for
	// each SYN, and returns something comparable. Nil: all are one.
	Group func(dst netip.AddrPort) any
	// MaxParked bounds the flows that wait for an answer; 0: DefaultMaxParked.
	MaxParked int
}

// Stats are counters since the start.
type Stats struct {
	Flows   uint64 // SYNs that became flows
	Parked  int    // flows that wait for an answer now
	Open    int    // flows known now, parked ones included
	Dropped uint64 // SYNs that there was no room for

	Endpoints int // connections that gVisor has now, those still being ended too
}

// Handler decides on one flow. It must end it by Accept, Reject or Drop and may
// go on for as long as the connection lives, or detach it (Flow.Detach). ctx ends when
// the application gives the flow up before it was answered, the stack stops, or the
// handler returns.
type Handler func(ctx context.Context, f *Flow)

// Stack is gVisor from birth to Destroy, on one link.
//
// New starts nothing. Serve runs it once; all other methods may be called from
// any goroutine while it runs.
type Stack struct {
	link *link.Link
	cfg  Config

	gv  *stack.Stack
	tcp tcpProtocol

	receiveBuffer, sendBuffer atomic.Int64 // SetBuffer's

	ready chan struct{}

	total, dropped atomic.Uint64
	handlers       sync.WaitGroup // one for each flow whose handler has not returned, or that is detached and not done
	workers        workers
	turns          *turns
	rounds         rounds
	replies        replies

	listenMu  sync.Mutex
	listeners map[listenerKey]*listener

	mu    sync.Mutex
	flows map[stack.TransportEndpointID]*Flow

	parked, answering map[*Flow]struct{}
	shaking           map[*tcp.Endpoint]*Flow // of those that are answered, from the SYN-ACK on

	serve   *service // nil before Serve
	stopped bool     // no flow is parked any more
}

// service is one run of Serve.
type service struct {
	ctx    context.Context
	handle Handler
}

// New prepares a stack on l. The link stays the caller's, to be closed after
// Serve has returned.
func New(l *link.Link, c Config) (*Stack, error) {
	if c.MaxParked == 0 {
		c.MaxParked = DefaultMaxParked
	}
	s := &Stack{
		link:    l,
		cfg:     c,
		ready:   make(chan struct{}),
		workers: workers{tasks: make(chan task)},
		flows:   make(map[stack.TransportEndpointID]*Flow),

		listeners: make(map[listenerKey]*listener),
		parked:    make(map[*Flow]struct{}),
		answering: make(map[*Flow]struct{}),
		shaking:   make(map[*tcp.Endpoint]*Flow),
		gv: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
		}),
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
	// The other end of every connection is this machine's kernel or a host one
	// hop away, over a link that neither reorders nor duplicates what it kept back:
	// TIME_WAIT protects from nothing here and would hold each closed endpoint
	// in memory for 60 s.
	timeWait := tcpip.TCPTimeWaitTimeoutOption(0)
	if err := s.gv.SetTransportProtocolOption(tcp.ProtocolNumber, &timeWait); err != nil {
		return fmt.Errorf("set netstack's TIME_WAIT: %s", err)
	}
	if s.cfg.Path != nil {
		return nil
	}
	// What goes to this machine's kernel is lost only where that is short of memory. RACK's probe for a lost tail
	// comes after two round trips; with hundreds of busy flows these are as uneven as the scheduler, and a sixth of all
	// packets went twice.
	recovery := tcpip.TCPRecovery(0)
	if err := s.gv.SetTransportProtocolOption(tcp.ProtocolNumber, &recovery); err != nil {
		return fmt.Errorf("set netstack's loss recovery: %s", err)
	}
	return nil
}

// SetBuffer says how many bytes are kept of a connection that is accepted from now on: until
// they are read, and until the application has acknowledged them. It gets no more as long as it lives, for its window's
// scale is chosen now. Those that are open keep what they have: an application has been told of it. 0 is how it
// begins, as gVisor has it: a mebibyte, and up to four where a connection is fast.
func (s *Stack) SetBuffer(receive, send int) {
	size, most := receive, receive
	if receive == 0 {
		size, most = tcp.DefaultReceiveBufferSize, tcp.MaxBufferSize
	}
	sizes := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: size, Max: most}
	_ = s.gv.SetTransportProtocolOption(tcp.ProtocolNumber, &sizes) // fails for less than the least only
	// Endpoints have their listener's size to receive, whatever the option says. What they may send is
	// bounded by conn.open: a bound for all, below what some have, has writers wait for ever (updateSndBufferUsage).
	s.sendBuffer.Store(int64(send))
	s.receiveBuffer.Store(int64(size))
}

// Serve reads the link and calls h, on a goroutine of its own, for each flow. It
// returns nil when ctx ends, after every handler has returned, every detached flow is
// done and gVisor's goroutines are gone, or the link's error when the link fails. It can be called
// once.
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

// sweepEvery is how often parked flows are looked at for silence.
const sweepEvery = time.Second

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

// attach makes the NIC. The default handlers are set by then, so no packet
// meets a stack without them.
func (s *Stack) attach() error {
	if err := s.gv.CreateNIC(nicID, &gate{LinkEndpoint: s.link.Endpoint(), stack: s}); err != nil {
		return fmt.Errorf("attach netstack to %s: %s", s.link.Name(), err)
	}
	// Every address is ours: packets for any destination are taken, answers
	// leave with any source.
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

// stopTimeout is how long a handshake has when everything stops. Who is given up is not reset, so it is long enough for our own
// reset to come first. A test that stops thousands of times makes it shorter.
var stopTimeout = 50 * time.Millisecond

// destroy ends everything that Serve began. The endpoints are reset while the
// link still takes packets, so that applications learn of it.
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
		case <-time.After(stopTimeout / 5): // an endpoint may have come after we looked
			s.lapse(stopTimeout)
		}
	}
	// The reader first: RemoveNIC waits for it under a lock that the packet it delivers may need.
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

// reset ends an endpoint by a reset, one in SYN-RCVD too: the application may have
// seen our SYN-ACK, and gVisor sends none for it unless asked to (closeLocked).
func reset(ep stack.TransportEndpoint) {
	if e, ok := ep.(tcpip.Endpoint); ok {
		e.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: true})
	}
	ep.Abort()
}

// awaitHandlers closes ended when no handler runs and none will.
func (s *Stack) awaitHandlers(ended chan<- struct{}) {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.handlers.Wait()
	close(ended)
}

// Stats returns the counters.
func (s *Stack) Stats() Stats {
	endpoints := len(s.gv.RegisteredEndpoints()) + len(s.gv.CleanupEndpoints())
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{
		Flows: s.total.Load(), Parked: len(s.parked), Open: len(s.flows), Dropped: s.dropped.Load(),
		Endpoints: endpoints,
	}
}

// context of Serve, which is running as long as there are flows.
func (s *Stack) context() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.serve.ctx
}

// handleTCP gets the segments that belong to no endpoint. A SYN becomes a
// parked flow; anything else is left to gVisor, which answers with a reset.
func (s *Stack) handleTCP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.TCP(pkt.TransportHeader().Slice())
	if len(h) < header.TCPMinimumSize || h.Flags()&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn {
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

// park makes the flow known, and returns nil for a SYN that is to be ignored.
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
	if len(s.parked) >= s.cfg.MaxParked {
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

// start has f run by a worker. It reports false if the flow has been given up meanwhile.
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

// begin returns the context of the handler of f, which giveUp ends; nil if it is not to be run any more.
func (s *Stack) begin(f *Flow) (ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.phase == parked && !s.stopped {
		ctx, f.giveUp = context.WithCancel(s.serve.ctx)
	}
	return ctx
}

// tcpProtocol is gVisor's, whose type has no name outside.
type tcpProtocol interface {
	stack.TransportProtocol
	QueuePacket(stack.TransportEndpoint, stack.TransportEndpointID, *stack.PacketBuffer)
}

// protocolOf says of which family an address is.
func protocolOf(a tcpip.Address) tcpip.NetworkProtocolNumber {
	if a.Len() == header.IPv4AddressSize {
		return header.IPv4ProtocolNumber
	}
	return header.IPv6ProtocolNumber
}

// endpoint is gVisor's of a 4-tuple, or nil.
func (s *Stack) endpoint(id stack.TransportEndpointID) stack.TransportEndpoint {
	return s.gv.FindTransportEndpoint(protocolOf(id.RemoteAddress), tcp.ProtocolNumber, id, nicID)
}

// known is the flow of a 4-tuple, or nil.
func (s *Stack) known(id stack.TransportEndpointID) *Flow {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flows[id]
}

// forget takes f out of the table, unless another flow has its place already.
// It reports whether f was there. s.mu must not be held.
func (s *Stack) forget(f *Flow) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flows[f.id] != f {
		return false
	}
	delete(s.flows, f.id)
	return true
}
