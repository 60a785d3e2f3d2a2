package netstack

import (
	"bytes"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Conn is a stream whose two directions close separately. It is an alias of an unnamed type, so that other packages
// can define the same one.
//
// SetLinger(0) makes Close send a reset once the other side has taken what was written, or after one second.
type Conn = interface {
	net.Conn
	CloseWrite() error
	SetLinger(sec int) error
}

// resetDrain is how long a reset waits for written bytes to be acknowledged. Over a plain connection, too, they would
// have left before it.
const resetDrain = time.Second

// conn is the application's end of a flow: a gVisor endpoint as a net.Conn.
//
// One goroutine may read while another writes. Errors are the kernel's errnos in a net.OpError, as with a
// *net.TCPConn.
type conn struct {
	flow *Flow
	ep   tcpip.Endpoint
	wq   *waiter.Queue

	readable, writable   waiter.Entry
	readReady, sendReady chan struct{} // have room for one; signalled on whatever a reader, or a writer, may wait for
	hangUp               waiter.Entry

	watched waiter.Entry // registered while there is a watcher
	watcher interface{ Wake() }

	readDeadline, writeDeadline deadline

	sent uint32 // bytes, modulo 2^32; the writer's

	probed    atomic.Bool
	finished  atomic.Bool // we have ended our direction
	reset     atomic.Bool
	closeOnce sync.Once
	closed    atomic.Bool
}

// newConn returns the conn of an endpoint whose handshake is done.
func newConn(f *Flow, ep tcpip.Endpoint, queue *waiter.Queue) *conn {
	c := &conn{flow: f, ep: ep, wq: queue}
	c.readable, c.readReady = waiter.NewChannelEntry(waiter.ReadableEvents)
	c.writable, c.sendReady = waiter.NewChannelEntry(waiter.WritableEvents)
	c.hangUp = waiter.NewFunctionEntry(waiter.EventHUp|waiter.EventErr, func(waiter.EventMask) { c.settle() })
	if f.remote {
		keepAlive(ep, keepAliveIdle, keepAliveInterval)
	}
	if n := f.stack.sendBuffer.Load(); n > 0 {
		ep.SocketOptions().SetSendBufferSize(n, true) // also stops it from growing by itself
	}
	f.synAck, f.shaking = nil, nil // no longer needed
	c.wq.EventRegister(&c.readable)
	c.wq.EventRegister(&c.writable)
	c.wq.EventRegister(&c.hangUp)
	c.settle() // it may have ended already
	return c
}

// settle forgets the flow once gVisor is done with its endpoint. It must not do so earlier: as long as the endpoint
// is registered, the gate must know of it.
func (c *conn) settle() {
	switch tcp.EndpointState(c.ep.State()) {
	case tcp.StateClose, tcp.StateError:
		c.flow.stack.forget(c.flow)
	}
}

// Broken reports whether the connection was reset or has timed out, also to somebody who does not read.
func (c *conn) Broken() bool {
	switch tcp.EndpointState(c.ep.State()) {
	case tcp.StateError:
		return true
	case tcp.StateClose: // by a reset behind the application's FIN, or in order
		return !c.finished.Load()
	}
	return false
}

// Probe makes gVisor ask the application's kernel every second whether it still knows the connection, which it forgets
// without a word some time after the application has closed it. If it does not, Broken reports true.
func (c *conn) Probe() {
	if c.probed.CompareAndSwap(false, true) && !c.flow.remote { // another host is probed already, with more patience
		keepAlive(c.ep, tcpip.KeepaliveIdleOption(time.Second), tcpip.KeepaliveIntervalOption(time.Second))
	}
}

// WaitRead blocks until Read would not block: there are bytes, the end of the stream, or an error. A caller needs no
// buffer while nothing moves.
func (c *conn) WaitRead() error {
	for {
		switch {
		case c.closed.Load():
			return c.fail("read", net.ErrClosed)
		case c.readDeadline.over.Load():
			return c.fail("read", os.ErrDeadlineExceeded)
		case c.ep.Readiness(waiter.ReadableEvents|waiter.EventHUp|waiter.EventErr) != 0:
			return nil
		}
		<-c.readReady
	}
}

// Watch arranges for w.Wake to be called once WaitRead would return. If it would return now, Wake is called before
// Watch returns. Wake must not block, because gVisor's locks are held; it may be called more than once. Unwatch ends
// this, but Wake may be running at that moment. Only one watcher is allowed at a time, and none after Close.
func (c *conn) Watch(w interface{ Wake() }) bool {
	const events = waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr
	c.watcher = w
	c.watched.Init((*alarm)(c), events)
	c.wq.EventRegister(&c.watched)
	if c.ep.Readiness(events) != 0 || c.closed.Load() {
		w.Wake()
	}
	return true
}

// WatchReset arranges for w.Wake to be called if the application resets a connection that it has ended before, which no
// read reports any more. It takes the place of Watch once the end of the stream has been read, and Unwatch undoes it.
func (c *conn) WatchReset(w interface{ Wake() }) bool {
	c.watcher = w
	c.watched.Init((*resetAlarm)(c), waiter.EventHUp|waiter.EventErr)
	c.wq.EventRegister(&c.watched)
	(*resetAlarm)(c).NotifyEvent(0) // it may have come already
	return true
}

// resetAlarm is a conn watched for a reset, as gVisor's queue knows it.
type resetAlarm conn

// NotifyEvent implements waiter.EventListener. A reset behind the application's FIN closes the endpoint as our FIN
// would (Endpoint.handleReset).
func (a *resetAlarm) NotifyEvent(waiter.EventMask) {
	if tcp.EndpointState(a.ep.State()) == tcp.StateClose && !a.finished.Load() {
		a.watcher.Wake()
	}
}

// Unwatch undoes Watch and WatchReset.
func (c *conn) Unwatch() {
	c.wq.EventUnregister(&c.watched)
	c.watcher = nil
}

// alarm is a watched conn, as gVisor's queue knows it.
type alarm conn

// NotifyEvent implements waiter.EventListener.
func (a *alarm) NotifyEvent(waiter.EventMask) { a.watcher.Wake() }

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		if c.readDeadline.over.Load() {
			return 0, c.fail("read", os.ErrDeadlineExceeded)
		}
		w := tcpip.SliceWriter(b)
		if n, err := c.receive(&w, tcpip.ReadOptions{}); n > 0 || err != nil {
			return n, err
		}
		if err := c.WaitRead(); err != nil {
			return 0, err
		}
	}
}

// receive makes gVisor write to w what can be read now. When nothing can be read, it returns no bytes and no error.
func (c *conn) receive(w io.Writer, how tcpip.ReadOptions) (int, error) {
	res, terr := c.ep.Read(w, how)
	switch terr.(type) {
	case nil:
		if !how.Peek {
			c.flow.urgent.read.Add(uint32(res.Count))
			c.ep.ModerateRecvBuf(res.Count)
		}
		return res.Count, nil
	case *tcpip.ErrWouldBlock:
		return 0, nil
	case *tcpip.ErrClosedForReceive:
		if c.closed.Load() {
			return 0, c.fail("read", net.ErrClosed)
		}
		// gVisor reports a reset only once. If Write got the report, Read sees the end of the stream.
		if tcp.EndpointState(c.ep.State()) == tcp.StateError {
			return 0, c.fail("read", syscall.ECONNRESET)
		}
		return 0, io.EOF
	default:
		if c.closed.Load() {
			return 0, c.fail("read", net.ErrClosed)
		}
		return 0, c.fail("read", errnoOf(terr))
	}
}

// Write implements net.Conn. It returns when netstack has taken all of b.
func (c *conn) Write(b []byte) (int, error) {
	var payload bytes.Reader
	done := 0
	for done < len(b) {
		switch {
		case c.closed.Load():
			return done, c.fail("write", net.ErrClosed)
		case c.writeDeadline.over.Load():
			return done, c.fail("write", os.ErrDeadlineExceeded)
		}
		payload.Reset(b[done:])
		n, terr := c.ep.Write(&payload, tcpip.WriteOptions{})
		done += int(n)
		c.sent += uint32(n)
		switch terr.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			<-c.sendReady // then check again what has happened
		default:
			return done, c.fail("write", errnoOf(terr))
		}
	}
	return done, nil
}

// CloseWrite sends a FIN after what was written. Reading goes on.
func (c *conn) CloseWrite() error {
	c.finished.Store(true)
	if terr := c.ep.Shutdown(tcpip.ShutdownWrite); terr != nil {
		return c.fail("close write", errnoOf(terr))
	}
	return nil
}

// SetLinger chooses how Close ends the connection: with a reset if sec is 0, in order if it is negative, which is the
// default. Other values count as negative.
func (c *conn) SetLinger(sec int) error {
	c.reset.Store(sec == 0)
	return nil
}

// Close ends both directions. gVisor goes on sending what was written.
func (c *conn) Close() error {
	c.closeOnce.Do(func() {
		if c.reset.Load() {
			c.drain()
		}
		c.closed.Store(true) // before the endpoint ends, so that a reader sees that we closed it
		signal(c.readReady)
		signal(c.sendReady)
		if c.reset.Load() {
			c.ep.Abort()
		}
		c.ep.Close()
		c.settle()
	})
	return nil
}

// drain waits until the application has acknowledged what was written. Otherwise the reset would overtake it, because
// netstack throws its send queue away.
func (c *conn) drain() {
	// gVisor does not report how much is unacknowledged. But with a send buffer of one byte, the endpoint is writable
	// only when nothing is. It signals writability at half a buffer, which is never, so polling is the only way.
	c.ep.SocketOptions().SetSendBufferSize(1, true)
	timeout := time.NewTimer(resetDrain)
	defer timeout.Stop()
	for pause := 50 * time.Microsecond; c.unacknowledged(); pause = min(2*pause, 10*time.Millisecond) {
		select {
		case <-time.After(pause):
		case <-timeout.C:
			return
		}
	}
}

// unacknowledged reports whether the application has yet to acknowledge something. It is for drain.
func (c *conn) unacknowledged() bool {
	switch tcp.EndpointState(c.ep.State()) {
	case tcp.StateEstablished, tcp.StateCloseWait:
		return c.ep.Readiness(waiter.WritableEvents)&waiter.WritableEvents == 0
	case tcp.StateFinWait1, tcp.StateClosing, tcp.StateLastAck: // our FIN, behind what was written
		return true
	}
	return false
}

// LocalAddr is the flow's dst, because this end plays the upstream.
func (c *conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.flow.dst) }

// RemoteAddr is the flow's src.
func (c *conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.flow.src) }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	c.readDeadline.set(t, c.readReady)
	c.writeDeadline.set(t, c.sendReady)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.readDeadline.set(t, c.readReady)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.writeDeadline.set(t, c.sendReady)
	return nil
}

func (c *conn) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
