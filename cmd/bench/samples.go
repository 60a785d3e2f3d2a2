package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"
	"time"
)

// sample is one figure of one system.
type sample struct {
	Round   int
	System  string // kind.key
	Measure string // measure.key
	Value   float64
	Failed  int    `json:",omitempty"` // connections that failed during the measurement
	Err     string `json:",omitempty"` // why there is no value
}

// samples are all figures so far, with the conditions under which they were measured.
type samples struct {
	Window   time.Duration
	Flows    int
	Machine  string
	Versions map[string]string // of the systems
	List     []sample
}

// load reads the samples of earlier runs, if there are any, and checks that they match o.
func load(o options) (*samples, error) {
	s := &samples{Window: o.window, Flows: o.flows, Versions: make(map[string]string)}
	if o.samples == "" {
		return s, nil
	}
	text, err := os.ReadFile(o.samples)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	old := &samples{Versions: make(map[string]string)}
	if err := json.Unmarshal(text, old); err != nil {
		return nil, fmt.Errorf("read %s: %w", o.samples, err)
	}
	if old.Window != s.Window || old.Flows != s.Flows {
		return nil, fmt.Errorf("%s was measured with --time %s --flows %d", o.samples, old.Window, old.Flows)
	}
	return old, nil
}

// save writes the samples for a later run.
func (s *samples) save(file string) error {
	text, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

// rounds returns how many rounds there are.
func (s *samples) rounds() int {
	n := 0
	for _, x := range s.List {
		n = max(n, x.Round+1)
	}
	return n
}

// rounds formats a number of rounds for a sentence.
func rounds(n int) string {
	if n != 1 {
		return fmt.Sprintf("%d rounds", n)
	}
	return "1 round"
}

// values returns what was measured, by round.
func (s *samples) values(system, measure string) map[int]float64 {
	byRound := make(map[int]float64)
	for _, x := range s.List {
		if x.System == system && x.Measure == measure && x.Err == "" {
			byRound[x.Round] = x.Value
		}
	}
	return byRound
}

// figure is the median of the measured values and their spread. The spread is half the interquartile range, as a
// fraction of the median.
type figure struct {
	median, spread float64
	n              int
}

func (s *samples) figure(system, measure string) figure {
	var list []float64
	for _, v := range s.values(system, measure) {
		list = append(list, v)
	}
	return figureOf(list)
}

// ratio returns the figure of the ratios of one system to another in the same rounds.
func (s *samples) ratio(system, other, measure string) figure {
	return ratioOf(s.values(system, measure), s.values(other, measure))
}

// held returns the figure of the ratios of one measure of a system to another measure of the same system, in the
// same rounds.
func (s *samples) held(system, measure, of string) figure {
	return ratioOf(s.values(system, measure), s.values(system, of))
}

func ratioOf(values, others map[int]float64) figure {
	var list []float64
	for round, v := range values {
		if o, ok := others[round]; ok && o > 0 {
			list = append(list, v/o)
		}
	}
	return figureOf(list)
}

func figureOf(list []float64) figure {
	if len(list) == 0 {
		return figure{}
	}
	slices.Sort(list)
	f := figure{median: quantile(list, 0.5), n: len(list)}
	if f.median > 0 {
		f.spread = (quantile(list, 0.75) - quantile(list, 0.25)) / 2 / f.median
	}
	return f
}

// quantile returns a quantile of a sorted list, interpolating between two values.
func quantile[T float64 | time.Duration](list []T, q float64) T {
	if len(list) == 0 {
		return 0
	}
	at := q * float64(len(list)-1)
	below := int(math.Floor(at))
	above := min(below+1, len(list)-1)
	return list[below] + T(float64(list[above]-list[below])*(at-float64(below)))
}

// has reports whether anything was measured, or tried, on a system.
func (s *samples) has(system string) bool {
	return slices.ContainsFunc(s.List, func(x sample) bool { return x.System == system })
}

// measured reports whether any system has a figure for the measure.
func (s *samples) measured(measure string) bool {
	return slices.ContainsFunc(s.List, func(x sample) bool { return x.Measure == measure && x.Err == "" })
}

// failed returns how often a figure is missing that should be there, in rounds from that one on.
func (s *samples) failed(system, measure string, round int) int {
	n := 0
	for _, x := range s.List {
		if x.System == system && x.Measure == measure && x.Err != "" && x.Round >= round {
			n++
		}
	}
	return n
}

// complete reports whether there are figures of pinproxy for every measure, and any of direct.
func (s *samples) complete() bool {
	for _, m := range measures {
		if strings.HasPrefix(m.key, "cpu") {
			continue // the kernel counts in ticks: a short run may use none
		}
		for _, key := range []string{keyPinproxy, keyCommand} {
			if s.figure(key, m.key).n == 0 && !(key == keyCommand && slices.Contains(hostOnly, m.group)) {
				return false
			}
		}
	}
	return s.has(keyDirect)
}

// failure is what went wrong with one measure of one system, or with several in the same way, over all rounds.
type failure struct {
	system, measure string
	failed          int
	errs            []string
}

// failures returns what went wrong, in the order of the table.
func (s *samples) failures() []failure {
	var list []failure
	for _, k := range kinds {
		for _, m := range measures {
			f := failure{system: k.title, measure: m.title}
			for _, x := range s.List {
				if x.System != k.key || x.Measure != m.key {
					continue
				}
				f.failed += x.Failed
				if x.Err != "" && !slices.Contains(f.errs, x.Err) {
					f.errs = append(f.errs, x.Err)
				}
			}
			last := len(list) - 1
			switch {
			case f.failed == 0 && len(f.errs) == 0:
			case last >= 0 && list[last].system == f.system && list[last].failed+f.failed == 0 && slices.Equal(list[last].errs, f.errs):
				list[last].measure += "; " + f.measure
			default:
				list = append(list, f)
			}
		}
	}
	return list
}

// shown returns the systems that there are samples of.
func (s *samples) shown() []kind {
	return slices.DeleteFunc(slices.Clone(kinds), func(k kind) bool { return !s.has(k.key) })
}

// ranking sorts the systems that have a figure, the best first.
func (s *samples) ranking(m measure) []kind {
	list := slices.DeleteFunc(s.shown(), func(k kind) bool { return s.figure(k.key, m.key).n == 0 })
	slices.SortStableFunc(list, func(a, b kind) int {
		order := cmp.Compare(s.figure(b.key, m.key).median, s.figure(a.key, m.key).median)
		if m.less {
			return -order
		}
		return order
	})
	return list
}
