package proxy

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"

	"pinproxy/proxy/lease"
)

// loopDialer hands each dial back as a flow, as a host would without the rule for our mark.
type loopDialer struct {
	t *testing.T
	h *harness
}

func (d *loopDialer) Dial(ctx context.Context, pin, dst netip.AddrPort) (Conn, error) {
	port := pin.Port()
	if port == 0 {
		port = chosenPort
	}
	f := d.h.openFrom(d.t, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port), dst, loopback)
	f.answered(d.t, "permission denied")
	f.ended(d.t)
	return nil, context.DeadlineExceeded
}

// chosenPort is what the kernel chooses for a dial from any port.
const chosenPort = 50000

func (d *loopDialer) Marked(local, _ netip.AddrPort) (ours, known bool) {
	return local.Port() == chosenPort, local.Port() == chosenPort
}

func TestCapturedDialDoesNotLoop(t *testing.T) {
	d := &loopDialer{t: t}
	h := newHarness(t, Config{Dialer: d}, "*:*=1000-1999 busy=fail")
	d.h = h
	f := h.open(t, dst4)
	f.answered(t, "drop")
	f.ended(t)
	lines := h.log.with("flow failed")
	if len(lines) != 2 || lines[0].Level != slog.LevelWarn || lines[0].Attrs["err"] != errLoop.Error() {
		t.Errorf("log: %v, want the captured dial refused and nothing else", lines)
	}
	if h.dials.has(1000, dst4) {
		t.Error("a dial that has ended is still known")
	}
}

// Nor does a dial from any port, as busy=any allows.
func TestCapturedDialFromAnyPortDoesNotLoop(t *testing.T) {
	d := &loopDialer{t: t}
	h := newHarness(t, Config{Dialer: d}, "*:*=1000 busy=any")
	h.crowd.perRule = 8
	d.h = h
	pin := h.cfg.Names.Decide(dst4).Rule.Pin()
	held, err := h.leases.Acquire(t.Context(), lease.Request{Pin: pin, Dst: dst4})
	if err != nil {
		t.Fatal(err)
	}
	f := h.open(t, dst4)
	f.answered(t, "drop")
	f.ended(t)
	held.Release(0)
	lines := h.log.with("flow failed")
	if len(lines) != 2 || lines[0].Attrs["err"] != errLoop.Error() {
		t.Errorf("log: %v, want the captured dial refused and nothing else", lines)
	}
}

// portOfDial is a Dialer that knows its sockets. During its first dial, an application connects from the dial's port to
// the same destination.
type portOfDial struct {
	loopDialer
	memDialer
	once atomic.Bool
}

func (d *portOfDial) Marked(netip.AddrPort, netip.AddrPort) (ours, known bool) { return false, true }

func (d *portOfDial) Dial(ctx context.Context, pin, dst netip.AddrPort) (Conn, error) {
	if d.once.CompareAndSwap(false, true) {
		f := d.h.openFrom(d.t, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), pin.Port()), dst, memory)
		f.answered(d.t, "accept")
	}
	return d.memDialer.Dial(ctx, pin, dst)
}

func TestPortOfADialByChance(t *testing.T) {
	d := &portOfDial{loopDialer: loopDialer{t: t}, memDialer: make(memDialer, 2)}
	h := newHarness(t, Config{Dialer: d}, "*:*=1000-1999 busy=fail")
	d.h = h
	h.openWith(t, dst4, memory).answered(t, "accept")
	if lines := h.log.with("flow failed"); len(lines) != 0 {
		t.Errorf("log: %v", lines)
	}
}
