package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"syscall"
	"time"

	"pinproxy/proxy/lease"
	"pinproxy/rules"
)

// Rest of a port that the kernel would not give us, doubled each time: FIN_WAIT2
// passes within milliseconds, TIME_WAIT or another program do not.
const (
	firstRest = time.Millisecond
	lastRest  = 250 * time.Millisecond
)

var (
	errNoRule = errors.New("no rule is for this destination")
	errLoop   = errors.New("this is a connection of our own that was captured: the policy rule for its mark is missing")
	errSelf   = errors.New("source and destination are the same address and port: the connection would lead back to itself")
)

// pinError says that a pin can't be had: the flow must not leave otherwise.
type pinError struct{ err error }

func (e *pinError) Error() string { return e.err.Error() }
func (e *pinError) Unwrap() error { return e.err }

// unavailable says whether err is about the pin and not about the upstream.
func unavailable(err error) bool {
	var pin *pinError
	return errors.As(err, &pin)
}

// leased is what a flow holds while it lives: a lease, or nothing.
type leased struct{ lease *lease.Lease }

// Release gives the lease back, if there is one.
func (h leased) Release(rest time.Duration) {
	if h.lease != nil {
		h.lease.Release(rest)
	}
}

// connect finds the rule's way to an upstream connection. The Conn and the
// lease are the caller's.
func (l *live) connect(ctx context.Context) (Conn, leased, error) {
	rule := l.decision.Rule
	if l.proxy.dials.has(l.flow.Src().Port(), l.flow.Dst()) {
		return nil, leased{}, &pinError{errLoop}
	}
	if rule == nil {
		if !l.proxy.cfg.Direct(l.flow.Dst()) {
			return nil, leased{}, &pinError{errNoRule}
		}
		c, err := l.dial(ctx, netip.AddrPort{})
		return c, leased{}, err
	}
	c, held, err := l.pinned(ctx, l.flow.Dst(), lease.Request{})
	if !errors.Is(err, errBusy) {
		return c, held, err
	}
	return l.busy(ctx, rule, err)
}

// busy goes through the ways of the rule's busy list, after cause has shown that
// no port is free.
func (l *live) busy(ctx context.Context, rule *rules.Rule, cause error) (Conn, leased, error) {
	ways := rule.Busy()
	wait := waitOf(ways)
	for _, way := range ways {
		switch way.Way {
		case rules.Wait, rules.Reclaim:
			if wait.Wait == 0 {
				continue // done already: both stand for one wait
			}
			l.tellWaiting(rule, cause, wait)
			stop := l.hintReclaim(rule, wait)
			c, held, err := l.pinned(ctx, l.flow.Dst(), wait)
			stop()
			if !errors.Is(err, errBusy) {
				return c, held, err
			}
			cause, wait.Wait = err, 0
		case rules.OtherAddress:
			for _, other := range l.proxy.cfg.Names.Others(l.decision.Name, l.flow.Dst().Addr()) {
				c, held, err := l.pinned(ctx, netip.AddrPortFrom(other, l.flow.Dst().Port()), lease.Request{})
				if err == nil || errors.Is(err, context.Canceled) {
					return c, held, err
				}
			}
			l.upstream = l.flow.Dst()
		case rules.Any:
			l.proxy.cfg.Log.Warn("flow leaves unpinned, as busy=any allows",
				"src", l.flow.Src().String(), "dst", l.flow.Dst().String(), "rule", rule.String(), "cause", cause.Error())
			c, err := l.dial(ctx, netip.AddrPort{})
			return c, leased{}, err
		case rules.Fail:
		}
	}
	return nil, leased{}, &pinError{cause}
}

// waitOf returns the one wait that wait and reclaim stand for.
func waitOf(ways []rules.Busy) lease.Request {
	r := lease.Request{}
	for _, way := range ways {
		switch way.Way {
		case rules.Wait:
			r.Wait = way.For
		case rules.Reclaim:
			r.Reclaim = way.For
		}
	}
	if r.Reclaim > 0 && r.Wait == 0 {
		r.Wait = rules.DefaultWait
	}
	return r
}

// tellWaiting says in the log that the flow waits, and behind whom.
func (l *live) tellWaiting(rule *rules.Rule, cause error, wait lease.Request) {
	l.proxy.cfg.Log.LogAttrs(context.Background(), slog.LevelInfo, "flow waits for its source port",
		append(l.who(), slog.String("rule", rule.String()), slog.Duration("for", wait.Wait), slog.String("cause", cause.Error()))...)
}

// idleHint is how long a flow waits before it is told that an idle one holds it up.
const idleHint = 2 * time.Second

// hintReclaim hints at busy=reclaim if the flow still waits behind an idle one
// after a while, until stop is called.
func (l *live) hintReclaim(rule *rules.Rule, wait lease.Request) (stop func()) {
	if wait.Reclaim > 0 {
		return func() {}
	}
	timer := time.AfterFunc(idleHint, func() {
		if l.behindIdle(rule) {
			l.proxy.cfg.Log.LogAttrs(context.Background(), slog.LevelInfo, "flow waits behind an idle one",
				append(l.who(), slog.String("rule", rule.String()), slog.String("hint", "busy=reclaim ends the idle flow for the one that waits"))...)
		}
	})
	return func() { timer.Stop() }
}

func (l *live) behindIdle(rule *rules.Rule) bool {
	for _, h := range l.proxy.leases.Held(l.flow.Dst(), rule.Pin()) {
		if h.Holder == nil {
			continue
		}
		if since := h.Holder.IdleSince(); !since.IsZero() && time.Since(since) > time.Second {
			return true
		}
	}
	return false
}

// errBusy is in the error of pinned when waiting, or another address, may help.
var errBusy = lease.ErrBusy

// pinned leases a source port towards dst and dials from it, for as long as
// how.Wait allows. A port that the kernel holds although the table does not
// know counts as busy: it rests, and the next is tried.
func (l *live) pinned(ctx context.Context, dst netip.AddrPort, how lease.Request) (Conn, leased, error) {
	rule := l.decision.Rule
	how.Pin, how.Dst, how.Cooldown, how.Holder = rule.Pin(), dst, rule.Cooldown(), l
	l.upstream = dst
	start := time.Now()
	deadline := start.Add(how.Wait)
	wait := how.Wait > 0
	var refused error // by the kernel, last
	var port uint16   // the one it refused
	for rest, tries := firstRest, 1; ; rest, tries = min(2*rest, lastRest), tries+1 {
		held, err := l.proxy.leases.Acquire(ctx, how)
		if err != nil {
			if busy := (*lease.BusyError)(nil); wait && errors.As(err, &busy) {
				busy.Waited = time.Since(start) // in all, not since the kernel's last refusal
			}
			if refused != nil && errors.Is(err, lease.ErrBusy) {
				err = fmt.Errorf("%w; the kernel refused: %w", err, l.owned(refused, port))
			}
			return nil, leased{}, &pinError{err}
		}
		c, err := l.dial(ctx, held.Local())
		if err == nil {
			return c, leased{held}, nil
		}
		if !taken(err) {
			held.Release(0)
			return nil, leased{}, err
		}
		port = held.Local().Port()
		held.Release(rest)
		refused = err
		how.Wait = time.Until(deadline)
		// In a wide pin the first port has rested before the last is refused, and
		// Acquire would never say that all are busy.
		if wait && how.Wait <= 0 || !wait && tries == how.Pin.Ports().Len() {
			return nil, leased{}, &pinError{fmt.Errorf("%w: %w", lease.ErrBusy, l.owned(refused, port))}
		}
	}
}

// owned adds to err which program has the port, if the dialer can tell.
func (l *live) owned(err error, port uint16) error {
	d, ok := l.proxy.cfg.Dialer.(interface{ Owner(port uint16) string })
	if !ok {
		return err
	}
	if owner := d.Owner(port); owner != "" {
		return fmt.Errorf("%w: port %d is taken by %s", err, port, owner)
	}
	return err
}

// dial connects from pin, the zero value for any source, and verifies that the
// socket has what the lease says.
func (l *live) dial(ctx context.Context, pin netip.AddrPort) (Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, l.proxy.cfg.DialTimeout)
	defer cancel()
	if pin == l.upstream {
		return nil, &pinError{errSelf}
	}
	defer l.proxy.dials.add(pin.Port(), l.upstream)()
	c, err := l.proxy.cfg.Dialer.Dial(ctx, pin, l.upstream)
	if err != nil {
		if fromBind(err) && !taken(err) {
			return nil, &pinError{err}
		}
		return nil, err
	}
	local, err := verify(c, pin)
	if err != nil {
		closeByReset(c)
		return nil, &pinError{err}
	}
	l.mu.Lock()
	l.local = local
	l.mu.Unlock()
	return l.proxy.cfg.Wrap(l.upstream, c), nil
}

// verify compares the socket's local address with the pin. The kernel ignores
// some ways of asking for a source port without a word (curl/curl#21888), so
// what was asked for proves nothing.
func verify(c Conn, pin netip.AddrPort) (netip.AddrPort, error) {
	local := addrPort(c.LocalAddr())
	if pin.IsValid() && (local.Port() != pin.Port() || !pin.Addr().IsUnspecified() && local.Addr() != pin.Addr()) {
		return local, fmt.Errorf("the socket has the local address %s instead of the pin %s", local, pin)
	}
	if local == addrPort(c.RemoteAddr()) {
		return local, errSelf
	}
	return local, nil
}

// taken says that the kernel holds the 4-tuple or the port: connect found the
// 4-tuple in use (__inet_check_established), or bind the port (inet_csk_get_port).
func taken(err error) bool {
	if errors.Is(err, syscall.EADDRINUSE) {
		return true
	}
	return errors.Is(err, syscall.EADDRNOTAVAIL) && !fromBind(err)
}

func fromBind(err error) bool {
	var sys *os.SyscallError
	return errors.As(err, &sys) && sys.Syscall == "bind"
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
