package proxy

import (
	"net/netip"
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
