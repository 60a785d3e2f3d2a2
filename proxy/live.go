package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"pinproxy/proxy/lease"
	"pinproxy/rules"
)

// endLinger is how long a flow that we end waits for the other ends to close theirs.
const endLinger = time.Second

// live is a flow from its decision to its end.
type live struct {
	proxy   *Proxy
	id      uint64 // flow.Number()
	flow    Flow
	behind  bool // comes from another host
	started time.Time

	lastMoved atomic.Int64 // when the last byte moved, in nanoseconds after started; 0 until spliced
	writing   atomic.Int32 // directions with bytes that the other end has not taken yet
	heard     atomic.Bool  // everything the application sent has been passed on, including its end
	logged    atomic.Bool  // its line has been written

	mu       sync.Mutex
	cancel   context.CancelFunc // gives the flow up while it is not spliced yet
	stage    Stage
	cause    error          // what it waits for, if known
	decision rules.Decision // only the flow's own goroutine writes this, tally and upstream
	tally    *tally         // of the decision's rule
	upstream netip.AddrPort // flow.Dst(), or another address of the name
	local    netip.AddrPort // of the upstream socket, once there is one
	app, net Conn           // while spliced
	reason   string         // why we ended it, if we did
	ordered  bool           // and whether we did so in order: a read past its deadline ends the stream

	keeper  keeper // the upstream's; nil once told to keep alive
	bounded bool   // the kernel keeps little of what the upstream sends

	gone time.Time // when a look (there are few) found that local's address had left the host; guarded by mu

	lookedAt time.Time // IdleSince at the last look of Finish, and how many looks have found the same value
	still    int

	// Once it is spliced.
	up, down direction
	held     leased
	release  func() // of what Names holds
	place    int    // in rest.awake, from 1; 0 outside; guarded by rest.mu
}

func newLive(p *Proxy, f Flow, cancel context.CancelFunc) *live {
	return &live{proxy: p, id: f.Number(), flow: f, started: time.Now(), cancel: cancel, upstream: f.Dst()}
}

// begin runs the flow up to its answer.
func (l *live) begin(ctx context.Context) {
	l.release = l.proxy.cfg.Names.Hold(l.flow.Dst().Addr())
	l.decide()
	if !l.proxy.crowd.enter(l.decision.Rule, l.flow.Src().Addr()) {
		l.flow.Drop() // like a listener with a full queue: the application tries again
		l.lose(errCrowd)
		return
	}
	up, held, err := l.connect(ctx)
	if err != nil {
		l.refuse(err)
		l.leaveCrowd()
		l.lose(err)
		return
	}
	l.flow.AcceptFunc(func(app Conn, err error) {
		l.leaveCrowd()
		if err != nil {
			closeByReset(up)
			held.Release(0)
			l.unopened(err)
			return
		}
		l.served()
		l.open(app, up, held)
		l.splice()
	})
}

// unopened ends a flow whose application was answered and did not take up the connection.
func (l *live) unopened(err error) {
	if !errors.Is(err, syscall.ECONNRESET) {
		l.lose(notAccepted(err, l.behind))
		return
	}
	l.served() // to the application it was a connection: that is how some health checks end theirs
	l.log(resetByApplication)
	l.release()
	l.proxy.remove(l)
}

// served notes that the pin has served a connection.
func (l *live) served() {
	if rule := l.decision.Rule; rule != nil && rule.Pin().Ports().Contains(l.local.Port()) {
		l.tally.serve(l.local.Port())
	}
}

func (l *live) leaveCrowd() { l.proxy.crowd.leave(l.decision.Rule, l.flow.Src().Addr()) }

// lose ends a flow that is not spliced.
func (l *live) lose(err error) {
	l.fail(l.diagnose(err))
	l.release()
	l.proxy.remove(l)
}

func (l *live) decide() {
	d := l.proxy.cfg.Names.Decide(l.flow.Dst())
	t := l.proxy.tallies.of(d.Rule)
	t.hits.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.decision, l.tally = d, t
}

// towards records where the flow is being connected to.
func (l *live) towards(dst netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.upstream = dst
}

// enter sets the flow's stage, and what it waits for.
func (l *live) enter(s Stage, cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stage, l.cause = s, cause
}

// goOn makes cancel the function that gives the flow up. It reports false if the flow has been given up already.
func (l *live) goOn(cancel context.CancelFunc) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reason != "" {
		return false
	}
	l.cancel = cancel
	return true
}

// open makes the flow a spliced one, which then runs on its own.
func (l *live) open(app, up Conn, held leased) {
	l.flow.Detach()
	l.moved()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.app, l.net, l.held = app, up, held
	l.up.flow, l.up.src, l.up.dst = l, app, up
	l.down.flow, l.down.src, l.down.dst = l, up, app
	for _, c := range []Conn{app, up} {
		if w, ok := c.(interface{ watchBy(*watch) }); ok {
			w.watchBy(&l.proxy.watch)
		}
	}
	l.stage, l.cause, l.cancel = Open, nil, nil
	l.proxy.rest.begin(l)
	l.boundLocked()
	if l.reason != "" { // ended while it was being opened
		l.interrupt()
	}
}

// spliced reports whether the application has been answered and the flow is open.
func (l *live) spliced() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.app != nil
}

// answering reports whether the application has yet to confirm our answer.
func (l *live) answering() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.app == nil && l.local.IsValid()
}

// refuse tells the application what the upstream told us.
func (l *live) refuse(err error) {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		l.flow.Drop()
	case unavailable(err):
		l.flow.Reject(syscall.EACCES)
	case errors.Is(err, syscall.ECONNREFUSED):
		l.flow.Reject(syscall.ECONNREFUSED)
	case errors.Is(err, syscall.ECONNRESET):
		// The upstream answered and reset at once, before we looked.
		l.flow.AcceptFunc(func(app Conn, err error) {
			if err == nil {
				closeByReset(app)
			}
		})
	case errors.Is(err, syscall.ENETUNREACH):
		l.flow.Reject(syscall.ENETUNREACH)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM): // a local firewall
		l.flow.Reject(syscall.EACCES)
	default:
		l.flow.Reject(syscall.EHOSTUNREACH)
	}
}

// fail logs a flow that was never spliced.
func (l *live) fail(err error) {
	kind := kindOf(err)
	l.proxy.failed[kind].Add(1)
	l.tally.failed.Add(1)
	l.proxy.failures.add(l.failure(err))
	level := slog.LevelWarn
	hint := hintOf(err)
	switch {
	case errors.Is(err, context.Canceled) && hint == "":
		err = errGaveUp
		level = slog.LevelInfo
	case errors.Is(err, errCrowd):
		if !l.proxy.crowd.mention() {
			return
		}
	case hint == "" && !unavailable(err):
		level = slog.LevelInfo // caused by the network, and the application is told
	}
	attrs := append(l.attrs(nil), slog.String("err", err.Error()))
	if hint != "" {
		attrs = append(attrs, slog.String("hint", hint))
	}
	l.say(level, "flow failed", kind, attrs)
}

// log writes the one log line of a spliced flow.
func (l *live) log(end string) {
	if l.logged.Swap(true) {
		return
	}
	l.tally.ended.Add(1)
	l.proxy.ended.Add(1)
	ctx, log, level := context.Background(), l.proxy.cfg.Log, slog.LevelInfo
	if end == leftBehind {
		level = slog.LevelWarn
	}
	if !log.Enabled(ctx, level) {
		return
	}
	var room [10]slog.Attr
	attrs := append(l.attrs(room[:0]),
		slog.Uint64("up", l.up.bytes.Load()),
		slog.Uint64("down", l.down.bytes.Load()),
		slog.String("end", end))
	line := slog.NewRecord(time.Now(), level, "flow", 0) // LogAttrs would look up the source line of its caller
	line.AddAttrs(attrs...)
	_ = log.Handler().Handle(ctx, line)
}

// who appends what identifies the flow.
func (l *live) who(attrs []slog.Attr) []slog.Attr {
	attrs = append(attrs, slog.Uint64("id", l.id), slog.String("src", l.flow.Src().String()), slog.String("dst", l.flow.Dst().String()))
	if l.decision.Name != "" {
		attrs = append(attrs, slog.String("name", l.decision.Name))
	}
	return attrs
}

// attrs appends what the log says about a flow that has ended.
func (l *live) attrs(attrs []slog.Attr) []slog.Attr {
	l.mu.Lock()
	local := l.local
	l.mu.Unlock()
	attrs = l.who(attrs)
	if l.upstream != l.flow.Dst() {
		attrs = append(attrs, slog.String("upstream", l.upstream.String()))
	}
	if l.decision.Rule != nil {
		attrs = append(attrs, slog.String("rule", l.decision.Rule.String()))
	}
	if local.IsValid() {
		attrs = append(attrs, slog.String("local", local.String()))
	}
	return append(attrs, slog.Duration("took", time.Since(l.started).Round(time.Microsecond)))
}

// end closes the flow in order: what has been read is delivered, and both sides get a FIN and a second to answer it.
// A flow that is not spliced yet is given up. The first reason counts.
func (l *live) end(reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reason == "" && l.stopLocked(reason) {
		l.interrupt()
	}
}

// stopLocked records the reason and gives up a flow that is not spliced yet. It reports whether there is something to
// close.
func (l *live) stopLocked(reason string) bool {
	if l.reason == "" {
		l.reason = reason
	}
	if l.app == nil {
		l.cancel()
		return false
	}
	return true
}

// interrupt wakes both directions from their reads, and bounds their writes. l.mu is held.
func (l *live) interrupt() {
	l.ordered = true
	now := time.Now()
	for _, c := range []Conn{l.app, l.net} {
		_ = c.SetReadDeadline(now)
		_ = c.SetWriteDeadline(now.Add(endLinger))
	}
	l.rouseLocked()
}

// abort ends the flow by resets, at once, without a FIN before them. The first reason counts.
func (l *live) abort(reason string) {
	l.mu.Lock()
	app, up := l.app, l.net
	open := l.stopLocked(reason)
	l.rouseLocked()
	l.mu.Unlock()
	if open {
		_ = up.SetLinger(0)
		_ = up.Close()
		_ = app.SetLinger(0)
		_ = app.Close()
	}
}

func (l *live) ended() (reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reason
}

// turn waits for the flow's turn to wake or to end. It does not wait if we end the flow: then whoever stops us or
// wants the port is waiting for that.
func (l *live) turn() {
	if l.ended() == "" {
		l.flow.Turn()
	}
}

// inOrder reports whether we have ended the flow, and by FINs.
func (l *live) inOrder() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ordered
}

// moved records that a byte moves now. Time is counted from started, because setting the clock would make idle flows
// busy and busy ones idle.
func (l *live) moved() { l.lastMoved.Store(int64(max(time.Since(l.started), 1))) }

// idleFor returns how long no byte has moved; 0 while the flow is busy.
func (l *live) idleFor() time.Duration {
	since := l.IdleSince()
	if since.IsZero() {
		return 0
	}
	return time.Since(since)
}

var _ lease.Holder = (*live)(nil)

// IdleSince implements lease.Holder. A flow is busy until it is spliced, and while an end takes its bytes slowly,
// when one write may take long.
func (l *live) IdleSince() time.Time {
	last := l.lastMoved.Load()
	if last == 0 || l.writing.Load() > 0 {
		return time.Time{}
	}
	return l.started.Add(time.Duration(last))
}

// Reclaim implements lease.Holder.
func (l *live) Reclaim() { l.end("reclaimed for a waiting flow") }

// String names the flow in messages about who holds a port.
func (l *live) String() string { return fmt.Sprintf("flow %d from %s", l.id, l.flow.Src()) }
