package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
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

func TestOwns(t *testing.T) {
	if !(Sockets{}).Owns(netip.MustParseAddr("127.0.0.1")) {
		t.Error("127.0.0.1 is not the host's")
	}
	if any, _ := os.ReadFile("/proc/sys/net/ipv4/ip_nonlocal_bind"); strings.TrimSpace(string(any)) == "1" {
		t.Skip("net.ipv4.ip_nonlocal_bind lets sockets have any address")
	}
	if (Sockets{}).Owns(netip.MustParseAddr("192.0.2.99")) {
		t.Error("192.0.2.99 is the host's")
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
