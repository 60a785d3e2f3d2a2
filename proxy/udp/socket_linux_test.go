package udp

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var families = map[string]struct {
	app, dst netip.AddrPort
	lo       string
	most     int
	refused  [2]uint8 // ICMP type and code
}{
	"ipv4": {app4, dst4, "127.0.0.1:0", 65507, [2]uint8{3, 3}},
	"ipv6": {app6, dst6, "[::1]:0", 65527, [2]uint8{1, 4}},
}

func listen(t testing.TB, addr string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

// to is a Dialer with a single server, whatever the destination.
func to(server net.Addr) Dialer {
	return func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", server.String())
	}
}

func read(t testing.TB, c *net.UDPConn) (string, netip.AddrPort) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, maxDatagram)
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n]), from
}

func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestThereAndBack(t *testing.T) {
	for name, f := range families {
		t.Run(name, func(t *testing.T) {
			server := listen(t, f.lo)
			before := descriptors(t)
			t.Cleanup(func() { // after the relay's
				eventually(t, "descriptors are back to the start", func() bool { return descriptors(t) <= before })
			})
			r := New(to(server.LocalAddr()), nil, Timeouts{})
			start(t, r)
			got := newInbox()
			var from netip.AddrPort
			for i, size := range []int{1, 0, 1400, 9000, f.most} {
				d := got.from(f.app, f.dst, strings.Repeat("x", size))
				d.whole = i == 0
				r.Handle(d)
				text, src := read(t, server)
				if text != d.payload || i > 0 && src != from {
					t.Fatalf("%d bytes: the server got %d from %s, want them from %s as before", size, len(text), src, from)
				}
				from = src
				if _, err := server.WriteToUDPAddrPort([]byte(text), src); err != nil {
					t.Fatal(err)
				}
				if back := receive(t, "the answer", got.replies); back != d.payload {
					t.Errorf("%d bytes there, %d back", size, len(back))
				}
				eventually(t, "release", func() bool { return d.released.Load() == 1 })
			}
			r.Handle(got.from(port(f.app, 1), f.dst, "y"))
			if _, src := read(t, server); src == from {
				t.Error("two of the application's sockets share one of ours")
			}
			if s := r.Stats(); s.Flows != 2 || s.Total != 2 || s.Dropped != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// The application does not get what other senders send to our port.
func TestStrangersAreNotHeard(t *testing.T) {
	for name, f := range families {
		t.Run(name, func(t *testing.T) {
			server, stranger := listen(t, f.lo), listen(t, f.lo)
			r := New(to(server.LocalAddr()), nil, Timeouts{})
			start(t, r)
			got := newInbox()
			r.Handle(got.from(f.app, f.dst, "x"))
			_, from := read(t, server)
			if _, err := stranger.WriteToUDPAddrPort([]byte("stranger"), from); err != nil {
				t.Fatal(err)
			}
			if _, err := server.WriteToUDPAddrPort([]byte("server"), from); err != nil {
				t.Fatal(err)
			}
			if s := receive(t, "the answer", got.replies); s != "server" {
				t.Errorf("the application got %q", s)
			}
		})
	}
}

// An ICMP error is reported once, and the datagram whose send returned it is still sent.
func TestRefused(t *testing.T) {
	for name, f := range families {
		t.Run(name, func(t *testing.T) {
			server := listen(t, f.lo)
			addr := server.LocalAddr()
			server.Close()
			r := New(to(addr), nil, Timeouts{})
			start(t, r)
			got := newInbox()
			r.Handle(got.from(f.app, f.dst, "nobody there"))
			e := receive(t, "the refusal", got.icmp)
			if e.From.IsValid() || [2]uint8{e.Type, e.Code} != f.refused || string(e.About) != "nobody there" {
				t.Errorf("the application was told %+v (%q), want type and code %v from the destination", e, e.About, f.refused)
			}
			server = listen(t, addr.String())
			r.Handle(got.from(f.app, f.dst, "somebody there"))
			if text, _ := read(t, server); text != "somebody there" {
				t.Errorf("the server got %q", text)
			}
			if len(got.icmp) != 0 || len(got.unreachable) != 0 || r.Stats().Total != 1 {
				t.Errorf("told twice, or a second flow: %+v", r.Stats())
			}
		})
	}
}

// The error is reported and nothing else is lost, whether a sender or the receiver meets it first.
func TestRefusedAgainAndAgain(t *testing.T) {
	server := listen(t, "127.0.0.1:0")
	addr := server.LocalAddr()
	server.Close()
	r := New(to(addr), nil, Timeouts{})
	start(t, r)
	got := newInbox()
	const times = 500
	for range times {
		r.Handle(got.from(app4, dst4, "x"))
	}
	// The error queue and the ICMP rate are bounded, but most come through.
	eventually(t, "the refusals", func() bool { return len(got.icmp) >= 1 })
	// All at once would fill the server's buffer, and the last datagram would be lost there.
	eventually(t, "all to be sent", func() bool { return r.queued.Load() == 0 })
	server = listen(t, addr.String())
	r.Handle(got.from(app4, dst4, "last"))
	for text := ""; text != "last"; {
		text, _ = read(t, server)
	}
	if n := r.Stats().Total; n != 1 {
		t.Errorf("%d flows, want 1", n)
	}
}

// If a sender has the kernel segment, we receive large pieces, and the application gets the separate datagrams.
func TestSegmentsArriveApart(t *testing.T) {
	for name, f := range families {
		t.Run(name, func(t *testing.T) {
			server := listen(t, f.lo)
			r := New(to(server.LocalAddr()), nil, Timeouts{})
			start(t, r)
			got := newInbox()
			r.Handle(got.from(f.app, f.dst, "x"))
			_, from := read(t, server)
			const size = 1200
			payload := make([]byte, 20*size+7)
			for i := range payload {
				payload[i] = byte(i / size)
			}
			oob := cmsg(unix.SOL_UDP, unix.UDP_SEGMENT, binary.NativeEndian.AppendUint16(nil, size))
			if _, _, err := server.WriteMsgUDPAddrPort(payload, oob, from); err != nil {
				t.Fatal(err)
			}
			var all []byte
			for i := range 21 {
				s := receive(t, "a segment", got.replies)
				if want := min(size, len(payload)-i*size); len(s) != want {
					t.Errorf("datagram %d has %d bytes, want %d", i, len(s), want)
				}
				all = append(all, s...)
			}
			if !bytes.Equal(all, payload) {
				t.Error("the bytes are others")
			}
		})
	}
}

func TestPathMTUOptionFollowsDatagram(t *testing.T) {
	server := listen(t, "127.0.0.1:0")
	conn, err := to(server.LocalAddr())(t.Context(), dst4)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSocket(conn)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, whole := range []bool{true, false, true} {
		if err := s.try(&datagram{dst: dst4, whole: whole}); err != nil {
			t.Fatal(err)
		}
		var value int
		if cerr := raw.Control(func(fd uintptr) { value, err = unix.GetsockoptInt(int(fd), unix.SOL_IP, unix.IP_MTU_DISCOVER) }); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		if value == unix.IP_PMTUDISC_DO != whole {
			t.Errorf("IP_MTU_DISCOVER is %d for a datagram with DontFragment %v", value, whole)
		}
	}
}

// cmsg returns a control message as the kernel writes it.
func cmsg(level, typ int, data []byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(data)))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.SetLen(unix.CmsgLen(len(data)))
	h.Level, h.Type = int32(level), int32(typ)
	copy(b[unix.CmsgLen(0):], data)
	return b
}

func FuzzControl(f *testing.F) {
	f.Add(cmsg(unix.SOL_UDP, unix.UDP_GRO, []byte{0xb0, 4, 0, 0}))
	f.Add(cmsg(unix.SOL_UDP, unix.UDP_GRO, []byte{0, 0}))
	f.Add(cmsg(unix.SOL_IP, unix.IP_RECVERR, slices.Concat(make([]byte, 16), []byte{unix.AF_INET, 0, 0, 0, 203, 0, 113, 1})))
	f.Add(cmsg(unix.SOL_IPV6, unix.IPV6_RECVERR, slices.Concat(make([]byte, 16), []byte{unix.AF_INET6, 0}, make([]byte, 26))))
	f.Fuzz(func(t *testing.T, control []byte) {
		if n := segment(control, maxDatagram); n <= 0 || n > maxDatagram {
			t.Errorf("datagrams of %d bytes", n)
		}
		if e, ok := parseError(control); !ok && e.from.IsValid() {
			t.Errorf("no error, but from %s", e.from)
		}
	})
}
