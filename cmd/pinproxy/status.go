package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// status prints what the running pinproxy tells of itself.
func status(ctx context.Context, o options, stdout io.Writer) error {
	i, err := findInstance(ctx, o)
	switch {
	case err != nil:
		return err
	case i == nil:
		return notRunningError{}
	case i.err != nil:
		return i.err
	}
	var s statusJSON
	if err := i.ask(ctx, "/status", nil, &s); err != nil {
		return err
	}
	if o.json {
		return writeJSON(stdout, s)
	}
	if _, err := io.WriteString(stdout, s.text()); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// text is the snapshot for people: tables, and under a flow or a failure its cause and what would help.
func (s statusJSON) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, pid %d, link %s, for %s\n\n", s.Version, s.PID, s.Link, short(s.Now.Sub(s.Started).Round(time.Second)))
	s.ruleTable(&b)
	s.flowTable(&b)
	s.failureTable(&b)
	s.nameTable(&b)
	return b.String()
}

// ruleTable lists the rules with their flows as of now, and the failures that are remembered.
func (s statusJSON) ruleTable(b *strings.Builder) {
	type counts struct{ open, waiting, dialing, failed uint64 }
	of := make(map[string]*counts)
	for _, r := range s.Rules {
		of[r.Rule] = &counts{}
	}
	for _, f := range s.Flows {
		switch n := of[f.Rule]; {
		case n == nil:
		case f.Stage == "open":
			n.open++
		case f.Stage == "dialing":
			n.dialing++
		default:
			n.waiting++
		}
	}
	for _, f := range s.Failures {
		if n := of[f.Rule]; n != nil {
			n.failed += f.Times
		}
	}
	t := table(b, "RULE", "OPEN", "WAITING", "DIALING", "FAILED")
	for _, r := range s.Rules {
		row(t, r.text(), of[r.Rule].open, of[r.Rule].waiting, of[r.Rule].dialing, of[r.Rule].failed)
	}
	_ = t.Flush()
}

func (s statusJSON) flowTable(b *strings.Builder) {
	if len(s.Flows) == 0 {
		return
	}
	b.WriteByte('\n')
	t := table(b, "FLOW", "STATE", "FROM", "TO", "NAME", "LEAVES FROM", "AGE", "IDLE", "UP", "DOWN")
	var why strings.Builder
	for _, f := range s.Flows {
		idle := "-"
		if f.Stage == "open" {
			idle = short(inSeconds(f.Idle).Round(time.Second))
		}
		row(t, f.ID, f.Stage, f.Src, f.Upstream, orDash(f.Name), orDash(f.Local), short(s.Now.Sub(f.Since).Round(time.Second)), idle, f.Up, f.Down)
		because(&why, fmt.Sprintf("flow %d", f.ID), f.Cause, f.Hint)
	}
	_ = t.Flush()
	b.WriteString(why.String())
}

func (s statusJSON) failureTable(b *strings.Builder) {
	if len(s.Failures) == 0 {
		return
	}
	b.WriteByte('\n')
	t := table(b, "FAILED", "TO", "NAME", "TIMES", "LAST", "RULE")
	var why strings.Builder
	for i, f := range s.Failures {
		row(t, i+1, f.Dst, orDash(f.Name), f.Times, short(s.Now.Sub(f.Last).Round(time.Second))+" ago", orDash(f.Rule))
		because(&why, fmt.Sprintf("failed %d", i+1), f.Cause, f.Hint)
	}
	_ = t.Flush()
	b.WriteString(why.String())
}

func (s statusJSON) nameTable(b *strings.Builder) {
	if len(s.Names) == 0 {
		return
	}
	b.WriteByte('\n')
	t := table(b, "NAME", "ADDRESS", "TTL", "IN USE")
	for _, n := range s.Names {
		use := "no"
		if n.InUse {
			use = "yes"
		}
		row(t, n.Name, n.Addr, short(max(n.Expires.Sub(s.Now), 0).Round(time.Second)), use)
	}
	_ = t.Flush()
}

func because(b *strings.Builder, what, cause, hint string) {
	if cause != "" {
		fmt.Fprintf(b, "%s: %s\n", what, cause)
	}
	if hint != "" {
		fmt.Fprintf(b, "    hint: %s\n", hint)
	}
}

func table(w io.Writer, columns ...any) *tabwriter.Writer {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.StripEscape)
	row(t, columns...)
	return t
}

func row(t *tabwriter.Writer, cells ...any) {
	for i, c := range cells {
		if i > 0 {
			_, _ = t.Write([]byte{'\t'})
		}
		_, _ = fmt.Fprint(t, c)
	}
	_, _ = t.Write([]byte{'\n'})
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func inSeconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
