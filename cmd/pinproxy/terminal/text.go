// Package terminal prepares what people read: text that a terminal shows and does not act on, tables that fit, and the
// terminal itself while something is shown on it repeatedly.
package terminal

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"
)

// Printable removes what the terminal would act on, and what would reorder or hide the rest of a line: users choose the
// names of programs.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// PrintableLines is Printable for text of more than one line.
func PrintableLines(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = Printable(lines[i])
	}
	return strings.Join(lines, "\n")
}

// Cut shortens text to n characters and marks the cut.
func Cut(text string, n int) string {
	if utf8.RuneCountInString(text) <= n {
		return text
	}
	return string([]rune(text)[:max(n-1, 0)]) + "…"
}

// Short formats a duration for people.
func Short(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < 10*time.Second:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// Size formats a number of bytes for people: as it is up to four digits, then with a decimal prefix.
func Size(n float64) string {
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

// Quote makes text one word for a shell.
func Quote(text string) string {
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// Cause removes the repetition of the call and its subject from an error: an errno is enough.
func Cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	for {
		var op *net.OpError
		if !errors.As(err, &op) {
			return err
		}
		err = op.Err
	}
}
