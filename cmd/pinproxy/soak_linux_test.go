package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// What TestSoak measures, and what it concludes.

// sample is one look at pinproxy and at what the kernel keeps for it.
type sample struct {
	Stretch int     // which process: each run that continues a soak has one of its own
	At      float64 // seconds of load so far, including earlier stretches
	Resting bool    // before the load, or after it

	Goroutines, Endpoints, Descriptors, Threads float64
	Heap, RSS                                   float64 // MiB
	CPU                                         float64 // seconds
	Sockets                                     float64 // TCP sockets of the host, including those in TIME_WAIT
	Kernel                                      float64 // links, addresses, policy rules and routes of the host

	Load load
}

// load is what was done so far, in all stretches.
type load struct {
	Talks, MiB, Connections, Refusals, Questions, Commands, Kills, Wrong int64
}

func (l load) add(m load) load {
	return load{
		l.Talks + m.Talks, l.MiB + m.MiB, l.Connections + m.Connections, l.Refusals + m.Refusals,
		l.Questions + m.Questions, l.Commands + m.Commands, l.Kills + m.Kills, l.Wrong + m.Wrong,
	}
}

// all reports whether everything was done once.
func (l load) all() bool {
	return min(l.Talks, l.MiB, l.Connections, l.Refusals, l.Questions, l.Commands, l.Kills) > 0
}

func (l load) String() string {
	return fmt.Sprintf("%d talks (%d MiB), %d short connections, %d that were refused or met silence, %d DNS questions, %d commands, %d kills, %d wrong",
		l.Talks, l.MiB, l.Connections, l.Refusals, l.Questions, l.Commands, l.Kills, l.Wrong)
}

// series is one figure of the samples.
type series struct {
	name  string
	of    func(sample) float64
	slack float64 // growth, in addition to a tenth, that still counts as flat
	rests bool    // without load it returns to what it was before, give or take slack
}

var allSeries = []series{
	{"goroutines", func(s sample) float64 { return s.Goroutines }, 64, true}, // that many wait for the next flow
	{"netstack endpoints", func(s sample) float64 { return s.Endpoints }, 16, true},
	{"descriptors", func(s sample) float64 { return s.Descriptors }, 16, true},
	{"threads", func(s sample) float64 { return s.Threads }, 8, false},
	{"heap, MiB", func(s sample) float64 { return s.Heap }, 8, false},
	{"RSS, MiB", func(s sample) float64 { return s.RSS }, 8, false},
	{"TCP sockets of the host", func(s sample) float64 { return s.Sockets }, 64, false},
	{"links, addresses, rules, routes", func(s sample) float64 { return s.Kernel }, 32, false},
}

// trend is how one figure developed under load.
type trend struct {
	series
	early, late, most float64 // medians of the second and the last quarter of a stretch
	before, after     float64 // at rest
}

func (t trend) flat() bool { return t.late <= t.early*1.1+t.slack }

func (t trend) given() bool { return !t.rests || t.after <= t.before+t.slack }

// soakVerdict is the result of a soak.
type soakVerdict struct {
	trends    []trend
	took      time.Duration
	longest   time.Duration // stretch
	stretches int
	cpu       float64 // of one processor
	load      load
}

// judgeSoak looks at the longest stretch, but not at its first quarter: buffers, names and TIME_WAITs have yet to
// reach what the load needs.
func judgeSoak(samples []sample) (soakVerdict, bool) {
	byStretch := make(map[int][]sample)
	var v soakVerdict
	for _, s := range samples {
		byStretch[s.Stretch] = append(byStretch[s.Stretch], s)
		v.took = max(v.took, time.Duration(s.At*float64(time.Second)))
		v.load = s.Load
	}
	var longest []sample
	for _, of := range byStretch {
		if of[len(of)-1].At-of[0].At > span(longest) {
			longest = of
		}
	}
	busy := slices.DeleteFunc(slices.Clone(longest), func(s sample) bool { return s.Resting })
	if len(busy) < 4 {
		return v, false
	}
	v.stretches = len(byStretch)
	v.longest = time.Duration(span(longest) * float64(time.Second))
	if busy := busy[len(busy)-1].At - busy[0].At; busy > 0 {
		v.cpu = (longest[len(longest)-1].CPU - longest[0].CPU) / busy
	}
	first, last := longest[0], longest[len(longest)-1]
	for _, s := range allSeries {
		quarter := len(busy) / 4
		t := trend{series: s, early: median(busy[quarter:2*quarter], s.of), late: median(busy[3*quarter:], s.of), before: s.of(first), after: s.of(last)}
		for _, b := range busy {
			t.most = max(t.most, s.of(b))
		}
		if !last.Resting || !first.Resting {
			t.rests = false // it was interrupted
		}
		v.trends = append(v.trends, t)
	}
	return v, true
}

func span(s []sample) float64 {
	if len(s) == 0 {
		return -1
	}
	return s[len(s)-1].At - s[0].At
}

func median(of []sample, f func(sample) float64) float64 {
	var values []float64
	for _, s := range of {
		values = append(values, f(s))
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// String returns the verdict as a sentence: flat, or what is not.
func (v soakVerdict) String() string {
	var bad []string
	for _, t := range v.trends {
		if !t.flat() {
			bad = append(bad, fmt.Sprintf("%s: %.4g → %.4g", t.name, t.early, t.late))
		}
		if !t.given() {
			bad = append(bad, fmt.Sprintf("%s at rest: %.4g before, %.4g after", t.name, t.before, t.after))
		}
	}
	if v.load.Wrong > 0 {
		bad = append(bad, fmt.Sprintf("%d things went wrong", v.load.Wrong))
	}
	if len(bad) > 0 {
		return "NOT flat: " + strings.Join(bad, "; ")
	}
	return "flat"
}

// page returns the verdict as a section of a page.
func (v soakVerdict) page(when time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %v of load", when.Format(time.DateOnly), v.took.Round(time.Second))
	if v.stretches > 1 {
		fmt.Fprintf(&b, " in %d stretches, the longest of %v", v.stretches, v.longest.Round(time.Second))
	}
	fmt.Fprintf(&b, ": %v.\npinproxy took %.1f %% of one processor. Verdict: **%v**.\n\n", v.load, 100*v.cpu, v)
	b.WriteString("| | at rest before | 2nd quarter | last quarter | most | at rest after |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, t := range v.trends {
		fmt.Fprintf(&b, "| %s | %.4g | %.4g | %.4g | %.4g | %.4g |\n", t.name, t.before, t.early, t.late, t.most, t.after)
	}
	return b.String()
}

const soakBegin, soakEnd = "<!-- soak: written by make soak -->\n", "<!-- end of soak -->\n"

// insert puts a section between its marks in a page, or at the page's end.
func insert(page, section string) string {
	section = soakBegin + "\n" + section + "\n" + soakEnd
	before, rest, ok := strings.Cut(page, soakBegin)
	_, after, closed := strings.Cut(rest, soakEnd)
	if !ok || !closed {
		return page + "\n" + section
	}
	return before + section + after
}

func writeSection(path, section string) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(insert(string(page), section)), 0o644)
}

// readSamples returns what earlier runs kept. It drops a last line that was cut off.
func readSamples(path string) (samples []sample, err error) {
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	whole := text[:bytes.LastIndexByte(text, '\n')+1]
	if err := os.Truncate(path, int64(len(whole))); err != nil {
		return nil, err
	}
	for line := range bytes.Lines(whole) {
		var s sample
		if err := json.Unmarshal(line, &s); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		samples = append(samples, s)
	}
	return samples, nil
}

// keepSample appends one sample.
func keepSample(path string, s sample) error {
	line, err := json.Marshal(s)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}
