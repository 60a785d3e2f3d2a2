package host

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"pinproxy/netstack/lab"
)

// inPlace returns how many rules and routes of ours there are.
func (b *bench) inPlace() (rules, routes int) {
	b.t.Helper()
	err := b.Client.Do(func() error {
		r, err := openRTNL()
		if err != nil {
			return err
		}
		defer r.close()
		for _, fam := range []family{v4, v6} {
			list, err := ourRules(b.Client.Netlink(), fam)
			if err != nil {
				return err
			}
			rules += len(list)
			err = r.dumpRoutes(fam, 0, func(i routeInfo) {
				if i.protocol == Protocol {
					routes++
				}
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return rules, routes
}

func TestRepair(t *testing.T) {
	flushRules := func(b *bench) error {
		for _, fam := range []family{v4, v6} {
			list, err := ourRules(b.Client.Netlink(), fam)
			if err != nil {
				return err
			}
			for _, r := range list {
				if err := b.Client.Netlink().RuleDel(&r); err != nil {
					return err
				}
			}
		}
		return nil
	}
	flushRoutes := func(b *bench) error {
		return b.Client.Do(func() error {
			r, err := openRTNL()
			if err != nil {
				return err
			}
			defer r.close()
			var list []dest
			for _, fam := range []family{v4, v6} {
				err = errors.Join(err, r.dumpRoutes(fam, tablePortSet, func(i routeInfo) { list = append(list, i.dest) }))
			}
			_, derr := r.delRoutes(list)
			return errors.Join(err, derr)
		})
	}
	pin0 := func(b *bench) netlink.Link {
		l, err := b.Client.Netlink().LinkByName(Link)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for _, test := range []struct {
		name string
		harm func(b *bench) error
		log  string
	}{
		{"rules flushed", flushRules, "ip rule add pref 4999 nop"},
		{"routes flushed", flushRoutes, "route add "},
		{"device down", func(b *bench) error { return b.Client.Netlink().LinkSetDown(pin0(b)) }, "ip link set dev pin0 up"},
		{"device down and up", func(b *bench) error {
			return errors.Join(b.Client.Netlink().LinkSetDown(pin0(b)), b.Client.Netlink().LinkSetUp(pin0(b)))
		}, "add "},
		{"addresses deleted", func(b *bench) error {
			return errors.Join(b.Client.Netlink().AddrDel(pin0(b), addr{link: Link, addr: Addr4}.netlink()),
				b.Client.Netlink().AddrDel(pin0(b), addr{link: Link, addr: Addr6}.netlink()))
		}, "ip addr add 192.0.0.8/32 dev pin0"},
		{"all at once", func(b *bench) error {
			return errors.Join(b.Client.Netlink().LinkSetDown(pin0(b)), flushRules(b))
		}, "ip link set dev pin0 up"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			before := b.snapshot()
			b.apply(web())
			learned := []Capture{capture("192.0.2.1/32", 0), capture("2001:db8:7::1/128", 0)}
			if err := b.host.Add(t.Context(), learned); err != nil {
				t.Fatal(err)
			}
			whole := b.snapshot()
			_, stop := b.run(time.Minute)
			b.awaitLook()
			start := time.Now()
			if err := test.harm(b); err != nil {
				t.Fatal(err)
			}
			b.soon("repaired", func() bool { return slices.Equal(b.snapshot(), whole) })
			took := time.Since(start)
			b.same("after the repair", whole)
			for _, a := range servers {
				b.capturedFromTUN(dialer{}, a, 443)
			}
			b.soon("logged", func() bool { return strings.Contains(b.logs.String(), test.log) })
			stop()
			// One made by awaitLook, and one for all damage done up to the first repair, 20 ms later. The next
			// can be 40 ms after that, and so on (pacer). Only on a busy machine does the damage take that
			// long.
			most := 2
			for at, delay := 2*paceFirst, 4*paceFirst; at+delay <= took; delay *= 2 {
				at += delay
				most++
			}
			if n := strings.Count(b.logs.String(), "\n"); n > most {
				t.Errorf("%d lines of log after %v, want %d:\n%s", n, took, most, b.logs)
			}
			if err := b.undo(t.Context()); err != nil {
				t.Error(err)
			}
			b.tun.file.Close()
			b.same("after undo", before)
		})
	}
}

// awaitLook waits until Run is working.
func (b *bench) awaitLook() {
	b.t.Helper()
	rules, _ := b.Client.Netlink().RuleList(netlink.FAMILY_V4)
	i := slices.IndexFunc(rules, func(r netlink.Rule) bool { return r.Priority == prefEnd })
	if i < 0 {
		b.t.Fatal("no rules")
	}
	n, _ := b.inPlace()
	if err := b.Client.Netlink().RuleDel(&rules[i]); err != nil {
		b.t.Fatal(err)
	}
	b.soon("first look", func() bool { now, _ := b.inPlace(); return now == n })
}

// What cannot be put back at first is tried again, without another cause, and logged once.
func TestRepairIsTriedAgain(t *testing.T) {
	b := newBench(t)
	b.apply(web())
	whole := b.snapshot()
	_, stop := b.run(time.Hour)
	defer stop()
	b.awaitLook()
	b.host.looking.Lock()
	works := b.host.dump
	b.host.dump = &rtnl{fd: -1}
	// Of its own changes a Host hears nothing.
	b.host.mu.Lock()
	err := b.host.kernel.delRoutes([]dest{{tableSelf, v4.all()}, {tableSelf, v6.all()}})
	b.host.mu.Unlock()
	b.host.looking.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	b.host.lookSoon(dirtRoutes)
	b.soon("logged", func() bool { return strings.Contains(b.logs.String(), "cannot put back") })
	b.host.looking.Lock()
	b.host.dump = works
	b.host.looking.Unlock()
	b.soon("repaired", func() bool { return slices.Equal(b.snapshot(), whole) })
	b.same("after the repair", whole)
	if n := strings.Count(b.logs.String(), "cannot put back"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, b.logs)
	}
}

// A route that could not be deleted would lead connections into the device that no rule is for any more.
func TestRemoveIsTriedAgain(t *testing.T) {
	b := newBench(t)
	b.apply(web())
	whole := b.snapshot()
	_, stop := b.run(time.Hour)
	defer stop()
	b.awaitLook()
	learned := []Capture{capture("192.0.2.1/32", 0), capture("2001:db8:7::1/128", 0)}
	if err := b.host.Add(t.Context(), learned); err != nil {
		t.Fatal(err)
	}
	b.host.mu.Lock()
	works := b.host.kernel.rtnl
	b.host.kernel.rtnl = &rtnl{fd: -1}
	b.host.mu.Unlock()
	if err := b.host.Remove(t.Context(), learned); err == nil {
		t.Fatal("removed without a socket")
	}
	b.host.mu.Lock()
	b.host.kernel.rtnl = works
	b.host.mu.Unlock()
	b.soon("removed", func() bool { return slices.Equal(b.snapshot(), whole) })
	b.same("after the repair", whole)
}

// Our own deletions are not repaired.
func TestRemovedStaysRemoved(t *testing.T) {
	b := newBench(t)
	b.apply(web())
	_, stop := b.run(20 * time.Millisecond)
	defer stop()
	learned := []Capture{capture("192.0.2.1/32", 0), capture("2001:db8:7::1/128", 0)}
	_, routes := b.inPlace()
	for range 20 {
		if err := b.host.Add(t.Context(), learned); err != nil {
			t.Fatal(err)
		}
		if _, n := b.inPlace(); n != routes+2 {
			t.Fatalf("%d routes instead of %d", n, routes+2)
		}
		if err := b.host.Remove(t.Context(), learned); err != nil {
			t.Fatal(err)
		}
		if _, n := b.inPlace(); n != routes {
			t.Fatalf("%d routes instead of %d", n, routes)
		}
	}
	if b.logs.String() != "" {
		t.Error(b.logs)
	}
}

func TestLinkGone(t *testing.T) {
	b := newBench(t)
	b.apply(web())
	b.host.every = time.Minute
	result := make(chan error, 1)
	go func() { result <- b.host.Run(t.Context()) }()
	b.awaitLook()
	b.tun.file.Close()
	select {
	case err := <-result:
		if !errors.Is(err, ErrLinkGone) {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("Run goes on")
	}
	if err := b.undo(t.Context()); err != nil {
		t.Error("undo:", err)
	}
}

// Undoing ends Run.
func TestRunEndsWithUndo(t *testing.T) {
	b := newBench(t)
	b.apply(web())
	result, _ := b.run(time.Minute)
	b.awaitLook()
	if err := b.undo(t.Context()); err != nil {
		t.Error(err)
	}
	select {
	case err := <-result:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("Run goes on")
	}
}

// client ──────── router, whose IPv6 comes and goes
func TestIPv6ComesAndGoes(t *testing.T) {
	n := lab.ForTest(t)
	top := &lab.Topology{Client: n.Host("client"), Router: n.Host("router")}
	top.Server = top.Router
	n.Link(top.Router, []string{lab.Near4 + "/24", lab.Near6 + "/64"}, top.Client, []string{lab.Client4 + "/24"})
	top.Client.Sysctl("net.ipv6.conf.default.disable_ipv6", "1") // for the device
	l, err := top.Router.Listen("tcp", ":443")
	if err != nil {
		t.Fatal(err)
	}
	go echo(l)
	b := &bench{Topology: top, t: t, logs: &logs{}}

	near4, near6 := netip.MustParseAddr(lab.Near4), netip.MustParseAddr(lab.Near6)
	before := b.snapshot()
	b.apply(Config{
		PortSets: [][]PortRange{{{443, 443}}},
		Captures: []Capture{capture(lab.Near4+"/32", 0), capture(lab.Near6+"/128", 0)},
	})
	if err := b.host.Add(t.Context(), []Capture{capture("2001:db8:7::1/128", 0)}); err != nil {
		t.Fatal(err)
	}
	_, stop := b.run(time.Minute)
	b.capturedFromTUN(dialer{}, near4, 443)
	if addrs, err := b.Client.Netlink().AddrList(b.pin0(), netlink.FAMILY_V6); err != nil || len(addrs) > 0 {
		t.Errorf("without IPv6 the device has %v, %v", addrs, err)
	}
	b.awaitLook()

	top.Client.Addr("eth0", lab.Client6+"/64")
	b.soon("IPv6 captured", func() bool { rules, routes := b.inPlace(); return rules == 13 && routes == 5 })
	b.capturedFromTUN(dialer{}, near6, 443)
	b.captured(dialer{}, netip.MustParseAddr("2001:db8:7::1"), 443)
	b.direct(dialer{mark: Mark}, near6, 443)
	stop()

	// A momentary absence does not count.
	eth0, err := top.Client.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	six, err := netlink.ParseAddr(lab.Client6 + "/64")
	if err != nil {
		t.Fatal(err)
	}
	if err := top.Client.Netlink().AddrDel(eth0, six); err != nil {
		t.Fatal(err)
	}
	look := func() {
		t.Helper()
		if _, err := b.host.look(dirtAll | dirtRegular); err != nil {
			t.Error(err)
		}
	}
	look()
	if rules, routes := b.inPlace(); rules != 13 || routes != 5 {
		t.Errorf("after the first look: %d rules, %d routes", rules, routes)
	}
	look()
	if rules, routes := b.inPlace(); rules != 6 || routes != 2 {
		t.Errorf("after the second look: %d rules, %d routes", rules, routes)
	}
	b.capturedFromTUN(dialer{}, near4, 443)

	// And it may come back.
	top.Client.Addr("eth0", lab.Client6+"/64")
	look()
	b.capturedFromTUN(dialer{}, near6, 443)
	if err := top.Client.Netlink().AddrDel(eth0, six); err != nil {
		t.Fatal(err)
	}
	if err := b.undo(t.Context()); err != nil {
		t.Error(err)
	}
	b.tun.file.Close()
	b.same("after undo", before)
}

func (b *bench) pin0() netlink.Link {
	b.t.Helper()
	l, err := b.Client.Netlink().LinkByName(Link)
	if err != nil {
		b.t.Fatal(err)
	}
	return l
}
