package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func tableOf() *grid {
	t := newTable(column{name: "FLOW"}, column{name: "NAME", least: 8}, column{name: "FROM", drop: 2}, right("UP", 1))
	t.row(1, "www.bank.example", "192.0.0.8:40000", 5)
	t.row(12, "a\x1b]0;b", "192.0.0.8:9", "1.2M")
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
		tableOf().write(&b, c.width)
		if diff := cmp.Diff(c.want, "\n"+b.String()); diff != "" {
			t.Errorf("width %d (-want +got):\n%s", c.width, diff)
		}
	}
}

// Whatever has to be shown, it fills a screen and never more.
func TestPaint(t *testing.T) {
	text := "pinproxy (devel), pid 1\n\nRULE  HITS\n" + strings.Repeat("a line with a cause that is longer than the screen is wide\n", 3)
	for _, c := range []struct{ width, height, lines int }{{20, 24, 13}, {20, 12, 12}, {20, 11, 11}, {20, 1, 1}, {80, 24, 6}, {1, 5, 5}} {
		got := paint(text, c.width, c.height)
		for _, clears := range []string{lineRest, screenRest} {
			if c.width == 20 && strings.Contains(strings.ReplaceAll(got, plain, ""), "pinproxy (devel), pi"+clears) || c.width == 1 && strings.Contains(got, "n"+clears) {
				t.Errorf("%+v: the last column is cleared: %q", c, got)
			}
		}
		for _, code := range []string{screenHome, lineRest, screenRest, inverse, plain} {
			got = strings.ReplaceAll(got, code, "")
		}
		list := strings.Split(got, "\r\n")
		if len(list) != c.lines {
			t.Errorf("%+v: %d lines", c, len(list))
		}
		for _, line := range list {
			if n := utf8.RuneCountInString(line); n > c.width {
				t.Errorf("%+v: %d characters: %q", c, n, line)
			}
		}
	}
	if got := paint(text, 80, 3); !strings.Contains(got, "… and 4 more lines") || !strings.Contains(got, inverse+"pinproxy (devel), pid 1"+plain) {
		t.Errorf("%q", got)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[float64]string{
		0: "0", 5: "5", 9999: "9999", 10_000: "10.0k", 999_949: "999.9k", 999_951: "1.0M", 31e9: "31.0G", 2e15: "2P",
	} {
		if got := size(n); got != want {
			t.Errorf("%v: %q, want %q", n, got, want)
		}
	}
}

// What a program calls itself, and what a rogue control socket says, does nothing to the terminal.
func TestNothingReachesTheTerminal(t *testing.T) {
	const evil = "\x1b]0;evil\a\x1b[31m\u009b31m"
	held := portReport{Port: 63999, Cause: "port 63999 is taken by " + evil, Hint: evil, Sockets: []socketReport{{text: evil, Why: evil}}}
	r := report{
		Target: "203.0.113.2:443", Error: evil, Pinproxy: &pinproxyJSON{Link: evil}, Chosen: evil,
		Addresses: []addressJSON{{
			Address: "203.0.113.2", Cause: evil, Hint: evil, Name: evil, Rule: &ruleJSON{Rule: evil, Source: evil},
			Pin: &pinReport{Ports: []portReport{held}}, Connect: &connectJSON{Cause: evil, Hint: evil + "other"},
		}},
	}
	s := statusJSON{
		aboutJSON: aboutJSON{Version: evil, Link: evil}, Rules: []ruleStateJSON{{ruleJSON: ruleJSON{Rule: evil, Source: evil}}},
		Flows: []flowJSON{{Cause: evil, Hint: evil, Name: evil}}, Failures: []failureJSON{{Cause: evil, Hint: evil, Kind: evil}},
	}
	var said strings.Builder
	words{&said}.error(&askError{path: "/run/x", err: errors.New(evil)})
	for what, text := range map[string]string{"check": r.text(), "status": s.text(0), "an error": said.String()} {
		if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && unicode.IsControl(r) }); i >= 0 {
			t.Errorf("%s prints %q", what, text[max(0, i-20):])
		}
	}
}

// Many rules with many ports are a table at once: the time for it grows with their number, not with its square.
func TestStatusOfManyRules(t *testing.T) {
	var s statusJSON
	for i := range 100_000 {
		rule := fmt.Sprintf("h%06d.bank.example:443=63999", i)
		s.Rules = append(s.Rules, ruleStateJSON{ruleJSON: ruleJSON{Rule: rule}, Ports: 1, Free: 1})
		s.Ports = append(s.Ports, portJSON{Rule: rule, Port: 63999, State: portFree})
	}
	done := make(chan string)
	go func() { done <- s.text(0) }()
	select {
	case text := <-done:
		if n := strings.Count(text, "63999  free   -   -    h"); n != len(s.Ports) {
			t.Errorf("%d ports are listed, want %d", n, len(s.Ports))
		}
	case <-time.After(patience):
		t.Error("it takes too long")
	}
}
