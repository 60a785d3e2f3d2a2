package monitor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"pinproxy/cmd/pinproxy/terminal"
)

// Text returns the snapshot for people: tables and, under a flow or a failure, its cause and what would help. If
// width is not 0, the tables are made to fit.
func (s Status) Text(width int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, pid %d, link %s, for %s", s.Version, s.PID, s.Link, terminal.Short(s.Now.Sub(s.Started).Round(time.Second)))
	if s.Ending {
		b.WriteString(", ending")
	}
	b.WriteByte('\n')
	open, waiting := s.count()
	fmt.Fprintf(&b, "%d open, %d waiting, %d ended, %d failed, %s/s up, %s/s down\n\n", open, waiting, s.Ended, s.Failed, terminal.Size(s.UpRate), terminal.Size(s.DownRate))
	s.ruleTable(&b, width)
	s.portTable(&b, width)
	s.flowTable(&b, width)
	s.failureTable(&b, width)
	s.nameTable(&b, width)
	return terminal.PrintableLines(b.String())
}

// count returns how many flows are open, and how many wait for a port or an answer.
func (s Status) count() (open, waiting int) {
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
func (s Status) ruleTable(b *strings.Builder, width int) {
	t := terminal.NewTable(terminal.Column{Name: "RULE", Least: 24}, terminal.Right("HITS", 2), terminal.Right("OPEN", 0), terminal.Right("WAITING", 0), terminal.Right("DIALING", 4), terminal.Right("FAILED", 0), terminal.Right("UP/S", 3), terminal.Right("DOWN/S", 3))
	for _, r := range s.Rules {
		t.Row(r.Text(), r.Hits, r.Open, r.Waiting, r.Dialing, r.Failed, terminal.Size(r.UpRate), terminal.Size(r.DownRate))
	}
	t.Write(b, width)
}

// portTable lists what holds the pins' ports.
func (s Status) portTable(b *strings.Builder, width int) {
	if len(s.Ports) == 0 && !slices.ContainsFunc(s.Rules, func(r RuleState) bool { return r.Ports > MaxPinListed }) {
		return
	}
	b.WriteByte('\n')
	now := make(map[uint64]Flow)
	for _, f := range s.Flows {
		now[f.ID] = f
	}
	ports := make(map[string][]Port) // by rule; there may be 100,000 rules
	for _, p := range s.Ports {
		ports[p.Rule] = append(ports[p.Rule], p)
	}
	t := terminal.NewTable(terminal.Column{Name: "PORT"}, terminal.Column{Name: "STATE"}, terminal.Column{Name: "TO", Least: 15, Tail: true}, terminal.Column{Name: "FOR", Drop: 2}, terminal.Column{Name: "RULE", Drop: 1, Least: 16})
	for _, r := range s.Rules {
		var free []Port // one after the other
		for _, p := range ports[r.Rule] {
			if n := len(free); n > 0 && (p.State != PortFree || p.Port != free[n-1].Port+1) {
				rowOfFree(t, free)
				free = nil
			}
			if p.State == PortFree && p.Waiting == 0 {
				free = append(free, p)
			} else {
				p.rows(t, now, s.Now)
			}
		}
		rowOfFree(t, free)
		if r.Ports > MaxPinListed {
			t.Row("…", fmt.Sprintf("%d of %d free", r.Free, r.Ports), "-", "-", r.Rule)
		}
		if r.Waiting > 0 && r.Ports > 1 {
			t.Row("any", fmt.Sprintf("waiting %d", r.Waiting), "-", "-", r.Rule)
		}
	}
	t.Write(b, width)
}

// rowOfFree makes one row for ports that nothing holds.
func rowOfFree(t *terminal.Table, list []Port) {
	switch len(list) {
	case 0:
	case 1:
		t.Row(list[0].Port, PortFree, "-", "-", list[0].Rule)
	default:
		t.Row(fmt.Sprintf("%d-%d", list[0].Port, list[len(list)-1].Port), PortFree, "-", "-", list[0].Rule)
	}
}

// rows adds the rows of a port and its holders.
func (p Port) rows(t *terminal.Table, flows map[uint64]Flow, now time.Time) {
	waiting := ""
	if p.Waiting > 0 {
		waiting = fmt.Sprintf(", waiting %d", p.Waiting)
	}
	if len(p.Holders) == 0 {
		t.Row(p.Port, p.State+waiting, "-", "-", p.Rule)
		return
	}
	for _, h := range p.Holders {
		t.Row(p.Port, h.words()+waiting, cmp.Or(h.Remote, "-"), h.since(flows, now), p.Rule)
		waiting = ""
	}
	if p.More > 0 {
		t.Row(p.Port, fmt.Sprintf("and %d more", p.More), "-", "-", p.Rule)
	}
}

func (h Holder) words() string {
	switch {
	case h.State == PortFlow:
		return fmt.Sprintf("flow %d", h.Flow)
	case h.State == PortTimeWait:
		return fmt.Sprintf("TIME_WAIT %.0fs", h.Left)
	case h.State == PortResting:
		return "resting " + terminal.Short(Seconds(h.Left).Round(time.Second))
	case h.PID == 0 && h.UID != nil:
		return fmt.Sprintf("a program of user %d", *h.UID)
	}
	return fmt.Sprintf("%s (pid %d)", h.Process, h.PID)
}

func (h Holder) since(flows map[uint64]Flow, now time.Time) string {
	if f, ok := flows[h.Flow]; ok {
		return terminal.Short(now.Sub(f.Since).Round(time.Second))
	}
	return "-"
}

func (s Status) flowTable(b *strings.Builder, width int) {
	if len(s.Flows) == 0 {
		return
	}
	b.WriteByte('\n')
	t := terminal.NewTable(
		terminal.Column{Name: "FLOW"}, terminal.Column{Name: "STATE"}, terminal.Column{Name: "FROM", Drop: 9, Least: 15, Tail: true}, terminal.Column{Name: "TO", Least: 15, Tail: true}, terminal.Column{Name: "NAME", Drop: 5, Least: 12},
		terminal.Column{Name: "LEAVES FROM"}, terminal.Right("AGE", 4), terminal.Right("IDLE", 6), terminal.Right("UP", 8), terminal.Right("DOWN", 8), terminal.Right("UP/S", 3), terminal.Right("DOWN/S", 3))
	var why strings.Builder
	for _, f := range s.Flows {
		idle := "-"
		if f.Stage == "open" {
			idle = terminal.Short(Seconds(f.Idle).Round(time.Second))
		}
		t.Row(f.ID, f.Stage, f.Src, f.Upstream, cmp.Or(f.Name, "-"), cmp.Or(f.Local, "-"), terminal.Short(s.Now.Sub(f.Since).Round(time.Second)), idle,
			terminal.Size(float64(f.Up)), terminal.Size(float64(f.Down)), terminal.Size(f.UpRate), terminal.Size(f.DownRate))
		because(&why, fmt.Sprintf("flow %d", f.ID), f.Cause, f.Hint)
	}
	t.Write(b, width)
	b.WriteString(why.String())
}

func (s Status) failureTable(b *strings.Builder, width int) {
	if len(s.Failures) == 0 {
		return
	}
	b.WriteByte('\n')
	t := terminal.NewTable(terminal.Column{Name: "FAILED"}, terminal.Column{Name: "TO", Least: 15, Tail: true}, terminal.Column{Name: "NAME", Drop: 2, Least: 12}, terminal.Column{Name: "KIND"}, terminal.Right("TIMES", 0), terminal.Column{Name: "LAST"}, terminal.Column{Name: "RULE", Drop: 1, Least: 16})
	var why strings.Builder
	for i, f := range s.Failures {
		t.Row(i+1, f.Dst, cmp.Or(f.Name, "-"), f.Kind, f.Times, terminal.Short(s.Now.Sub(f.Last).Round(time.Second))+" ago", cmp.Or(f.Rule, "-"))
		because(&why, fmt.Sprintf("failed %d", i+1), f.Cause, f.Hint)
	}
	t.Write(b, width)
	b.WriteString(why.String())
}

func (s Status) nameTable(b *strings.Builder, width int) {
	if len(s.Names) == 0 {
		return
	}
	b.WriteByte('\n')
	t := terminal.NewTable(terminal.Column{Name: "NAME", Least: 20}, terminal.Column{Name: "ADDRESS", Least: 15}, terminal.Right("TTL", 0), terminal.Column{Name: "IN USE"})
	for _, n := range s.Names {
		use := "no"
		if n.InUse {
			use = "yes"
		}
		t.Row(n.Name, n.Addr, terminal.Short(max(n.Expires.Sub(s.Now), 0).Round(time.Second)), use)
	}
	t.Write(b, width)
}

func because(b *strings.Builder, what, cause, hint string) {
	if cause != "" {
		fmt.Fprintf(b, "%s: %s\n", what, cause)
	}
	if hint != "" {
		fmt.Fprintf(b, "    hint: %s\n", hint)
	}
}

// Text returns the rule and its place for people.
func (r RuleRef) Text() string {
	switch {
	case r.Source == "":
		return r.Rule
	case r.Line == 0:
		return fmt.Sprintf("%s (%s)", r.Rule, r.Source)
	}
	return fmt.Sprintf("%s (%s:%d)", r.Rule, r.Source, r.Line)
}
