package monitor

import (
	"cmp"
	"math/bits"
	"slices"
	"strings"

	"pinproxy/proxy"
	"pinproxy/rules"
)

const (
	timelineLen   = 300 // seconds
	timelineRules = 200 // rules with a memory; those silent for timelineLen give theirs to others
	timelineLanes = 12  // ports of a rule
)

// timeline remembers, for each second of the last minutes, how many flows each port of a pin served.
type timeline struct {
	tick   int64 // seconds so far
	rules  map[string]*strip
	before map[string]proxy.RuleStats // as of the last tick, of every rule
}

// strip is one rule's part of the timeline. The memory is a ring: second tick is at tick % timelineLen.
type strip struct {
	lanes           map[uint16]*lane
	waiting, failed [timelineLen]uint32
	served          map[uint16]uint64 // as of the last tick
	hits, failures  uint64            // likewise
	used            int64             // the last tick with anything to show
}

type lane struct {
	cells [timelineLen]uint32
	used  int64
}

// step records one second.
func (t *timeline) step(pins *proxy.Proxy, list []*rules.Rule) {
	if t.rules == nil {
		t.rules = make(map[string]*strip)
	}
	t.tick++
	t.forget(list)
	uses := pins.Uses()
	ports := make(map[string]map[uint16]int)
	for use, n := range uses {
		if ports[use.Rule] == nil {
			ports[use.Rule] = make(map[uint16]int)
		}
		ports[use.Rule][use.Port] = n
	}
	before := t.before
	t.before = make(map[string]proxy.RuleStats, len(list))
	for i, n := range pins.RuleStats(list) {
		text := list[i].String()
		was := before[text]
		t.before[text] = n
		s := t.rules[text]
		if s == nil {
			if n.Hits == was.Hits && n.Stages == was.Stages || len(t.rules) >= timelineRules {
				continue
			}
			s = &strip{lanes: make(map[uint16]*lane), hits: was.Hits, failures: was.Failed}
			if was.Hits > 0 {
				s.served = pins.Served(list[i])
			}
			t.rules[text] = s
		}
		served := s.served
		if n.Hits != s.hits || len(ports[text]) > 0 || n.Stages[proxy.Dialing] > 0 {
			served = pins.Served(list[i])
		}
		s.step(t.tick, n, ports[text], served)
	}
}

func (s *strip) step(tick int64, n proxy.RuleStats, now map[uint16]int, served map[uint16]uint64) {
	at := tick % timelineLen
	for _, l := range s.lanes {
		l.cells[at] = 0
	}
	add := func(port uint16, n uint64) {
		l := s.lanes[port]
		if l == nil {
			l = new(lane)
			s.lanes[port] = l
		}
		l.used = tick
		l.cells[at] = max(l.cells[at], uint32(min(n, 1<<31)))
	}
	for port, n := range now {
		add(port, uint64(n))
	}
	for port, n := range served {
		if n > s.served[port] {
			add(port, n-s.served[port])
		}
	}
	s.waiting[at] = uint32(n.Stages[proxy.Waiting])
	s.failed[at] = uint32(n.Failed - s.failures)
	if n.Hits != s.hits || len(now) > 0 || s.waiting[at] > 0 || s.failed[at] > 0 {
		s.used = tick
	}
	s.served, s.hits, s.failures = served, n.Hits, n.Failed
	s.thin(tick)
}

// thin forgets the lanes that have nothing to show any more. If there are still too many, it forgets those used
// longest ago.
func (s *strip) thin(tick int64) {
	for port, l := range s.lanes {
		if tick-l.used >= timelineLen {
			delete(s.lanes, port)
		}
	}
	if len(s.lanes) <= timelineLanes {
		return
	}
	ports := s.ports()
	slices.SortFunc(ports, func(a, b uint16) int {
		return cmp.Or(cmp.Compare(s.lanes[b].used, s.lanes[a].used), cmp.Compare(a, b))
	})
	for _, port := range ports[timelineLanes:] {
		delete(s.lanes, port)
	}
}

func (s *strip) ports() []uint16 {
	ports := make([]uint16, 0, len(s.lanes))
	for port := range s.lanes {
		ports = append(ports, port)
	}
	return ports
}

// forget drops rules that are gone. If there are too many, it also drops those that have been silent for
// timelineLen.
func (t *timeline) forget(list []*rules.Rule) {
	in := make(map[string]bool, len(list))
	for _, r := range list {
		in[r.String()] = true
	}
	for text, s := range t.rules {
		if !in[text] || t.tick-s.used >= timelineLen && len(t.rules) >= timelineRules {
			delete(t.rules, text)
		}
	}
}

// stripJSON is a rule's timeline as the page gets it. Each second is a character, the oldest first: "." for none,
// then 1 for one flow, 2 for two, 3 for up to four and so on, doubling up to 9. Now has only the last second.
type stripJSON struct {
	Lanes   []laneJSON `json:"lanes"`
	Waiting string     `json:"waiting"`
	Failed  string     `json:"failed"`
}

type laneJSON struct {
	Port  uint16 `json:"port"`
	Cells string `json:"cells"`
}

// last returns the last n seconds of a rule, or nil if the rule has nothing to show.
func (t *timeline) last(rule string, n int64) *stripJSON {
	s := t.rules[rule]
	if s == nil {
		return nil
	}
	j := &stripJSON{Lanes: []laneJSON{}, Waiting: t.text(&s.waiting, n), Failed: t.text(&s.failed, n)}
	ports := s.ports()
	slices.Sort(ports)
	for _, port := range ports {
		j.Lanes = append(j.Lanes, laneJSON{port, t.text(&s.lanes[port].cells, n)})
	}
	return j
}

// tells says whether there was anything.
func (s *stripJSON) tells() bool {
	if s == nil {
		return false
	}
	for _, l := range s.Lanes {
		if strings.Trim(l.Cells, ".") != "" {
			return true
		}
	}
	return strings.Trim(s.Waiting+s.Failed, ".") != ""
}

func (t *timeline) text(cells *[timelineLen]uint32, n int64) string {
	b := make([]byte, 0, n)
	for tick := t.tick - n + 1; tick <= t.tick; tick++ {
		if tick <= 0 {
			b = append(b, '.')
			continue
		}
		b = append(b, level(cells[tick%timelineLen]))
	}
	return string(b)
}

func level(n uint32) byte {
	if n == 0 {
		return '.'
	}
	return '1' + byte(min(bits.Len32(n-1), 8))
}
