package host

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// replace replaces the configuration on the client.
func (b *bench) replace(ctx context.Context, c Config, learned []Capture) error {
	return b.Client.Do(func() error { return b.host.Replace(ctx, c, learned, func() {}) })
}

// former and latter are what Replace goes from and to: port 443 stays, 80 goes, 53 and 8000 come, and the ports
// to reserve change as well.
func former(dir string) (c Config, learned []Capture) {
	return Config{
		PortSets: [][]PortRange{{{443, 443}}, {{80, 80}}},
		Captures: []Capture{capture(lab.Server4+"/32", 0), capture(lab.Server6+"/128", 0), capture("203.0.113.0/24", 1), capture("2001:db8:2::/64", 1)},
		Reserve:  []PortRange{{63999, 63999}, {64001, 64002}},
		StateDir: dir,
	}, []Capture{capture("192.0.2.1/32", 0), capture("192.0.2.2/32", 0), capture("2001:db8:7::1/128", 0)}
}

func latter(dir string) (c Config, learned []Capture) {
	return Config{
		PortSets: [][]PortRange{{{443, 443}}, nil, {{8000, 65535}}},
		Captures: []Capture{capture(lab.Server4+"/32", 0), capture(lab.Server6+"/128", 0), capture("203.0.113.0/24", 2), capture("2001:db8:2::/64", 2)},
		DNS:      true,
		Reserve:  []PortRange{{63999, 63999}, {64002, 64003}},
		StateDir: dir,
	}, []Capture{capture("192.0.2.1/32", 0), capture("192.0.2.3/32", 2), capture("2001:db8:7::1/128", 0)}
}

func TestReplace(t *testing.T) {
	b := newBench(t)
	b.Client.Sysctl(reservedKey, "8080")
	before := b.snapshot()
	dir := t.TempDir()
	c, learned := former(dir)
	b.apply(c)
	if err := b.host.Add(t.Context(), learned); err != nil {
		t.Fatal(err)
	}
	first := b.snapshot()
	for _, a := range servers {
		b.capturedFromTUN(dialer{}, a, 80)
	}

	_, stop := b.run(20 * time.Millisecond)
	b.awaitLook()
	c, learned = latter(dir)
	if err := b.replace(t.Context(), c, learned); err != nil {
		t.Fatal(err)
	}
	if w := b.host.Warnings(); len(w) > 0 {
		t.Error("warnings:", w)
	}
	second := b.snapshot()
	for _, a := range servers {
		b.capturedFromTUN(dialer{}, a, 443)
		b.direct(dialer{}, a, 80)
	}
	if got := b.Client.SysctlGet(reservedKey); got != "8080,63999,64002-64003" {
		t.Errorf("reserved %q", got)
	}
	if n, routes := b.inPlace(); n != 11+12 || routes != 11 {
		t.Errorf("%d rules and %d routes:\n%s", n, routes, strings.Join(second, "\n"))
	}

	// Repairs restore the new state.
	if err := b.Client.Netlink().LinkSetDown(must(b.Client.Netlink().LinkByName(Link))); err != nil {
		t.Fatal(err)
	}
	b.soon("repaired", func() bool { return slices.Equal(b.snapshot(), second) })

	c, learned = former(dir)
	if err := b.replace(t.Context(), c, learned); err != nil {
		t.Fatal(err)
	}
	b.same("after coming back", first)
	stop()
	if err := b.undo(t.Context()); err != nil {
		t.Error(err)
	}
	b.tun.file.Close()
	b.same("after undo", before)
	if err := b.replace(t.Context(), c, nil); !errors.Is(err, errUndone) {
		t.Errorf("replace after undo: %v", err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// endsAfter is a context that ends after it has been checked a given number of times.
type endsAfter struct {
	context.Context
	left atomic.Int32
}

func (c *endsAfter) Err() error {
	if c.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}

// Wherever it is interrupted, everything is as before: rules, routes, reserved ports, and what repairs know.
func TestReplaceInterrupted(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	c, learned := former(dir)
	b.apply(c)
	if err := b.host.Add(t.Context(), learned); err != nil {
		t.Fatal(err)
	}
	before := b.snapshot()
	c, learned = latter(dir)
	steps := int32(0)
	for ; ; steps++ {
		ctx := &endsAfter{Context: t.Context()}
		ctx.left.Store(steps)
		err := b.replace(ctx, c, learned)
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) || steps > 100 {
			t.Fatal(err)
		}
		b.same("after an interruption", before)
		if got := b.Client.SysctlGet(reservedKey); got != "63999,64001-64002" {
			t.Fatalf("reserved %q", got)
		}
		if ours, err := b.host.reserved.ours(); err != nil || ours != b.host.mine || ours.String() != "63999,64001-64002" {
			t.Fatalf("the state file says %v, %v", ours, err)
		}
	}
	if steps < 10 {
		t.Errorf("only %d steps", steps)
	}
	if slices.Equal(before, b.snapshot()) {
		t.Error("nothing has changed in the end")
	}
}

// If the kernel refuses a part, nothing is changed. Here it refuses IPv6 routes of a device whose IPv6 someone
// has switched off. By then IPv4 has been done.
func TestReplaceRefused(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	c, learned := former(dir)
	b.apply(c)
	if err := b.host.Add(t.Context(), learned); err != nil {
		t.Fatal(err)
	}
	b.Client.Sysctl("net.ipv6.conf."+Link+".disable_ipv6", "1")
	before := b.snapshot()
	c, learned = latter(dir)
	err := b.replace(t.Context(), c, learned)
	if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EINVAL) {
		t.Errorf("got %v", err)
	}
	b.same("after the refusal", before)
	if got := b.Client.SysctlGet(reservedKey); got != "63999,64001-64002" {
		t.Errorf("reserved %q", got)
	}

	// As soon as possible it is repaired, to the old state.
	b.Client.Sysctl("net.ipv6.conf."+Link+".disable_ipv6", "0")
	_, stop := b.run(20 * time.Millisecond)
	defer stop()
	b.soon("repaired", func() bool {
		var there bool
		for _, line := range b.snapshot() {
			there = there || strings.Contains(line, "2001:db8:7::1") && strings.Contains(line, Link)
		}
		return there
	})
	b.capturedFromTUN(dialer{}, server4, 443)
}

// A kept rule or route is not touched: the kernel reports no change to it, whatever else comes and goes.
func TestReplaceTouchesNothingKept(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	c, learned := former(dir)
	b.apply(c)
	if err := b.host.Add(t.Context(), learned); err != nil {
		t.Fatal(err)
	}
	var fd int
	err := b.Client.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE); err != nil {
			return err
		}
		var groups uint32
		for _, g := range []int{unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE} {
			groups |= 1 << (g - 1)
		}
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, eventBuffer),
			unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	changes := 0
	look := func(m message) {
		changes++
		switch m.typ {
		case unix.RTM_NEWRULE, unix.RTM_DELRULE: // struct fib_rule_hdr is as long as struct rtmsg
			var pref uint32
			var dport []byte
			for typ, value := range attributes(m.data[unix.SizeofRtMsg:]) {
				switch typ {
				case nl.FRA_PRIORITY:
					pref = binary.NativeEndian.Uint32(value)
				case nl.FRA_DPORT_RANGE:
					dport = slices.Clone(value)
				}
			}
			if pref < prefCapture || slices.Equal(dport, binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, 443), 443)) {
				t.Errorf("message %d about the rule of priority %d, ports %v", m.typ, pref, dport)
			}
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			info, ok := parseRoute(m.data)
			kept := !ok || info.table == tableSelf
			for _, dst := range []string{"192.0.2.1", "2001:db8:7::1", lab.Server4, lab.Server6} {
				kept = kept || info.table == tablePortSet && info.dst.Addr() == netip.MustParseAddr(dst)
			}
			if kept {
				t.Errorf("message %d about the route %v", m.typ, info)
			}
		}
	}
	heard := func() {
		buf := make([]byte, 1<<16)
		for {
			n, err := unix.Read(fd, buf)
			if err == unix.EAGAIN {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for m := range messages(buf[:n]) {
				look(m)
			}
		}
	}
	for range 10 {
		for _, to := range []func(string) (Config, []Capture){latter, former} {
			c, learned := to(dir)
			if err := b.replace(t.Context(), c, learned); err != nil {
				t.Fatal(err)
			}
			heard()
		}
	}
	if changes < 100 {
		t.Errorf("only %d changes were seen", changes)
	}
}
