package proxy

import (
	"maps"
	"sync"
	"sync/atomic"

	"pinproxy/rules"
)

// tally counts what became of a rule's flows. Its numbers only grow.
type tally struct {
	hits, ended, failed atomic.Uint64
	up, down            uint64 // bytes of flows that have ended; guarded by Proxy.mu

	mu     sync.Mutex
	served map[uint16]uint64 // flows that were connected, by the port they left from
}

// serve counts a flow that was connected.
func (t *tally) serve(port uint16) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.served == nil {
		t.served = make(map[uint16]uint64)
	}
	t.served[port]++
}

// tallies holds the tallies of all rules. A rule is identified by its text, so that it keeps counting when the rules
// are read again. The zero value is ready for use.
type tallies struct {
	byRule sync.Map // *rules.Rule → *tally; nil is for flows without a rule

	mu     sync.Mutex
	byText map[string]*tally
}

// of returns the tally of rule, which may be nil.
func (t *tallies) of(rule *rules.Rule) *tally {
	if known, ok := t.byRule.Load(rule); ok {
		return known.(*tally)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byText == nil {
		t.byText = make(map[string]*tally)
	}
	text := ""
	if rule != nil {
		text = rule.String()
	}
	of := t.byText[text]
	if of == nil {
		of = new(tally)
		t.byText[text] = of
	}
	t.byRule.Store(rule, of)
	return of
}

// retain forgets all rules but these.
func (t *tallies) retain(list []*rules.Rule) {
	byRule, byText := map[*rules.Rule]bool{nil: true}, map[string]bool{"": true}
	for _, r := range list {
		byRule[r], byText[r.String()] = true, true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byRule.Range(func(rule, _ any) bool {
		if !byRule[rule.(*rules.Rule)] {
			t.byRule.Delete(rule)
		}
		return true
	})
	maps.DeleteFunc(t.byText, func(text string, _ *tally) bool { return !byText[text] })
}

// RuleStats says what flows of a rule have done since it was first given, and what they do now.
type RuleStats struct {
	Hits     uint64        // flows that it applied to, including waiting and refused ones
	Ended    uint64        // those that were connected and have ended
	Failed   uint64        // those that were not connected
	Up, Down uint64        // bytes
	Stages   [Open + 1]int // how many are in each stage now
}

// RuleStats returns the counters of each rule of the list; nil stands for flows without one.
func (p *Proxy) RuleStats(list []*rules.Rule) []RuleStats {
	p.mu.Lock()
	at := make(map[*tally]int, len(list))
	stats := make([]RuleStats, len(list))
	for i, rule := range list {
		t := p.tallies.of(rule)
		at[t] = i
		stats[i] = RuleStats{Hits: t.hits.Load(), Ended: t.ended.Load(), Failed: t.failed.Load(), Up: t.up, Down: t.down}
	}
	flows := p.livesLocked()
	p.mu.Unlock()
	for _, l := range flows {
		p.cfg.GiveWay()
		if t, stage := l.at(); t != nil {
			if i, ok := at[t]; ok {
				stats[i].Up += l.up.bytes.Load()
				stats[i].Down += l.down.bytes.Load()
				stats[i].Stages[stage]++
			}
		}
	}
	return stats
}

// Totals are the counters of all flows since the start, and the current numbers.
type Totals struct {
	Ended    uint64        // flows that were connected
	Failed   [kinds]uint64 // flows that were not, by kind
	Up, Down uint64        // bytes
	Stages   [Open + 1]int // how many flows are in each stage now
	Leases   int           // source ports that flows hold
	Waiting  int           // flows in the queues for one
}

// Totals returns the counters of all flows.
func (p *Proxy) Totals() Totals {
	t := Totals{Ended: p.ended.Load()}
	t.Leases, t.Waiting = p.leases.Counts()
	for kind := range p.failed {
		t.Failed[kind] = p.failed[kind].Load()
	}
	p.mu.Lock()
	t.Up, t.Down = p.up, p.down
	flows := p.livesLocked()
	p.mu.Unlock()
	for _, l := range flows {
		p.cfg.GiveWay()
		_, stage := l.at()
		t.Up += l.up.bytes.Load()
		t.Down += l.down.bytes.Load()
		t.Stages[stage]++
	}
	return t
}

func (l *live) at() (*tally, Stage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tally, l.stage
}

// Use is a source port that flows of a rule leave from.
type Use struct {
	Rule string
	Port uint16
}

// Uses returns how many flows leave from each port now. Flows without a rule are left out.
func (p *Proxy) Uses() map[Use]int {
	p.mu.Lock()
	flows := p.livesLocked()
	p.mu.Unlock()
	uses := make(map[Use]int)
	for _, l := range flows {
		p.cfg.GiveWay()
		l.mu.Lock()
		if l.decision.Rule != nil && l.local.IsValid() {
			uses[Use{l.decision.Rule.String(), l.local.Port()}]++
		}
		l.mu.Unlock()
	}
	return uses
}

// Served returns how many flows of rule have been connected from each port.
func (p *Proxy) Served(rule *rules.Rule) map[uint16]uint64 {
	t := p.tallies.of(rule)
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.served)
}

// RetainRules forgets the counters of all rules but these. Call it when other rules come into force.
func (p *Proxy) RetainRules(list []*rules.Rule) { p.tallies.retain(list) }
