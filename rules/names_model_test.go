package rules

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// model is Names written only for clarity: flat maps, searched from end to end each time.
type model struct {
	rules  []*Rule
	set    *Set    // only for numbering port sets
	other  []*Rule // decide where rules have no rule
	settle time.Time
	limits limits

	now      time.Time
	seq      int
	pairs    map[modelKey]*modelPair
	order    map[netip.Addr][]string // names of an address, the one asked for last first
	flows    map[netip.Addr]int
	captures map[Capture]bool // wanted, or not forgotten yet; true while the route is in place as far as we know
	going    map[Capture]bool // to be removed, and not wanted since
	freedSeq map[string]int
	freedAt  map[string]time.Time
	freed    map[string]bool // and the time is not known yet
}

type modelKey struct {
	name string
	addr netip.Addr
}

type modelPair struct {
	modelKey
	expires time.Time
	seq     int
	leaving bool
}

func newModel(set *Set, l limits) *model {
	return &model{
		rules: set.Rules(), set: set, limits: l,
		pairs:    make(map[modelKey]*modelPair),
		order:    make(map[netip.Addr][]string),
		flows:    make(map[netip.Addr]int),
		captures: make(map[Capture]bool),
		going:    make(map[Capture]bool),
		freedSeq: make(map[string]int),
		freedAt:  make(map[string]time.Time),
		freed:    make(map[string]bool),
	}
}

// nameRule returns the name's own rule for port.
func nameRule(rules []*Rule, name string, port uint16) *Rule {
	var named []*Rule
	for _, r := range rules {
		if r.Host().Name() != "" {
			named = append(named, r)
		}
	}
	return naiveMatch(named, name, netip.AddrPortFrom(netip.IPv4Unspecified(), port))
}

func (m *model) wanted(k modelKey) (captures []Capture) {
	for set, ports := range m.set.PortSets() {
		for _, r := range m.rules {
			if r.Host().Name() != "" && r.Ports().Equal(ports) && naiveMatch([]*Rule{r}, k.name, netip.AddrPortFrom(k.addr, ports.Ranges()[0].First)) != nil {
				captures = append(captures, Capture{netip.PrefixFrom(k.addr, k.addr.BitLen()), set})
				break
			}
		}
	}
	return captures
}

// wanters counts the live pairs that want c.
func (m *model) wanters(c Capture) (n int) {
	for k, p := range m.pairs {
		if !p.leaving && slices.Contains(m.wanted(k), c) {
			n++
		}
	}
	return n
}

func (m *model) of(name string, addr netip.Addr) (pairs []*modelPair) {
	for k, p := range m.pairs {
		if (name == "" || k.name == name) && (!addr.IsValid() || k.addr == addr) {
			pairs = append(pairs, p)
		}
	}
	return pairs
}

func (m *model) live(pairs []*modelPair) (n int) {
	for _, p := range pairs {
		if !p.leaving {
			n++
		}
	}
	return n
}

func (m *model) inUse(name string) bool {
	return slices.ContainsFunc(m.of(name, netip.Addr{}), func(p *modelPair) bool { return m.flows[p.addr] > 0 })
}

func (m *model) advance(now time.Time) {
	m.now = now
	for name := range m.freed {
		m.freedAt[name] = now
	}
	clear(m.freed)
}

func (m *model) free(name string) {
	if !m.inUse(name) {
		m.seq++
		m.freedSeq[name] = m.seq
		m.freed[name] = true
	}
}

func (m *model) reviveName(name string) {
	for _, p := range m.of(name, netip.Addr{}) {
		p.leaving = false
	}
}

func (m *model) hold(addr netip.Addr) {
	m.flows[addr]++
	if m.flows[addr] == 1 {
		for _, name := range m.order[addr] {
			m.reviveName(name)
		}
	}
	m.stay()
}

func (m *model) release(addr netip.Addr) {
	m.flows[addr]--
	if m.flows[addr] == 0 {
		for _, name := range m.order[addr] {
			m.free(name)
		}
	}
}

// seeOff returns what must be dropped.
func (m *model) seeOff(left []*modelPair) (drop []Capture) {
	for _, p := range left {
		for _, c := range m.wanted(p.modelKey) {
			if m.wanters(c) == 0 && !m.going[c] {
				m.captures[c] = false
				m.going[c] = true
				drop = append(drop, c)
			}
		}
	}
	for _, p := range left {
		if !m.waits(p) {
			m.remove(p)
		}
	}
	return drop
}

func (m *model) waits(p *modelPair) bool {
	return slices.ContainsFunc(m.wanted(p.modelKey), func(c Capture) bool {
		_, present := m.captures[c]
		return present && m.wanters(c) == 0
	})
}

// stay notes that captures may be wanted again.
func (m *model) stay() {
	for c := range m.going {
		if m.wanters(c) > 0 {
			delete(m.going, c)
		}
	}
}

func (m *model) remove(p *modelPair) {
	delete(m.pairs, p.modelKey)
	m.order[p.addr] = slices.DeleteFunc(m.order[p.addr], func(name string) bool { return name == p.name })
	if m.flows[p.addr] > 0 {
		m.free(p.name)
	}
}

// reap removes pairs that have left.
func (m *model) reap() {
	for _, p := range m.of("", netip.Addr{}) {
		if p.leaving && !m.waits(p) {
			m.remove(p)
		}
	}
}

// tidy forgets what was known of names that have no addresses left.
func (m *model) tidy() {
	for name := range m.freedSeq {
		if len(m.of(name, netip.Addr{})) == 0 {
			delete(m.freedSeq, name)
			delete(m.freedAt, name)
			delete(m.freed, name)
		}
	}
}

// oldest returns the pair that has to go, or nil.
func (m *model) oldest(pairs []*modelPair, before int) *modelPair {
	var unused, spare []*modelPair
	for _, p := range pairs {
		switch {
		case p.leaving || p.seq > before:
		case !m.inUse(p.name):
			unused = append(unused, p)
		case m.flows[p.addr] == 0 ||
			!slices.ContainsFunc(m.wanted(p.modelKey), func(c Capture) bool { return m.wanters(c) == 1 }):
			spare = append(spare, p)
		}
	}
	if len(unused) > 0 {
		return slices.MinFunc(unused, func(a, b *modelPair) int {
			if d := max(a.seq, m.freedSeq[a.name]) - max(b.seq, m.freedSeq[b.name]); d != 0 {
				return d
			}
			return a.seq - b.seq
		})
	}
	if len(spare) > 0 {
		return slices.MinFunc(spare, func(a, b *modelPair) int { return a.seq - b.seq })
	}
	return nil
}

func (m *model) observe(name string, addrs []netip.Addr, ttl time.Duration, asked bool, now time.Time) (add, drop []Capture, full bool) {
	m.advance(now)
	if len(m.wanted(modelKey{name, addrs[0]})) == 0 {
		return nil, nil, false
	}
	before := m.seq
	m.seq += len(addrs)
	seq := func(i int) int { return before + len(addrs) - i }
	place := func(k modelKey) {
		if asked {
			others := slices.DeleteFunc(slices.Clone(m.order[k.addr]), func(name string) bool { return name == k.name })
			m.order[k.addr] = append([]string{k.name}, others...)
		}
		for _, c := range m.wanted(k) {
			if !m.captures[c] {
				m.captures[c] = true
				add = append(add, c)
			}
		}
	}
	var unknown []int
	var left []*modelPair
	for i, addr := range addrs {
		k := modelKey{name, addr}
		p := m.pairs[k]
		if p == nil {
			unknown = append(unknown, i)
			continue
		}
		p.leaving = false
		if end := now.Add(ttl); end.After(p.expires) {
			p.expires = end
		}
		p.seq = max(p.seq, seq(i))
		place(k)
	}
	for _, i := range unknown {
		k := modelKey{name, addrs[i]}
		if m.pairs[k] != nil {
			continue
		}
		room := true
		for _, bound := range []struct {
			limit int
			pairs func() []*modelPair
		}{
			{m.limits.addrsPerName, func() []*modelPair { return m.of(name, netip.Addr{}) }},
			{m.limits.namesPerAddr, func() []*modelPair { return m.of("", k.addr) }},
			{m.limits.pairs, func() []*modelPair { return m.of("", netip.Addr{}) }},
		} {
			for room && m.live(bound.pairs()) >= bound.limit {
				p := m.oldest(bound.pairs(), before)
				if p == nil {
					room, full = false, true
					break
				}
				p.leaving = true
				left = append(left, p)
			}
		}
		if !room {
			continue
		}
		m.pairs[k] = &modelPair{modelKey: k, expires: now.Add(ttl), seq: seq(i)}
		m.order[k.addr] = append(m.order[k.addr], name)
		place(k)
	}
	m.stay()
	drop = m.seeOff(left)
	m.tidy()
	return add, drop, full
}

func (m *model) expired(now time.Time) (gone []Capture) {
	m.advance(now)
	if m.other != nil && !now.Before(m.settle) {
		m.forgetFormer()
		m.advance(now)
	}
	var due []*modelPair
	for _, p := range m.pairs {
		end := p.expires
		if freed, ok := m.freedAt[p.name]; ok && freed.After(end) {
			end = freed
		}
		if !p.leaving && !m.inUse(p.name) && !now.Before(end.Add(Grace)) {
			due = append(due, p)
		}
	}
	for _, p := range due {
		p.leaving = true
	}
	gone = m.seeOff(due)
	m.tidy()
	return gone
}

func (m *model) forget(c []Capture) (revived []Capture) {
	for _, gone := range c {
		if _, present := m.captures[gone]; !present {
			continue
		}
		if m.wanters(gone) > 0 {
			m.captures[gone] = true
			revived = append(revived, gone)
		} else {
			delete(m.captures, gone)
			delete(m.going, gone)
		}
	}
	m.reap()
	m.tidy()
	return revived
}

func (m *model) decide(dst netip.AddrPort) Decision {
	if d := m.decideBy(m.rules, dst); d.Rule != nil {
		return d
	}
	return m.decideBy(m.other, dst)
}

func (m *model) decideBy(rules []*Rule, dst netip.AddrPort) Decision {
	for _, name := range m.order[dst.Addr()] {
		if r := nameRule(rules, name, dst.Port()); r != nil {
			return Decision{r, name}
		}
	}
	return Decision{Rule: naiveMatch(rules, "", dst)}
}

func (m *model) prepare(next *Set) (learned []Capture) {
	m.forgetFormer()
	now, before := m.set, m.rules
	m.set, m.rules = next, next.Rules()
	for k := range m.pairs {
		for _, c := range m.wanted(k) {
			if !slices.Contains(learned, c) {
				learned = append(learned, c)
			}
		}
	}
	m.set, m.rules, m.other = now, before, next.Rules()
	return learned
}

func (m *model) change(next *Set, learned []Capture, now time.Time) {
	m.advance(now)
	m.set, m.rules, m.other = next, next.Rules(), m.rules
	m.settle = now.Add(Grace)
	clear(m.going)
	clear(m.captures)
	for _, c := range learned {
		m.captures[c] = true
	}
}

func (m *model) forgetFormer() {
	if m.other == nil {
		return
	}
	m.other = nil
	for _, p := range m.of("", netip.Addr{}) {
		if len(m.wanted(p.modelKey)) == 0 {
			m.remove(p)
		}
	}
	m.tidy()
}

func sortedTexts(s *Set, captures []Capture) []string {
	texts := captureTexts(s, captures)
	slices.Sort(texts)
	return texts
}

// FuzzNames takes Names and the model through the same events, one per byte or few bytes, and compares everything
// they say. It also keeps the routes, as a caller does: they must always be those that the live pairs want.
func FuzzNames(f *testing.F) {
	for seed := range 200 {
		f.Add(randomBytes(uint64(seed), 20+seed*4))
	}
	universe := addrs("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "2001:db8::1", "2001:db8::2")
	names := []string{"a.x", "b.x", "c.x", "d.y", "e.y", "f.y", "g.z"}
	ports := []uint16{22, 80, 443}
	sets := [][]string{
		{"*.x:443=1", "a.x:443,80=2", "a.x:22=3", "d.y:22=4", "*.y:443=5", "192.0.2.0/30:*=6", "b.x:400-500=7"},
		{"*.x:443=1", "a.x:22=3", "*.y:443=15", "192.0.2.0/30:*=6", "b.x:443=8"},
		{"*.z:22,443=1", "a.x:443,80=2", "192.0.2.4/30:*=6", "e.y:*=9"},
		{"*:443=1"},
		{"*.x:80=1", "*.y:80=2", "*.z:80=3"},
	}

	f.Fuzz(func(t *testing.T, events []byte) {
		next := func(n int) int {
			if len(events) == 0 {
				return 0
			}
			b := int(events[0]) % n
			events = events[1:]
			return b
		}
		small := limits{addrsPerName: 1 + next(4), namesPerAddr: 1 + next(4), pairs: 1 + next(10)}
		set := mustSet(t, sets[0]...)
		n, m := NewNames(set), newModel(set, small)
		n.limits = small
		now := start
		routes := make(map[Capture]bool)
		type flow struct {
			addr    netip.Addr
			release func()
		}
		var flows []flow
		compare := func(what string, want, got []Capture) {
			t.Helper()
			if diff := cmp.Diff(sortedTexts(set, want), sortedTexts(set, got)); diff != "" {
				t.Fatalf("%s (-model +got):\n%s", what, diff)
			}
		}
		hold := func() {
			addr := universe[next(len(universe))]
			m.hold(addr)
			flows = append(flows, flow{addr, n.Hold(addr)})
		}
		release := func() {
			if len(flows) == 0 {
				return
			}
			i := next(len(flows))
			m.release(flows[i].addr)
			flows[i].release()
			flows[i].release()
			flows = slices.Delete(flows, i, i+1)
		}
		drop := func(what string, c []Capture) {
			t.Helper()
			for _, c := range c {
				if !routes[c] {
					t.Fatalf("%s: %v is to be dropped and does not stand", what, c)
				}
				delete(routes, c)
			}
			for range next(3) { // flows come and go in the meantime
				if next(2) == 0 {
					hold()
				} else {
					release()
				}
			}
			revived := n.Forget(c)
			compare(what+": revived", m.forget(c), revived)
			for _, c := range revived {
				routes[c] = true
			}
		}
		check := func() {
			t.Helper()
			// What is known, and what is captured because of it.
			var known, got []string
			wanted := make(map[Capture]bool)
			for k, p := range m.pairs {
				if len(m.wanted(k)) == 0 {
					continue // of the former rules
				}
				if p.leaving {
					t.Fatalf("the model has %v leaving after Forget", k)
				}
				known = append(known, fmt.Sprint(k.name, " ", k.addr, " ", p.expires.Sub(start), " ", m.inUse(k.name)))
				for _, c := range m.wanted(k) {
					wanted[c] = true
				}
			}
			for e := range n.All() {
				got = append(got, fmt.Sprint(e.Name, " ", e.Addr, " ", e.Expires.Sub(start), " ", e.InUse))
			}
			slices.Sort(known)
			slices.Sort(got)
			if diff := cmp.Diff(known, got); diff != "" {
				t.Fatalf("known (-model +got):\n%s", diff)
			}
			for c := range wanted {
				if !routes[c] {
					t.Fatalf("%v is wanted and has no route", c)
				}
			}
			for c := range routes {
				if !wanted[c] {
					t.Fatalf("%v has a route and is not wanted", c)
				}
			}
			for _, addr := range universe {
				for _, port := range ports {
					dst := netip.AddrPortFrom(addr, port)
					if got, want := n.Decide(dst), m.decide(dst); got != want {
						t.Fatalf("Decide(%v) = %v, want %v", dst, got, want)
					}
				}
			}
			for _, name := range names {
				var want []*modelPair
				for _, p := range m.of(name, netip.Addr{}) {
					if p.addr != universe[0] && p.addr.Is4() {
						want = append(want, p)
					}
				}
				slices.SortFunc(want, func(a, b *modelPair) int { return b.seq - a.seq })
				got := n.Others(name, universe[0])
				if !slices.EqualFunc(got, want, func(a netip.Addr, p *modelPair) bool { return a == p.addr }) {
					t.Fatalf("Others(%s) = %v, want %v", name, got, want)
				}
			}
		}
		for len(events) > 0 {
			switch op := next(11); op {
			case 0, 1, 2, 3:
				name := names[next(len(names))]
				var answer []netip.Addr
				for range 1 + next(3) {
					answer = append(answer, universe[next(len(universe))])
				}
				ttl := time.Duration(next(4)) * 30 * time.Second
				asked := next(3) > 0
				what := fmt.Sprintf("%s observed with %v for %v, asked: %v", name, answer, ttl, asked)
				l, err := n.Observe(strings.ToUpper(name)+".", answer, ttl, asked, now)
				add, gone, full := m.observe(name, answer, ttl, asked, now)
				if errors.Is(err, ErrFull) != full {
					t.Fatalf("%s: got %v, want full: %v", what, err, full)
				}
				compare(what+": to add", add, l.Add)
				compare(what+": to drop", gone, l.Drop)
				for _, c := range l.Add {
					routes[c] = true
				}
				drop(what, l.Drop)
			case 4, 5:
				now = now.Add(time.Duration(next(6)) * 13 * time.Second)
				gone := n.Expired(now)
				compare("expired", m.expired(now), gone)
				drop("expired", gone)
			case 6, 7:
				hold()
			case 8:
				release()
			case 9:
				if c := set.PortSets(); len(c) > 0 {
					lost := []Capture{{netip.PrefixFrom(universe[next(len(universe))], 32), next(len(c))}}
					if !routes[lost[0]] {
						break
					}
					n.Lost(lost)
					m.captures[lost[0]] = false
				}
			case 10:
				after, err := n.Set().Successor(mustSet(t, sets[next(len(sets))]...).Rules())
				if err != nil {
					t.Fatal(err)
				}
				learned := n.Prepare(after)
				if diff := cmp.Diff(sortedTexts(after, m.prepare(after)), sortedTexts(after, learned)); diff != "" {
					t.Fatalf("learned for other rules (-model +got):\n%s", diff)
				}
				for range next(3) {
					if next(2) == 0 {
						hold()
					} else {
						release()
					}
				}
				check()
				if next(4) == 0 {
					n.Cancel()
					m.other = nil
					break
				}
				n.Switch(now)
				m.change(after, learned, now)
				set = after
				clear(routes)
				for _, c := range learned {
					routes[c] = true
				}
			}
			check()
		}

		// In the end everything goes.
		for len(flows) > 0 {
			release()
		}
		n.Forget(n.Expired(now.Add(time.Hour)))
		n.Forget(n.Expired(now.Add(2 * time.Hour)))
		if len(n.byName)+len(n.byAddr)+n.live+n.inUse+len(n.ends.pairs)+len(n.ages.pairs)+len(n.freed) > 0 {
			t.Fatalf("left behind: %d names, %d addresses, %d live, %d in use, %d and %d queued, %d freed",
				len(n.byName), len(n.byAddr), n.live, n.inUse, len(n.ends.pairs), len(n.ages.pairs), len(n.freed))
		}
	})
}

// randomBytes returns n bytes that depend on seed alone (splitmix64).
func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		seed += 0x9e3779b97f4a7c15
		z := (seed ^ seed>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		b[i] = byte(z >> 32)
	}
	return b
}
