package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

// newLog returns the log, which goes where errors go. The journal adds the time itself, so its lines have none. They
// begin with their priority (sd-daemon(3)), by which `journalctl -p warning` selects.
func newLog(w io.Writer, o options) *slog.Logger {
	return newLogFor(w, o, toJournal(w, os.Getenv("JOURNAL_STREAM")))
}

func newLogFor(w io.Writer, o options, journal bool) *slog.Logger {
	handler := func(w io.Writer) slog.Handler { return newLogHandler(w, o, journal) }
	return slog.New(handler(withPatience(w, handler)))
}

func newLogHandler(w io.Writer, o options, journal bool) slog.Handler {
	ho := &slog.HandlerOptions{Level: o.logLevel}
	if o.logJSON {
		ho.ReplaceAttr = durationInSeconds // not for text: this is called for each attribute of each line
	}
	var lines *prefixed
	if journal {
		lines = &prefixed{w: w}
		w = lines
	}
	var h slog.Handler = slog.NewTextHandler(w, ho)
	if o.logJSON {
		h = slog.NewJSONHandler(w, ho)
	}
	if journal {
		h = &journalHandler{h, lines}
	}
	return h
}

// durationInSeconds writes durations as in all our other JSON, not in nanoseconds.
func durationInSeconds(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		return slog.Float64(a.Key, float64(a.Value.Duration().Microseconds())/1e6)
	}
	return a
}

// prefixed puts a record's priority before its line.
type prefixed struct {
	w io.Writer

	mu     sync.Mutex // held while a record is handled
	prefix string
}

// Write is called once for each record.
func (p *prefixed) Write(line []byte) (int, error) {
	if _, err := p.w.Write(append([]byte(p.prefix), line...)); err != nil {
		return 0, err
	}
	return len(line), nil
}

type journalHandler struct {
	slog.Handler
	lines *prefixed
}

func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	h.lines.mu.Lock()
	defer h.lines.mu.Unlock()
	h.lines.prefix = priority(r.Level)
	r.Time = time.Time{} // handlers leave out the zero time
	return h.Handler.Handle(ctx, r)
}

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &journalHandler{h.Handler.WithAttrs(attrs), h.lines}
}

func (h *journalHandler) WithGroup(name string) slog.Handler {
	return &journalHandler{h.Handler.WithGroup(name), h.lines}
}

// priority returns the level's number in syslog.
func priority(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "<3>"
	case l >= slog.LevelWarn:
		return "<4>"
	case l >= slog.LevelInfo:
		return "<6>"
	}
	return "<7>"
}
