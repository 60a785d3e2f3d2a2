package terminal

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func tableOf() *Table {
	t := NewTable(Column{Name: "FLOW"}, Column{Name: "NAME", Least: 8}, Column{Name: "FROM", Drop: 2}, Right("UP", 1))
	t.Row(1, "www.bank.example", "192.0.0.8:40000", 5)
	t.Row(12, "a\x1b]0;b", "192.0.0.8:9", "1.2M")
	return t
}

// A table is as wide as its cells, or as wide as allowed: first columns go, then cells are cut.
func TestTable(t *testing.T) {
	for _, c := range []struct {
		width int
		want  string
	}{
		{0, `
FLOW  NAME              FROM               UP
1     www.bank.example  192.0.0.8:40000     5
12    a?]0;b            192.0.0.8:9      1.2M
`},
		{40, `
FLOW  NAME         FROM               UP
1     www.bank.e…  192.0.0.8:40000     5
12    a?]0;b       192.0.0.8:9      1.2M
`},
		{28, `
FLOW  NAME                UP
1     www.bank.example     5
12    a?]0;b            1.2M
`},
		{18, `
FLOW  NAME
1     www.bank.ex…
12    a?]0;b
`},
		{3, `
FLOW  NAME
1     www.ban…
12    a?]0;b
`},
	} {
		var b strings.Builder
		tableOf().Write(&b, c.width)
		if diff := cmp.Diff(c.want, "\n"+b.String()); diff != "" {
			t.Errorf("width %d (-want +got):\n%s", c.width, diff)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[float64]string{
		0: "0", 5: "5", 9999: "9999", 10_000: "10.0k", 999_949: "999.9k", 999_951: "1.0M", 31e9: "31.0G", 2e15: "2P",
	} {
		if got := Size(n); got != want {
			t.Errorf("%v: %q, want %q", n, got, want)
		}
	}
}
