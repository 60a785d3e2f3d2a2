package monitor

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// What the page gets of the state. A browser is sent no more than it can show in good time.
const (
	pageRules    = 200
	pageFlows    = 2000
	pagePorts    = 512
	pageFailures = 100
	pageNames    = 200
)

// pageState is everything that the page shows. Only the page reads it, and it has the same version, so the form may
// change. Times are in milliseconds since 1970.
type pageState struct {
	Seq      uint64       `json:"seq"`
	Now      int64        `json:"now"`
	Version  string       `json:"version"`
	PID      int          `json:"pid"`
	Link     string       `json:"link"`
	Started  int64        `json:"started"`
	Seconds  int          `json:"seconds"` // of the timeline
	Total    pageTotal    `json:"total"`
	Rules    []pageRule   `json:"rules"`
	Ports    []Port       `json:"ports"`
	Flows    []pageFlow   `json:"flows"`
	Moved    []pageMoved  `json:"moved"` // of the flows, in their order
	Failures []Failure    `json:"failures"`
	Names    []Name       `json:"names"`
	Strips   []*stripJSON `json:"strips"` // of the rules, in their order

	at time.Time
}

type pageTotal struct {
	Health   string  `json:"health"` // "" while all is well
	Open     int     `json:"open"`
	Waiting  int     `json:"waiting"`
	Dialing  int     `json:"dialing"`
	Ended    uint64  `json:"ended"`
	Failed   uint64  `json:"failed"`
	Up       uint64  `json:"up"`
	Down     uint64  `json:"down"`
	UpRate   float64 `json:"up_rate"`
	DownRate float64 `json:"down_rate"`
	Rules    int     `json:"rules"` // how many there are, including those not shown
	Flows    int     `json:"flows"`
	Failures int     `json:"failures"`
	Names    int     `json:"names"`
}

type pageRule struct {
	Text    string  `json:"text"`
	Source  string  `json:"source"`
	Hits    uint64  `json:"hits"`
	Failed  uint64  `json:"failed"`
	Open    int     `json:"open"`
	Waiting int     `json:"waiting"`
	Dialing int     `json:"dialing"`
	Up      float64 `json:"up"` // per second
	Down    float64 `json:"down"`
	Ports   int     `json:"ports"`
	Free    int     `json:"free"`
}

// pageFlow is the part of a flow that seldom changes.
type pageFlow struct {
	ID    uint64 `json:"id"`
	Stage string `json:"stage"`
	Src   string `json:"src"`
	To    string `json:"to"`
	Local string `json:"local"`
	Name  string `json:"name"`
	Rule  string `json:"rule"`
	Since int64  `json:"since"`
	Cause string `json:"cause,omitempty"`
	Hint  string `json:"hint,omitempty"`
}

// pageMoved is the rest: its ID, bytes up and down, both per second, and when a byte last moved.
type pageMoved [6]int64

// pageChange is what has changed since the previous state. Nil: nothing.
type pageChange struct {
	Seq      uint64           `json:"seq"`
	Now      int64            `json:"now"`
	Total    pageTotal        `json:"total"`
	Rules    map[int]pageRule `json:"rules,omitempty"` // by position
	Ports    []Port           `json:"ports,omitempty"`
	NoPorts  bool             `json:"no_ports,omitempty"`
	Flows    []pageFlow       `json:"flows,omitempty"`
	Gone     []uint64         `json:"gone,omitempty"`
	Moved    []pageMoved      `json:"moved,omitempty"`
	Failures []Failure        `json:"failures,omitempty"`
	Names    *[]Name          `json:"names,omitempty"`
	Strips   map[int]any      `json:"strips,omitempty"` // of the last second, if there was something
}

// state picks from s what the page shows. p.mu is held.
func (p *page) state(s *Status) *pageState {
	st := &pageState{
		Seq: 1, Now: s.Now.UnixMilli(), Version: s.Version, PID: s.PID, Link: s.Link, Started: s.Started.UnixMilli(), Seconds: timelineLen, at: s.Now,
		Total: pageTotal{
			Ended: s.Ended, Failed: s.Failed, Up: s.Up, Down: s.Down, UpRate: s.UpRate, DownRate: s.DownRate,
			Rules: len(s.Rules), Flows: len(s.Flows), Failures: len(s.Failures), Names: p.m.Names.Len(),
		},
		Rules: []pageRule{}, Ports: []Port{}, Flows: []pageFlow{}, Moved: []pageMoved{}, Failures: s.Failures[:min(pageFailures, len(s.Failures))],
		Names: s.Names[:min(pageNames, len(s.Names))], Strips: []*stripJSON{},
	}
	if err := p.m.ill(); err != nil {
		st.Total.Health = err.Error()
	}
	shown := make(map[string]bool)
	for _, r := range pickRules(s.Rules) {
		shown[r.Rule] = true
		source := r.Source
		if r.Line > 0 {
			source = fmt.Sprintf("%s:%d", r.Source, r.Line)
		}
		st.Rules = append(st.Rules, pageRule{
			Text: r.Rule, Source: source, Hits: r.Hits, Failed: r.Failed, Open: r.Open, Waiting: r.Waiting, Dialing: r.Dialing,
			Up: r.UpRate, Down: r.DownRate, Ports: r.Ports, Free: r.Free,
		})
		st.Strips = append(st.Strips, p.times.last(r.Rule, timelineLen))
	}
	for _, port := range s.Ports {
		if shown[port.Rule] && len(st.Ports) < pagePorts {
			st.Ports = append(st.Ports, port)
		}
	}
	st.flows(s)
	return st
}

// pickRules leaves out rules that were never needed, if there are too many.
func pickRules(list []RuleState) []RuleState {
	if len(list) <= pageRules {
		return list
	}
	order := make([]int, len(list))
	for i := range order {
		order[i] = i
	}
	rank := func(r RuleState) int {
		switch {
		case r.Open+r.Waiting+r.Dialing > 0:
			return 0
		case r.Hits > 0:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(rank(list[a]), rank(list[b])) })
	order = order[:pageRules]
	slices.Sort(order)
	picked := make([]RuleState, len(order))
	for i, at := range order {
		picked[i] = list[at]
	}
	return picked
}

// flows fills in the flows. If there are too many, those that are not open come first.
func (st *pageState) flows(s *Status) {
	list := make([]int, 0, len(s.Flows))
	for _, open := range []bool{false, true} {
		for i, f := range s.Flows {
			if (f.Stage == "open") == open {
				list = append(list, i)
			}
			st.count(f.Stage, open)
		}
	}
	list = list[:min(pageFlows, len(list))]
	slices.Sort(list)
	for _, i := range list {
		f := s.Flows[i]
		moved := int64(0)
		if f.Stage == "open" {
			moved = s.Now.Add(-Seconds(f.Idle)).Round(100 * time.Millisecond).UnixMilli()
		}
		st.Flows = append(st.Flows, pageFlow{
			ID: f.ID, Stage: f.Stage, Src: f.Src.String(), To: f.Upstream.String(), Local: f.Local, Name: f.Name, Rule: f.Rule,
			Since: f.Since.UnixMilli(), Cause: f.Cause, Hint: f.Hint,
		})
		st.Moved = append(st.Moved, pageMoved{int64(f.ID), int64(f.Up), int64(f.Down), int64(f.UpRate), int64(f.DownRate), moved})
	}
}

// count adds a flow to the totals, once.
func (st *pageState) count(stage string, second bool) {
	switch {
	case second:
	case stage == "open":
		st.Total.Open++
	case stage == "dialing":
		st.Total.Dialing++
	default:
		st.Total.Waiting++
	}
}

// since returns what has changed since the state before, as JSON. It returns nil if a change can't express it.
func (st *pageState) since(before *pageState, times *timeline) []byte {
	if !slices.EqualFunc(st.Rules, before.Rules, func(a, b pageRule) bool { return a.Text == b.Text && a.Source == b.Source }) {
		return nil
	}
	c := pageChange{Seq: st.Seq, Now: st.Now, Total: st.Total, Rules: make(map[int]pageRule), Strips: make(map[int]any)}
	for i, r := range st.Rules {
		if r != before.Rules[i] {
			c.Rules[i] = r
		}
		if s := times.last(r.Text, 1); s.tells() {
			c.Strips[i] = s
		}
	}
	passed := st.at.Sub(before.at).Seconds()
	if !slices.EqualFunc(st.Ports, before.Ports, func(a, b Port) bool { return samePort(a, b, passed) }) {
		c.Ports, c.NoPorts = st.Ports, len(st.Ports) == 0
	}
	c.flows(st, before)
	if !slices.Equal(st.Failures, before.Failures) {
		c.Failures = st.Failures
	}
	if !slices.Equal(st.Names, before.Names) {
		c.Names = &st.Names
	}
	return mustJSON(c)
}

// flows adds what is new in the flows of both states, which are in the order of their IDs.
func (c *pageChange) flows(st, before *pageState) {
	i := 0
	for n, f := range st.Flows {
		for ; i < len(before.Flows) && before.Flows[i].ID < f.ID; i++ {
			c.Gone = append(c.Gone, before.Flows[i].ID)
		}
		known := i < len(before.Flows) && before.Flows[i].ID == f.ID
		if !known || before.Flows[i] != f {
			c.Flows = append(c.Flows, f)
		}
		if !known || before.Moved[i] != st.Moved[n] {
			c.Moved = append(c.Moved, st.Moved[n])
		}
		if known {
			i++
		}
	}
	for ; i < len(before.Flows); i++ {
		c.Gone = append(c.Gone, before.Flows[i].ID)
	}
}

// samePort says whether nothing about a port has changed, apart from the time that has passed.
func samePort(now, before Port, passed float64) bool {
	return now.Rule == before.Rule && now.Port == before.Port && now.State == before.State && now.Waiting == before.Waiting && now.More == before.More &&
		slices.EqualFunc(now.Holders, before.Holders, func(a, b Holder) bool {
			return a.State == b.State && a.Local == b.Local && a.Remote == b.Remote && a.Flow == b.Flow && a.PID == b.PID && a.Text == b.Text &&
				(a.Left == b.Left || math.Abs(a.Left-(b.Left-passed)) < 2)
		})
}
