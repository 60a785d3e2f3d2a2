package link_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"pinproxy/netstack"
	"pinproxy/netstack/lab"
	"pinproxy/netstack/link"
	"pinproxy/netstack/netstacktest"
)

func TestMain(m *testing.M) { lab.Main(m) }

// open creates a device on h: up, with addresses, and with routes to the documentation prefixes.
func open(t testing.TB, h *lab.Host, c link.Config) *link.Link {
	t.Helper()
	var l *link.Link
	if err := h.Do(func() (err error) { l, err = link.Open(c); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	nl := h.Netlink()
	dev, err := nl.LinkByName(l.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"192.0.2.1/32", "2001:db8::1/128"} {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := nl.AddrAdd(dev, addr); err != nil {
			t.Fatalf("address %s: %v", a, err)
		}
	}
	if err := errors.Join(nl.LinkSetMTU(dev, l.MTU()), nl.LinkSetUp(dev)); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"203.0.113.0/24", "2001:db8:2::/64"} {
		_, dst, _ := net.ParseCIDR(p)
		if err := nl.RouteAdd(&netlink.Route{LinkIndex: dev.Attrs().Index, Dst: dst}); err != nil {
			t.Fatalf("route %s: %v", p, err)
		}
	}
	// The kernel makes a new IPv6 address reachable a little later, on a work queue.
	for deadline := time.Now().Add(30 * time.Second); ; {
		routes, err := nl.RouteGet(net.ParseIP("2001:db8::1"))
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return l
		}
		if time.Now().After(deadline) {
			t.Fatalf("the IPv6 address is not reachable: %v, %v", routes, err)
		}
		runtime.Gosched()
	}
}

// serve runs an echoing netstack on l until the test ends.
func serve(t *testing.T, l *link.Link, h netstack.Handler) {
	t.Helper()
	s, err := netstack.New(l, netstack.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, h) }()
	<-s.Ready()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

func echo(_ context.Context, f *netstack.Flow) {
	c, err := f.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

var modes = map[string]link.Config{
	"offload": {Offload: true},
	"plain":   {Name: "tun7"},
}

var dsts = map[string]string{"ipv4": "203.0.113.5:443", "ipv6": "[2001:db8:2::5]:443"}

func TestKernelToNetstackAndBack(t *testing.T) {
	for mode, c := range modes {
		t.Run(mode, func(t *testing.T) {
			h := lab.ForTest(t).Host("host")
			l := open(t, h, c)
			if l.Offload() != c.Offload {
				t.Errorf("Offload = %v, want %v", l.Offload(), c.Offload)
			}
			serve(t, l, echo)
			for family, dst := range dsts {
				t.Run(family, func(t *testing.T) {
					ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
					defer cancel()
					conn, err := h.Dial(ctx, "tcp", dst)
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					want := make([]byte, 16<<20)
					_, _ = rand.Read(want)
					go func() {
						_, _ = conn.Write(want)
						_ = conn.(*net.TCPConn).CloseWrite()
					}()
					got, err := io.ReadAll(conn)
					if err != nil || !bytes.Equal(got, want) {
						t.Errorf("echo of %d bytes: %d back, %v", len(want), len(got), err)
					}
				})
			}
		})
	}
}

// Applications see what the kernel makes of our answers to its SYN.
func TestRejectErrnos(t *testing.T) {
	tests := []struct{ reject, want syscall.Errno }{
		{syscall.ECONNREFUSED, syscall.ECONNREFUSED},
		{syscall.EHOSTUNREACH, syscall.EHOSTUNREACH},
		{syscall.ENETUNREACH, syscall.ENETUNREACH},
		{syscall.EACCES, syscall.EHOSTUNREACH},
	}
	for mode, c := range modes {
		t.Run(mode, func(t *testing.T) {
			h := lab.ForTest(t).Host("host")
			pauses := netstacktest.WatchPauses(t)
			var answer atomic.Uintptr
			serve(t, open(t, h, c), func(_ context.Context, f *netstack.Flow) { f.Reject(syscall.Errno(answer.Load())) })
			for family, dst := range dsts {
				for _, tt := range tests {
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					answer.Store(uintptr(tt.reject))
					pauses.Longest() // discard pauses so far
					start := time.Now()
					_, err := h.Dial(ctx, "tcp", dst)
					cancel()
					if took := time.Since(start); !errors.Is(err, tt.want) || took > 800*time.Millisecond+10*pauses.Longest() {
						t.Errorf("%s: connect after Reject(%v) = %v after %v, want %v at once", family, tt.reject, err, took, tt.want)
					}
				}
			}
		})
	}
}

func TestDeletedDeviceIsTold(t *testing.T) {
	for mode, c := range modes {
		t.Run(mode, func(t *testing.T) {
			h := lab.ForTest(t).Host("host")
			l := open(t, h, c)
			s, err := netstack.New(l, netstack.Config{})
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- s.Serve(t.Context(), echo) }()
			<-s.Ready()
			dev, err := h.Netlink().LinkByName(l.Name())
			if err != nil {
				t.Fatal(err)
			}
			if err := h.Netlink().LinkDel(dev); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), "tun") {
					t.Errorf("Serve = %v, want an error that names the device", err)
				}
			case <-time.After(30 * time.Second):
				t.Error("nobody was told within 30 s")
			}
		})
	}
}

func TestOpenErrors(t *testing.T) {
	h := lab.ForTest(t).Host("host")
	h.Sysctl("net.ipv4.ip_forward", "0") // the host exists
	if err := h.Netlink().LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}); err != nil {
		t.Fatal(err)
	}
	first := open(t, h, link.Config{Name: "pin0", Offload: true})
	for name, want := range map[string]string{
		first.Name():              "in use by another process",
		"br0":                     "no TUN",
		"a-name-that-is-too-long": "invalid",
		"a/b":                     "invalid",
	} {
		for mode, offload := range map[string]bool{"offload": true, "plain": false} {
			var l *link.Link
			err := h.Do(func() (err error) { l, err = link.Open(link.Config{Name: name, Offload: offload}); return err })
			if err == nil {
				_ = l.Close()
				t.Errorf("%s: open %q succeeded, as %q", mode, name, l.Name())
			} else if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: open %q: %v, want %q in it", mode, name, err, want)
			}
		}
	}
}

// The device gets the index that it is asked to have, unless another has it.
func TestIndex(t *testing.T) {
	h := lab.ForTest(t).Host("host")
	const index = 4711
	openFD := func(name string) (f link.FD, err error) {
		err = h.Do(func() (err error) {
			f, err = link.OpenFD(link.Config{Name: name, Offload: true, Index: index})
			return err
		})
		return f, err
	}
	f, err := openFD("pin0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(f.FD) }()
	l, err := h.Netlink().LinkByName("pin0")
	if err != nil || l.Attrs().Index != index || !f.Offload {
		t.Errorf("the device is %+v, %v, offload %v", l, err, f.Offload)
	}
	if f, err := openFD("pin1"); err == nil {
		_ = unix.Close(f.FD)
		t.Errorf("two devices have the index %d", index)
	}
}

// A flow has the addresses that the application sees as its own and its peer's.
func TestFlowAddresses(t *testing.T) {
	h := lab.ForTest(t).Host("host")
	flows := make(chan [2]netip.AddrPort, 1)
	serve(t, open(t, h, modes["offload"]), func(ctx context.Context, f *netstack.Flow) {
		flows <- [2]netip.AddrPort{f.Src(), f.Dst()}
		echo(ctx, f)
	})
	conn, err := h.Dial(t.Context(), "tcp", dsts["ipv4"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := <-flows; got[0].String() != conn.LocalAddr().String() || got[1].String() != dsts["ipv4"] {
		t.Errorf("flow %v, want %v to %v", got, conn.LocalAddr(), dsts["ipv4"])
	}
}

// A segment that was damaged on its way, as one from a host behind this one may be, is dropped, as any host does. An
// intact one is not.
func TestDamagedSegment(t *testing.T) {
	h := lab.ForTest(t).Host("host")
	flows := make(chan uint64, 4)
	serve(t, open(t, h, modes["offload"]), func(_ context.Context, f *netstack.Flow) {
		if f.Src().Port() == 1024 {
			flows <- f.Number()
		}
	})
	right := uint64(0)
	for _, dst := range dsts {
		to := netip.MustParseAddrPort(dst)
		whole, damaged := synFrom(to, 1024), synFrom(to, 1025)
		damaged[len(damaged)-1] ^= 1
		err := h.Do(func() error {
			fd, sa, err := rawSocket(to.Addr())
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return errors.Join(unix.Sendto(fd, damaged, 0, sa), unix.Sendto(fd, whole, 0, sa))
		})
		if err != nil {
			t.Fatal(err)
		}
		right++
		if got := <-flows; got != right { // the damaged one came first and would have been counted
			t.Fatalf("a flow of the damaged segment to %s", dst)
		}
	}
}

// rawSocket returns a socket for sending whole IP packets.
func rawSocket(to netip.Addr) (fd int, sa unix.Sockaddr, err error) {
	if to.Is4() {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return fd, &unix.SockaddrInet4{Addr: to.As4()}, err
	}
	fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	return fd, &unix.SockaddrInet6{Addr: to.As16()}, err
}

// synFrom returns a SYN with one byte of data.
func synFrom(to netip.AddrPort, port uint16) []byte {
	src := netip.MustParseAddr("192.0.2.1")
	if to.Addr().Is6() {
		src = netip.MustParseAddr("2001:db8::1")
	}
	from, dst := tcpip.AddrFromSlice(src.AsSlice()), tcpip.AddrFromSlice(to.Addr().AsSlice())
	size := header.TCPMinimumSize + 1
	var packet []byte
	if src.Is4() {
		packet = make([]byte, header.IPv4MinimumSize+size)
		ip := header.IPv4(packet)
		ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(packet)), TTL: 64, Protocol: uint8(header.TCPProtocolNumber), SrcAddr: from, DstAddr: dst})
		ip.SetChecksum(^ip.CalculateChecksum())
	} else {
		packet = make([]byte, header.IPv6MinimumSize+size)
		header.IPv6(packet).Encode(&header.IPv6Fields{PayloadLength: uint16(size), TransportProtocol: header.TCPProtocolNumber, HopLimit: 64, SrcAddr: from, DstAddr: dst})
	}
	tcp := header.TCP(packet[len(packet)-size:])
	tcp.Encode(&header.TCPFields{SrcPort: port, DstPort: to.Port(), SeqNum: 1, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 65535})
	tcp.SetChecksum(^checksum.Checksum(tcp, header.PseudoHeaderChecksum(header.TCPProtocolNumber, from, dst, uint16(size))))
	return packet
}
