package proxy

import (
	"net/netip"
	"sync"
	"time"
)

// Obstacle is what holds a source port that the kernel did not give us.
type Obstacle struct {
	Cause string        // in words; empty if there is nothing any more, or it can't be told
	Hint  string        // what would help; may be empty
	Left  time.Duration // until it goes away by itself; 0 if unknown
}

// obstructed is a Dialer that knows why a port was refused. Sockets is one.
//
// Obstacle may take milliseconds. It may free the port if only a connection that is over holds it.
type obstructed interface {
	Obstacle(pin, dst netip.AddrPort) Obstacle
}

// obstacle asks the dialer.
func (l *live) obstacle(pin, dst netip.AddrPort) Obstacle {
	if d, ok := l.proxy.cfg.Dialer.(obstructed); ok {
		return d.Obstacle(pin, dst)
	}
	return Obstacle{}
}

// lookShare is how many times as long as a look took there is none after it, up to lookPause. A look goes through all
// TCP sockets, and hundreds of flows may each want one at each try. lookPause is so short that a flow with a single port
// has a look at each try: if only a connection that is over holds the port, a look is what frees it.
const (
	lookShare = 10
	lookPause = lastRest / 2
)

// looks spaces the looks of all flows. The zero value is ready for use.
type looks struct {
	mu   sync.Mutex // held while looking
	next time.Time  // not before this
}

// obstacleNow asks the dialer, unless somebody else does at this moment or it is too early for another look.
func (l *live) obstacleNow(pin, dst netip.AddrPort) (Obstacle, bool) {
	s := &l.proxy.looks
	if !s.mu.TryLock() {
		return Obstacle{}, false
	}
	defer s.mu.Unlock()
	begun := time.Now()
	if begun.Before(s.next) {
		return Obstacle{}, false
	}
	o := l.obstacle(pin, dst)
	end := time.Now()
	s.next = end.Add(min(lookShare*end.Sub(begun), lookPause))
	return o, true
}
