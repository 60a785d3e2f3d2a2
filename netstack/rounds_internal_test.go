package netstack

import (
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func openRounds(t testing.TB) *rounds {
	r := new(rounds)
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	return r
}

// While a few goroutines are busy all the time, one that waits for the network runs within a round or two, not only
// after the scheduler's ten milliseconds.
func TestRounds(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	r := openRounds(t)
	in, out, err := os.Pipe() // Go's poller waits for it
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	heard := make(chan struct{}, 1)
	go func() { // ends with the pipe
		for {
			if _, err := in.Read(make([]byte, 1)); err != nil {
				return
			}
			heard <- struct{}{}
		}
	}()
	var over atomic.Bool
	var busy sync.WaitGroup
	defer busy.Wait()
	defer over.Store(true)
	const piece = 100 * time.Microsecond
	work := func() {
		for start := time.Now(); time.Since(start) < piece; {
		}
		r.join()
	}
	for range 4 {
		busy.Go(func() {
			for !over.Load() {
				work()
			}
		})
	}
	const times = 100
	late := 0
	for n := range times {
		if _, err := out.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		pieces := 0
		for end := time.Now().Add(30 * time.Second); len(heard) == 0; pieces++ {
			if time.Now().After(end) {
				t.Fatalf("the reader has not been let on at time %d", n)
			}
			work()
		}
		<-heard
		if wait := time.Duration(pieces) * piece; wait > 5*roundEvery/2 {
			late++
		}
	}
	if late > times/4 {
		t.Errorf("%d times of %d the reader has been let on late", late, times)
	}
	t.Logf("%d times of %d it was late", late, times)
}

// All who arrive while a round is under way wait for its end. After it, no round begins for a while.
func TestRoundIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rounds{round: make(chan struct{})} // the test ends this round; another would need a yielder
		var through atomic.Int32
		for range 10 {
			go func() {
				r.join()
				through.Add(1)
			}()
		}
		synctest.Wait()
		if n := through.Load(); n > 0 {
			t.Errorf("%d of 10 have not waited for the round's end", n)
		}
		under := r.round
		r.mu.Lock()
		r.round, r.ended = nil, time.Now()
		r.mu.Unlock()
		close(under)
		synctest.Wait()
		if n := through.Load(); n != 10 {
			t.Errorf("%d of 10 went on at the round's end", n)
		}
		time.Sleep(roundEvery - 1)
		r.join()
	})
}

func BenchmarkYieldBetween(b *testing.B) { // between rounds
	r := openRounds(b)
	for b.Loop() {
		r.join()
	}
}
