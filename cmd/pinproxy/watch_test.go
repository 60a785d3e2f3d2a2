package main

import (
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"pinproxy/cmd/pinproxy/monitor"
)

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

// What a program calls itself, and what a rogue control socket says, does nothing to the terminal.
func TestNothingReachesTheTerminal(t *testing.T) {
	const evil = "\x1b]0;evil\a\x1b[31m\u009b31m"
	s := monitor.Status{
		About: monitor.About{Version: evil, Link: evil}, Rules: []monitor.RuleState{{RuleRef: monitor.RuleRef{Rule: evil, Source: evil}}},
		Flows: []monitor.Flow{{Cause: evil, Hint: evil, Name: evil}}, Failures: []monitor.Failure{{Cause: evil, Hint: evil, Kind: evil}},
	}
	var said strings.Builder
	words{&said}.error(&monitor.AskError{Path: "/run/x", Err: errors.New(evil)})
	for what, text := range map[string]string{"status": s.Text(0), "an error": said.String()} {
		if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && unicode.IsControl(r) }); i >= 0 {
			t.Errorf("%s prints %q", what, text[max(0, i-20):])
		}
	}
}
