package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/cmd/pinproxy/terminal"
)

const (
	watchEvery = time.Second

	// Sequences of ECMA-48 and xterm, which all current terminals know.
	screenEnter = "\x1b[?1049h\x1b[?25l" // the alternate screen, without a cursor
	screenLeave = "\x1b[?25h\x1b[?1049l"
	screenHome  = "\x1b[H"
	lineRest    = "\x1b[K" // clear to the end of the line
	screenRest  = "\x1b[J" // clear to the end of the screen
	inverse     = "\x1b[7m"
	plain       = "\x1b[m"
)

// watchStatus prints the status repeatedly: in place on a terminal, elsewhere one after the other; as JSON, one a
// line. On a terminal it goes on when pinproxy ends, and shows the next pinproxy.
func watchStatus(ctx context.Context, o options, stdout io.Writer) error {
	_, height := terminal.Dimensions(stdout)
	if o.json || height == 0 {
		return printStatus(ctx, o, stdout)
	}
	term := terminal.OpenTTY()
	defer term.Close()
	screen := screen{stdout}
	if err := screen.enter(); err != nil {
		return err
	}
	defer screen.leave()
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var s monitor.Status
	var err error
	for ask := true; ; {
		if ask {
			if s, err = askStatus(ctx, o); ctx.Err() != nil {
				return nil
			}
		}
		if werr := screen.draw(s, err); werr != nil {
			return werr
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			ask = true
		case <-term.Resized:
			ask = false
		case <-term.Stopped: // Ctrl-Z
			screen.leave()
			term.Stop()
			if err := screen.enter(); err != nil {
				return err
			}
			ask = true
		}
	}
}

// printStatus is for output that is not a terminal.
func printStatus(ctx context.Context, o options, stdout io.Writer) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for first := true; ; first = false {
		s, err := askStatus(ctx, o)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case o.json:
			err = printJSON(stdout, s, "")
		case first:
			err = printText(stdout, s.Text(0))
		default:
			err = printText(stdout, "\n"+s.Text(0))
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// screen is the terminal while it is ours.
type screen struct{ io.Writer }

func (s screen) enter() error { return printText(s.Writer, screenEnter) }

// leave restores the terminal. If the terminal is gone, the error does not matter.
func (s screen) leave() { _ = printText(s.Writer, screenLeave) }

// draw replaces what is shown, in one write and without clearing first, so that nothing flickers.
func (s screen) draw(now monitor.Status, err error) error {
	width, height := terminal.Dimensions(s.Writer)
	text := now.Text(width)
	if err != nil {
		text = "pinproxy: error: " + err.Error() + "\n"
		if hint := hintFor(err); hint != "" && !errors.As(err, &monitor.NotRunningError{}) {
			text += "pinproxy: hint: " + hint + "\n"
		}
	}
	return printText(s.Writer, paint(text, width, height))
}

// paint fits lines of text to a screen. The last line counts those that don't fit.
func paint(text string, width, height int) string {
	var list []string
	for _, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		list = append(list, fold(terminal.Printable(line), width)...)
	}
	more := ""
	if len(list) > height {
		more = fmt.Sprintf("… and %d more lines", len(list)-(height-1))
		list = list[:max(height-1, 0)]
	}
	if more != "" {
		list = append(list, terminal.Cut(more, width))
	}
	var b strings.Builder
	b.WriteString(screenHome)
	full := false
	for i, line := range list {
		if i > 0 {
			b.WriteString("\r\n")
		}
		full = utf8.RuneCountInString(line) >= width
		if strings.HasPrefix(text, "pinproxy ") && (i == 0 || tableHead(line)) {
			line = inverse + line + plain
		}
		b.WriteString(line)
		if !full { // else the cursor is still in the last column, and its character would be cleared
			b.WriteString(lineRest)
		}
	}
	switch {
	case !full:
		b.WriteString(screenRest)
	case len(list) < height:
		b.WriteString("\r\n" + screenRest)
	}
	return b.String()
}

// tableHead says whether the line names columns.
func tableHead(line string) bool {
	first, _, _ := strings.Cut(line, " ")
	return strings.Contains(" RULE PORT FLOW FAILED NAME ", " "+first+" ")
}

// fold breaks a line that is too wide.
func fold(line string, width int) (parts []string) {
	runes := []rune(line)
	for len(runes) > width && width > 0 {
		parts = append(parts, string(runes[:width]))
		runes = runes[width:]
	}
	return append(parts, string(runes))
}
