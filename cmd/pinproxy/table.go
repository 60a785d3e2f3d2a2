package main

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// column is a column of a table for people. If a table is wider than the terminal, the columns with the highest drop
// are left out first; those with drop 0 stay. Then columns with a least width are cut, the widest first.
type column struct {
	name  string
	right bool
	drop  int
	least int  // 0: never cut
	tail  bool // the end is what matters: cut at the beginning
}

func right(name string, drop int) column { return column{name: name, right: true, drop: drop} }

// grid is a table being filled.
type grid struct {
	columns []column
	rows    [][]string
}

const columnGap = 2

func newTable(columns ...column) *grid { return &grid{columns: columns} }

func (g *grid) row(cells ...any) {
	texts := make([]string, len(cells))
	for i, c := range cells {
		texts[i] = printable(fmt.Sprint(c))
	}
	g.rows = append(g.rows, texts)
}

// printable removes what the terminal would act on: users choose the names of programs.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, text)
}

// printableLines is printable for text of more than one line.
func printableLines(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	return strings.Join(lines, "\n")
}

// write appends the table. Width 0 means no limit.
func (g *grid) write(b *strings.Builder, width int) {
	widths := make([]int, len(g.columns))
	for i, c := range g.columns {
		widths[i] = utf8.RuneCountInString(c.name)
		for _, row := range g.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	shown := g.fit(widths, width)
	head := make([]string, len(g.columns))
	for i, c := range g.columns {
		head[i] = c.name
	}
	for _, row := range append([][]string{head}, g.rows...) {
		var line strings.Builder
		for n, i := range shown {
			if n > 0 {
				line.WriteString(strings.Repeat(" ", columnGap))
			}
			cell := g.columns[i].cut(row[i], widths[i])
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if g.columns[i].right {
				cell = pad + cell
			} else {
				cell += pad
			}
			line.WriteString(cell)
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
}

// fit chooses the columns and narrows widths.
func (g *grid) fit(widths []int, width int) (shown []int) {
	for i := range g.columns {
		shown = append(shown, i)
	}
	if width == 0 {
		return shown
	}
	least := func() (sum int) {
		for n, i := range shown {
			w := widths[i]
			if l := g.columns[i].least; l > 0 {
				w = min(w, max(l, utf8.RuneCountInString(g.columns[i].name)))
			}
			sum += w
			if n > 0 {
				sum += columnGap
			}
		}
		return sum
	}
	for least() > width {
		victim := -1
		for n, i := range shown {
			if g.columns[i].drop > 0 && (victim < 0 || g.columns[i].drop >= g.columns[shown[victim]].drop) {
				victim = n
			}
		}
		if victim < 0 {
			break
		}
		shown = append(shown[:victim:victim], shown[victim+1:]...)
	}
	for {
		sum, widest := -columnGap, -1
		for _, i := range shown {
			sum += widths[i] + columnGap
			if l := g.columns[i].least; l > 0 && widths[i] > l && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if sum <= width || widest < 0 {
			return shown
		}
		widths[widest]--
	}
}

// cut shortens a cell to n characters.
func (c column) cut(text string, n int) string {
	if runes := []rune(text); c.tail && len(runes) > n {
		return "…" + string(runes[len(runes)-max(n-1, 0):])
	}
	return cut(text, n)
}

// cut shortens text to n characters and marks the cut.
func cut(text string, n int) string {
	if utf8.RuneCountInString(text) <= n {
		return text
	}
	return string([]rune(text)[:max(n-1, 0)]) + "…"
}
