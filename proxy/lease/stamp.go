package lease

import (
	"math"
	"time"
)

// A stamp is a moment on the monotonic clock, in nanoseconds since the table was created. It is a third of the size
// of a time.Time and can be used directly as a heap key.
type stamp int64

// never is later than any moment.
const never stamp = math.MaxInt64

// add returns s+d, at most never. d is not negative.
func (s stamp) add(d time.Duration) stamp {
	if int64(d) > int64(never-s) {
		return never
	}
	return s + stamp(d)
}

// stamp converts a time to a stamp.
func (t *Table) stamp(at time.Time) stamp { return stamp(at.Sub(t.epoch)) }

// time is stamp's inverse.
func (t *Table) time(s stamp) time.Time { return t.epoch.Add(time.Duration(s)) }
