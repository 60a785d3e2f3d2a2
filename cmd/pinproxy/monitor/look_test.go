package monitor

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Rates are what has been moved since the previous look by what existed then.
func TestRates(t *testing.T) {
	begun := time.Now()
	rule := func(text string, up, down uint64) RuleState {
		return RuleState{RuleRef: RuleRef{Rule: text}, Up: up, Down: down}
	}
	before := Status{Now: begun, Up: 1000, Down: 500, Rules: []RuleState{rule("a", 1000, 500)}, Flows: []Flow{{ID: 1, Up: 1000, Down: 500}}}
	now := Status{
		Now: begun.Add(2 * time.Second), Up: 5000, Down: 500, Rules: []RuleState{rule("a", 4000, 500), rule("b", 1000, 0)},
		Flows: []Flow{{ID: 1, Up: 4000, Down: 500}, {ID: 2, Up: 1000}},
	}
	now.rate(movedBy(&before))
	got := [][2]float64{{now.UpRate, now.DownRate}}
	for _, r := range now.Rules {
		got = append(got, [2]float64{r.UpRate, r.DownRate})
	}
	for _, f := range now.Flows {
		got = append(got, [2]float64{f.UpRate, f.DownRate})
	}
	want := [][2]float64{{2000, 0}, {1500, 0}, {0, 0}, {1500, 0}, {500, 0}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	now.rate(movedBy(&now)) // no time has passed
}

// The holder that matters most comes first, and the list is bounded.
func TestPortSettles(t *testing.T) {
	p := Port{State: PortFree}
	p.settle()
	if p.State != PortFree {
		t.Errorf("%+v", p)
	}
	p.Holders = []Holder{{State: PortTimeWait, Left: 3}, {State: PortFlow, Flow: 9}, {State: PortTimeWait, Left: 5}, {State: PortFlow, Flow: 7}}
	p.settle()
	if p.State != PortFlow || p.Holders[0].Flow != 7 || p.Holders[2].Left != 5 || p.More != 0 {
		t.Errorf("%+v", p)
	}
	for range 2 * maxHolders {
		p.Holders = append(p.Holders, Holder{State: PortForeign, PID: 1})
	}
	p.settle()
	if p.State != PortForeign || len(p.Holders) != maxHolders || p.More != maxHolders+4 {
		t.Errorf("%+v", p)
	}
}
