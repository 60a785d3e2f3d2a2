package netstack

import (
	"sync"
	"time"

	"pinproxy/netstack/link"
)

// asideEvery is how long work that nobody is in a hurry for goes on before it lets others on. A connection takes half a
// dozen steps, and may wait this long at each of them.
const asideEvery = 250 * time.Microsecond

// asides lets everybody else run in the middle of work that is no flow's. A round (see rounds) would do so too seldom.
type asides struct {
	yielder *link.Yielder
	yield   func() // the yielder's, from open to close

	mu   sync.Mutex // held while yielding: nobody is in a hurry
	next time.Time
}

func (a *asides) open() (err error) {
	if a.yielder, err = link.NewYielder(); err != nil {
		return err
	}
	a.yield = a.yielder.Yield
	return nil
}

func (a *asides) close() { _ = a.yielder.Close() }

// GiveWay is Yield for work that is no flow's, such as listing 20,000 of them for an operator. It lets others on more
// often, yet takes half of the time even if they are always busy. It may be called at any time, from any goroutine; it
// does nothing while Serve does not run.
func (s *Stack) GiveWay() {
	select {
	case <-s.ready:
		s.asides.giveWay()
	default:
	}
}

// StepAside is GiveWay for work that waits for nobody and comes in pieces of 100 µs: it lets others on each time.
func (s *Stack) StepAside() {
	select {
	case <-s.ready:
		s.asides.yield()
	default:
	}
}

func (a *asides) giveWay() {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if now.Before(a.next) {
		return
	}
	a.yield()
	back := time.Now()
	a.next = back.Add(max(asideEvery, back.Sub(now)))
}
