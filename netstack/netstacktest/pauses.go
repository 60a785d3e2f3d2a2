package netstacktest

import (
	"sync/atomic"
	"testing"
	"time"
)

// Pauses tells how long the machine has let a program wait that only wanted to go on, which nobody who puts a bound on time
// can know beforehand: a virtual machine stands still now and then, and others use its processors. What several goroutines or
// processes do in turns may meet one each time, so bounds add some of them, to what is enough where there are none.
type Pauses struct{ last, longest atomic.Int64 } // Unix nanoseconds, and nanoseconds

const beat = 5 * time.Millisecond

// WatchPauses watches until the test ends.
func WatchPauses(t testing.TB) *Pauses {
	p := new(Pauses)
	p.beat()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(beat):
				p.beat()
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
	})
	return p
}

func (p *Pauses) beat() {
	now := time.Now().UnixNano()
	if last := p.last.Swap(now); last != 0 {
		p.longest.Store(max(p.longest.Load(), now-last-int64(beat)))
	}
}

// Longest is the longest pause since the last call, the one included that is just over.
func (p *Pauses) Longest() time.Duration {
	now := time.Now().UnixNano() - p.last.Load() - int64(beat)
	return time.Duration(max(p.longest.Swap(0), now, 0))
}
