//go:build unix

package proxy

import (
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
)

// upstream is a kernel socket that is read without holding a buffer while nothing arrives.
type upstream struct {
	kernelConn
	raw      syscall.RawConn
	finished atomic.Bool // we have ended our direction

	watch   *watch
	watched uint64 // its name there
}

func newUpstream(c kernelConn) (Conn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return &upstream{kernelConn: c, raw: raw}, nil
}

func (u *upstream) watchBy(w *watch) { u.watch = w }

// Watch implements sleeper.
func (u *upstream) Watch(w waker) bool {
	if u.watch == nil {
		return false
	}
	var ok bool
	u.watched, ok = u.watch.add(u.raw, readable, w)
	return ok
}

// WatchReset implements sleeper.
func (u *upstream) WatchReset(w waker) bool {
	if u.watch == nil {
		return false
	}
	var ok bool
	u.watched, ok = u.watch.add(u.raw, hungUp, &resetAlarm{u, w})
	return ok
}

// resetAlarm is woken when the socket has failed or both streams have ended, and wakes w if that was a reset.
type resetAlarm struct {
	upstream *upstream
	w        waker
}

// Wake implements waker.
func (a *resetAlarm) Wake() {
	go func() { // Wake must not block
		if a.upstream.reset(a.upstream.Broken) {
			a.w.Wake()
		}
	}()
}

// Unwatch implements sleeper.
func (u *upstream) Unwatch() { u.watch.remove(u.raw, u.watched) }

// CloseWrite ends our direction.
func (u *upstream) CloseWrite() error {
	u.finished.Store(true)
	return u.kernelConn.CloseWrite()
}

// Broken implements breakable. After our own FIN, it also reports true of a connection that has ended in order: the
// two look the same.
func (u *upstream) Broken() (broken bool) {
	_ = u.raw.Control(func(fd uintptr) { broken = gone(fd) })
	return broken
}

// reset reports whether a connection that is gone was reset: only FINs both ways end one otherwise, and we have not
// sent ours. That is asked after gone. Our FIN may leave at any moment, and a connection that has ended by it must not
// pass for one that ended before it. It is asked before gone, too, because most applications end first, and gone costs
// a system call.
func (u *upstream) reset(gone func() bool) bool {
	return !u.finished.Load() && gone() && !u.finished.Load()
}

func (u *upstream) fail(call string, err error) error {
	return &net.OpError{Op: call, Net: "tcp", Source: u.LocalAddr(), Addr: u.RemoteAddr(), Err: os.NewSyscallError(call, err)}
}

// readChunk takes a buffer for each attempt and gives it back while it waits.
func (u *upstream) readChunk(size int) (*chunk, int, error) {
	var (
		buf *chunk
		n   int
		err error
	)
	werr := u.raw.Read(func(fd uintptr) bool {
		// Reading stops before an urgent byte, unless it is the first: so that one is read alone.
		there, urgent := nextNow(fd)
		if !there {
			return false
		}
		buf = newChunk(size)
		room := buf.b
		if buf.urgent = urgent; urgent {
			room = room[:1]
		}
		for {
			n, err = readNow(fd, room)
			if err != syscall.EINTR {
				break
			}
		}
		if err == syscall.EAGAIN {
			buf.free()
			buf = nil
			return false
		}
		// The kernel reports a reset once. If a writer has been told of it, a reader sees the end of the stream.
		if n == 0 && err == nil && u.reset(func() bool { return gone(fd) }) {
			err = syscall.ECONNRESET
		}
		return true
	})
	switch {
	case werr != nil: // closed, or past the deadline
		return buf, 0, werr
	case err != nil:
		return buf, 0, u.fail("read", err)
	case n == 0:
		return buf, 0, io.EOF
	}
	return buf, n, nil
}
