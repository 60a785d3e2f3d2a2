package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// What the application sees when no connection comes about: the table of docs/design.md, row by row, as the errno
// and the duration of a plain connect(). e2e_ends_linux_test.go tests how connections end.

// each runs test for both families, on a network of its own.
func each(t *testing.T, test func(w *network, f family)) {
	t.Helper()
	t.Parallel()
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) { test(newNetwork(t), f) })
	}
}

// fails expects connect() to fail with errno, within limit.
func (w *network) fails(addr string, want syscall.Errno, limit time.Duration) {
	w.t.Helper()
	for try := 1; ; try++ { // a busy machine has pauses of its own, but an unanswered SYN takes as long on every try
		start := time.Now()
		c, err := w.connect(addr)
		took := time.Since(start)
		switch {
		case err == nil:
			w.t.Errorf("connect to %s succeeded from %v, want %v", addr, c.LocalAddr(), want)
		case !errors.Is(err, want), took > limit && try == 3:
			w.t.Errorf("connect to %s: %v after %v, want %v within %v", addr, err, took, want, limit)
		case took > limit:
			w.t.Logf("connect to %s: %v after %v: once more", addr, err, took)
			continue
		}
		return
	}
}

const (
	atOnce = time.Second
	// If an ICMP error arrives while the kernel is still busy with connect(), it is lost (LockDroppedIcmps). With
	// both hosts on one machine, this happens. The next SYN, a second later, gets another error.
	afterSYN = 3 * time.Second
)

func TestUpstreamRefuses(t *testing.T) {
	each(t, func(w *network, f family) {
		p := w.pinproxy("--rule", inRule(f.server)+":*=63999")
		w.fails(at(f.server, 4), unix.ECONNREFUSED, atOnce)
		e := p.await("flow failed", 1)[0]
		if !strings.Contains(e.Err, "connection refused") || e.Dst != at(f.server, 4) {
			w.t.Errorf("logged %+v", e)
		}
	})
}

func TestUpstreamUnreachable(t *testing.T) {
	t.Parallel()
	unrouted := map[string]string{"IPv4": "192.0.2.129", "IPv6": "2001:db8:dead::1"}
	absent := map[string]string{"IPv4": "203.0.113.99", "IPv6": "2001:db8:2::99"}
	for _, test := range []struct {
		name    string
		dst     map[string]string
		prepare func(w *network, f family)
		want    syscall.Errno
		limit   time.Duration
	}{
		{"router has no route", unrouted, nil, unix.ENETUNREACH, afterSYN},
		{"router finds no neighbour", absent, impatientRouter, unix.EHOSTUNREACH, afterSYN},
		{"router prohibits", absent, rejectingRouter, unix.EHOSTUNREACH, afterSYN},
		{"client has no route", unrouted, noDefaultRoute, unix.ENETUNREACH, atOnce},
		{"client prohibits", unrouted, prohibitedRoute, unix.EHOSTUNREACH, atOnce},
	} {
		t.Run(test.name, func(t *testing.T) {
			each(t, func(w *network, f family) {
				if test.prepare != nil {
					test.prepare(w, f)
				}
				dst := test.dst[f.name]
				w.pinproxy("--rule", inRule(dst)+":443=63999")
				w.fails(at(dst, 443), test.want, test.limit)
			})
		})
	}
}

func impatientRouter(w *network, _ family) {
	for _, version := range []string{"ipv4", "ipv6"} {
		w.Router.Sysctl("net."+version+".neigh.eth1.mcast_solicit", "1")
		w.Router.Sysctl("net."+version+".neigh.eth1.retrans_time_ms", "100")
	}
}

func rejectingRouter(w *network, _ family) { w.Router.Firewall(lab.Filter{Reject: true}) }

// noDefaultRoute leaves the client only a route to the server, so that it still has IPv6.
func noDefaultRoute(w *network, f family) {
	server := netip.MustParseAddr(f.server)
	w.Client.Route(netip.PrefixFrom(server, server.BitLen()).String(), f.near)
	all := netip.PrefixFrom(server, 0).Masked()
	if err := w.Client.Netlink().RouteDel(&netlink.Route{Dst: network4or6(all), Gw: net.ParseIP(f.near)}); err != nil {
		w.t.Fatal(err)
	}
}

func prohibitedRoute(w *network, _ family) {
	for _, dst := range []string{"192.0.2.129/32", "2001:db8:dead::1/128"} {
		w.routeTo(w.Client, unix.RTN_PROHIBIT, netip.MustParsePrefix(dst))
	}
}

// routeTo adds a route of a type that leads nowhere, and returns a function that removes it.
func (w *network) routeTo(h *lab.Host, kind int, dst netip.Prefix) (remove func()) {
	w.t.Helper()
	r := &netlink.Route{Dst: network4or6(dst), Type: kind}
	if err := h.Netlink().RouteAdd(r); err != nil {
		w.t.Fatal(err)
	}
	return func() {
		if err := h.Netlink().RouteDel(r); err != nil {
			w.t.Error(err)
		}
	}
}

func network4or6(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// The firewall drops without a word. The application's kernel keeps sending SYNs.
func TestUpstreamSilent(t *testing.T) {
	each(t, func(w *network, f family) {
		server := w.Server.Serve(at(f.server, 7), lab.Echo)
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999 busy=fail", "--dial-timeout=300ms")
		addr := netip.MustParseAddr(f.server)
		open := w.routeTo(w.Router, unix.RTN_BLACKHOLE, netip.PrefixFrom(addr, addr.BitLen()))

		ctx, giveUp := context.WithCancel(context.Background())
		defer giveUp()
		waiting := make(chan error, 1)
		go func() { // ends with ctx
			_, err := w.Client.Dial(ctx, "tcp", at(f.server, 7))
			waiting <- err
		}()
		e := p.await("flow failed", 1)[0]
		if !strings.Contains(e.Err, "timeout") {
			w.t.Errorf("logged %+v", e)
		}
		select {
		case err := <-waiting:
			w.t.Errorf("the application was told %v, want that it waits still", err)
		default:
		}
		giveUp()
		if err := <-waiting; !errors.Is(err, context.Canceled) {
			w.t.Errorf("the application's connect: %v", err)
		}

		open()
		c, err := w.connect(at(f.server, 7)) // busy=fail: only the free port works
		if err != nil {
			w.t.Fatalf("once the firewall is open: %v", err)
		}
		echo(w.t, c, "hello")
		if seen := server.Seen(); len(seen) != 1 || seen[0] != f.from(63999) {
			w.t.Errorf("connections came from %v", seen)
		}
	})
}

// An application that waits longer than --dial-timeout gets through when the firewall opens.
func TestUpstreamSilentForAWhile(t *testing.T) {
	each(t, func(w *network, f family) {
		w.Server.Serve(at(f.server, 7), lab.Echo)
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999", "--dial-timeout=300ms")
		addr := netip.MustParseAddr(f.server)
		open := w.routeTo(w.Router, unix.RTN_BLACKHOLE, netip.PrefixFrom(addr, addr.BitLen()))
		waiting := make(chan error, 1)
		go func() { // ends by its timeout
			c, err := w.Client.Dial(soon(w.t), "tcp", at(f.server, 7))
			if err == nil {
				err = c.Close()
			}
			waiting <- err
		}()
		p.await("flow failed", 1)
		open()
		if err := <-waiting; err != nil {
			w.t.Error(err)
		}
		if e := p.await("flow", 1)[0]; e.Local != f.from(63999).String() {
			w.t.Errorf("logged %+v", e)
		}
	})
}

func TestPinIsTakenByAnotherFlow(t *testing.T) {
	each(t, func(w *network, f family) {
		w.Server.Serve(at(f.server, 7), lab.Echo)
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999 busy=fail")
		c := w.mustConnect(at(f.server, 7))
		w.fails(at(f.server, 7), unix.EHOSTUNREACH, atOnce)
		e := p.await("flow failed", 1)[0]
		if e.Level != "WARN" || !strings.Contains(e.Err, "63999") || !strings.Contains(e.Err, "flow 1 from "+e.Src[:strings.LastIndex(e.Src, ":")]) {
			w.t.Errorf("the cause and its owner are not in %+v", e)
		}
		echo(w.t, c, "undisturbed")
	})
}

// A listener takes its whole port (inet_csk_bind_conflict), whatever the destination.
func TestPinIsTakenByAnotherProgram(t *testing.T) {
	each(t, func(w *network, f family) {
		w.Server.Serve(at(f.server, 7), lab.Echo)
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999 busy=fail")
		l, err := w.Client.Listen("tcp", ":63999")
		if err != nil {
			w.t.Fatal(err)
		}
		w.fails(at(f.server, 7), unix.EHOSTUNREACH, atOnce)
		e := p.await("flow failed", 1)[0]
		if e.Level != "WARN" || !strings.Contains(e.Err, "address already in use") {
			w.t.Errorf("the cause is not in %+v", e)
		}
		if err := l.Close(); err != nil {
			w.t.Error(err)
		}
		w.poll("the port to be free again", func() bool { // after the refusal it rests for a millisecond
			c, err := w.connect(at(f.server, 7))
			return err == nil && c.Close() == nil
		})
	})
}

func TestLogNamesTheProgramThatHasThePin(t *testing.T) {
	each(t, func(w *network, f family) {
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999 busy=fail")
		if _, err := w.Client.Listen("tcp", ":63999"); err != nil {
			w.t.Fatal(err)
		}
		w.fails(at(f.server, 7), unix.EHOSTUNREACH, atOnce)
		e := p.await("flow failed", 1)[0]
		if owner := strconv.Itoa(os.Getpid()); !strings.Contains(e.Err, owner) {
			w.t.Errorf("process %s, who has the port, is not in %+v", owner, e)
		}
	})
}

// The pin's address is not one of the client's.
func TestPinIsImpossible(t *testing.T) {
	each(t, func(w *network, f family) {
		w.Server.Serve(at(f.server, 7), lab.Echo)
		pin := inRule(f.elsewhere) + ":63999"
		p := w.pinproxy("--rule", inRule(f.server)+":7="+pin)
		w.fails(at(f.server, 7), unix.EHOSTUNREACH, atOnce)
		if e := p.await("flow failed", 1)[0]; e.Level != "WARN" || !strings.Contains(e.Err, "bind") || !strings.Contains(e.Err, pin) {
			w.t.Errorf("logged %+v", e)
		}
	})
}
