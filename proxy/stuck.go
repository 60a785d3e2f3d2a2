package proxy

// A direction whose dst takes nothing waits in its write. It does not read, and would not hear that src was reset before
// dst takes something again, which may be never: a connection that is over would hold its source port for as long.

// A breakable is a Conn that can tell, without being read, that its connection was reset or has timed out.
type breakable interface{ Broken() bool }

// unstick is called when nothing has moved from one look to the next.
func (d *direction) unstick() {
	l := d.flow
	src, ok := d.src.(breakable)
	if !ok || l.writing.Load() == 0 || !src.Broken() {
		return
	}
	if d == &l.up {
		go l.abort("reset by application") // which may wait for bytes under way
	} else {
		l.held.Release(0) // the 4-tuple is free, but what the upstream had sent is still the application's
	}
}
