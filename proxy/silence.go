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
	// probeAfter is how long an upstream must have been silent to be probed, when the application gives up before the
	// dial does.
	probeAfter = 2 * time.Second
	// probeEvery is the least time between two probes of one destination.
	probeEvery = time.Minute
	// maxProbed bounds the number of destinations remembered for probeEvery.
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

// unanswered reports whether a dial ended without any word from the other side.
func unanswered(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || isTimeout(err) || errors.Is(err, syscall.ETIMEDOUT)
}

// probes remembers which destinations were probed recently. The zero value is ready for use.
type probes struct {
	mu   sync.Mutex
	last map[netip.AddrPort]time.Time
}

// due reports whether a probe may be made now, and if so counts it as made.
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

// diagnose finds out whether the silence depends on the source port: whether the destination answers another one. By
// then the application has been left to its own timeout. A probe costs one connection, which carries nothing.
func (l *live) diagnose(err error) error {
	var silent *silenceError
	if !errors.As(err, &silent) || silent.waited < min(probeAfter, l.proxy.cfg.DialTimeout) {
		return err
	}
	// Not the flow's context: it has ended if the application is gone.
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

// probe dials the destination from another port and records in e what that shows. It reports false if it shows
// nothing.
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
