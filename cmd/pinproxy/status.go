package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// status prints what the running pinproxy says about itself.
func status(ctx context.Context, o options, stdout io.Writer) error {
	if o.watch {
		return watchStatus(ctx, o, stdout)
	}
	s, err := askStatus(ctx, o)
	if err != nil {
		return err
	}
	if o.json {
		return printJSON(stdout, s, "  ")
	}
	width, _ := terminalSize(stdout)
	return printText(stdout, s.text(width))
}

// askStatus asks the running pinproxy.
func askStatus(ctx context.Context, o options) (s statusJSON, err error) {
	i, _, err := locateInstance(o)
	switch {
	case err != nil:
		return s, err
	case i == nil:
		return s, notRunningError{}
	case i.path == "":
		return s, fmt.Errorf("a pinproxy is running, pid %d, but can't %w", i.PID, i.err)
	case i.err != nil:
		return s, i.err
	}
	err = i.ask(ctx, "/status", nil, &s)
	s.PID = cmp.Or(i.PID, s.PID) // its own may be from another PID namespace
	return s, err
}

// text returns the snapshot for people: tables and, under a flow or a failure, its cause and what would help. If
// width is not 0, the tables are made to fit.
func (s statusJSON) text(width int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, pid %d, link %s, for %s", s.Version, s.PID, s.Link, short(s.Now.Sub(s.Started).Round(time.Second)))
	if s.Ending {
		b.WriteString(", ending")
	}
	b.WriteByte('\n')
	open, waiting := s.count()
	fmt.Fprintf(&b, "%d open, %d waiting, %d ended, %d failed, %s/s up, %s/s down\n\n", open, waiting, s.Ended, s.Failed, size(s.UpRate), size(s.DownRate))
	s.ruleTable(&b, width)
	s.portTable(&b, width)
	s.flowTable(&b, width)
	s.failureTable(&b, width)
	s.nameTable(&b, width)
	return printableLines(b.String())
}

// count returns how many flows are open, and how many wait for a port or an answer.
func (s statusJSON) count() (open, waiting int) {
	for _, f := range s.Flows {
		if f.Stage == "open" {
			open++
		} else {
			waiting++
		}
	}
	return open, waiting
}

// ruleTable lists the rules, with their flows since the start and now.
func (s statusJSON) ruleTable(b *strings.Builder, width int) {
	t := newTable(column{name: "RULE", least: 24}, right("HITS", 2), right("OPEN", 0), right("WAITING", 0), right("DIALING", 4), right("FAILED", 0), right("UP/S", 3), right("DOWN/S", 3))
	for _, r := range s.Rules {
		t.row(r.text(), r.Hits, r.Open, r.Waiting, r.Dialing, r.Failed, size(r.UpRate), size(r.DownRate))
	}
	t.write(b, width)
}

// portTable lists what holds the pins' ports.
func (s statusJSON) portTable(b *strings.Builder, width int) {
	if len(s.Ports) == 0 && !slices.ContainsFunc(s.Rules, func(r ruleStateJSON) bool { return r.Ports > maxPinListed }) {
		return
	}
	b.WriteByte('\n')
	now := make(map[uint64]flowJSON)
	for _, f := range s.Flows {
		now[f.ID] = f
	}
	ports := make(map[string][]portJSON) // by rule; there may be 100,000 rules
	for _, p := range s.Ports {
		ports[p.Rule] = append(ports[p.Rule], p)
	}
	t := newTable(column{name: "PORT"}, column{name: "STATE"}, column{name: "TO", least: 15, tail: true}, column{name: "FOR", drop: 2}, column{name: "RULE", drop: 1, least: 16})
	for _, r := range s.Rules {
		var free []portJSON // one after the other
		for _, p := range ports[r.Rule] {
			if n := len(free); n > 0 && (p.State != portFree || p.Port != free[n-1].Port+1) {
				rowOfFree(t, free)
				free = nil
			}
			if p.State == portFree && p.Waiting == 0 {
				free = append(free, p)
			} else {
				p.rows(t, now, s.Now)
			}
		}
		rowOfFree(t, free)
		if r.Ports > maxPinListed {
			t.row("…", fmt.Sprintf("%d of %d free", r.Free, r.Ports), "-", "-", r.Rule)
		}
		if r.Waiting > 0 && r.Ports > 1 {
			t.row("any", fmt.Sprintf("waiting %d", r.Waiting), "-", "-", r.Rule)
		}
	}
	t.write(b, width)
}

// rowOfFree makes one row for ports that nothing holds.
func rowOfFree(t *grid, list []portJSON) {
	switch len(list) {
	case 0:
	case 1:
		t.row(list[0].Port, portFree, "-", "-", list[0].Rule)
	default:
		t.row(fmt.Sprintf("%d-%d", list[0].Port, list[len(list)-1].Port), portFree, "-", "-", list[0].Rule)
	}
}

// rows adds the rows of a port and its holders.
func (p portJSON) rows(t *grid, flows map[uint64]flowJSON, now time.Time) {
	waiting := ""
	if p.Waiting > 0 {
		waiting = fmt.Sprintf(", waiting %d", p.Waiting)
	}
	if len(p.Holders) == 0 {
		t.row(p.Port, p.State+waiting, "-", "-", p.Rule)
		return
	}
	for _, h := range p.Holders {
		t.row(p.Port, h.words()+waiting, cmp.Or(h.Remote, "-"), h.since(flows, now), p.Rule)
		waiting = ""
	}
	if p.More > 0 {
		t.row(p.Port, fmt.Sprintf("and %d more", p.More), "-", "-", p.Rule)
	}
}

func (h holderJSON) words() string {
	switch {
	case h.State == portFlow:
		return fmt.Sprintf("flow %d", h.Flow)
	case h.State == portTimeWait:
		return fmt.Sprintf("TIME_WAIT %.0fs", h.Left)
	case h.State == portResting:
		return "resting " + short(inSeconds(h.Left).Round(time.Second))
	case h.PID == 0 && h.UID != nil:
		return fmt.Sprintf("a program of user %d", *h.UID)
	}
	return fmt.Sprintf("%s (pid %d)", h.Process, h.PID)
}

func (h holderJSON) since(flows map[uint64]flowJSON, now time.Time) string {
	if f, ok := flows[h.Flow]; ok {
		return short(now.Sub(f.Since).Round(time.Second))
	}
	return "-"
}

func (s statusJSON) flowTable(b *strings.Builder, width int) {
	if len(s.Flows) == 0 {
		return
	}
	b.WriteByte('\n')
	t := newTable(
		column{name: "FLOW"}, column{name: "STATE"}, column{name: "FROM", drop: 9, least: 15, tail: true}, column{name: "TO", least: 15, tail: true}, column{name: "NAME", drop: 5, least: 12},
		column{name: "LEAVES FROM"}, right("AGE", 4), right("IDLE", 6), right("UP", 8), right("DOWN", 8), right("UP/S", 3), right("DOWN/S", 3))
	var why strings.Builder
	for _, f := range s.Flows {
		idle := "-"
		if f.Stage == "open" {
			idle = short(inSeconds(f.Idle).Round(time.Second))
		}
		t.row(f.ID, f.Stage, f.Src, f.Upstream, cmp.Or(f.Name, "-"), cmp.Or(f.Local, "-"), short(s.Now.Sub(f.Since).Round(time.Second)), idle,
			size(float64(f.Up)), size(float64(f.Down)), size(f.UpRate), size(f.DownRate))
		because(&why, fmt.Sprintf("flow %d", f.ID), f.Cause, f.Hint)
	}
	t.write(b, width)
	b.WriteString(why.String())
}

func (s statusJSON) failureTable(b *strings.Builder, width int) {
	if len(s.Failures) == 0 {
		return
	}
	b.WriteByte('\n')
	t := newTable(column{name: "FAILED"}, column{name: "TO", least: 15, tail: true}, column{name: "NAME", drop: 2, least: 12}, column{name: "KIND"}, right("TIMES", 0), column{name: "LAST"}, column{name: "RULE", drop: 1, least: 16})
	var why strings.Builder
	for i, f := range s.Failures {
		t.row(i+1, f.Dst, cmp.Or(f.Name, "-"), f.Kind, f.Times, short(s.Now.Sub(f.Last).Round(time.Second))+" ago", cmp.Or(f.Rule, "-"))
		because(&why, fmt.Sprintf("failed %d", i+1), f.Cause, f.Hint)
	}
	t.write(b, width)
	b.WriteString(why.String())
}

func (s statusJSON) nameTable(b *strings.Builder, width int) {
	if len(s.Names) == 0 {
		return
	}
	b.WriteByte('\n')
	t := newTable(column{name: "NAME", least: 20}, column{name: "ADDRESS", least: 15}, right("TTL", 0), column{name: "IN USE"})
	for _, n := range s.Names {
		use := "no"
		if n.InUse {
			use = "yes"
		}
		t.row(n.Name, n.Addr, short(max(n.Expires.Sub(s.Now), 0).Round(time.Second)), use)
	}
	t.write(b, width)
}

func because(b *strings.Builder, what, cause, hint string) {
	if cause != "" {
		fmt.Fprintf(b, "%s: %s\n", what, cause)
	}
	if hint != "" {
		fmt.Fprintf(b, "    hint: %s\n", hint)
	}
}

func inSeconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// size formats a number of bytes for people: as it is up to four digits, then with a decimal prefix.
func size(n float64) string {
	if n < 10_000 {
		return fmt.Sprintf("%.0f", n)
	}
	for _, prefix := range []string{"k", "M", "G", "T"} {
		if n /= 1000; n < 999.95 {
			return fmt.Sprintf("%.1f%s", n, prefix)
		}
	}
	return fmt.Sprintf("%.0fP", n/1000)
}
