package netstack

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"pinproxy/netstack/link"
	"pinproxy/netstack/netstacktest"
)

// A forwarder at its bound drops a SYN without a word. Neither Accept nor Serve may
// wait for it for ever.
func TestDroppedByTheForwarder(t *testing.T) {
	l, client, err := netstacktest.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	s, err := New(l, Config{})
	if err != nil {
		t.Fatal(err)
	}
	s.fwd.Store(tcp.NewForwarder(s.gv, 0, 0, s.deliver)) // room for no handshake at all
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	asked, accepted, served := make(chan struct{}), make(chan error, 1), make(chan error, 1)
	go func() {
		served <- s.Serve(ctx, func(_ context.Context, f *Flow) {
			close(asked)
			_, err := f.Accept()
			accepted <- err
		})
	}()
	<-s.Ready()
	dialed, giveUp := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer giveUp()
	_, _ = client.Dial(dialed, netip.AddrPort{}, netip.MustParseAddrPort("203.0.113.5:443"))
	<-asked
	cancel()
	select {
	case err := <-served:
		if err != nil {
			t.Errorf("Serve = %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("Serve did not end")
	}
	if err := <-accepted; !errors.Is(err, context.Canceled) {
		t.Errorf("Accept = %v, want that it ended with Serve", err)
	}
	if len(s.expected) != 0 || len(s.flows) != 0 {
		t.Errorf("%d requests expected and %d flows known after Serve", len(s.expected), len(s.flows))
	}
}

// An application that never confirms the handshake: it is given up in time, and when the stack stops.
func TestSilentInTheHandshake(t *testing.T) {
	for _, stops := range []bool{false, true} {
		device := channel.New(64, 1500, "")
		device.LinkEPCapabilities = stack.CapabilityRXChecksumOffload
		s, err := New(link.New("channel", device, nil), Config{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		accepted, served := make(chan error, 1), make(chan error, 1)
		go func() {
			served <- s.Serve(ctx, func(_ context.Context, f *Flow) {
				_, err := f.Accept()
				accepted <- err
			})
		}()
		<-s.Ready()
		b := make([]byte, header.IPv4MinimumSize+header.TCPMinimumSize)
		ip := header.IPv4(b)
		ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(b)), TTL: 64, Protocol: uint8(tcp.ProtocolNumber), SrcAddr: tcpip.AddrFrom4([4]byte{192, 0, 2, 1}), DstAddr: tcpip.AddrFrom4([4]byte{203, 0, 113, 5})})
		ip.SetChecksum(^ip.CalculateChecksum())
		header.TCP(ip.Payload()).Encode(&header.TCPFields{SrcPort: 4711, DstPort: 443, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 65535})
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
		device.InjectInbound(header.IPv4ProtocolNumber, pkt)
		pkt.DecRef()
		device.ReadContext(t.Context()).DecRef() // the SYN-ACK
		s.lapse(time.Hour)
		select {
		case err := <-accepted:
			t.Errorf("Accept = %v before its time", err)
		case <-time.After(10 * time.Millisecond):
		}
		if stops {
			cancel()
		} else {
			s.lapse(0)
		}
		if err := <-accepted; !errors.Is(err, ErrGone) {
			t.Errorf("stops: %v: Accept = %v, want %v", stops, err, ErrGone)
		}
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve = %v", err)
		}
		if len(s.answering) != 0 || len(s.flows) != 0 {
			t.Errorf("stops: %v: %d handshakes under way and %d flows known after Serve", stops, len(s.answering), len(s.flows))
		}
		device.Close()
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
