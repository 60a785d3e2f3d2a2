package proxy

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

// A conn that can report when a read would not block, or that takes a buffer only then, costs no buffer while it is
// idle. Other conns hold one.
type (
	readWaiter  interface{ WaitRead() error }
	chunkReader interface {
		readChunk(size int) (*chunk, int, error)
	}
)

// A lender calls take with the bytes that can be read now, removes from its stream those that take says were used, and
// returns how many. No bytes and no error mean that there is nothing yet. take must not block. An urgent byte comes
// alone. A borrower waits until it can write, writes what a lender has, and returns how many bytes it has written, and
// the errors of reading and writing. Together they need no buffer.
type (
	lender interface {
		readWaiter
		Lend(take func(pieces [][]byte, urgent bool) int) (int, error)
	}
	borrower interface {
		borrow(from lender) (n int, readErr, writeErr error)
	}
)

// An urgentWriter can write bytes of which the last is urgent data (MSG_OOB).
type urgentWriter interface {
	WriteUrgent(b []byte) (int, error)
}

// direction is one way through a spliced flow. It has a goroutine while bytes move,
// and none while it is asleep: see sleep.go.
type direction struct {
	flow     *live
	src, dst Conn
	bytes    atomic.Uint64
	// What ended it: reading or writing; neither at the end of the stream.
	readErr, writeErr error
	unheard           bool // after we ended the flow, src has sent more or has not ended

	sleep
}

// splice starts carrying bytes both ways, until both directions have ended. It may return before that.
func (l *live) splice() {
	l.flow.Go(l.up.carry)
	runtime.Gosched() // the application goes first: until it has sent something, the upstream mostly sends nothing
	l.down.carry()
}

// carry is the goroutine of one direction. The end of src's stream becomes a FIN to dst. An error of src becomes a
// reset of dst, which also ends the other direction. An error of dst is left to that other direction: it reads from
// dst, and sees the rest of its bytes and then the same end.
func (d *direction) carry() {
	if d.pump() {
		return // asleep
	}
	d.flow.turn()
	switch {
	case d.writeErr != nil:
	case errors.Is(d.readErr, os.ErrDeadlineExceeded): // we end the flow
		_ = d.dst.CloseWrite()
		d.unheard = !d.discard()
	case d.readErr != nil:
		closeByReset(d.dst)
	default:
		_ = d.dst.CloseWrite()
	}
	if d == &d.flow.up {
		d.flow.heard.Store(true)
	}
	if d.flow.over(d) {
		d.flow.finish()
	}
}

// finish closes both ends when both directions have ended, and ends the flow.
func (l *live) finish() {
	// An end that broke or got stuck while being written to has not received its whole stream. The other end may have
	// ended by FIN long ago, and has yet to be told. An end that was not read to its end is told by a reset, as the
	// kernel does. Otherwise it would also keep the 4-tuple for a minute, in FIN_WAIT2.
	l.up.unguard()
	l.down.unguard()
	closeEnd(l.app, l.down.writeErr != nil, l.up.writeErr != nil || l.up.unheard)
	closeEnd(l.net, l.up.writeErr != nil, l.down.writeErr != nil || l.down.unheard)
	l.held.Release(0)
	l.log(l.ending())
	l.release()
	l.proxy.rest.end(l)
	l.proxy.remove(l)
	l.flow.Done()
}

// yieldBytes is how many bytes must have moved at a time for others to be let run. A flow that moves fewer waits for
// more anyway.
const yieldBytes = 32 << 10

// pump moves bytes until src ends, either side fails, or the direction has fallen asleep.
func (d *direction) pump() (asleep bool) {
	for {
		n, err := d.move()
		if n >= yieldBytes {
			d.flow.proxy.cfg.Yield()
		}
		switch {
		case d.writeErr != nil:
			return false
		case err == nil:
		case errors.Is(err, io.EOF):
			return false
		case errors.Is(err, os.ErrDeadlineExceeded) && !d.flow.inOrder(): // asked to sleep
			if d.fallAsleep() {
				return true
			}
		default:
			d.readErr = err
			return false
		}
	}
}

// move waits for bytes and passes them to dst. It returns how many have moved, and src's error.
func (d *direction) move() (int, error) {
	if src, ok := d.src.(lender); ok {
		if dst, ok := d.dst.(borrower); ok {
			return d.lend(src, dst)
		}
	}
	return d.copy()
}

// lend makes dst write src's bytes from where they lie. What dst does not accept stays there.
func (d *direction) lend(src lender, dst borrower) (n int, err error) {
	if err := src.WaitRead(); err != nil {
		return 0, err
	}
	d.flow.writing.Add(1)
	n, err, d.writeErr = dst.borrow(src)
	d.wrote(n)
	return n, err
}

// copy reads a chunk and writes it.
func (d *direction) copy() (int, error) {
	buf, n, err := d.next()
	if buf == nil {
		return 0, err
	}
	defer buf.free()
	if n > 0 {
		d.flow.writing.Add(1)
		if dst, ok := d.dst.(urgentWriter); ok && buf.urgent {
			_, d.writeErr = dst.WriteUrgent(buf.b[:n])
		} else {
			_, d.writeErr = d.dst.Write(buf.b[:n])
		}
		d.wrote(n)
	}
	return n, err
}

// wrote records the end of a write.
func (d *direction) wrote(n int) {
	if n > 0 {
		d.bytes.Add(uint64(n))
		d.flow.moved()
	}
	d.flow.writing.Add(-1)
}

// next reads a chunk, which the caller must free; nil if none was taken.
func (d *direction) next() (*chunk, int, error) {
	size := chunkFor(d.flow.proxy.rest.current())
	switch src := d.src.(type) {
	case chunkReader:
		return src.readChunk(size)
	case readWaiter:
		if err := src.WaitRead(); err != nil {
			return nil, 0, err
		}
	}
	buf := newChunk(size)
	n, err := d.src.Read(buf.b)
	return buf, n, err
}

// discard waits for src to end its stream after we have ended the flow, for endLinger at most. What still arrives has
// nowhere to go. discard reports whether nothing was lost.
func (d *direction) discard() bool {
	_ = d.src.SetReadDeadline(time.Now().Add(endLinger))
	n, err := io.Copy(io.Discard, struct{ io.Reader }{d.src})
	return n == 0 && err == nil
}

const resetByApplication = "reset by application"

// ending says how the flow ended, in the log's words.
func (l *live) ending() string {
	up, down := &l.up, &l.down
	if reason := l.ended(); reason != "" {
		return reason
	}
	switch {
	case broken(up.readErr):
		return resetByApplication + timedOut(up.readErr)
	case broken(down.readErr):
		return "reset by upstream" + timedOut(down.readErr)
	case up.writeErr != nil:
		return "reset by upstream" + timedOut(up.writeErr)
	case down.writeErr != nil:
		return resetByApplication + timedOut(down.writeErr)
	}
	return "closed"
}

// broken ignores reads that ended because we closed or reset the conn ourselves.
func broken(err error) bool {
	return err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ECONNABORTED)
}

func timedOut(err error) string {
	if errors.Is(err, syscall.ETIMEDOUT) {
		return ": timed out"
	}
	return ""
}

// closeEnd closes c: by a reset at once if its stream is short, or by a reset after the bytes that were written to
// it.
func closeEnd(c Conn, short, reset bool) {
	switch {
	case short:
		_ = c.SetLinger(0)
	case reset:
		closeByReset(c)
	}
	_ = c.Close()
}

// closeByReset ends c by a reset, after the bytes that were written to it.
func closeByReset(c Conn) {
	flush(c)
	_ = c.SetLinger(0)
	_ = c.Close()
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	}
	return netip.AddrPort{}
}
