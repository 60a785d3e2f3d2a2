package netstack

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"pinproxy/netstack/link"
	"pinproxy/netstack/netstacktest"
)

// The number of handshakes under way is limited, too.
func TestNoRoomForHandshake(t *testing.T) {
	l, client, err := netstacktest.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	s, err := New(l, Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	accepted, served := make(chan error, 1), make(chan error, 1)
	go func() {
		served <- s.Serve(ctx, func(_ context.Context, f *Flow) {
			s.mu.Lock()
			s.maxParked = 0
			s.mu.Unlock()
			_, err := f.Accept()
			accepted <- err
		})
	}()
	<-s.Ready()
	dialed, giveUp := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer giveUp()
	_, _ = client.Dial(dialed, netip.AddrPort{}, netip.MustParseAddrPort("203.0.113.5:443"))
	if err := <-accepted; !errors.Is(err, syscall.ENOBUFS) {
		t.Errorf("Accept = %v, want %v", err, syscall.ENOBUFS)
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve = %v", err)
	}
	if len(s.answering) != 0 || len(s.flows) != 0 {
		t.Errorf("%d handshakes under way and %d flows known after Serve", len(s.answering), len(s.flows))
	}
}

// shaky is a stack whose applications are played by this test, packet by packet. Its handler answers each flow.
type shaky struct {
	*Stack
	device   *channel.Endpoint
	accepted chan error
	served   chan error
	stop     func()
}

func newShaky(t *testing.T, offloads stack.LinkEndpointCapabilities) *shaky {
	accepted := make(chan error, 1024)
	k := newShakyWith(t, offloads, func(c Conn, err error) {
		accepted <- err
		if err == nil {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	})
	k.accepted = accepted
	return k
}

// newShakyWith returns a shaky stack that calls then for each flow.
func newShakyWith(t *testing.T, offloads stack.LinkEndpointCapabilities, then func(Conn, error)) *shaky {
	device := channel.New(1024, 1500, "")
	device.LinkEPCapabilities = offloads
	k := &shaky{device: device}
	k.serve(t, device, func(_ context.Context, f *Flow) { f.AcceptFunc(then) })
	return k
}

// serve starts the stack on k.device, or on an endpoint that wraps it.
func (k *shaky) serve(t *testing.T, device stack.LinkEndpoint, h Handler) {
	s, err := New(link.New("channel", device, nil), Config{})
	if err != nil {
		t.Fatal(err)
	}
	k.start(t, s, h)
}

// start is serve for a stack that has been made already.
func (k *shaky) start(t *testing.T, s *Stack, h Handler) {
	ctx, cancel := context.WithCancel(t.Context())
	k.Stack, k.served, k.stop = s, make(chan error, 1), cancel
	go func() { k.served <- s.Serve(ctx, h) }()
	<-s.Ready()
	t.Cleanup(func() { k.end(t) })
}

// end stops the stack and checks that it has forgotten everything. It may be called twice.
func (k *shaky) end(t *testing.T) {
	k.stop()
	if err, ok := <-k.served; err != nil {
		t.Errorf("Serve = %v", err)
	} else if !ok {
		return
	}
	close(k.served)
	if len(k.answering) != 0 || len(k.shaking) != 0 || len(k.flows) != 0 {
		t.Errorf("%d handshakes under way, %d endpoints of such and %d flows known after Serve", len(k.answering), len(k.shaking), len(k.flows))
	}
	k.device.Close()
}

// send sends a segment from a port of the application's host, with a wrong checksum.
func (k *shaky) send(port uint16, flags header.TCPFlags, seq, ack uint32) {
	k.sendWith(nil, port, flags, seq, ack, 65535)
}

// sendWith sends a segment with IP options and a window.
func (k *shaky) sendWith(options header.IPv4OptionsSerializer, port uint16, flags header.TCPFlags, seq, ack uint32, window uint16) {
	k.sendTCP(options, header.TCPFields{SrcPort: port, Flags: flags, SeqNum: seq, AckNum: ack, WindowSize: window}, nil)
}

// sendSYN sends a SYN with TCP options.
func (k *shaky) sendSYN(port uint16, isn uint32, options []byte) {
	k.sendTCP(nil, header.TCPFields{SrcPort: port, Flags: header.TCPFlagSyn, SeqNum: isn, WindowSize: 65535}, options)
}

func (k *shaky) sendTCP(ipOptions header.IPv4OptionsSerializer, fields header.TCPFields, options []byte) {
	fields.DstPort, fields.DataOffset = 443, uint8(header.TCPMinimumSize+len(options))
	b := make([]byte, header.IPv4MinimumSize+int(ipOptions.Length())+int(fields.DataOffset))
	ip := header.IPv4(b)
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(b)), TTL: 64, Protocol: uint8(tcp.ProtocolNumber), SrcAddr: tcpip.AddrFrom4([4]byte{192, 0, 2, 1}), DstAddr: tcpip.AddrFrom4([4]byte{203, 0, 113, 5}), Options: ipOptions})
	ip.SetChecksum(^ip.CalculateChecksum())
	segment := header.TCP(b[ip.HeaderLength():])
	segment.Encode(&fields)
	copy(segment[header.TCPMinimumSize:], options)
	k.inject(b)
}

func (k *shaky) inject(b []byte) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	k.device.InjectInbound(header.IPv4ProtocolNumber, pkt)
	pkt.DecRef()
}

// heard returns the next segment to the application's host.
func (k *shaky) heard(t *testing.T, flags header.TCPFlags) header.TCP {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	pkt := k.device.ReadContext(ctx)
	if pkt == nil {
		t.Fatalf("no packet, want %v", flags)
	}
	defer pkt.DecRef()
	h := header.TCP(slices.Clone(pkt.TransportHeader().Slice()))
	if h.Flags() != flags {
		t.Fatalf("flags are %v, want %v", h.Flags(), flags)
	}
	return h
}

// An application that never confirms the handshake is given up in time, and when the stack stops.
func TestSilentInTheHandshake(t *testing.T) {
	for _, stops := range []bool{false, true} {
		k := newShaky(t, stack.CapabilityRXChecksumOffload)
		k.send(4711, header.TCPFlagSyn, 0, 0)
		k.heard(t, synAck)
		k.lapse(time.Hour, errUnconfirmed)
		select {
		case err := <-k.accepted:
			t.Errorf("Accept = %v before its time", err)
		case <-time.After(10 * time.Millisecond):
		}
		if stops {
			k.stop()
		} else {
			k.lapse(0, errUnconfirmed)
		}
		if err := <-k.accepted; stops != errors.Is(err, ErrGone) || stops == errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("stops: %v: Accept = %v", stops, err)
		}
		if !stops { // otherwise it may be thrown away with the device
			k.heard(t, header.TCPFlagRst|header.TCPFlagAck)
		}
		k.end(t)
	}
}

const synAck = header.TCPFlagSyn | header.TCPFlagAck

// A listener that can't be had is an error, not a wait without end.
func TestNoListener(t *testing.T) {
	s, err := New(link.New("channel", channel.New(1, 1500, ""), nil), Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.gv.Destroy()
	failed := make(chan error, 1)
	go func() {
		_, err := s.listenerOf(listenerKey{proto: header.IPv4ProtocolNumber, receive: tcp.DefaultReceiveBufferSize}) // without a NIC
		failed <- err
	}()
	select {
	case err := <-failed:
		if err == nil {
			t.Error("there is one without a NIC")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("no answer")
	}
}

// An application that resets during the handshake is noticed at once. So is one that closes its socket, which sends
// nothing, and then tries again from the same port.
func TestGivenUpInTheHandshake(t *testing.T) {
	k := newShaky(t, stack.CapabilityRXChecksumOffload)
	k.send(4711, header.TCPFlagSyn, 1000, 0)
	k.heard(t, synAck)
	k.send(4711, header.TCPFlagRst, 1001, 0)
	if err := <-k.accepted; !errors.Is(err, ErrGone) {
		t.Errorf("reset: Accept = %v, want %v", err, ErrGone)
	}
	k.send(4711, header.TCPFlagSyn, 1500, 0)
	taken := k.heard(t, synAck)
	k.send(4711, header.TCPFlagRst|header.TCPFlagAck, 1501, taken.SequenceNumber()+1)
	if err := <-k.accepted; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("connected and reset: Accept = %v, want %v", err, syscall.ECONNRESET)
	}
	k.send(4711, header.TCPFlagSyn, 2000, 0)
	first := k.heard(t, synAck)
	k.send(4711, header.TCPFlagSyn, 3000, 0)
	if err := <-k.accepted; !errors.Is(err, ErrGone) {
		t.Errorf("another SYN: Accept = %v, want %v", err, ErrGone)
	}
	second := k.heard(t, synAck)
	if got := second.AckNumber(); got != 3001 {
		t.Errorf("what came after the second SYN acknowledges %d, want 3001", got)
	}
	k.send(4711, header.TCPFlagAck, 2001, first.SequenceNumber()+1) // late
	k.send(4711, header.TCPFlagAck, 3001, second.SequenceNumber()+1)
	if err := <-k.accepted; err != nil {
		t.Errorf("Accept = %v", err)
	}
}

// opens finishes the handshake of the SYN with this sequence number.
func (k *shaky) opens(t *testing.T, port uint16, isn uint32) {
	t.Helper()
	h := k.heard(t, synAck)
	if got := h.AckNumber(); got != isn+1 {
		t.Errorf("the SYN-ACK acknowledges %d, want %d", got, isn+1)
	}
	k.send(port, header.TCPFlagAck, isn+1, h.SequenceNumber()+1)
	if err := <-k.accepted; err != nil {
		t.Errorf("Accept = %v", err)
	}
}

// An application may also try again before gVisor has been shown the first SYN.
func TestGivenUpBeforeTheHandshake(t *testing.T) {
	k := newShaky(t, stack.CapabilityRXChecksumOffload)
	again := sync.OnceFunc(func() {
		k.send(4711, header.TCPFlagSyn, 2000, 0)
		if err := <-k.accepted; !errors.Is(err, ErrGone) {
			t.Errorf("another SYN: Accept = %v, want %v", err, ErrGone)
		}
	})
	k.cfg.Path = func(netip.Addr) int { // called in between
		again()
		return 0
	}
	k.send(4711, header.TCPFlagSyn, 1000, 0)
	k.opens(t, 4711, 2000)
}

// The application may try again at the very moment in which its flow is answered.
func TestGivenUpAtOnce(t *testing.T) {
	k := newShaky(t, stack.CapabilityRXChecksumOffload)
	begun := time.Now()
	for port := uint16(1024); port < 1524; port++ {
		if time.Since(begun) > handshakeTimeout/2 {
			break // with one processor, a try takes 40 ms; the second SYN's flow must not time out
		}
		id := stack.TransportEndpointID{
			LocalAddress: tcpip.AddrFrom4([4]byte{203, 0, 113, 5}), LocalPort: 443,
			RemoteAddress: tcpip.AddrFrom4([4]byte{192, 0, 2, 1}), RemotePort: port,
		}
		k.send(port, header.TCPFlagSyn, 1000, 0)
		f := k.known(id)
		for parks := true; parks; {
			k.mu.Lock()
			parks = f.phase == parked
			k.mu.Unlock()
		}
		k.send(port, header.TCPFlagSyn, 2000, 0)
		if err := <-k.accepted; !errors.Is(err, ErrGone) {
			t.Errorf("another SYN: Accept = %v, want %v", err, ErrGone)
		}
	}
}

// eager is a device whose application has reacted to a packet before the write of it returns.
type eager struct {
	*channel.Endpoint
	react func(*stack.PacketBuffer)
}

func (e *eager) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for _, pkt := range pkts.AsSlice() {
		e.react(pkt)
	}
	return e.Endpoint.WritePackets(pkts)
}

// An application that binds its own port may try again as soon as it has our answer, or our reset.
func TestTriesAgainAtOnce(t *testing.T) {
	for name, answer := range map[string]func(*Flow){
		"refused":     func(f *Flow) { f.Reject(syscall.ECONNREFUSED) },
		"unreachable": func(f *Flow) { f.Reject(syscall.EHOSTUNREACH) },
		"reset": func(f *Flow) {
			if c, err := f.Accept(); err == nil {
				_ = c.SetLinger(0)
				_ = c.Close()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := &shaky{device: channel.New(1024, 1500, "")}
			k.device.LinkEPCapabilities = stack.CapabilityRXChecksumOffload
			again := sync.OnceFunc(func() { k.send(4711, header.TCPFlagSyn, 2000, 0) })
			came := make(chan uint32, 2)
			k.serve(t, &eager{k.device, func(pkt *stack.PacketBuffer) {
				if h := header.TCP(pkt.TransportHeader().Slice()); len(h) >= header.TCPMinimumSize && h.Flags() == synAck {
					k.send(4711, header.TCPFlagAck, h.AckNumber(), h.SequenceNumber()+1)
				} else {
					again()
				}
			}}, func(_ context.Context, f *Flow) {
				came <- f.isn
				if f.isn == 1000 {
					answer(f)
				}
			})
			k.send(4711, header.TCPFlagSyn, 1000, 0)
			for _, want := range []uint32{1000, 2000} {
				select {
				case isn := <-came:
					if isn != want {
						t.Errorf("a flow with sequence number %d, want %d", isn, want)
					}
				case <-time.After(5 * time.Second):
					t.Fatalf("no flow with sequence number %d", want)
				}
			}
		})
	}
}

// If the application ends a connection before gVisor gets to its ACK, its handshake is not taken for that of the next
// connection from the same port.
func TestShakenIsWhoseEndpointItIs(t *testing.T) {
	k := newShaky(t, stack.CapabilityRXChecksumOffload)
	k.send(4711, header.TCPFlagSyn, 1000, 0)
	k.heard(t, synAck)
	k.mu.Lock()
	var old *tcp.Endpoint
	for ep := range k.shaking {
		old = ep
	}
	k.mu.Unlock()
	k.send(4711, header.TCPFlagSyn, 2000, 0)
	if err := <-k.accepted; !errors.Is(err, ErrGone) {
		t.Errorf("Accept = %v, want %v", err, ErrGone)
	}
	second := k.heard(t, synAck)
	k.shaken(old, nil)
	select {
	case err := <-k.accepted:
		t.Errorf("Accept = %v by another connection's endpoint", err)
	case <-time.After(10 * time.Millisecond):
	}
	k.send(4711, header.TCPFlagAck, 2001, second.SequenceNumber()+1)
	if err := <-k.accepted; err != nil {
		t.Errorf("Accept = %v", err)
	}
}

// An application may give up after gVisor has been shown its SYN, but before gVisor answers. The endpoint that gVisor
// makes then is not taken for that of the next connection from the same port, and is not in its way.
func TestSYNACKOfThePredecessor(t *testing.T) {
	k := newShaky(t, stack.CapabilityRXChecksumOffload)
	l, err := k.listenerOf(listenerKey{proto: header.IPv4ProtocolNumber, receive: int(k.receiveBuffer.Load())})
	if err != nil {
		t.Fatal(err)
	}
	l.StopWork()
	under := func(isn uint32) func() bool {
		return func() bool {
			k.mu.Lock()
			defer k.mu.Unlock()
			for f := range k.answering {
				return f.isn == isn
			}
			return false
		}
	}
	k.send(4711, header.TCPFlagSyn, 1000, 0)
	if !Eventually(t, "the first handshake is under way", under(1000)) {
		return
	}
	k.send(4711, header.TCPFlagSyn, 2000, 0)
	if err := <-k.accepted; !errors.Is(err, ErrGone) {
		t.Errorf("Accept = %v, want %v", err, ErrGone)
	}
	if !Eventually(t, "the second handshake is under way", under(2000)) {
		return
	}
	l.ResumeWork()
	k.opens(t, 4711, 2000)
}

// crossing is a device that calls passed with a packet that has passed the gate. deliver gives it to gVisor.
type crossing struct {
	*channel.Endpoint
	stack.NetworkDispatcher
	passed func(deliver func())
}

func (c *crossing) Attach(d stack.NetworkDispatcher) {
	if in, ok := d.(*inbound); ok {
		c.NetworkDispatcher, in.NetworkDispatcher = in.NetworkDispatcher, c
	}
	c.Endpoint.Attach(d)
}

func (c *crossing) DeliverNetworkPacket(proto tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	c.passed(func() { c.NetworkDispatcher.DeliverNetworkPacket(proto, pkt) })
}

// gVisor may make the endpoint of the SYN that was given up just when the next one comes. The endpoint does not get
// that one, which it would refuse. A SYN with IP options is lost; the application's kernel repeats it.
func TestGivenUpWhileItsEndpointIsMade(t *testing.T) {
	for name, options := range map[string]header.IPv4OptionsSerializer{
		"plain":      nil,
		"IP options": {&header.IPv4SerializableRouterAlertOption{}},
	} {
		t.Run(name, func(t *testing.T) { testGivenUpWhileItsEndpointIsMade(t, options) })
	}
}

func testGivenUpWhileItsEndpointIsMade(t *testing.T, options header.IPv4OptionsSerializer) {
	k := &shaky{device: channel.New(1024, 1500, ""), accepted: make(chan error, 2)}
	k.device.LinkEPCapabilities = stack.CapabilityRXChecksumOffload
	device := &crossing{Endpoint: k.device, passed: func(deliver func()) { deliver() }}
	k.serve(t, device, func(_ context.Context, f *Flow) {
		f.AcceptFunc(func(c Conn, err error) {
			if k.accepted <- err; err == nil {
				_ = c.Close()
			}
		})
	})
	l, err := k.listenerOf(listenerKey{proto: header.IPv4ProtocolNumber, receive: int(k.receiveBuffer.Load())})
	if err != nil {
		t.Fatal(err)
	}
	l.StopWork()
	resume := sync.OnceFunc(l.ResumeWork)
	defer resume()
	k.send(4711, header.TCPFlagSyn, 1000, 0)
	shown := func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return len(k.answering) == 1
	}
	if !Eventually(t, "the first handshake is under way", shown) {
		return
	}
	device.passed = func(deliver func()) {
		k.mu.Lock() // keeps the endpoint where it is once it is registered
		defer k.mu.Unlock()
		resume()
		Eventually(t, "the endpoint is registered", func() bool { return len(k.gv.RegisteredEndpoints()) == 1 })
		deliver()
	}
	k.sendWith(options, 4711, header.TCPFlagSyn, 2000, 0, 65535)
	resume()
	if err := <-k.accepted; !errors.Is(err, ErrGone) {
		t.Errorf("Accept = %v, want %v", err, ErrGone)
	}
	if options != nil {
		device.passed = func(deliver func()) { deliver() }
		Eventually(t, "the first SYN's endpoint has come and gone", func() bool {
			return k.gv.Stats().TCP.SegmentsSent.Value() > 0 && len(k.gv.RegisteredEndpoints()) == 0
		})
		k.sendWith(options, 4711, header.TCPFlagSyn, 2000, 0, 65535)
	}
	k.opens(t, 4711, 2000)
}

// An application may try again from the same port while its late handshake is being ended.
func TestTriesAgainWhileTheHandshakeLapses(t *testing.T) {
	k := newShaky(t, stack.CapabilityRXChecksumOffload)
	k.send(4711, header.TCPFlagSyn, 1000, 0)
	k.heard(t, synAck)
	k.mu.Lock()
	var late *Flow
	for _, f := range k.shaking {
		late = f
	}
	k.mu.Unlock()
	late.shaking.StopWork() // its reset waits for this
	resume := sync.OnceFunc(late.shaking.ResumeWork)
	defer resume()
	go k.lapse(0, ErrGone)
	if !Eventually(t, "the flow is forgotten", func() bool { return k.known(late.id) == nil }) {
		return
	}
	k.send(4711, header.TCPFlagSyn, 2000, 0)
	k.opens(t, 4711, 2000)
	resume()
	if err := <-k.accepted; !errors.Is(err, ErrGone) {
		t.Errorf("Accept = %v, want %v", err, ErrGone)
	}
}

// A reset with which the application answers something of a predecessor's does not end the connection. Another SYN
// does.
func TestResetOfThePredecessor(t *testing.T) {
	k := newShaky(t, stack.CapabilityRXChecksumOffload)
	k.send(4711, header.TCPFlagSyn, 1000, 0)
	k.heard(t, synAck)
	k.send(4711, header.TCPFlagRst, 501, 0)
	k.send(4711, header.TCPFlagSyn, 2000, 0)
	select {
	case err := <-k.accepted:
		if !errors.Is(err, ErrGone) {
			t.Errorf("Accept = %v, want %v", err, ErrGone)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the handshake goes on although there was another SYN")
	}
}

// No goroutine waits for an application's ACK; only a limited number of idle ones wait for a flow.
func TestHandshakesHaveNoGoroutine(t *testing.T) {
	k := newShaky(t, stack.CapabilityRXChecksumOffload)
	before := runtime.NumGoroutine()
	const flows = 4 * maxIdle
	for i := range flows {
		port := uint16(10000 + i)
		k.send(port, header.TCPFlagSyn, 0, 0)
		for k.heard(t, synAck).DestinationPort() != port {
			// After a second without an ACK, gVisor repeats an earlier one.
		}
	}
	most := before + maxIdle + 8
	for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > most && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if n := runtime.NumGoroutine(); n > most {
		t.Errorf("%d goroutines before %d handshakes, %d while they last", before, flows, n)
	}
	if n := len(k.gv.RegisteredEndpoints()); n != flows {
		t.Errorf("%d endpoints are registered, want one for each of %d handshakes and no listener", n, flows)
	}
}

// gVisor writes nothing to stderr.
func TestSilence(t *testing.T) {
	newShaky(t, 0)
	if _, ok := log.Log().Emitter.(nowhere); !ok {
		t.Errorf("gVisor logs to %T", log.Log().Emitter)
	}
}

// A SYN that was damaged on its way does not become a flow.
func TestDamagedSYN(t *testing.T) {
	k := newShaky(t, 0)
	k.send(4711, header.TCPFlagSyn, 0, 0)
	if n := k.Stats().Flows; n != 0 {
		t.Errorf("%d flows", n)
	}
}

// Nor does one whose options end before they begin, or beyond its own end.
func TestMalformedSYN(t *testing.T) {
	k := newShaky(t, stack.CapabilityRXChecksumOffload)
	for _, offset := range []uint8{0, 16, 24, 60} {
		b := make([]byte, header.IPv4MinimumSize+header.TCPMinimumSize)
		ip := header.IPv4(b)
		ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(b)), TTL: 64, Protocol: uint8(tcp.ProtocolNumber), SrcAddr: tcpip.AddrFrom4([4]byte{192, 0, 2, 1}), DstAddr: tcpip.AddrFrom4([4]byte{203, 0, 113, 5})})
		ip.SetChecksum(^ip.CalculateChecksum())
		header.TCP(ip.Payload()).Encode(&header.TCPFields{SrcPort: 4711, DstPort: 443, DataOffset: offset, Flags: header.TCPFlagSyn, WindowSize: 65535})
		k.inject(b)
	}
	if n := k.Stats().Flows; n != 0 {
		t.Errorf("%d flows", n)
	}
}

// RACK is for hosts behind this one, whose link may be lossy.
func TestLossRecovery(t *testing.T) {
	for _, test := range []struct {
		path func(netip.Addr) int
		want tcpip.TCPRecovery
	}{
		{nil, 0},
		{func(netip.Addr) int { return 0 }, tcpip.TCPRACKLossDetection},
	} {
		l, client, err := netstacktest.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		s, err := New(l, Config{Path: test.path})
		if err != nil {
			t.Fatal(err)
		}
		var got tcpip.TCPRecovery
		if err := s.gv.TransportProtocolOption(tcp.ProtocolNumber, &got); err != nil || got != test.want {
			t.Errorf("with hosts behind: %v: %v, %v; want %v", test.path != nil, got, err, test.want)
		}
		s.gv.Destroy()
		client.Close()
	}
}

// A signature is found wherever it stands among the options, and rubbish is none.
func TestSigned(t *testing.T) {
	mss := []byte{2, 4, 0x05, 0xb4}
	for _, c := range []struct {
		options []byte
		want    bool
	}{
		{nil, false},
		{append(mss, 4, 2, 1, 1), false},
		{append(append(mss, 1, 1, 19, 18), make([]byte, 16)...), true},
		{append([]byte{29, 16}, make([]byte, 14)...), true},
		{[]byte{0, 19, 18, 0}, false},
		{[]byte{8, 0, 19, 18}, false},
		{[]byte{8, 40, 19, 18}, false},
		{[]byte{1, 1, 1, 8}, false},
	} {
		if got := signed(c.options); got != c.want {
			t.Errorf("signed(%v) = %v", c.options, got)
		}
	}
}
