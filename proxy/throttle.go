package proxy

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"pinproxy/rules"
)

// How much the log takes of one cause. Programs that retry endlessly must not fill it. Each rule, destination and
// kind gets a burst of lines, then one from time to time that says how many it stands for.
const (
	throttleBurst  = 10
	throttleEvery  = 10 * time.Second
	throttleCauses = 1024 // remembered; beyond that all are forgotten and may be logged again
)

// throttle counts log lines by their cause. The zero value is ready for use.
type throttle struct {
	mu     sync.Mutex
	causes map[repeatable]*repeated
}

// repeatable is what two lines that say the same have in common.
type repeatable struct {
	msg  string
	rule *rules.Rule
	dst  netip.AddrPort
	kind Kind
}

type repeated struct {
	burst   int
	logged  time.Time
	skipped int // since then
}

// due reports whether a line may be logged, and how many were left out before it.
func (t *throttle) due(what repeatable) (skipped int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	r := t.causes[what]
	if r == nil {
		if t.causes == nil || len(t.causes) >= throttleCauses {
			t.causes = make(map[repeatable]*repeated)
		}
		r = new(repeated)
		t.causes[what] = r
	}
	switch since := now.Sub(r.logged); {
	case since >= throttleEvery && r.skipped > 0: // it has not stopped
	case since >= throttleEvery:
		r.burst = 1
	case r.burst < throttleBurst:
		r.burst++
	default:
		r.skipped++
		return 0, false
	}
	skipped = r.skipped
	r.logged, r.skipped = now, 0
	return skipped, true
}

// say logs a line that other flows may log as well.
func (l *live) say(level slog.Level, msg string, kind Kind, attrs []slog.Attr) {
	log := l.proxy.cfg.Log
	if !log.Enabled(context.Background(), level) {
		return
	}
	skipped, ok := l.proxy.throttle.due(repeatable{msg, l.decision.Rule, l.flow.Dst(), kind})
	if !ok {
		return
	}
	if skipped > 0 {
		attrs = append(attrs, slog.Int("repeated", skipped))
	}
	log.LogAttrs(context.Background(), level, msg, attrs...)
}
