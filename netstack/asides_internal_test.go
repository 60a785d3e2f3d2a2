package netstack

import (
	"testing"
	"testing/synctest"
	"time"
)

// Work that is nobody's lets others on every quarter of a millisecond. When they take long, it goes on for as long.
func TestAsides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var others time.Duration // how long they take
		yields := 0
		a := &asides{yield: func() { yields++; time.Sleep(others) }}
		work := func(d time.Duration) (n int) { // in pieces of ten microseconds
			yields = 0
			for end := d / (10 * time.Microsecond); end > 0; end-- {
				time.Sleep(10 * time.Microsecond)
				a.giveWay()
			}
			return yields
		}
		if n := work(10 * time.Millisecond); n < 39 || n > 41 {
			t.Errorf("others were let on %d times in 10ms, want 40 times", n)
		}
		others = 20 * time.Millisecond
		if n := work(100 * time.Millisecond); n < 4 || n > 6 {
			t.Errorf("others, who take 20ms, were let on %d times in 100ms of work, want 5 times", n)
		}
	})
}

// The page may be asked before the stack serves.
func TestGiveWayEarly(t *testing.T) {
	s := &Stack{ready: make(chan struct{})}
	s.GiveWay()
}
