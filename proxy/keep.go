package proxy

// A keeper is an upstream connection that probes whether its other end is still there, and keeps the memory of firewalls
// in between fresh, from the time when it is told to keep alive: see keepAlive. A short connection has ended before there is
// anything to probe, and telling the kernel takes four calls.
type keeper interface{ keepAlive() }

// keepLocked has the upstream connection kept alive from now on. That is due when nothing has moved for half a second, or
// where nobody looks whether it has. l.mu is held.
func (l *live) keepLocked() {
	if l.keeper != nil {
		l.keeper.keepAlive()
		l.keeper = nil
	}
}
