package netstack

import (
	"sync"
	"time"

	"pinproxy/netstack/link"
)

// As long as any goroutine can run, Go asks the network for news only every 10 ms (sysmon), and a few flows that move
// as much as they can are always able to run. Everybody else then waits that long for a packet at each step, four
// times a round trip. So goroutines that move many bytes call Stack.Yield again and again. In a round all of them
// wait. Nobody can run then, Go asks the network, and those who have news get their turn first (link.Yielder).

// roundEvery is the time between two rounds. A round costs a few microseconds, and makes packets come in smaller
// bunches.
const roundEvery = 3 * time.Millisecond

// rounds makes the busy goroutines wait for the network together.
type rounds struct {
	yielder *link.Yielder // from open to close

	mu    sync.Mutex
	ended time.Time     // when the last one ended
	round chan struct{} // closed at the end of the round under way; nil if there is none
}

func (r *rounds) open() (err error) {
	r.yielder, err = link.NewYielder()
	return err
}

func (r *rounds) close() { _ = r.yielder.Close() }

// Yield lets the goroutines run that the network has news for, if a round is due. Code that can go on for long
// without waiting calls it again and again, between pieces of work of some 100 µs. It may be called from any
// goroutine while Serve runs.
func (s *Stack) Yield() { s.rounds.join() }

// join waits for the round under way. If there is none and the last one was long enough ago, it is a round itself.
func (r *rounds) join() {
	r.mu.Lock()
	round := r.round
	switch {
	case round != nil:
		r.mu.Unlock()
		<-round
		return
	case time.Since(r.ended) < roundEvery:
		r.mu.Unlock()
		return
	}
	round = make(chan struct{})
	r.round = round
	r.mu.Unlock()

	r.yielder.Yield()

	r.mu.Lock()
	r.round, r.ended = nil, time.Now()
	r.mu.Unlock()
	close(round)
}
