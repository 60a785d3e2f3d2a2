package dns

import (
	"errors"
	"log/slog"
	"sync"
	"time"
)

const (
	throttleEvery  = time.Minute
	throttleCauses = 64 // remembered; when exceeded, all are forgotten and may be logged again
)

// throttle logs a new cause at once, and then once a minute while it continues. It is safe for concurrent use.
type throttle struct {
	log *slog.Logger

	mu     sync.Mutex
	causes map[string]*repeated
}

type repeated struct {
	logged time.Time
	since  int // times it was not logged
}

func newThrottle(log *slog.Logger) *throttle {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &throttle{log: log, causes: make(map[string]*repeated)}
}

// warn logs msg and err. Errors with the same innermost cause count as the same, because the outer texts
// contain names and addresses.
func (t *throttle) warn(msg string, err error, args ...any) {
	skipped, ok := t.due(msg + ": " + innermost(err).Error())
	if !ok {
		return
	}
	args = append(args, "err", err)
	if skipped > 0 {
		args = append(args, "repeated", skipped)
	}
	t.log.Warn(msg, args...)
}

func (t *throttle) due(cause string) (skipped int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	r := t.causes[cause]
	if r == nil {
		if len(t.causes) >= throttleCauses {
			clear(t.causes)
		}
		t.causes[cause] = &repeated{logged: now}
		return 0, true
	}
	if now.Sub(r.logged) < throttleEvery {
		r.since++
		return 0, false
	}
	skipped = r.since
	*r = repeated{logged: now}
	return skipped, true
}

// innermost returns the innermost cause; of joined errors, that of the first.
func innermost(err error) error {
	for {
		inner := errors.Unwrap(err)
		if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) > 0 {
			inner = joined.Unwrap()[0]
		}
		if inner == nil {
			return err
		}
		err = inner
	}
}
