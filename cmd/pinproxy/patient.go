package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"
)

const (
	// logPatience is how long a line of the log waits for somebody to read it.
	logPatience = time.Second
	// laterPatience is the same once a line has waited in vain, or nearly.
	laterPatience = 20 * time.Millisecond
	// logTick is the part of either that is waited for at a time. One long wait would be over as soon as the process
	// goes on after a stop (SIGSTOP, a suspend), before the goroutine that writes has had its turn: with ticks a stop
	// takes no more than one of them.
	logTick = 10 * time.Millisecond
)

// patient writes the log to a file, as long as somebody reads it. If nobody does, as with a terminal after Ctrl-S, over
// a connection that hangs, or a pager behind a pipe, a write lasts until somebody does again, and whoever has something
// to log would hang: flows, DNS, the end. So a goroutine writes. While it is in a write that has lasted too long, lines
// are lost, and the next one that is written says how many. Whether there is room can't be asked: of a terminal the
// kernel says so (poll(2)), and then lets the write wait.
//
// Its caller holds a lock.
type patient struct {
	lines   chan []byte
	written chan time.Duration // how long a write has taken
	timer   *time.Timer
	waiting bool // for the end of a write, which the log does not
	late    bool // the last write took long
	lost    int
	notice  func(lost int) []byte
}

// withPatience returns w in a form that does not hang. handler makes the log's lines.
func withPatience(w io.Writer, handler func(io.Writer) slog.Handler) io.Writer {
	f, ok := w.(*os.File)
	if !ok {
		return w
	}
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		return w // always has room
	}
	p := &patient{lines: make(chan []byte), written: make(chan time.Duration, 1), timer: time.NewTimer(logTick)}
	p.notice = func(lost int) []byte {
		var text bytes.Buffer
		notice := slog.NewRecord(time.Now(), slog.LevelWarn, "lines of this log are lost: nobody read it", 0)
		notice.AddAttrs(slog.Int("lost", lost))
		_ = handler(&text).Handle(context.Background(), notice) // whatever the log's level
		return text.Bytes()
	}
	go p.write(f)
	return p
}

func (p *patient) write(f *os.File) {
	for line := range p.lines {
		start := time.Now()
		_, _ = f.Write(line)
		p.written <- time.Since(start)
	}
}

// Write returns when line is written or has been given up.
func (p *patient) Write(line []byte) (int, error) {
	if p.waiting {
		select {
		case took := <-p.written:
			p.waiting, p.late = false, took > laterPatience
		default:
			p.lost++
			return len(line), nil
		}
	}
	text := slices.Clone(line) // the caller uses line again
	if p.lost > 0 {
		text = append(p.notice(p.lost), line...)
		p.lost = 0
	}
	p.lines <- text
	wait := logPatience
	if p.late {
		wait = laterPatience
	}
	for ; wait > 0; wait -= logTick {
		p.timer.Reset(logTick)
		select {
		case took := <-p.written:
			p.timer.Stop()
			p.late = took > laterPatience
			return len(line), nil
		case <-p.timer.C:
		}
	}
	p.waiting, p.late = true, true
	return len(line), nil
}
