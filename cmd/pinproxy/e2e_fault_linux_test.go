package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// What the network, the kernel and other programs do to pinproxy while it carries a connection. docs/reliability.md
// has a line for each of these tests. Its other lines are tested with the part that is affected.

var stoppedFor = flag.Duration("stopped", 300*time.Millisecond, "how long TestStoppedAndContinued keeps pinproxy stopped")

// streamed is a connection that carries bytes both ways until told to stop, and checks each of them.
type streamed struct {
	c     *net.TCPConn
	halt  chan struct{}
	done  chan error
	bytes atomic.Int64
}

func (s *streamed) count() int64 { return s.bytes.Load() }

// streamRound is how much goes each way before a streamed connection checks whether it has to stop.
const streamRound = 32 << 10

// stream starts a streamed connection to an echo server, and returns when it carries bytes.
func (w *network) stream(addr string) *streamed {
	w.t.Helper()
	s := &streamed{c: w.mustConnect(addr), halt: make(chan struct{}), done: make(chan error, 1)}
	go func() { s.done <- s.run() }() // end waits for it
	s.carries(w.t, streamRound)
	return s
}

// carries waits for n more bytes.
func (s *streamed) carries(t *testing.T, n int64) {
	t.Helper()
	before := s.count()
	poll(t, "bytes of the connection that was open", func() bool { return s.count() >= before+n || len(s.done) > 0 })
}

func (s *streamed) run() error {
	out := make([]byte, streamRound)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(out)
	in := make([]byte, len(out))
	for {
		select {
		case <-s.halt:
			return nil
		default:
		}
		sent := make(chan error, 1)
		go func() {
			_, err := s.c.Write(out)
			sent <- err
		}()
		_, err := io.ReadFull(s.c, in)
		if err = errors.Join(err, <-sent); err != nil {
			return err
		}
		if !bytes.Equal(in, out) {
			return errOtherBytes
		}
		s.bytes.Add(int64(len(in)))
	}
}

// end stops the connection. It checks that nothing was lost and that bytes still flowed: of two more rounds, one
// began after this call.
func (s *streamed) end(t *testing.T) {
	t.Helper()
	s.carries(t, 2*streamRound)
	close(s.halt)
	if err := <-s.done; err != nil {
		t.Errorf("the connection that was open: %v", err)
	}
	_ = s.c.Close()
}

// recovers waits for a new connection from the pin, and logs how long that took.
func (w *network) recovers(server *lab.Server, addr string, from netip.AddrPort) {
	w.t.Helper()
	start := time.Now()
	poll(w.t, "a new connection from the pin", func() bool {
		c, err := w.connectFor(3*time.Second, addr) // a lost SYN is sent again after 1 s
		if err != nil {
			return false
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := io.WriteString(c, "x"); err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
			if err != nil {
				return false
			}
		}
		seen := server.Seen()
		if len(seen) == 0 || seen[len(seen)-1] != from {
			w.t.Errorf("a connection came from %v, want %v", seen, from)
		}
		return true
	})
	w.t.Logf("a new connection after %v", time.Since(start).Round(time.Millisecond))
}

// uplink is the client's device towards the router.
func (w *network) uplink() netlink.Link {
	w.t.Helper()
	l, err := w.Client.Netlink().LinkByName("eth0")
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// The cable is pulled for a moment in the middle of a transfer. The test restores what a DHCP client would restore.
func TestLinkDownAndUp(t *testing.T) {
	each(t, func(w *network, f family) {
		server := w.Server.Serve(at(f.server, 7), lab.Echo)
		p := w.pinproxy("--rule", inRule(f.server)+":7=63990-63999")
		s := w.stream(at(f.server, 7))
		h, link := w.Client.Netlink(), w.uplink()
		if err := h.LinkSetDown(link); err != nil {
			w.t.Fatal(err)
		}
		if c, err := w.connectFor(100*time.Millisecond, at(f.server, 7)); err == nil {
			w.t.Errorf("connected to %v without a link", c.RemoteAddr())
		}
		if err := h.LinkSetUp(link); err != nil {
			w.t.Fatal(err)
		}
		if f.name == "IPv6" { // the kernel has dropped it
			w.Client.Addr("eth0", lab.Client6+"/64")
		}
		near := lab.Near4
		if f.name == "IPv6" {
			near = lab.Near6
		}
		poll(w.t, "the default route", func() bool {
			return w.hasDefault(f) || w.addDefault(near) == nil
		})
		poll(w.t, "a connection from the pin", func() bool {
			c, err := w.connectFor(3*time.Second, at(f.server, 7))
			if err == nil {
				_ = c.Close()
			}
			return err == nil
		})
		for _, from := range server.Seen() {
			if from.Port() < 63990 || from.Addr().String() != f.client {
				w.t.Errorf("a connection came from %v", from)
			}
		}
		s.end(w.t)
		p.before = w.Client.Snapshot() // the other family's routes have gone with the link
		p.forget()
	})
}

// forget ends pinproxy after the test has changed the host.
func (p *running) forget() {
	p.t.Helper()
	_ = p.Signal(unix.SIGTERM)
	p.ended(exitOK)
	if left := p.host.Snapshot(); strings.Contains(left, "pin0") || strings.Contains(left, "proto 80") {
		p.t.Errorf("pinproxy left something behind:\n%s", left)
	}
}

func (w *network) hasDefault(f family) bool {
	fam := netlink.FAMILY_V4
	if f.name == "IPv6" {
		fam = netlink.FAMILY_V6
	}
	routes, err := w.Client.Netlink().RouteList(w.uplink(), fam)
	if err != nil {
		return false
	}
	for _, r := range routes {
		if r.Gw != nil {
			return true
		}
	}
	return false
}

func (w *network) addDefault(gateway string) error {
	gw := net.ParseIP(gateway)
	dst := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if gw.To4() == nil {
		dst = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return w.Client.Netlink().RouteAdd(&netlink.Route{LinkIndex: w.uplink().Attrs().Index, Dst: dst, Gw: gw})
}

// The host gets another address. New connections use it at once, also from the port of an old one. Old ones are as lost
// as those of any other program. A flow that began to wait for the port of one before there was another address gets
// it by busy=reclaim, or when the address has been gone for a while.
func TestAddressChanges(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		pin      string
		stranded bool // the old connection is in the way, and is ended
	}{
		{"63998-63999", false},
		{"63999", false},
		{"63999 busy=reclaim:100ms", true},
		{"63999 busy=wait", true},
	} {
		t.Run(test.pin, func(t *testing.T) {
			w := newNetwork(t)
			server := w.Server.Serve(":7", lab.Echo)
			p := w.pinproxy("--rule", "*:7="+test.pin)
			c := w.mustConnect(at(lab.Server4, 7))
			echo(t, c, "hello")
			w.loseAddress()
			from := netip.MustParseAddrPort("198.51.100.77:63999")
			if test.stranded {
				next := w.connecting(at(lab.Server4, 7))
				p.expect("flow waits for its source port")
				w.haveAddress("198.51.100.77/24")
				waited := <-next
				if waited == nil {
					t.Fatal("the connection that waited was not made")
				}
				echo(t, waited, "hello")
				if seen := server.Seen(); seen[len(seen)-1] != from {
					t.Errorf("a connection came from %v, want %v", seen, from)
				}
				_ = c.SetDeadline(time.Now().Add(patience))
				if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("the connection that was in the way: %v", err)
				}
			} else {
				w.haveAddress("198.51.100.77/24")
				w.recovers(server, at(lab.Server4, 7), from)
				if waits := p.entries("flow waits for its source port"); len(waits) > 0 {
					t.Errorf("it waited: %v", waits)
				}
			}
			p.forget()
		})
	}
}

// The host's address goes and comes back, while another connection waits for the port. The old one has lost nothing.
func TestAddressComesBack(t *testing.T) {
	w := newNetwork(t)
	w.Server.Serve(":7", lab.Echo)
	p := w.pinproxy("--rule", "*:7=63999")
	c := w.mustConnect(at(lab.Server4, 7))
	echo(t, c, "hello")
	w.loseAddress()
	next := w.connecting(at(lab.Server4, 7))
	p.expect("flow waits behind an idle one") // pinproxy has checked the old connection by now
	w.haveAddress(lab.Client4 + "/24")
	echo(t, c, "still there")
	_ = c.Close()
	c = <-next
	if c == nil {
		t.Fatal("the connection that waited was not made")
	}
	echo(t, c, "hello")
	_ = c.Close()
	p.stop()
}

// connecting starts a connection, which the channel has once it is made; nil if it is not.
func (w *network) connecting(addr string) <-chan *net.TCPConn {
	next := make(chan *net.TCPConn, 1)
	go func() { // ends when connect does
		c, _ := w.connect(addr)
		next <- c
	}()
	return next
}

// loseAddress removes the client's IPv4 address, and the route that goes with it.
func (w *network) loseAddress() {
	w.t.Helper()
	old, err := netlink.ParseAddr(lab.Client4 + "/24")
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.Client.Netlink().AddrDel(w.uplink(), old); err != nil {
		w.t.Fatal(err)
	}
}

func (w *network) haveAddress(prefix string) {
	w.t.Helper()
	w.Client.Addr("eth0", prefix)
	if err := w.addDefault(lab.Near4); err != nil {
		w.t.Fatal(err)
	}
}

// There is no route for a while.
func TestRouteChanges(t *testing.T) {
	w := newNetwork(t)
	server := w.Server.Serve(":7", lab.Echo)
	p := w.pinproxy("--rule", "*:7=63999", "--rule", "*:8=63998")
	s := w.stream(at(lab.Server4, 7))
	h := w.Client.Netlink()
	routes, err := h.RouteList(w.uplink(), netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if r.Gw != nil {
			if err := h.RouteDel(&r); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.fails(at(lab.Server4, 8), unix.ENETUNREACH, patience)
	if err := w.addDefault(lab.Near4); err != nil {
		t.Fatal(err)
	}
	s.end(t)
	w.recovers(server, at(lab.Server4, 7), netip.MustParseAddrPort(lab.Client4+":63999"))
	p.stop()
}

// The path to the upstream swallows everything for a moment, in the middle of a transfer.
func TestBlackHoleInMidFlow(t *testing.T) {
	each(t, func(w *network, f family) {
		server := w.Server.Serve(at(f.server, 7), lab.Echo)
		w.pinproxy("--rule", inRule(f.server)+":7=63999")
		s := w.stream(at(f.server, 7))
		addr := netip.MustParseAddr(f.server)
		open := w.routeTo(w.Router, unix.RTN_BLACKHOLE, netip.PrefixFrom(addr, addr.BitLen()))
		select {
		case err := <-s.done:
			w.t.Fatalf("the connection that was open ended: %v", err)
		case <-time.After(50 * time.Millisecond): // retransmissions are lost as well
		}
		open()
		s.end(w.t)
		w.recovers(server, at(f.server, 7), f.from(63999))
	})
}

// A router after the first one suddenly has a smaller MTU, and says so.
func TestPathMTUShrinks(t *testing.T) {
	each(t, func(w *network, f family) {
		w.Server.Serve(at(f.server, 7), lab.Echo)
		w.pinproxy("--rule", inRule(f.server)+":7=63999")
		s := w.stream(at(f.server, 7))
		w.Router.MTU("eth1", 1280)
		w.Server.MTU("eth0", 1280)
		s.carries(w.t, 256<<10)
		s.end(w.t)
	})
}

// A forged ICMP message does not end a connection, just as it does not end any of the kernel's own.
func TestHostUnreachableInMidFlow(t *testing.T) {
	each(t, func(w *network, f family) {
		w.Server.Serve(at(f.server, 7), lab.Echo)
		w.pinproxy("--rule", inRule(f.server)+":7=63999")
		s := w.stream(at(f.server, 7))
		addr := netip.MustParseAddr(f.server)
		open := w.routeTo(w.Router, unix.RTN_UNREACHABLE, netip.PrefixFrom(addr, addr.BitLen()))
		select {
		case err := <-s.done:
			w.t.Fatalf("the connection that was open ended: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		open()
		s.end(w.t)
	})
}

// Somebody deletes the device. pinproxy can't go on: it says so and ends, and the host's traffic goes its usual way.
func TestDeviceDeleted(t *testing.T) {
	w := newNetwork(t)
	w.Server.Serve(":7", lab.Echo)
	before := w.Client.Snapshot()
	p := w.pinproxy("--rule", "*:7=63999")
	c := w.mustConnect(at(lab.Server4, 7))
	echo(t, c, "hello")
	if err := w.Client.Netlink().LinkDel(w.device()); err != nil {
		t.Fatal(err)
	}
	p.ended(1)
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) { // it would wait for its time-out
		t.Errorf("an application that reads was told %v", err)
	}
	if !strings.Contains(p.Stderr(), "pin0") {
		t.Errorf("it does not name the device: %s", p.Stderr())
	}
	if after := w.Client.Snapshot(); after != before {
		t.Errorf("the host was\n%s\nand is\n%s", before, after)
	}
	echo(t, w.mustConnect(at(lab.Server4, 7)), "as if it had never been")
}

// When no descriptors are left, new connections are refused at once, and the log says what to do. Open connections
// stay. When some of them end, all is well again.
func TestDescriptorsRunOut(t *testing.T) {
	w := newNetwork(t)
	server := w.Server.Serve(":7", lab.Echo)
	// pinproxy itself needs some 20.
	const most = 40
	cmd := exec.Command("sh", "-c", fmt.Sprintf(`ulimit -n %d; exec pinproxy "$@"`, most), "sh", "--log-format=json", "--rule", "*:7=20000-20999 busy=fail")
	cmd.Env = append(w.by(user{}).Env, "RUNTIME_DIRECTORY="+w.run)
	p := w.startCommand(cmd)
	p.expect(`"msg":"ready"`)
	var open []*net.TCPConn
	for len(open) < 2*most {
		c, err := w.connect(at(lab.Server4, 7))
		if err != nil {
			if !errors.Is(err, unix.EHOSTUNREACH) {
				t.Errorf("without descriptors connect says: %v", err)
			}
			break
		}
		open = append(open, c)
	}
	if len(open) == 0 || len(open) >= most {
		t.Fatalf("%d connections with %d descriptors", len(open), most)
	}
	p.expect("ulimit -n")
	for _, c := range open {
		echo(t, c, "still there")
		_ = c.Close()
	}
	poll(t, "a descriptor to be free", func() bool {
		c, err := w.connect(at(lab.Server4, 7))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	for _, from := range server.Seen() {
		if from.Port() < 20000 || from.Port() > 20999 {
			t.Errorf("a connection came from %v", from)
		}
	}
}

// The log can't be written: its disk is full, or its reader has gone.
func TestLogCannotBeWritten(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		open func() (*os.File, error)
	}{
		{"disk full", func() (*os.File, error) { return os.OpenFile("/dev/full", os.O_WRONLY, 0) }},
		{"pipe broken", func() (*os.File, error) {
			r, w, err := os.Pipe()
			if err == nil {
				err = r.Close()
			}
			return w, err
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newNetwork(t)
			server := w.Server.Serve(":7", lab.Echo)
			full, err := test.open()
			if err != nil {
				t.Fatal(err)
			}
			defer full.Close()
			cmd := w.command("--rule", "*:7=63999")
			cmd.Stderr = full
			p := w.startCommand(cmd)
			poll(t, "a connection from the pin", func() bool {
				c, err := w.connect(at(lab.Server4, 7))
				if err != nil {
					return false
				}
				defer c.Close()
				echo(t, c, "hello")
				seen := server.Seen()
				return seen[len(seen)-1].Port() == 63999
			})
			p.stop()
		})
	}
}

// pinproxy is stopped for a while, as by a debugger, a frozen container or a suspend. Connections wait, lose nothing
// and go on.
func TestStoppedAndContinued(t *testing.T) {
	w := newNetwork(t)
	w.names()
	server := w.Server.Serve(":443", lab.Echo)
	p := w.pinproxy("--rule", "www.bank.example:443=63990-63999")
	s := w.stream(at(lab.Server4, 443))
	_ = s.c.SetDeadline(time.Now().Add(*stoppedFor + patience))
	if err := p.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// A connection that arrives in the meantime waits. Other traffic does not.
	var late error
	var coming sync.WaitGroup
	coming.Go(func() {
		c, err := w.connectFor(*stoppedFor+patience, at(lab.Server4, 443))
		if late = err; err == nil {
			_ = c.Close()
		}
	})
	w.Server.Serve(":10", lab.Echo)
	c := w.mustConnect(at(lab.Server4, 10))
	echo(t, c, "other traffic")
	time.Sleep(*stoppedFor)
	if err := p.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	coming.Wait()
	if late != nil {
		t.Errorf("who came while it was stopped: %v", late)
	}
	s.end(t)
	w.ask("ip4", "www.bank.example")
	for _, from := range server.Seen() {
		if from.Port() < 63990 || from.Port() > 63999 {
			t.Errorf("a connection came from %v", from)
		}
	}
}

// After the name has been learned, the resolver lies, is slow, or says nothing. What is known stays, and
// applications see what they would see without pinproxy.
func TestResolverGoesBad(t *testing.T) {
	t.Parallel()
	const name = "www.bank.example"
	for _, test := range []struct {
		name   string
		answer func(q lab.Query) lab.Answer
		wants  func(found []netip.Addr, err error) bool
	}{
		{"dead", func(lab.Query) lab.Answer { return lab.Answer{Drop: true} }, func(_ []netip.Addr, err error) bool { return isTimeout(err) }},
		{"slow", func(q lab.Query) lab.Answer {
			a := lab.Zone(zone)(q)
			a.Delay = 300 * time.Millisecond
			return a
		}, func(found []netip.Addr, err error) bool { return err == nil && len(found) == 1 }},
		{"refuses", func(lab.Query) lab.Answer { return lab.Answer{RCode: dnsmessage.RCodeRefused} }, func(_ []netip.Addr, err error) bool { return err != nil && !isTimeout(err) }},
		{"rubbish", func(lab.Query) lab.Answer { return lab.Answer{Raw: []byte("\x81\x80 this is no DNS message at all")} }, func(_ []netip.Addr, err error) bool { return err != nil }},
		{"truncates", func(q lab.Query) lab.Answer {
			a := lab.Zone(zone)(q)
			a.Truncate = true
			return a
		}, func(found []netip.Addr, err error) bool { return err == nil && len(found) == 1 }},
		// Loopback is not part of the network: such an address is passed on as it is, and nothing is captured for
		// it.
		{"names loopback", func(q lab.Query) lab.Answer { return lab.Addrs(q, time.Minute, "127.0.0.1") }, func(found []netip.Addr, err error) bool {
			return err == nil && len(found) == 1 && found[0].IsLoopback()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newNetwork(t)
			server := w.Server.Serve(":443", lab.Echo)
			var mu sync.Mutex
			answer := lab.Zone(zone)
			w.answer(func(q lab.Query) lab.Answer {
				mu.Lock()
				defer mu.Unlock()
				return answer(q)
			})
			w.pinproxy("--rule", name+":443=63999 busy=wait")
			w.ask("ip4", name)
			mu.Lock()
			answer = test.answer
			mu.Unlock()
			ctx := soon(t)
			if test.name == "dead" {
				short, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
				defer cancel()
				ctx = short
			}
			found, err := w.Client.Resolver().LookupNetIP(ctx, "ip4", name)
			if !test.wants(found, err) {
				t.Errorf("the application got %v, %v", found, err)
			}
			w.recovers(server, at(lab.Server4, 443), netip.MustParseAddrPort(lab.Client4+":63999"))
		})
	}
}
