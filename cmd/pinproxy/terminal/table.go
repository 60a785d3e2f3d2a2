package terminal

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Column is a column of a table for people. If a table is wider than the terminal, the columns with the highest Drop
// are left out first; those with Drop 0 stay. Then columns with a Least width are cut, the widest first.
type Column struct {
	Name  string
	Right bool
	Drop  int
	Least int  // 0: never cut
	Tail  bool // the end is what matters: cut at the beginning
}

// Right returns a column of numbers.
func Right(name string, drop int) Column { return Column{Name: name, Right: true, Drop: drop} }

// Table is a table being filled.
type Table struct {
	columns []Column
	rows    [][]string
}

const columnGap = 2

func NewTable(columns ...Column) *Table { return &Table{columns: columns} }

// Row adds a row. Its cells are printed by fmt.Sprint.
func (t *Table) Row(cells ...any) {
	texts := make([]string, len(cells))
	for i, c := range cells {
		texts[i] = Printable(fmt.Sprint(c))
	}
	t.rows = append(t.rows, texts)
}

// Write appends the table. Width 0 means no limit.
func (t *Table) Write(b *strings.Builder, width int) {
	widths := make([]int, len(t.columns))
	for i, c := range t.columns {
		widths[i] = utf8.RuneCountInString(c.Name)
		for _, row := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	shown := t.fit(widths, width)
	head := make([]string, len(t.columns))
	for i, c := range t.columns {
		head[i] = c.Name
	}
	for _, row := range append([][]string{head}, t.rows...) {
		var line strings.Builder
		for n, i := range shown {
			if n > 0 {
				line.WriteString(strings.Repeat(" ", columnGap))
			}
			cell := t.columns[i].cut(row[i], widths[i])
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if t.columns[i].Right {
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
func (t *Table) fit(widths []int, width int) (shown []int) {
	for i := range t.columns {
		shown = append(shown, i)
	}
	if width == 0 {
		return shown
	}
	least := func() (sum int) {
		for n, i := range shown {
			w := widths[i]
			if l := t.columns[i].Least; l > 0 {
				w = min(w, max(l, utf8.RuneCountInString(t.columns[i].Name)))
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
			if t.columns[i].Drop > 0 && (victim < 0 || t.columns[i].Drop >= t.columns[shown[victim]].Drop) {
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
			if l := t.columns[i].Least; l > 0 && widths[i] > l && (widest < 0 || widths[i] > widths[widest]) {
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
func (c Column) cut(text string, n int) string {
	if runes := []rune(text); c.Tail && len(runes) > n {
		return "…" + string(runes[len(runes)-max(n-1, 0):])
	}
	return Cut(text, n)
}
