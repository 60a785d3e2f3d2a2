package netstack

import (
	"sync"
	"time"

	"pinproxy/netstack/link"
)

// As long as any goroutine can run, Go does not ask the network for news, except every 10 ms (sysmon), and a few flows that
// move as much as they can always can run. Whoever else waits for a packet then waits that long at each step of its way, four times
// a round trip. So those who move many bytes call Stack.Yield again and again. In a round all of them wait, so that nobody can
// run, Go asks the network, and those who have news have their turn before them (link.Yielder).

// roundEvery is the time between two rounds. They cost a few microseconds, and that packets come in smaller bunches.
const roundEvery = 3 * time.Millisecond

// rounds has those who are busy wait for the network together.
type rounds struct {
	yielder *link.Yielder // from open to close

	mu    sync.Mutex
	ended time.Time     // the last one
	round chan struct{} // closed at the end of the one that is under way; nil: none is
}

func (r *rounds) open() (err error) {
	r.yielder, err = link.NewYielder()
	return err
}

func (r *rounds) close() { _ = r.yielder.Close() }

// Yield lets on those whom the network has news for, if that is due. Whoever can go on for long without waiting is to call it
// again and again, between two pieces of work of some 100 µs. It may be called from any goroutine, while Serve runs.
func (s *Stack) Yield() { s.rounds.join() }

// join waits for the round that is under way, or is one if the last one was long ago.
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
