package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// How many failures are remembered: of the last destinations per rule, and in all.
const (
	failuresPerRule = 8
	failuresInAll   = 1024
)

// Failure says why flows of one rule to one destination failed: the cause of the last failure, and how many there
// were.
type Failure struct {
	Rule        string // empty if no rule applied
	Name        string // the name the decision went by; may be empty
	Dst         netip.AddrPort
	Kind        Kind
	Cause       string
	Hint        string // what would help; may be empty
	Times       uint64 // since First, while it was remembered
	First, Last time.Time
}

// failures is a bounded memory. The zero value is ready for use.
type failures struct {
	mu     sync.Mutex
	byRule map[string][]Failure // the latest last
	total  int
}

// Failures lists the last failures, the latest first.
func (p *Proxy) Failures() []Failure {
	f := &p.failures
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]Failure, 0, f.total)
	for _, of := range f.byRule {
		list = append(list, of...)
	}
	slices.SortFunc(list, func(a, b Failure) int { return cmp.Or(b.Last.Compare(a.Last), cmp.Compare(a.Rule, b.Rule)) })
	return list
}

// failure describes why the flow failed.
func (l *live) failure(err error) Failure {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	f := Failure{Name: l.decision.Name, Dst: l.flow.Dst(), Kind: kindOf(err), Cause: err.Error(), Hint: hintOf(err), Times: 1, First: now, Last: now}
	if l.decision.Rule != nil {
		f.Rule = l.decision.Rule.String()
	}
	if errors.Is(err, context.Canceled) && f.Hint == "" {
		f.Cause = errGaveUp.Error()
		if cause, hint := l.why(); cause != "" {
			f.Cause = fmt.Sprintf("%v; until then: %s", errGaveUp, cause)
			f.Hint = hint
		}
	}
	return f
}

// add remembers a failure. The oldest failure makes room for it.
func (f *failures) add(now Failure) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byRule == nil {
		f.byRule = make(map[string][]Failure)
	}
	list := f.byRule[now.Rule]
	if i := slices.IndexFunc(list, func(old Failure) bool { return old.Dst == now.Dst && old.Name == now.Name }); i >= 0 {
		now.Times += list[i].Times
		now.First = list[i].First
		list = slices.Delete(list, i, i+1)
		f.total--
	}
	if len(list) == failuresPerRule {
		list = slices.Delete(list, 0, 1)
		f.total--
	}
	f.byRule[now.Rule] = append(list, now)
	f.total++
	if f.total > failuresInAll {
		f.forgetOldest()
	}
}

func (f *failures) forgetOldest() {
	var oldest string
	var last time.Time
	for rule, list := range f.byRule {
		if last.IsZero() || list[0].Last.Before(last) {
			oldest, last = rule, list[0].Last
		}
	}
	f.total--
	if f.byRule[oldest] = slices.Delete(f.byRule[oldest], 0, 1); len(f.byRule[oldest]) == 0 {
		delete(f.byRule, oldest)
	}
}
