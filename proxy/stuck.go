package proxy

// A direction whose dst takes nothing waits in its write. It does not read, and would not notice a reset of src until
// dst takes something again, which may be never. All that time a connection that is over would hold its source port.

// A breakable is a Conn that can report, without being read, that its connection was reset or has timed out.
type breakable interface{ Broken() bool }

// unstick is called when nothing has moved from one look to the next.
func (d *direction) unstick() {
	l := d.flow
	src, ok := d.src.(breakable)
	if !ok || l.writing.Load() == 0 || !src.Broken() {
		return
	}
	if d == &l.up {
		go l.abort(resetByApplication) // abort may wait for bytes under way
	} else {
		l.held.Release(0) // the 4-tuple is free, but what the upstream sent still belongs to the application
	}
}
