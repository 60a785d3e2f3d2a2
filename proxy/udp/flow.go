package udp

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	dialWait = 5 * time.Second

	// The limit of what waits in a flow while its socket is being opened or takes no more: about as much as a socket
	// of the application holds (net.core.wmem_default).
	maxQueued = 256 << 10
	// The limit of what waits in all flows.
	maxQueuedAll = 16 << 20
	// overhead is what a datagram costs in addition to its payload.
	overhead = 512

	// maxFailures in a row end a flow: a persistent error, such as that of a socket whose device is gone, must not
	// cause a busy loop.
	maxFailures = 8
)

// flow is one socket of the application talking to one destination, together with the connected socket of ours that
// stands for it. It lives as long as its goroutine:
//
//	run: dial -> flush what is queued -> receive until idle or closed
//
// The caller of Handle sends the application's datagrams, unless the socket takes no more. In that case a second
// goroutine flushes the queue and ends.
type flow struct {
	relay *Relay
	key   key

	// The relay's mu guards these.
	place    place
	used     time.Time // last datagram, in either direction
	answered bool

	mu       sync.Mutex // taken before the relay's, if both are
	over     bool
	socket   socket     // nil while dialing
	last     Datagram   // the latest: replies are sent through it
	queue    []Datagram // not yet sent
	size     int        // of the queue, in bytes
	flushing bool       // only run or flush may send, from the queue
}

// newFlow creates the flow of d, which is sent when run is called. relay.mu is held.
func newFlow(r *Relay, k key, d Datagram) *flow {
	f := &flow{relay: r, key: k, used: time.Now(), last: d, flushing: true}
	f.pushLocked(d)
	r.order.add(f)
	return f
}

func (f *flow) touchLocked() {
	f.used = time.Now()
	f.relay.order.used(f)
}

// close ends the flow, which has been removed from the table.
func (f *flow) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closeLocked()
}

func (f *flow) closeLocked() {
	if f.over {
		return
	}
	f.over = true
	for _, d := range f.queue {
		f.relay.queued.Add(-int64(cost(d)))
		d.Release()
	}
	f.queue = nil
	if f.socket != nil {
		_ = f.socket.Close()
	}
}

// end is remove and close.
func (f *flow) end() {
	f.relay.remove(f)
	f.close()
}

// send sends d now if possible, otherwise later.
func (f *flow) send(d Datagram) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		d.Release()
		return
	}
	f.last = d
	if !f.flushing {
		err := f.socket.try(d)
		if err != nil && err != errBusy {
			err = f.failedLocked(d, err)
		}
		if err != errBusy {
			d.Release()
			return
		}
	}
	f.pushLocked(d)
	if !f.flushing {
		f.flushing = true
		f.relay.wg.Go(f.flush)
	}
}

// pushLocked queues d, or drops it if too much is queued already.
func (f *flow) pushLocked(d Datagram) {
	n := cost(d)
	if f.size+n > maxQueued || f.relay.queued.Load()+int64(n) > maxQueuedAll {
		f.relay.dropped.Add(1)
		d.Release()
		return
	}
	f.queue = append(f.queue, d)
	f.size += n
	f.relay.queued.Add(int64(n))
}

// cost returns how many bytes d counts for in a queue.
func cost(d Datagram) int { return len(d.Payload()) + overhead }

// flush sends the queue, waiting for the socket to take it.
func (f *flow) flush() {
	for {
		f.mu.Lock()
		if len(f.queue) == 0 {
			f.queue, f.size, f.flushing = nil, 0, false
			f.mu.Unlock()
			return
		}
		d := f.queue[0]
		f.queue[0], f.queue = nil, f.queue[1:]
		n := cost(d)
		f.size -= n
		f.relay.queued.Add(-int64(n))
		f.mu.Unlock()

		for {
			err := f.socket.send(d)
			if err != nil {
				f.mu.Lock()
				err = f.failedLocked(d, err)
				f.mu.Unlock()
			}
			if err != errBusy {
				break
			}
		}
		d.Release()
	}
}

// failedLocked handles an error returned by a call to send d. The error may be about an earlier datagram: the kernel
// returns an ICMP error from the next call, which then does nothing else. In that case d is sent again, as often as
// another error has come meanwhile. The result errBusy means that d is still to be sent.
func (f *flow) failedLocked(d Datagram, err error) error {
	if f.over {
		return nil
	}
	for range maxFailures {
		told, local := f.socket.errors(f.last)
		if local {
			return nil
		}
		if !told {
			break
		}
		if err = f.socket.try(d); err == nil || err == errBusy {
			return err
		}
	}
	errno := errnoOf(err)
	switch errno {
	case syscall.ENOBUFS, syscall.ENOMEM:
		return nil // lost, as on any full link
	case syscall.ECONNREFUSED:
	default:
		f.relay.log.warn("send datagram", err, "dst", f.key.dst)
		// The route may be gone, and with it the socket's address.
		f.relay.remove(f)
		f.closeLocked()
	}
	d.Unreachable(errno)
	return nil
}

// errnoOf returns the errno that the application is told for err.
func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	switch {
	case !errors.As(err, &errno):
		return syscall.EHOSTUNREACH
	case errno == syscall.EPERM:
		return syscall.EACCES // a firewall on this host
	}
	return errno
}

func (f *flow) run() {
	defer f.end()
	ctx, cancel := context.WithTimeout(f.relay.ctx, dialWait)
	conn, err := f.relay.dial(ctx, f.key.dst)
	cancel()
	if err != nil {
		f.refuse(err)
		return
	}
	s, err := newSocket(conn)
	if err != nil {
		_ = conn.Close()
		f.refuse(err)
		return
	}
	f.mu.Lock()
	if f.over { // ended while dialing
		f.mu.Unlock()
		_ = s.Close()
		return
	}
	f.socket = s
	f.mu.Unlock()
	f.flush()
	f.receive()
}

// refuse tells the application that there is no socket.
func (f *flow) refuse(err error) {
	if f.relay.ctx.Err() != nil {
		return
	}
	f.relay.log.warn("open socket", err, "dst", f.key.dst)
	errno := errnoOf(err)
	if errno == syscall.EMFILE || errno == syscall.ENFILE {
		f.relay.remove(f)  // it makes no room: it has no socket
		f.relay.makeRoom() // for the application's next attempt
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last.Unreachable(errno)
}

// receive delivers incoming datagrams until the flow is idle or has ended.
func (f *flow) receive() {
	failures := 0
	for {
		until, over := f.wait()
		if over || f.socket.SetReadDeadline(until) != nil {
			return
		}
		var err error
		for err == nil {
			if err = f.socket.receive(f.deliver); err == nil {
				failures = 0
			}
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
		case errors.Is(err, net.ErrClosed):
			return
		default:
			f.mu.Lock()
			told, _ := f.socket.errors(f.last)
			f.mu.Unlock()
			// Nothing was queued: a sender came first and passed it on, or the queue was full.
			if failures++; !told && failures > maxFailures {
				return
			}
		}
	}
}

// wait returns until when the flow waits unless it is used again, or that this time has come. The flow is then out of
// the table: what the application sends from now on begins a new one, instead of being lost with this one's socket.
func (f *flow) wait() (until time.Time, over bool) {
	f.relay.mu.Lock()
	defer f.relay.mu.Unlock()
	until = f.used.Add(f.relay.timeouts.Unanswered)
	if f.answered {
		until = f.used.Add(f.relay.timeouts.Answered)
	}
	if time.Now().Before(until) {
		return until, false
	}
	f.relay.removeLocked(f)
	return until, true
}

// deliver hands b to the application as datagrams of size bytes each; the last one may be shorter.
func (f *flow) deliver(b []byte, size int) {
	f.mu.Lock()
	d := f.last
	f.mu.Unlock()
	for {
		n := min(size, len(b))
		if err := d.Reply(b[:n]); err != nil {
			f.relay.log.warn("hand datagram to application", err, "src", f.key.src)
			break
		}
		if b = b[n:]; len(b) == 0 {
			break
		}
	}
	f.relay.mu.Lock()
	defer f.relay.mu.Unlock()
	if f.relay.flows[f.key] != f {
		return
	}
	if !f.answered {
		f.answered = true
		f.relay.order.answer(f)
	}
	f.touchLocked()
}
