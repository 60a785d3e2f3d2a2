package lease

import (
	"math"
	"time"
)

// A stamp is a moment, in nanoseconds since the table began, on the monotonic
// clock: a third of a time.Time, and a heap key as it is.
type stamp int64

// never is later than any moment.
const never stamp = math.MaxInt64

// add returns s+d, never at the most. d is not negative.
func (s stamp) add(d time.Duration) stamp {
	if int64(d) > int64(never-s) {
		return never
	}
	return s + stamp(d)
}

// stamp returns when at was or will be.
func (t *Table) stamp(at time.Time) stamp { return stamp(at.Sub(t.epoch)) }

// time is stamp's inverse.
func (t *Table) time(s stamp) time.Time { return t.epoch.Add(time.Duration(s)) }
