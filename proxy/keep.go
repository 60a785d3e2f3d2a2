package proxy

// A keeper is an upstream connection that can be told to keep alive: see the variable keepAlive. From then on it
// probes whether its other end is still there, and keeps the state of firewalls in between fresh. A short connection
// ends before there is anything to probe, and telling the kernel takes four calls.
type keeper interface{ keepAlive() }

// keepLocked tells the upstream connection to keep alive. That is due when nothing has moved for half a second, or at
// once if nobody checks that. l.mu is held.
func (l *live) keepLocked() {
	if l.keeper != nil {
		l.keeper.keepAlive()
		l.keeper = nil
	}
}
