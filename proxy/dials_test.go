package proxy

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
)

// loopDialer hands each dial back as a flow, as a host would without the rule for our mark.
type loopDialer struct {
	t *testing.T
	h *harness
}

func (d *loopDialer) Dial(ctx context.Context, pin, dst netip.AddrPort) (Conn, error) {
	f := d.h.openFrom(d.t, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), pin.Port()), dst, loopback)
	f.answered(d.t, "permission denied")
	f.ended(d.t)
	return nil, context.DeadlineExceeded
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
