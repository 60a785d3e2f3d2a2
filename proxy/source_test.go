package proxy

import (
	"context"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// uplinks is a Dialer of a host whose connections leave from the address that is chosen now.
type uplinks struct {
	chosen netip.Addr
	gone   netip.Addr // it can't be bound
	taken  netip.Addr // a connection has the 4-tuple
	dialed memDialer
}

func (u *uplinks) Source(uint16, netip.AddrPort) (netip.Addr, error) { return u.chosen, nil }

func (u *uplinks) Dial(ctx context.Context, pin, dst netip.AddrPort) (Conn, error) {
	if pin.Addr() == u.gone {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("bind", syscall.EADDRNOTAVAIL)}
	}
	if pin.Addr().IsUnspecified() {
		pin = netip.AddrPortFrom(u.chosen, pin.Port())
	}
	if pin.Addr() == u.taken {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)}
	}
	return u.dialed.Dial(ctx, pin, dst)
}

var (
	uplink = netip.MustParseAddr("198.51.100.2")
	tunnel = netip.MustParseAddr("192.0.2.2")
)

// from expects a connection from addr.
func (u *uplinks) from(t *testing.T, f *testFlow, addr netip.Addr) {
	t.Helper()
	f.answered(t, "accept")
	if got, want := addrPort((<-u.dialed).RemoteAddr()), netip.AddrPortFrom(addr, 1000); got != want {
		t.Errorf("the connection left from %s, want %s", got, want)
	}
}

// bothUplinks opens a flow that leaves from the uplink, and one to the same destination after the kernel has chosen the
// tunnel.
func bothUplinks(t *testing.T, rule string) (h *harness, u *uplinks, first, second *testFlow) {
	t.Helper()
	u = &uplinks{chosen: uplink, dialed: make(memDialer, 100)}
	h = newHarness(t, Config{Dialer: u}, rule)
	first = h.openWith(t, dst4, memory)
	u.from(t, first, uplink)
	u.chosen = tunnel
	second = h.openWith(t, dst4, memory)
	u.from(t, second, tunnel)
	return h, u, first, second
}

// A flow that leaves from an address which the kernel no longer chooses has another 4-tuple than the next one, which so
// does not wait for it; for one from the same address it does, and for no other.
func TestSourceChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &uplinks{chosen: uplink, dialed: make(memDialer, 100)}
		h := newHarness(t, Config{Dialer: u}, "*:*=1000 busy=fail")
		pin := setOf(t, "*:*=1000").Match("", dst4).Pin()
		u.from(t, h.openWith(t, dst4, memory), uplink)
		h.openWith(t, dst4, memory).answered(t, "permission denied")
		if next := h.Pin(pin, dst4).Next; len(next) != 0 {
			t.Errorf("port %v is next, while a flow has it", next)
		}

		u.chosen = tunnel
		if next := h.Pin(pin, dst4).Next; len(next) != 1 {
			t.Error("no port is next, though the kernel would choose another address")
		}
		through := h.openWith(t, dst4, memory)
		u.from(t, through, tunnel)
		h.openWith(t, dst4, memory).answered(t, "permission denied")

		u.chosen = uplink
		h.openWith(t, dst4, memory).answered(t, "permission denied")

		u.chosen = tunnel
		_ = through.app.SetLinger(0)
		_ = through.app.Close()
		synctest.Wait()
		u.from(t, h.openWith(t, dst4, memory), tunnel)
	})
}

// A flow that waits for a port of the address that the kernel chose is not bound to it once that has left the host.
func TestSourceChangesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u, first, second := bothUplinks(t, "*:*=1000")
		third := h.openWith(t, dst4, memory)
		synctest.Wait()
		u.chosen, u.gone = uplink, tunnel
		for _, f := range []*testFlow{first, second} {
			_ = f.app.SetLinger(0)
			_ = f.app.Close()
		}
		u.from(t, third, uplink)
	})
}

// The first flow ends, and the port is free but for the flow that has it with the address that the kernel chooses. That
// one is in the way of the next, and is ended for it when it has been idle for long enough.
func TestSourceOfAnotherFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u, first, second := bothUplinks(t, "*:*=1000 busy=reclaim:5s")
		u.taken = tunnel
		_ = first.app.SetLinger(0)
		_ = first.app.Close()
		synctest.Wait()

		begun := time.Now()
		third := h.openWith(t, dst4, memory)
		wantEnd(t, second.app, nil) // in order
		synctest.Wait()
		u.taken = netip.Addr{}
		_ = second.app.Close()
		u.from(t, third, tunnel)
		if took := time.Since(begun); took > 7*time.Second {
			t.Errorf("it waited for %v", took)
		}
	})
}
