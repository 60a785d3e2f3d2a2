package monitor

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pinproxy/proxy"
)

// A change says what has come, gone and moved, and nothing else.
func TestPageChange(t *testing.T) {
	begun := time.Now()
	state := func(at time.Duration, flows ...pageFlow) *pageState {
		st := &pageState{Rules: []pageRule{{Text: "a"}, {Text: "b"}}, Flows: flows, at: begun.Add(at)}
		for _, f := range flows {
			st.Moved = append(st.Moved, pageMoved{int64(f.ID), int64(f.ID) * 10})
		}
		return st
	}
	port := func(left float64) []Port {
		return []Port{{Rule: "a", Port: 1, State: PortTimeWait, Holders: []Holder{{State: PortTimeWait, Left: left}}}}
	}
	before := state(0, pageFlow{ID: 1}, pageFlow{ID: 2, Stage: "waiting"}, pageFlow{ID: 3}, pageFlow{ID: 7})
	before.Ports = port(40)
	now := state(time.Second, pageFlow{ID: 2, Stage: "open"}, pageFlow{ID: 3}, pageFlow{ID: 5}, pageFlow{ID: 8})
	now.Moved[1][1] = 99
	now.Rules[1].Hits = 4
	now.Ports = port(39.2) // the same one goes on
	var c pageChange
	if err := json.Unmarshal(now.since(before, &timeline{}), &c); err != nil {
		t.Fatal(err)
	}
	want := pageChange{
		Rules: map[int]pageRule{1: {Text: "b", Hits: 4}},
		Flows: []pageFlow{{ID: 2, Stage: "open"}, {ID: 5}, {ID: 8}},
		Gone:  []uint64{1, 7},
		Moved: []pageMoved{{3, 99}, {5, 50}, {8, 80}},
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Error(diff)
	}
	now.Ports = port(60) // another one
	if err := json.Unmarshal(now.since(before, &timeline{}), &c); err != nil || len(c.Ports) != 1 {
		t.Errorf("%+v, %v", c.Ports, err)
	}
	now.Rules = now.Rules[:1]
	if b := now.since(before, &timeline{}); b != nil {
		t.Errorf("other rules are told as a change: %s", b)
	}
}

// If there are too many rules, those in use are shown, in their order.
func TestPickRules(t *testing.T) {
	list := make([]RuleState, 3*pageRules)
	list[pageRules+5].Hits, list[pageRules+9].Open = 1, 1
	picked := pickRules(list)
	if len(picked) != pageRules || picked[pageRules-2].Hits != 1 || picked[pageRules-1].Open != 1 {
		t.Errorf("%d: %+v", len(picked), picked[pageRules-2:])
	}
	if n := len(pickRules(list[:3])); n != 3 {
		t.Errorf("%d of 3", n)
	}
}

// One second after the other, with flows that exist and flows that came and went within a second.
func TestTimeline(t *testing.T) {
	var tl timeline
	tl.rules = make(map[string]*strip)
	s := &strip{lanes: make(map[uint16]*lane)}
	tl.rules["a"] = s
	step := func(n proxy.RuleStats, now map[uint16]int, served map[uint16]uint64) {
		tl.tick++
		s.step(tl.tick, n, now, served)
	}
	stats := func(hits, failed uint64, waiting int) proxy.RuleStats {
		return proxy.RuleStats{Hits: hits, Failed: failed, Stages: [proxy.Open + 1]int{proxy.Waiting: waiting}}
	}
	step(stats(1, 0, 0), map[uint16]int{5: 1}, map[uint16]uint64{5: 1})
	step(stats(1, 0, 0), map[uint16]int{5: 1}, map[uint16]uint64{5: 1})
	step(stats(9, 1, 2), nil, map[uint16]uint64{5: 1, 6: 7})
	step(stats(9, 1, 0), nil, map[uint16]uint64{5: 1, 6: 7})
	want := &stripJSON{Lanes: []laneJSON{{5, ".11.."}, {6, "...4."}}, Waiting: "...2.", Failed: "...1."}
	if diff := cmp.Diff(want, tl.last("a", 5)); diff != "" {
		t.Error(diff)
	}
	if tl.last("a", 1).tells() || !tl.last("a", 2).tells() || tl.last("b", 5).tells() {
		t.Error("what tells something is taken for what does not")
	}
	for range timelineLen {
		step(stats(9, 1, 0), nil, map[uint16]uint64{5: 1, 6: 7})
	}
	if got := tl.last("a", timelineLen); len(got.Lanes) != 0 || strings.Trim(got.Waiting+got.Failed, ".") != "" {
		t.Errorf("after all that time: %+v", got)
	}
	many := make(map[uint16]int)
	for port := range uint16(3 * timelineLanes) {
		many[port] = 1
	}
	step(stats(99, 1, 0), many, nil)
	if n := len(tl.last("a", 1).Lanes); n != timelineLanes {
		t.Errorf("%d ports are remembered", n)
	}
}

func TestLevel(t *testing.T) {
	got := ""
	for _, n := range []uint32{0, 1, 2, 3, 4, 5, 8, 9, 128, 129, 1 << 31} {
		got += string(level(n))
	}
	if got != ".1233445899" {
		t.Error(got)
	}
}
