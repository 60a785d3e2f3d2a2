package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

const (
	// probeTimeout is how long a probe from another port may take.
	probeTimeout = 3 * time.Second
	// probeAfter is how long an upstream has to have been silent for a probe, when the
	// application gives up before the dial does.
	probeAfter = 2 * time.Second
	// probeEvery is the least time between two probes of one destination.
	probeEvery = time.Minute
	// maxProbed bounds the destinations that are remembered for that.
	maxProbed = 1024
)

// silenceError says that an upstream did not answer a dial from a pin.
type silenceError struct {
	err      error
	pin, dst netip.AddrPort
	waited   time.Duration
	hint     string
}

func (e *silenceError) Error() string { return e.err.Error() }
func (e *silenceError) Unwrap() error { return e.err }

// unanswered says that a dial ended without a word from the other side.
func unanswered(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || isTimeout(err) || errors.Is(err, syscall.ETIMEDOUT)
}

// probes remembers which destinations were probed lately. The zero value is ready.
type probes struct {
	mu   sync.Mutex
	last map[netip.AddrPort]time.Time
}

// due says whether a probe may be made now, and counts it as made.
func (p *probes) due(dst netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if last, ok := p.last[dst]; ok && now.Sub(last) < probeEvery {
		return false
	}
	if p.last == nil || len(p.last) >= maxProbed {
		p.last = make(map[netip.AddrPort]time.Time)
	}
	p.last[dst] = now
	return true
}

// diagnose finds out whether the silence is about the source port: whether the
// destination answers another one. The application has been left to its own timeout
// by then. It costs one connection, which carries nothing.
func (l *live) diagnose(err error) error {
	var silent *silenceError
	if !errors.As(err, &silent) || silent.waited < min(probeAfter, l.proxy.cfg.DialTimeout) {
		return err
	}
	// Not the flow's context, which has ended if the application has gone.
	ctx, cancel := context.WithTimeout(context.Background(), min(probeTimeout, l.proxy.cfg.DialTimeout))
	defer cancel()
	if !l.goOn(cancel) || !l.proxy.probes.due(silent.dst) {
		return err
	}
	if !silent.probe(ctx, l.proxy.cfg.Dialer) {
		return err
	}
	return silent
}

// probe dials the destination from another port and puts what that tells into e; false if it tells nothing.
func (e *silenceError) probe(ctx context.Context, d Dialer) bool {
	from := netip.AddrPort{}
	if !e.pin.Addr().IsUnspecified() {
		from = netip.AddrPortFrom(e.pin.Addr(), 0)
	}
	c, err := d.Dial(ctx, from, e.dst)
	waited := e.waited.Round(100 * time.Millisecond)
	switch {
	case err == nil:
		port := addrPort(c.LocalAddr()).Port()
		_ = c.Close()
		e.err = fmt.Errorf("no answer from %s to source port %d within %v, though port %d was answered at once: %w", e.dst, e.pin.Port(), waited, port, e.err)
	case errors.Is(err, syscall.ECONNREFUSED):
		e.err = fmt.Errorf("no answer from %s to source port %d within %v, though another port was refused at once: %w", e.dst, e.pin.Port(), waited, e.err)
	case unanswered(err) && !errors.Is(err, context.Canceled): // we have not stopped waiting
		e.err = fmt.Errorf("no answer from %s to source port %d within %v, nor to another port: %w", e.dst, e.pin.Port(), waited, e.err)
		e.hint = "the destination is down, or a firewall lets neither port in"
		return true
	default:
		return false
	}
	e.hint = "a firewall on the way remembers the port's last connection (cooldown= in the rule lets it forget), or filters resets, or does not let this port in"
	return true
}
