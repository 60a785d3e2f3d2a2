package udp

import (
	"errors"
	"log/slog"
	"sync"
	"syscall"
	"time"
)

const throttleEvery = time.Minute

// throttle logs a failure at once, and the same failure again no sooner than a minute later. Two failures are the
// same if they have the same errno.
type throttle struct {
	log *slog.Logger

	mu   sync.Mutex
	last map[syscall.Errno]time.Time
}

func newThrottle(log *slog.Logger) *throttle {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &throttle{log: log, last: make(map[syscall.Errno]time.Time)}
}

func (t *throttle) warn(msg string, err error, args ...any) {
	var errno syscall.Errno
	errors.As(err, &errno)
	t.mu.Lock()
	now := time.Now()
	last, seen := t.last[errno]
	due := !seen || now.Sub(last) >= throttleEvery
	if due {
		t.last[errno] = now
	}
	t.mu.Unlock()
	if due {
		t.log.Warn(msg, append(args, "err", err)...)
	}
}
