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

// time is stamp's inverse. It goes by the wall clock of now, and not of the epoch: the host may have been suspended since,
// or its clock set.
func (t *Table) time(s stamp) time.Time {
	now := time.Now()
	return now.Add(time.Duration(s - t.stamp(now)))
}
