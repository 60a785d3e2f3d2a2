package proxy

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"time"

	"pinproxy/proxy/lease"
	"pinproxy/rules"
)

const (
	// idleHint is how long a flow waits before the log says that an idle one holds it up.
	idleHint = 2 * time.Second
	// countdown is how often the log says that a flow waits for the kernel.
	countdown = 10 * time.Second
)

// wait is a flow's wait for its source port: for other flows, which is the lease table's task, and for the kernel.
// Only the flow's own goroutine uses it.
type wait struct {
	flow    *live
	rule    *rules.Rule
	pin     rules.Pin // the rule's, see pinNow
	begun   time.Time
	ends    time.Time
	waiting bool // for longer than a first look
	reclaim bool
	timer   *time.Timer // for the hint about idle flows, while the flow waits behind others
	rescue  *rescue     // of a port, if a flow that has one is stranded

	// The kernel's refusals.
	tries    int
	rest     time.Duration
	last     error
	port     netip.AddrPort
	obstacle Obstacle
	told     time.Time
}

func (l *live) newWait(how lease.Request) *wait {
	now := time.Now()
	return &wait{flow: l, rule: l.decision.Rule, pin: how.Pin, begun: now, ends: now.Add(how.Wait), waiting: how.Wait > 0, reclaim: how.Reclaim > 0, rest: firstRest}
}

// end is called when the flow no longer waits.
func (w *wait) end() {
	if w.timer != nil {
		w.timer.Stop()
	}
	if w.rescue != nil {
		w.rescue.stop()
	}
}

// left returns how much longer the flow may wait.
func (w *wait) left() time.Duration {
	if !w.waiting {
		return 0
	}
	return max(time.Until(w.ends), 0)
}

// over reports whether no port is to be tried any more. In a wide pin the first port has rested by the time the last
// one is refused, and the table would never say that all are busy.
func (w *wait) over() bool {
	if w.waiting {
		return w.left() == 0
	}
	return w.tries >= w.rule.Pin().Ports().Len()
}

// queued logs that the flow waits behind others, and later, if so, that one of them is idle. It is the lease
// request's Queued.
func (w *wait) queued(busy *lease.BusyError) {
	if w.rescue == nil {
		w.rescue = w.flow.proxy.rescue(rescueKey{w.rule, w.pin.Addr(), busy.Dst})
	}
	if w.tries > 0 { // it waits for the kernel
		w.tell()
		return
	}
	l := w.flow
	l.enter(Waiting, busy)
	l.say(slog.LevelInfo, "flow waits for its source port", KindBusy,
		append(l.who(nil), slog.String("rule", w.rule.String()), slog.Duration("for", w.left().Round(time.Millisecond)), slog.String("cause", busy.Error())))
	if w.reclaim {
		return
	}
	w.timer = time.AfterFunc(idleHint, func() {
		if l.behindIdle(w.pin) {
			l.say(slog.LevelInfo, "flow waits behind an idle one", KindBusy,
				append(l.who(nil), slog.String("rule", w.rule.String()), slog.String("hint", "a wider range of source ports serves both, busy=reclaim ends the idle flow for the one that waits")))
		}
	})
}

func (l *live) behindIdle(pin rules.Pin) bool {
	for _, h := range l.proxy.leases.Held(l.flow.Dst(), pin) {
		if h.Holder == nil {
			continue
		}
		if since := h.Holder.IdleSince(); !since.IsZero() && time.Since(since) > time.Second {
			return true
		}
	}
	return false
}

// refused records that the kernel did not give us the port, and returns how long the port rests: as long as the
// kernel says, if it says so.
func (w *wait) refused(err error, port netip.AddrPort) (rest time.Duration) {
	w.tries++
	w.last, w.port = err, port
	rest = w.rest
	w.rest = min(2*w.rest, lastRest)
	if !w.waiting {
		return rest
	}
	if w.tries > freeTries {
		rest = max(rest, rand.N(tryPace*time.Duration(w.rule.Pin().Ports().Len())))
	}
	if time.Since(w.begun) < lookAfter {
		return rest
	}
	found, ok := w.flow.obstacleNow(w.port, w.flow.upstream)
	if !ok {
		return rest
	}
	w.obstacle = found
	if left := w.obstacle.Left; left > 0 {
		// A rule that does not say how long to wait outlasts the kernel, which keeps the 4-tuple for a minute.
		if ends := time.Now().Add(left + overdue); w.flow.patient() && ends.After(w.ends) {
			w.ends = ends
		}
		rest = min(left, countdown)
	}
	if w.tries >= w.rule.Pin().Ports().Len() { // else another port may be free, or queued tells
		w.tell()
	}
	return rest
}

// patient reports whether the rule leaves the length of the wait to us.
func (l *live) patient() bool {
	busy := l.decision.Rule.Busy()
	return len(busy) == 1 && busy[0] == rules.Busy{Way: rules.Wait, For: rules.DefaultWait}
}

// tell records what holds the port in the kernel, and logs it from time to time.
func (w *wait) tell() {
	if w.obstacle.Cause == "" {
		return
	}
	cause := w.cause()
	w.flow.enter(Waiting, cause)
	if time.Since(w.told) < countdown-time.Second {
		return
	}
	w.told = time.Now()
	attrs := append(w.flow.who(nil), slog.String("rule", w.rule.String()), slog.String("local", w.port.String()),
		slog.Duration("for", w.left().Round(time.Millisecond)), slog.String("cause", w.obstacle.Cause))
	if w.obstacle.Left > 0 {
		attrs = append(attrs, slog.Duration("left", w.obstacle.Left.Round(time.Second)))
	}
	if w.obstacle.Hint != "" {
		attrs = append(attrs, slog.String("hint", w.obstacle.Hint))
	}
	w.flow.say(slog.LevelWarn, "flow waits for the kernel to free its source port", KindTaken, attrs)
}

// cause returns what the kernel said, and why.
func (w *wait) cause() error {
	if w.obstacle.Cause == "" {
		return fmt.Errorf("the kernel refused %s: %w", w.port, w.last)
	}
	return &advised{err: fmt.Errorf("%s: %w", w.obstacle.Cause, w.last), hint: w.obstacle.Hint}
}

// failed returns the error of a wait that was in vain.
func (w *wait) failed(err error) error {
	if !errors.Is(err, lease.ErrBusy) {
		return &pinError{err: err}
	}
	w.flow.proxy.rescueLater(rescueKey{w.rule, w.pin.Addr(), w.flow.upstream})
	if busy := (*lease.BusyError)(nil); w.waiting && errors.As(err, &busy) {
		busy.Waited = time.Since(w.begun) // in all, not since the kernel's last refusal
		if w.last == nil {                // the flows before it may have had all tries, and been refused
			w.port, w.last = busy.Free, syscall.EADDRINUSE
		}
	}
	if w.port.IsValid() {
		w.obstacle = w.flow.obstacle(w.port, w.flow.upstream)
	}
	if w.tries == 0 && w.obstacle.Cause == "" {
		return &pinError{err: err, hint: busyHint(w.rule, err)}
	}
	hint := w.obstacle.Hint
	if hint == "" {
		hint = busyHint(w.rule, err)
	}
	return &pinError{err: fmt.Errorf("%w; %w", err, w.cause()), hint: hint}
}
