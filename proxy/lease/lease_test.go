package lease

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pinproxy/rules"
)

// dst is the destination of tests in which it does not matter.
var dst = netip.MustParseAddrPort("203.0.113.1:443")

// pinOf parses the pin of a rule.
func pinOf(t testing.TB, text string) rules.Pin {
	t.Helper()
	r, err := rules.Parse("a.example:443=" + text)
	if err != nil {
		t.Fatal(err)
	}
	return r.Pin()
}

// flow is a Holder.
type flow struct {
	name string

	mu    sync.Mutex
	idle  time.Time
	asked []time.Time
	onAsk func()
}

func (f *flow) IdleSince() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.idle
}

func (f *flow) Reclaim() {
	f.mu.Lock()
	f.asked = append(f.asked, time.Now())
	onAsk := f.onAsk
	f.mu.Unlock()
	if onAsk != nil {
		onAsk()
	}
}

func (f *flow) String() string { return f.name }

// touch marks the flow as having carried data now.
func (f *flow) touch() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.idle = time.Now()
}

// asks returns how often the flow was asked to close.
func (f *flow) asks() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.asked)
}

// acquire takes a lease, which must succeed at once.
func acquire(t testing.TB, table *Table, r Request) *Lease {
	t.Helper()
	if !r.Dst.IsValid() {
		r.Dst = dst
	}
	r.Wait = 0
	l, err := table.Acquire(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// result is the outcome of a background Acquire, nil if it has not ended.
type result struct{ atomic.Pointer[outcome] }

type outcome struct {
	lease *Lease
	err   error
	at    time.Time
	done  bool
}

// get returns the outcome so far, all zero if there is none.
func (r *result) get() outcome {
	if o := r.Load(); o != nil {
		return *o
	}
	return outcome{}
}

// later acquires in the background. Look at the result after synctest.Wait.
func later(ctx context.Context, table *Table, r Request) *result {
	if !r.Dst.IsValid() {
		r.Dst = dst
	}
	res := new(result)
	go func() {
		l, err := table.Acquire(ctx, r)
		res.Store(&outcome{lease: l, err: err, at: time.Now(), done: true})
	}()
	return res
}

// check fails if the table does not match the comments on its fields. Nothing may be in progress.
func check(t testing.TB, table *Table) {
	t.Helper()
	now := table.lock()
	defer table.unlock()
	leases, waiting, remembered := 0, 0, 0
	for key, pr := range table.pairs {
		if pr.key != key || len(pr.pools) == 0 {
			t.Fatalf("%v: key %v, %d pools", key, pr.key, len(pr.pools))
		}
		refs := make(map[*pool]int)
		for port, tu := range pr.tuples {
			if tu.port != port || tu.pair != pr {
				t.Fatalf("tuple %d is filed as %d", tu.port, port)
			}
			if (tu.lease != nil) != (tu.state == held) || (tu.lease == nil) != tu.remembered {
				t.Fatalf("tuple %d: state %d, lease %v, remembered %v", port, tu.state, tu.lease, tu.remembered)
			}
			if tu.lease != nil {
				leases++
			}
			refs[tu.pool]++
			for e := tu.entries; e != nil; e = e.next {
				if !slices.Contains(pr.pools, e.pool) || !e.pool.pin.Ports().Contains(port) {
					t.Fatalf("tuple %d has an entry in pool %v", port, e.pool.pin)
				}
				absent := tu.state == held && (tu.lease.holder == nil || tu.asked)
				if absent != (e.index == outside) {
					t.Fatalf("tuple %d, state %d, asked %v: index %d", port, tu.state, tu.asked, e.index)
				}
			}
		}
		for _, p := range pr.pools {
			checkPool(t, p, now)
			waiting += p.waiters.len
			if p.refs != refs[p]+p.waiters.len || p.refs == 0 {
				t.Fatalf("pool %v: %d refs, %d tuples, %d waiters", p.pin, p.refs, refs[p], p.waiters.len)
			}
		}
	}
	if leases != table.held || waiting != table.waiting {
		t.Fatalf("counted %d held, %d waiting; the table has %d, %d", leases, waiting, table.held, table.waiting)
	}
	var last *tuple
	for tu := table.recency.oldest; tu != nil; tu = tu.newer {
		if tu.older != last || last != nil && last.due > tu.due {
			t.Fatalf("tuple %d is out of line", tu.port)
		}
		last = tu
		remembered++
	}
	records := 0
	for _, pr := range table.pairs {
		records += len(pr.tuples)
	}
	if table.recency.newest != last || remembered+leases != records || remembered > 0 && !table.recency.armed {
		t.Fatalf("%d remembered, %d held, %d records", remembered, leases, records)
	}
}

func checkPool(t testing.TB, p *pool, now stamp) {
	t.Helper()
	in := make(map[uint16]int)
	for _, r := range p.fresh {
		for port := int(r.First); port <= int(r.Last); port++ {
			in[uint16(port)]++
		}
	}
	asked := 0
	for port, tu := range p.pair.tuples {
		for e := tu.entries; e != nil; e = e.next {
			if e.pool != p {
				continue
			}
			in[port]++
			if tu.asked {
				asked++
			}
		}
	}
	for port, n := range in {
		if n != 1 || !p.pin.Ports().Contains(port) {
			t.Fatalf("pool %v has port %d %d times", p.pin, port, n)
		}
	}
	if len(in) != p.pin.Ports().Len() {
		t.Fatalf("pool %v has %d ports of %d", p.pin, len(in), p.pin.Ports().Len())
	}
	if asked != p.asked {
		t.Fatalf("pool %v: %d asked, counted %d", p.pin, p.asked, asked)
	}
	for s, h := range p.heaps {
		for i, e := range h {
			if e.index != i || e.tuple.state != state(s) || e.pool != p || i > 0 && h[(i-1)/2].key > e.key {
				t.Fatalf("pool %v, heap %d, at %d: port %d", p.pin, s, i, e.tuple.port)
			}
		}
	}
	n, patient := 0, 0
	var last *waiter
	for w := p.waiters.first; w != nil; w = w.behind {
		if w.ahead != last || last != nil && last.arrival > w.arrival || w.lease != nil {
			t.Fatalf("pool %v: waiter %d is out of line", p.pin, w.arrival)
		}
		if w.request.Reclaim > 0 {
			patient++
		}
		last = w
		n++
	}
	for _, q := range p.patience {
		patient -= q.waiters
	}
	if n != p.waiters.len || p.waiters.last != last || patient != 0 {
		t.Fatalf("pool %v: %d waiters, counted %d, %d impatient too many", p.pin, p.waiters.len, n, patient)
	}
	if n == 0 && p.alarm != never {
		t.Fatalf("pool %v: a timer for nobody", p.pin)
	}
	if n > 0 {
		if len(p.fresh) > 0 || len(p.heaps[ready]) > 0 {
			t.Fatalf("pool %v: %d wait beside a free port", p.pin, n)
		}
		if e := p.heaps[resting].top(); e != nil && (stamp(e.key) <= now || p.alarm > stamp(e.key)) {
			t.Fatalf("pool %v: nobody looks after port %d", p.pin, e.tuple.port)
		}
	}
}

// checkEmpty fails if the table remembers anything.
func checkEmpty(t testing.TB, table *Table) {
	t.Helper()
	check(t, table)
	if held, waiting := table.Counts(); held != 0 || waiting != 0 {
		t.Fatalf("%d held, %d waiting", held, waiting)
	}
	if pools, tuples := size(table); pools != 0 || tuples != 0 || len(table.pairs) != 0 {
		t.Fatalf("%d pools and %d tuples of %d pairs are left", pools, tuples, len(table.pairs))
	}
}
