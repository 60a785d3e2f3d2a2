package lease

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pinproxy/rules"
)

// These tests compare the table with a naive twin: lists that are searched from end to end. An operation is four
// bytes. Its effect must equal the twin's, request for request and port for port. The choice of a port is free only
// as far as least recently used allows.
//
// All moments are at least a nanosecond apart, so that only one order of events is right: the ends of waits and
// rests get the number of their operation as nanoseconds, cooldowns as microseconds.

var modelPins = []string{"10-13", "13", "12,10", "11-12", "192.0.2.10:10-11"}

var modelDsts = []netip.AddrPort{dst, netip.MustParseAddrPort("203.0.113.2:443")}

type modelPort struct {
	key    pairKey
	port   uint16
	holder *modelRequest
	since  time.Time
	asked  bool      // closing for a waiter, until ready again
	free   time.Time // end of the rest; zero: not resting
	order  int       // of its last release; 0: never released
	last   time.Time // of its last release
}

type modelRequest struct {
	r      Request
	key    pairKey
	flow   *flow
	got    *result
	cancel func()

	arrival int       // its turn
	ends    time.Time // of the wait
	port    *modelPort
	err     error
}

func (q *modelRequest) usable(p *modelPort) bool {
	return p.key == q.key && q.r.Pin.Ports().Contains(p.port)
}

type model struct {
	t       *testing.T
	table   *Table
	begin   time.Time
	op      int
	ports   []*modelPort
	waiting []*modelRequest
	holding []*modelRequest
	order   int

	mu   sync.Mutex
	asks []*modelRequest // since the last step
}

func newModel(t *testing.T) (*model, []rules.Pin) {
	m := &model{t: t, table: NewTable(), begin: time.Now()}
	var pins []rules.Pin
	for _, text := range modelPins {
		pin := pinOf(t, text)
		pins = append(pins, pin)
		for _, d := range modelDsts {
			for _, r := range pin.Ports().Ranges() {
				for port := r.First; port <= r.Last; port++ {
					m.record(keyOf(pin, d), port)
				}
			}
		}
	}
	return m, pins
}

func (m *model) record(key pairKey, port uint16) *modelPort {
	for _, p := range m.ports {
		if p.key == key && p.port == port {
			return p
		}
	}
	p := &modelPort{key: key, port: port}
	m.ports = append(m.ports, p)
	return p
}

// until returns d from now, made unique.
func (m *model) until(d time.Duration) time.Duration {
	return time.Until(time.Now().Add(d).Truncate(time.Millisecond).Add(time.Duration(m.op)))
}

// acquire starts a request and predicts its result.
func (m *model) acquire(r Request) {
	f := &flow{idle: time.Now()}
	r.Holder = f
	ctx, cancel := context.WithCancel(m.t.Context())
	q := &modelRequest{r: r, key: keyOf(r.Pin, r.Dst), flow: f, cancel: cancel, arrival: m.op, ends: time.Now().Add(r.Wait)}
	f.onAsk = func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.asks = append(m.asks, q)
	}
	q.got = later(ctx, m.table, r)
	synctest.Wait()
	m.acquired(q)
}

// acquired predicts the result of a request that has just arrived or come back.
func (m *model) acquired(q *modelRequest) {
	var free []*modelPort
	for _, p := range m.ports {
		if q.usable(p) && p.holder == nil && p.free.IsZero() {
			free = append(free, p)
		}
	}
	switch {
	case len(free) > 0:
		m.grant(m.choose(q, free), q)
	case q.r.Wait == 0:
		q.err = ErrBusy
	default:
		i, _ := slices.BinarySearchFunc(m.waiting, q.arrival, func(o *modelRequest, arrival int) int { return o.arrival - arrival })
		m.waiting = slices.Insert(m.waiting, i, q)
	}
	m.verify(q)
}

// exchange gives back a lease that was of no use, and predicts what replaces it. To the table, a request that keeps
// holding is a new one, with another flow.
func (m *model) exchange(q *modelRequest, rest time.Duration) {
	old := q.got.get().lease
	p := q.port
	m.holding = slices.DeleteFunc(m.holding, func(o *modelRequest) bool { return o == q })
	m.order++
	p.holder, p.order, p.last, p.free = nil, m.order, time.Now(), time.Now().Add(rest)
	q.port = nil
	f := &flow{idle: time.Now()}
	f.onAsk = q.flow.onAsk
	q.r.Holder, q.flow, q.ends = f, f, time.Now().Add(q.r.Wait)
	ctx, cancel := context.WithCancel(m.t.Context())
	q.cancel = cancel
	res, r := new(result), q.r
	go func() {
		l, err := m.table.Exchange(ctx, old, rest, r)
		res.Store(&outcome{lease: l, err: err, at: time.Now(), done: true})
	}()
	q.got = res
	synctest.Wait()
	m.acquired(q)
}

// choose returns the port that q got, if that port is allowed.
func (m *model) choose(q *modelRequest, free []*modelPort) *modelPort {
	if q.got.get().lease == nil {
		m.t.Fatalf("%v to %v got no port: %v", q.r.Pin, q.r.Dst, q.got.get().err)
	}
	i := slices.IndexFunc(free, func(p *modelPort) bool { return p.port == q.got.get().lease.Local().Port() })
	if i < 0 {
		m.t.Fatalf("%v is not free", q.got.get().lease.Local())
	}
	c := free[i]
	if m.table.recency.most < mostRemembered {
		return c // it may have forgotten any
	}
	remembered := func(p *modelPort) bool { return p.order > 0 && time.Since(p.last) < memory }
	for _, p := range free {
		var better bool
		switch {
		case remembered(c) && remembered(p):
			better = p.order < c.order
		case remembered(c):
			// Either never used, or forgotten long ago: a withdrawn lease and a long rest take time.
			better = p.order == 0 || time.Since(p.last) > 3*longest
		case c.order == 0 && p.order == 0 && time.Since(m.begin) < memory:
			better = p.port < c.port
		}
		if better {
			m.t.Fatalf("%v was taken, but %d was used less recently", q.got.get().lease.Local(), p.port)
		}
	}
	return c
}

func (m *model) grant(p *modelPort, q *modelRequest) {
	p.holder, p.since, q.port = q, time.Now(), p
	p.asked = false
	m.holding = append(m.holding, q)
}

// deliver predicts who gets a port that has become free.
func (m *model) deliver(p *modelPort) *modelRequest {
	p.free, p.asked = time.Time{}, false
	i := slices.IndexFunc(m.waiting, func(q *modelRequest) bool { return q.usable(p) })
	if i < 0 {
		return nil
	}
	q := m.waiting[i]
	m.waiting = slices.Delete(m.waiting, i, i+1)
	m.grant(p, q)
	return q
}

// release releases a lease and predicts who gets it.
func (m *model) release(q *modelRequest, rest time.Duration) *modelRequest {
	q.got.get().lease.Release(rest)
	q.got.get().lease.Release(0)
	return m.released(q, rest)
}

func (m *model) released(q *modelRequest, rest time.Duration) *modelRequest {
	p := q.port
	m.holding = slices.DeleteFunc(m.holding, func(o *modelRequest) bool { return o == q })
	m.order++
	p.holder, p.order, p.last = nil, m.order, time.Now()
	if rest = max(rest, q.r.Cooldown); rest > 0 {
		p.free = time.Now().Add(rest)
		return nil
	}
	return m.deliver(p)
}

// cancel ends a waiter's context.
func (m *model) cancel(q *modelRequest) {
	q.cancel()
	m.waiting = slices.DeleteFunc(m.waiting, func(o *modelRequest) bool { return o == q })
	q.err = context.Canceled
	synctest.Wait()
	m.verify(q)
}

// releaseAndCancel releases q's port and cancels w, which would get that port, at the same moment.
func (m *model) releaseAndCancel(q, w *modelRequest) {
	q.got.get().lease.Release(0)
	w.cancel()
	synctest.Wait()
	next := m.released(q, 0)
	if next == w && w.got.get().lease == nil {
		// Withdrawn: as if w had left earlier.
		m.holding = slices.DeleteFunc(m.holding, func(o *modelRequest) bool { return o == w })
		w.port.holder = nil
		m.deliver(w.port)
		w.port, w.err = nil, context.Canceled
	} else if next != w {
		m.waiting = slices.DeleteFunc(m.waiting, func(o *modelRequest) bool { return o == w })
		w.err = context.Canceled
	}
	m.takeAsks(false) // some for w, or because w had the port for a moment
	m.verify(w)
	if next != nil && next != w {
		m.verify(next)
	}
}

// pass lets time go by, one event at a time.
func (m *model) pass(d time.Duration) {
	for end := time.Now().Add(d); ; {
		next := end
		var port *modelPort
		var ending *modelRequest
		for _, p := range m.ports {
			if !p.free.IsZero() && !p.free.After(next) {
				next, port, ending = p.free, p, nil
			}
		}
		for _, q := range m.waiting {
			if q.ends.Before(next) {
				next, port, ending = q.ends, nil, q
			}
		}
		// Look just before, at the holders that were asked to close by the clock alone.
		time.Sleep(time.Until(next) - 1)
		synctest.Wait()
		m.step()
		time.Sleep(time.Until(next))
		synctest.Wait()
		switch {
		case port != nil:
			if q := m.deliver(port); q != nil {
				m.verify(q)
			}
		case ending != nil:
			m.waiting = slices.DeleteFunc(m.waiting, func(o *modelRequest) bool { return o == ending })
			ending.err = ErrBusy
			m.verify(ending)
		default:
			m.step()
			return
		}
		m.step()
	}
}

// verify compares the outcome of a request.
func (m *model) verify(q *modelRequest) {
	m.t.Helper()
	switch {
	case q.port == nil && q.err == nil:
		if q.got.get().done {
			m.t.Fatalf("%v to %v should wait: %+v", q.r.Pin, q.r.Dst, q.got.get())
		}
	case q.port != nil:
		want := netip.AddrPortFrom(q.key.src, q.port.port)
		if q.got.get().lease == nil || q.got.get().err != nil || q.got.get().lease.Local() != want {
			m.t.Fatalf("%v to %v should get %v: %+v", q.r.Pin, q.r.Dst, want, q.got.get())
		}
	default:
		if q.got.get().lease != nil || !errors.Is(q.got.get().err, q.err) {
			m.t.Fatalf("%v to %v should fail, %v: %+v", q.r.Pin, q.r.Dst, q.err, q.got.get())
		}
		m.verifyBusy(q)
	}
}

// verifyBusy compares the contents of a *BusyError.
func (m *model) verifyBusy(q *modelRequest) {
	var busy *BusyError
	if !errors.As(q.got.get().err, &busy) {
		return
	}
	holding, resting := 0, 0
	var free time.Time
	for _, p := range m.ports {
		switch {
		case !q.usable(p):
		case p.holder != nil:
			holding++
			if h := busy.Held; !slices.ContainsFunc(h, func(h Held) bool {
				return h.Local.Port() == p.port && h.Holder == p.holder.flow && h.Since.Equal(p.since)
			}) {
				m.t.Fatalf("%d is missing: %+v", p.port, h)
			}
		default:
			resting++
			if free.IsZero() || p.free.Before(free) {
				free = p.free
			}
		}
	}
	if busy.Holding != holding || busy.Resting != resting || !busy.FreeAt.Equal(free) || busy.Waited != q.r.Wait {
		m.t.Fatalf("%+v, want %d held, %d resting until %v", busy, holding, resting, free)
	}
}

// step checks what must hold at any time.
func (m *model) step() {
	check(m.t, m.table)
	if held, waiting := m.table.Counts(); held != len(m.holding) || waiting != len(m.waiting) {
		m.t.Fatalf("%d held, %d waiting; the twin has %d, %d", held, waiting, len(m.holding), len(m.waiting))
	}
	for _, q := range m.waiting {
		if q.got.get().done {
			m.t.Fatalf("%v to %v was served out of turn: %+v", q.r.Pin, q.r.Dst, q.got.get())
		}
	}
	m.takeAsks(true)
	m.verifyAsked()
}

// wanted returns the waiting requests of q's pool that ask others to close, and how many flows are closing there.
func (m *model) wanted(q *modelRequest) (idle []time.Duration, asked int) {
	for _, w := range m.waiting {
		if w.key == q.key && w.r.Pin.String() == q.r.Pin.String() && w.r.Reclaim > 0 {
			idle = append(idle, w.r.Reclaim)
		}
	}
	slices.Sort(idle)
	for _, p := range m.ports {
		if q.usable(p) && p.asked {
			asked++
		}
	}
	return idle, asked
}

// takeAsks records who was asked to close: only holders, and each only once. Each ask must be needed, unless a need
// came and went within the step.
func (m *model) takeAsks(needed bool) {
	m.mu.Lock()
	asks := m.asks
	m.asks = nil
	m.mu.Unlock()
	for _, q := range asks {
		if q.port == nil || q.port.holder != q || q.port.asked {
			m.t.Fatalf("%v to %v was asked to close", q.r.Pin, q.r.Dst)
		}
		q.port.asked = true
		if needed && !slices.ContainsFunc(m.waiting, func(w *modelRequest) bool {
			idle, asked := m.wanted(w)
			return w.usable(q.port) && asked <= len(idle) && idle[asked-1] <= m.idle(q)
		}) {
			m.t.Fatalf("%v to %v was asked to close, idle for %v, and nobody needs it", q.r.Pin, q.r.Dst, m.idle(q))
		}
	}
}

// verifyAsked checks that as many flows were asked to close as are needed.
func (m *model) verifyAsked() {
	for _, w := range m.waiting {
		idle, asked := m.wanted(w)
		if asked >= len(idle) {
			continue
		}
		for _, q := range m.holding {
			if w.usable(q.port) && !q.port.asked && m.idle(q) >= idle[asked] {
				m.t.Fatalf("%v to %v was not asked to close, idle for %v", q.r.Pin, q.r.Dst, m.idle(q))
			}
		}
	}
}

func (m *model) idle(q *modelRequest) time.Duration {
	return min(time.Since(q.flow.IdleSince()), time.Since(q.port.since))
}
