package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// block is a part of the table: a cell for each system and measure.
type block struct {
	title string // in the terminal
	text  string // in the page, Markdown
	cell  func(k kind, m measure) string
}

// blocks returns the blocks of the table.
func (s *samples) blocks() []block {
	list := []block{{"median", "Medians of all rounds.", func(k kind, m measure) string {
		f := s.figure(k.key, m.key)
		if f.n == 0 && s.failed(k.key, m.key, 0) > 0 {
			return "failed"
		}
		return number(f)
	}}}
	if s.rounds() > 1 {
		list = append(list, block{
			"spread", "Spread: half of the range of the middle half of the rounds, relative to the median.",
			func(k kind, m measure) string { return percent(s.figure(k.key, m.key)) },
		})
	}
	for _, ours := range []kind{kinds[1], kinds[2]} {
		if !s.has(ours.key) {
			continue
		}
		title := fmt.Sprintf("%s is … × what a system makes", ours.title)
		list = append(list, block{
			title,
			fmt.Sprintf("`%s` relative to each system: its figure divided by the system's in the same round, median of the rounds. "+
				"For CPU, round trips and memory, less is better.", ours.title),
			func(k kind, m measure) string {
				if k.key == ours.key {
					return "–"
				}
				return ratio(s.ratio(ours.key, k.key, m.key))
			},
		})
	}
	return list
}

// columns returns the measures that there are figures of.
func (s *samples) columns() []measure {
	var list []measure
	for _, m := range measures {
		if s.measured(m.key) {
			list = append(list, m)
		}
	}
	return list
}

// columnsAtATime is how many columns fit on a terminal.
const columnsAtATime = 13

// table prints the figures for a terminal.
func (s *samples) table(w io.Writer) {
	const first, width, wide = 18, 8, 11
	row := func(title string, columns []measure, cell func(m measure) string) {
		fmt.Fprintf(w, "%-*s", first, title)
		for _, m := range columns {
			if m.key == "memory" { // it may be the memory of a process
				fmt.Fprintf(w, "%*s", wide, cell(m))
			} else {
				fmt.Fprintf(w, "%*s", width, cell(m))
			}
		}
		fmt.Fprintln(w)
	}
	for columns := range slices.Chunk(s.columns(), columnsAtATime) {
		fmt.Fprintln(w)
		row("", columns, func(m measure) string { return m.short })
		row("", columns, func(m measure) string { return m.unit })
		for _, b := range s.blocks() {
			fmt.Fprintf(w, "\n%s\n", b.title)
			for _, k := range s.shown() {
				row(k.title, columns, func(m measure) string { return b.cell(k, m) })
			}
		}
	}
	fmt.Fprintf(w, "\n%s of %s each. Of CPU, p50, p99, beside and B/flow less is better, of the others more.\n", rounds(s.rounds()), s.Window)
	if list := s.failures(); len(list) > 0 {
		fmt.Fprintln(w, "\nWhat went wrong, in all rounds:")
		for _, f := range list {
			fmt.Fprintf(w, "  %s\n", f)
		}
	}
}

// String says in words what went wrong.
func (f failure) String() string {
	words := fmt.Sprintf("%s, %s:", f.system, f.measure)
	if f.failed > 0 {
		words += fmt.Sprintf(" %s failed", count(float64(f.failed)))
		if len(f.errs) > 0 {
			words += ";"
		}
	}
	if len(f.errs) > 0 {
		words += " " + strings.Join(f.errs, "; ")
	}
	return words
}

// number writes three digits, or all of those before the decimal point.
func number(f figure) string {
	switch {
	case f.n == 0:
		return "–"
	case f.median >= 99.95:
		return count(f.median)
	case f.median >= 9.995:
		return strconv.FormatFloat(f.median, 'f', 1, 64)
	}
	return strconv.FormatFloat(f.median, 'f', 2, 64)
}

// count writes a whole number with commas.
func count(v float64) string {
	text := strconv.FormatFloat(v, 'f', 0, 64)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func percent(f figure) string {
	if f.n < 2 {
		return "–"
	}
	return fmt.Sprintf("±%.0f%%", 100*f.spread)
}

func ratio(f figure) string {
	switch {
	case f.n == 0:
		return "–"
	case f.median >= 99.5:
		return count(f.median)
	case f.median >= 9.95:
		return fmt.Sprintf("%.0f", f.median)
	}
	return fmt.Sprintf("%.2f", f.median)
}
