package main

import (
	"fmt"
	"io"
	"os"
	"time"
)

// progress shows how far a run is: on a terminal in one line that changes, elsewhere by a line at intervals.
type progress struct {
	w        io.Writer
	terminal bool
	planned  time.Duration // all steps together, as estimated
	passed   time.Duration // steps before this one, as estimated
	now      time.Duration // this step
	began    time.Time
	said     time.Time
}

// plainEvery is the interval between lines if there is no terminal.
const plainEvery = 10 * time.Second

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, began: time.Now()}
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// step begins a step and says roughly how long it will take.
func (p *progress) step(what string, needs time.Duration) {
	p.passed += p.now
	p.now = needs
	part := float64(p.passed) / float64(max(p.planned, 1))
	left := p.planned - p.passed
	if spent := time.Since(p.began); p.passed > p.planned/10 {
		left = time.Duration(float64(spent) / part * (1 - part))
	}
	line := fmt.Sprintf("%3.0f %%, %s left: %s", min(100, 100*part), max(left, time.Second).Round(time.Second), what)
	switch {
	case p.terminal:
		fmt.Fprintf(p.w, "\r%.100s\x1b[K", line)
	case time.Since(p.said) >= plainEvery:
		p.said = time.Now()
		fmt.Fprintln(p.w, line)
	}
}

// note prints text that stays.
func (p *progress) note(text string) {
	p.done()
	fmt.Fprintln(p.w, text)
}

// done clears the line.
func (p *progress) done() {
	if p.terminal {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
