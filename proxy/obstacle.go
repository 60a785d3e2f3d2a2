package proxy

import (
	"net/netip"
	"time"
)

// Obstacle is what the kernel has on a source port that it would not give us.
type Obstacle struct {
	Cause string        // in words; empty: there is nothing any more, or it can't be told
	Hint  string        // what would help; may be empty
	Left  time.Duration // until it goes by itself; 0: not known
}

// obstructed is a Dialer that knows why a port was refused. Sockets is one.
//
// Obstacle may take milliseconds. It may free the port where only a connection that
// is over holds it.
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
