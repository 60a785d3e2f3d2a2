package proxy

import (
	"cmp"
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
	told     string // with what a probe showed; may be empty
	hint     string
}

func (e *silenceError) Error() string { return cmp.Or(e.told, e.err.Error()) }
func (e *silenceError) Unwrap() error { return e.err }

// unanswered reports whether a dial ended without any word from the other side.
func unanswered(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || isTimeout(err) || errors.Is(err, syscall.ETIMEDOUT)
}

// verdict is what a probe showed about the silence.
type verdict struct {
	other string // how another port fared
	hint  string
}

// probes remembers which destinations were probed recently, and what that showed. The zero value is ready for use.
type probes struct {
	mu   sync.Mutex
	last map[netip.AddrPort]probed
}

type probed struct {
	at   time.Time
	told verdict // empty until the probe has ended, or if it showed nothing
}

// due reports whether a probe may be made now, and if so counts it as made. Otherwise it returns what the last one
// showed.
func (p *probes) due(dst netip.AddrPort) (verdict, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if last, ok := p.last[dst]; ok && now.Sub(last.at) < probeEvery {
		return last.told, false
	}
	if p.last == nil || len(p.last) >= maxProbed {
		p.last = make(map[netip.AddrPort]probed)
	}
	p.last[dst] = probed{at: now}
	return verdict{}, true
}

// told keeps what a probe showed for the flows that fail before the next one is due.
func (p *probes) told(dst netip.AddrPort, v verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last, ok := p.last[dst]; ok {
		p.last[dst] = probed{last.at, v}
	}
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
	if !l.goOn(cancel) {
		return err
	}
	told, due := l.proxy.probes.due(silent.dst)
	if due {
		told = silent.probe(ctx, l.proxy.cfg.Dialer)
		l.proxy.probes.told(silent.dst, told)
	}
	if told.other == "" {
		return err
	}
	silent.explain(told)
	return silent
}

// probe dials the destination from another port. The verdict is empty if that shows nothing.
func (e *silenceError) probe(ctx context.Context, d Dialer) verdict {
	from := netip.AddrPort{}
	if !e.pin.Addr().IsUnspecified() {
		from = netip.AddrPortFrom(e.pin.Addr(), 0)
	}
	const aboutPort = "a firewall on the way remembers the port's last connection (cooldown= in the rule lets it forget), or filters resets, or does not let this port in"
	c, err := d.Dial(ctx, from, e.dst)
	switch {
	case err == nil:
		port := addrPort(c.LocalAddr()).Port()
		_ = c.Close()
		return verdict{fmt.Sprintf("though port %d was answered at once", port), aboutPort}
	case errors.Is(err, syscall.ECONNREFUSED):
		return verdict{"though another port was refused at once", aboutPort}
	case unanswered(err) && !errors.Is(err, context.Canceled): // we have not stopped waiting
		return verdict{"nor to another port", "the destination is down, or a firewall lets neither port in"}
	}
	return verdict{}
}

// explain puts what a probe showed into the error.
func (e *silenceError) explain(v verdict) {
	why := e.err.Error()
	if errors.Is(e.err, context.Canceled) {
		why = "the application gave up"
	}
	e.told = fmt.Sprintf("no answer from %s to source port %d within %v, %s: %s", e.dst, e.pin.Port(), e.waited.Round(100*time.Millisecond), v.other, why)
	e.hint = v.hint
}
