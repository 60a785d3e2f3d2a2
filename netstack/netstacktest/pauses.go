package netstacktest

import (
	"sync/atomic"
	"testing"
	"time"
)

// Pauses measures how long the machine has kept a runnable program waiting. No time limit can know this in advance:
// a virtual machine occasionally stands still, and others use its processors. When several goroutines or processes
// work in turns, each step may meet such a pause, so a time limit adds several pauses to what is enough without any.
type Pauses struct{ last, longest atomic.Int64 } // Unix nanoseconds, and nanoseconds

const beat = 5 * time.Millisecond

// WatchPauses watches for pauses until the test ends.
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

// Longest returns the longest pause since the last call, including one that has just ended.
func (p *Pauses) Longest() time.Duration {
	now := time.Now().UnixNano() - p.last.Load() - int64(beat)
	return time.Duration(max(p.longest.Swap(0), now, 0))
}
