package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestStranded(t *testing.T) {
	there := func(netip.Addr) bool { return true }
	gone := func(netip.Addr) bool { return false }
	l := &live{local: netip.MustParseAddrPort("198.51.100.2:63999")}
	start := time.Now()
	for i, look := range []struct {
		open bool
		owns func(netip.Addr) bool
		at   time.Duration
		want bool
	}{
		{false, gone, 0, false}, // it is still dialing, and will be told
		{false, gone, time.Minute, false},
		{true, there, time.Minute, false},
		{true, gone, 61 * time.Second, false},
		{true, gone, 70 * time.Second, false},
		{true, there, 70 * time.Second, false}, // it came back
		{true, gone, 72 * time.Second, false},
		{true, gone, 81 * time.Second, false}, // perhaps nobody was waiting meanwhile
		{true, gone, 82 * time.Second, true},
		{true, there, 83 * time.Second, false},
	} {
		if look.open {
			l.app = (*net.TCPConn)(nil)
		}
		if got := l.stranded(look.owns, start.Add(look.at)); got != look.want {
			t.Errorf("look %d, after %v: %v, want %v", i, look.at, got, look.want)
		}
	}
}

// forgetful is an end whose application's kernel has forgotten it. A probe finds that out.
type forgetful struct {
	Conn
	probed atomic.Bool
}

func (c *forgetful) Probe()       { c.probed.Store(true) }
func (c *forgetful) Broken() bool { return c.probed.Load() }

// If the upstream never closes, an application that has closed and is forgotten does not keep its port while another
// flow waits for it.
func TestDeserted(t *testing.T) {
	leaks(t)
	s := listen(t, "127.0.0.1:0")
	h := newHarness(t, Config{}, fmt.Sprintf("*:*=%d busy=wait", freePort(t)))
	f := h.openWith(t, s.addr, func() (Conn, Conn, error) {
		app, ours, err := loopback()
		return app, &forgetful{Conn: ours}, err
	})
	f.answered(t, "accept")
	up := s.next(t)
	_ = f.app.CloseWrite()
	wantEnd(t, up, nil)
	connected(t, h, s)
	endsAs(t, h, f, "its application is gone, and a flow waited for its port")
}

// A flow whose application has gone does not keep its port from others: whether they wait or fail at once, whether the
// upstream takes nothing, wherever in the pin the port is, and whoever had it when they began to wait.
func TestDesertedIsFound(t *testing.T) {
	closes := func(t *testing.T, f *testFlow) { _ = f.app.CloseWrite() }
	for _, c := range []struct {
		name, rule string
		others     int // flows that have the ports before
		goes       func(*testing.T, *testFlow)
	}{
		{"nobody may wait", "*:*=1000 busy=fail", 0, closes},
		{"waits are short", "*:*=1000 busy=wait:100ms", 0, closes},
		{"the upstream takes nothing", "*:*=1000 busy=wait", 0, func(t *testing.T, f *testFlow) { write(t, f.app, "nobody reads this") }},
		{"a wide pin", "*:*=1000-1019 busy=wait", 19, closes},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHarness(t, Config{Dialer: make(memDialer, 100)}, c.rule)
				for range c.others {
					h.openWith(t, dst4, memory).answered(t, "accept")
				}
				gone := h.openWith(t, dst4, forgotten)
				gone.answered(t, "accept")
				c.goes(t, gone)
				for range 10 {
					time.Sleep(time.Second)
					if <-h.openWith(t, dst4, memory).answers == "accept" {
						return
					}
				}
				t.Error("after ten tries the port is still busy")
			})
		})
	}
}

func TestDesertedWhileOthersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, Config{Dialer: make(memDialer, 100)}, "*:*=1000 busy=wait")
		first := h.openWith(t, dst4, memory)
		first.answered(t, "accept")
		gone := h.openWith(t, dst4, forgotten)
		synctest.Wait()
		last := h.openWith(t, dst4, memory)
		synctest.Wait()
		_ = first.app.SetLinger(0)
		_ = first.app.Close()
		gone.answered(t, "accept")
		_ = gone.app.CloseWrite()
		last.answered(t, "accept")
	})
}

// Whoever waits for one port does not end more flows than one.
func TestOneIsEndedForOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstreams := make(memDialer, 6)
		h := newHarness(t, Config{Dialer: upstreams}, "*:*=1000-1004 busy=wait")
		for range 5 {
			f := h.openWith(t, dst4, forgotten)
			f.answered(t, "accept")
			_ = f.app.CloseWrite()
		}
		h.openWith(t, dst4, memory).answered(t, "accept")
		time.Sleep(time.Minute)
		if n := len(h.log.with("flow")); n != 1 {
			t.Errorf("%d flows have ended", n)
		}
		for range cap(upstreams) {
			_ = (<-upstreams).Close()
		}
	})
}

func forgotten() (app, ours Conn, err error) {
	app, ours, err = memory()
	return app, &forgetful{Conn: ours}, err
}
