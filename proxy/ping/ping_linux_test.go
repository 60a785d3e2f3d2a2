package ping_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
	"pinproxy/proxy/ping"
	"pinproxy/proxy/udp"
)

func TestMain(m *testing.M) { lab.Main(m) }

// echo is an application's echo request.
type echo struct {
	message []byte
	replies chan []byte
	told    chan syscall.Errno
}

func (e *echo) Src() netip.AddrPort             { return netip.MustParseAddrPort("192.0.2.1:77") }
func (e *echo) Dst() netip.AddrPort             { return netip.MustParseAddrPort("203.0.113.5:0") }
func (e *echo) TTL() uint8                      { return 64 }
func (e *echo) DontFragment() bool              { return false }
func (e *echo) Payload() []byte                 { return e.message }
func (e *echo) Release()                        {}
func (e *echo) Reply(b []byte) error            { e.replies <- slices.Clone(b); return nil }
func (e *echo) Unreachable(errno syscall.Errno) { e.told <- errno }
func (e *echo) ICMP(udp.ICMPError)              { e.told <- 0 }

func newEcho(typ byte, seq uint16, payload string) *echo {
	e := &echo{append(make([]byte, 8), payload...), make(chan []byte, 10), make(chan syscall.Errno, 10)}
	e.message[0] = typ
	binary.BigEndian.PutUint16(e.message[6:], seq)
	return e
}

// reply waits for what the application receives.
func (e *echo) reply(t *testing.T) []byte {
	t.Helper()
	select {
	case b := <-e.replies:
		return b
	case errno := <-e.told:
		t.Fatal("unreachable:", errno)
	case <-time.After(30 * time.Second):
		t.Fatal("no reply within 30 s")
	}
	return nil
}

// The loopback addresses that answer here, with the types of request and reply.
var loopbacks = map[string]struct {
	addr           string
	request, reply byte
}{"ipv4": {"127.0.0.1", 8, 0}, "ipv6": {"::1", 128, 129}}

// pinger returns a host that may not ping, like any new network namespace, and a dialer for sockets of its own to
// addr.
func pinger(t *testing.T, addr string) (h *lab.Host, conns chan net.Conn, dial udp.Dialer) {
	t.Helper()
	h = lab.ForTest(t).Host("host")
	conns = make(chan net.Conn, 1)
	return h, conns, func(ctx context.Context, _ netip.AddrPort) (c net.Conn, err error) {
		err = h.Do(func() error {
			c, err = ping.Dial(ctx, netip.AddrPortFrom(netip.MustParseAddr(addr), 0))
			return err
		})
		if err == nil {
			conns <- c
		}
		return c, err
	}
}

// mayPing allows root to ping, which is the user of these tests.
func mayPing(h *lab.Host) { h.Sysctl("net.ipv4.ping_group_range", "0 0") }

func serve(t *testing.T, r *udp.Relay) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- r.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
}

func TestPing(t *testing.T) {
	for name, lo := range loopbacks {
		t.Run(name, func(t *testing.T) {
			h, _, dial := pinger(t, lo.addr)
			mayPing(h)
			r := ping.NewRelay(dial, nil)
			serve(t, r)
			sizes := []int{0, 56, 65507}
			if name == "ipv6" && !lab.KernelIs(6, 1) {
				sizes = sizes[:2] // that of more than a page has a wrong checksum
			}
			for seq, size := range sizes {
				e := newEcho(lo.request, uint16(seq), strings.Repeat("x", size))
				r.Handle(e)
				got := e.reply(t)
				if len(got) != len(e.message) || got[0] != lo.reply || string(got[6:]) != string(e.message[6:]) {
					t.Errorf("%d bytes, sequence number %d: %d bytes back, type %d", size, seq, len(got), got[0])
				}
			}
			if s := r.Stats(); s.Total != 1 {
				t.Errorf("%+v, want one flow for one identifier", s)
			}
		})
	}
}

// The kernel passes on every reply with our identifier, whichever host sends it.
func TestPingHearsNoStranger(t *testing.T) {
	h, conns, dial := pinger(t, "127.0.0.1")
	mayPing(h)
	r := ping.NewRelay(dial, nil)
	serve(t, r)
	e := newEcho(8, 1, "x")
	r.Handle(e)
	e.reply(t)
	id := uint16((<-conns).LocalAddr().(*net.UDPAddr).Port)
	err := h.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 2}}); err != nil {
			return err
		}
		forged := make([]byte, 8)
		binary.BigEndian.PutUint16(forged[4:], id)
		binary.BigEndian.PutUint16(forged[6:], 2)
		binary.BigEndian.PutUint16(forged[2:], ^(id + 2))
		return unix.Sendto(fd, forged, 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	})
	if err != nil {
		t.Fatal(err)
	}
	next := newEcho(8, 3, "y")
	next.replies = e.replies
	r.Handle(next)
	if got := next.reply(t); got[7] != 3 {
		t.Errorf("a reply with sequence number %d, want 3", got[7])
	}
}

func TestPingForbidden(t *testing.T) {
	for name, lo := range loopbacks {
		t.Run(name, func(t *testing.T) {
			_, _, dial := pinger(t, lo.addr)
			_, err := dial(t.Context(), netip.AddrPort{})
			if !errors.Is(err, syscall.EACCES) || !strings.Contains(err.Error(), "net.ipv4.ping_group_range") {
				t.Errorf("Dial = %v, want EACCES and what to do", err)
			}
			r := ping.NewRelay(dial, nil)
			serve(t, r)
			e := newEcho(lo.request, 1, "x")
			r.Handle(e)
			if errno := <-e.told; errno != syscall.EACCES {
				t.Errorf("the application is told %v, want EACCES", errno)
			}
		})
	}
}

// What the host prohibits is not put down to the group: broadcast, for one.
func TestProhibitedDestination(t *testing.T) {
	host := lab.ForTest(t).Topology().Client
	host.Sysctl("net.ipv4.ping_group_range", "0 2147483647")
	if err := host.Do(func() error {
		_, err := ping.Dial(t.Context(), netip.MustParseAddrPort("255.255.255.255:0"))
		if !errors.Is(err, syscall.EACCES) || strings.Contains(err.Error(), "ping_group_range") {
			t.Errorf("Dial = %v, want EACCES and nothing about the group", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
