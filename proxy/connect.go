package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"pinproxy/proxy/lease"
	"pinproxy/rules"
)

// How long a port rests that the kernel did not give us; doubled each time. The last segments of an ended connection
// take milliseconds. Another program may hold the port for days. We then try it about every lastRest, which is how
// soon a flow continues once the port is free.
const (
	firstRest = time.Millisecond
	lastRest  = 50 * time.Millisecond
	// tryPace bounds the tries of a wide pin of which another program has all ports: after freeTries of a flow each rests
	// up to as many times as long as there are ports. Otherwise one flow would try them all without a pause.
	tryPace   = 5 * time.Millisecond
	freeTries = 16
	// lookAfter is when we ask what the matter is. By then it is none of the short causes.
	lookAfter = 20 * time.Millisecond
	// overdue is how much later than it says the kernel may end a TIME_WAIT.
	overdue = 5 * time.Second
)

// leased is what a flow holds while it lives: a lease, or nothing.
type leased struct{ lease *lease.Lease }

// Release gives the lease back, if there is one.
func (h leased) Release(rest time.Duration) {
	if h.lease != nil {
		h.lease.Release(rest)
	}
}

// connect makes an upstream connection as the rule says. The caller owns the Conn and the lease.
func (l *live) connect(ctx context.Context) (Conn, leased, error) {
	rule := l.decision.Rule
	l.behind = l.proxy.cfg.Behind(l.flow.Src().Addr())
	if l.captured() {
		return nil, leased{}, &pinError{err: errLoop}
	}
	if err := l.forbidden(l.flow.Dst()); err != nil {
		return nil, leased{}, err
	}
	if l.flow.Signed() {
		return nil, leased{}, &pinError{err: errSigned}
	}
	if rule == nil {
		if !l.proxy.cfg.Direct(l.flow.Dst()) {
			return nil, leased{}, &pinError{err: errNoRule}
		}
		c, err := l.dial(ctx, netip.AddrPort{})
		return c, leased{}, err
	}
	ways := rule.Busy()
	wait := waitOf(ways)
	if ways[0].Way == rules.Wait || ways[0].Way == rules.Reclaim {
		return l.busy(ctx, ways, wait, nil)
	}
	c, held, err := l.pinned(ctx, l.flow.Dst(), lease.Request{})
	if !errors.Is(err, lease.ErrBusy) {
		return c, held, err
	}
	return l.busy(ctx, ways, wait, err)
}

// busy tries the ways of the rule's busy list. cause has shown that no port is free; it is nil if waiting comes first
// in the list, and no port has been tried yet.
func (l *live) busy(ctx context.Context, ways []rules.Busy, wait lease.Request, cause error) (Conn, leased, error) {
	rule := l.decision.Rule
	for _, way := range ways {
		switch way.Way {
		case rules.Wait, rules.Reclaim:
			if wait.Wait == 0 {
				continue // already done: both stand for one wait
			}
			c, held, err := l.pinned(ctx, l.flow.Dst(), wait)
			if !errors.Is(err, lease.ErrBusy) {
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
			l.towards(l.flow.Dst())
		case rules.Any:
			if l.loops() {
				return nil, leased{}, &pinError{err: errLoop}
			}
			l.say(slog.LevelWarn, "flow leaves unpinned, as busy=any allows", KindBusy,
				append(l.who(nil), slog.String("rule", rule.String()), slog.String("cause", cause.Error())))
			c, err := l.dial(ctx, netip.AddrPort{})
			return c, leased{}, err
		case rules.Fail:
		}
	}
	return nil, leased{}, cause
}

// waitOf returns the single wait that wait and reclaim together stand for.
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

// pinned leases a source port towards dst and dials from it, for as long as how.Wait allows. A port that the kernel
// holds but the table does not know counts as busy: it rests, and the next one is tried. The error is ErrBusy if
// waiting, or another address, may help.
func (l *live) pinned(ctx context.Context, dst netip.AddrPort, how lease.Request) (Conn, leased, error) {
	begun, pin := time.Now(), l.decision.Rule.Pin()
	c, held, err := l.pinnedTo(ctx, l.proxy.pinNow(pin, dst), dst, how)
	if notHere(err) && !pin.Addr().IsValid() { // the kernel would choose another address by then
		how.Wait = max(how.Wait-time.Since(begun), 0)
		return l.pinnedTo(ctx, pin, dst, how)
	}
	return c, held, err
}

func (l *live) pinnedTo(ctx context.Context, pin rules.Pin, dst netip.AddrPort, how lease.Request) (Conn, leased, error) {
	how.Pin, how.Dst, how.Cooldown, how.Holder = pin, dst, l.decision.Rule.Cooldown(), l
	how.Turn = l.id
	l.towards(dst)
	w := l.newWait(how)
	defer w.end()
	how.Queued = w.queued
	held, err := l.proxy.leases.Acquire(ctx, how)
	for err == nil {
		c, derr := l.dial(ctx, held.Local())
		if derr == nil {
			return c, leased{held}, nil
		}
		switch {
		case taken(derr):
			if other := l.proxy.pinBehind(pin, dst, held.Local().Port()); !other.Equal(pin) {
				held.ReleaseUnused(0)
				how.Wait = w.left()
				return l.pinnedTo(ctx, other, dst, how)
			}
		case nothingSent(derr):
			held.ReleaseUnused(0)
			return nil, leased{}, derr
		default:
			held.Release(0)
			return nil, leased{}, derr
		}
		rest := w.refused(derr, held.Local())
		if w.over() {
			held.ReleaseUnused(rest)
			return nil, leased{}, w.failed(lease.ErrBusy)
		}
		how.Wait = w.left()
		held, err = l.proxy.leases.Exchange(ctx, held, rest, how)
	}
	return nil, leased{}, w.failed(err)
}

// dial connects from pin and verifies that the socket has the leased address. The zero pin means any source.
func (l *live) dial(ctx context.Context, pin netip.AddrPort) (Conn, error) {
	l.enter(Dialing, nil)
	if err := l.forbidden(l.upstream); err != nil {
		return nil, err
	}
	if pin == l.upstream {
		return nil, &pinError{err: errSelf}
	}
	l.proxy.dials.add(pin.Port(), l.upstream)
	defer l.proxy.dials.remove(pin.Port(), l.upstream)
	begun := time.Now()
	timeout := &lazy{Context: ctx, deadline: begun.Add(l.proxy.cfg.DialTimeout)}
	defer timeout.cancel()
	c, err := l.proxy.cfg.Dialer.Dial(timeout, pin, l.upstream)
	if err != nil {
		if pin.IsValid() && unanswered(err) {
			l.warnOfNAT(pin, pin)
			return nil, &silenceError{err: err, pin: pin, dst: l.upstream, waited: time.Since(begun)}
		}
		return nil, explain(err, pin, l.upstream)
	}
	local, err := verify(c, pin)
	if err != nil {
		closeByReset(c)
		return nil, &pinError{err: err}
	}
	l.mu.Lock()
	l.local = local
	l.keeper, _ = c.(keeper)
	l.mu.Unlock()
	if pin.IsValid() {
		l.warnOfNAT(pin, local)
	}
	return l.proxy.cfg.Wrap(l.flow.Src(), l.upstream, c), nil
}

// forbidden returns why a host behind this one may not be led to dst, or nil. We dial as this host, and would lend
// the other host whatever this host alone may reach: its loopback, its own addresses, its link. DNS answers are not
// trusted either (DNS rebinding).
func (l *live) forbidden(dst netip.AddrPort) error {
	if !l.behind {
		return nil
	}
	err := l.proxy.cfg.Forbid(dst)
	if err == nil {
		return nil
	}
	return &pinError{err: fmt.Errorf("%s is not for hosts behind this one: %w", dst.Addr(), err)}
}

// verify compares the socket's local address with the pin. The kernel silently ignores some ways of asking for a
// source port (curl/curl#21888), so the request proves nothing.
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
