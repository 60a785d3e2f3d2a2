package dns

import (
	"container/list"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

type flowKey struct{ src, dst netip.AddrPort }

func (k flowKey) asker() Asker { return Asker{k.src.Addr(), k.dst} }

// flow is one application socket asking one resolver, together with the connected pinproxy socket that
// represents it. One of the relay's goroutines dials. After that the flow runs on its own goroutine:
//
//	dial -> run: send the queue -> receive until idle or closed
//
// A later query starts its own send unless one is running. So Handle never waits for a full socket buffer, and
// an idle flow holds only one goroutine.
type flow struct {
	relay *Relay
	key   flowKey
	share *share // the share of its first question

	// The relay's mu guards the rest.
	conn    net.Conn      // nil while dialing
	turn    *list.Element // in the relay's ahead or undialed; nil once a goroutine dials
	elem    *list.Element // in share or the relay's idle; nil when the flow has ended
	queue   []Query       // not sent yet
	queued  int           // weight of queue
	sending bool          // a goroutine sends the queue
	last    Query         // the latest query, perhaps released; replies go through it
	open    int           // queries without an answer
	since   time.Time     // of the last query or answer
	asked   asked
}

func (f *flow) askLocked(q Query, now time.Time) {
	r := f.relay
	f.last, f.since = q, now
	f.open++
	f.unplaceLocked()
	f.elem = f.share.add(f)
	f.queue = append(f.queue, q)
	f.queued += weight(q)
	r.queued += weight(q)
	if !f.sending {
		f.sending = true
		r.wg.Go(f.send)
	}
}

// settleLocked counts n queries as answered.
func (f *flow) settleLocked(n int, now time.Time) {
	f.since = now
	if f.elem == nil || f.open == 0 {
		return
	}
	if f.open = max(f.open-n, 0); f.open == 0 {
		f.unplaceLocked()
		f.elem = f.relay.idle.PushBack(f)
	}
}

func (f *flow) unplaceLocked() {
	f.share.remove(f.elem) // no effect if elem is in the other list
	f.relay.idle.Remove(f.elem)
}

// unturnLocked removes f from the flows that wait for a socket.
func (f *flow) unturnLocked() {
	if f.turn != nil {
		f.relay.ahead.Remove(f.turn) // no effect if turn is in the other list
		f.relay.undialed.Remove(f.turn)
		f.turn = nil
	}
}

// endLocked removes the flow from the relay and wakes its goroutines. An answer that is being observed is still
// delivered.
func (f *flow) endLocked() {
	if f.elem == nil {
		return
	}
	r := f.relay
	f.unplaceLocked()
	f.elem = nil
	f.unturnLocked()
	delete(r.flows, f.key)
	r.queued -= f.queued
	for _, q := range f.queue {
		q.Release()
	}
	f.queue, f.queued = nil, 0
	if f.conn != nil {
		f.conn.Close()
	}
}

// end is endLocked for the flow's own goroutine. It returns the unsent queries, which are released.
func (f *flow) end() []Query {
	f.relay.mu.Lock()
	defer f.relay.mu.Unlock()
	queue := f.queue
	f.endLocked()
	return queue
}

// dial reports whether the flow has a socket. If it has none, it has ended.
func (f *flow) dial() bool {
	ctx, cancel := context.WithTimeout(f.relay.ctx, dialWait)
	conn, err := f.relay.dial(ctx, "udp", f.key.dst)
	cancel()
	if err != nil {
		if f.relay.ctx.Err() == nil {
			f.relay.learn.log.warn("dial resolver", err, "dst", f.key.dst)
		}
		for _, q := range f.end() {
			q.Unreachable(syscall.ECONNREFUSED)
		}
		return false
	}
	f.relay.mu.Lock()
	if f.elem == nil { // ended while dialing
		f.relay.mu.Unlock()
		conn.Close()
		return false
	}
	f.conn = conn
	f.relay.mu.Unlock()
	return true
}

func (f *flow) run() {
	defer f.end()
	f.send()
	f.receive(newDatagrams(f.conn))
}

// send writes the queue until it is empty.
func (f *flow) send() {
	for {
		f.relay.mu.Lock()
		if len(f.queue) == 0 {
			f.queue, f.sending = nil, false
			f.relay.mu.Unlock()
			return
		}
		q := f.queue[0]
		f.queue[0], f.queue = nil, f.queue[1:]
		f.queued -= weight(q)
		f.relay.queued -= weight(q)
		f.relay.mu.Unlock()
		_, err := f.conn.Write(q.Payload())
		q.Release()
		if err != nil && !errors.Is(err, net.ErrClosed) {
			// This includes an ICMP error caused by an earlier query: the kernel returns it from the next call,
			// which sends nothing.
			f.refused(q, err)
		}
	}
}

// receive passes on what the resolver sends until the flow has nothing to wait for.
func (f *flow) receive(d *datagrams) {
	failed := 0
	for {
		wait, over := f.wait()
		if over || d.conn.SetReadDeadline(wait) != nil {
			return
		}
		err := d.next(f.answer)
		switch {
		case err == nil:
			failed = 0
		case errors.Is(err, os.ErrDeadlineExceeded):
			// wait tells whether a query has come in the meantime.
		case errors.Is(err, net.ErrClosed):
			return
		default:
			f.relay.mu.Lock()
			q := f.last
			f.relay.mu.Unlock()
			f.refused(q, err)
			// A permanent error, such as that of a socket whose device is gone, must not keep this loop
			// spinning.
			if failed++; failed > 8 {
				return
			}
		}
	}
}

// wait returns when the flow ends if nothing happens. over means that it has just ended.
func (f *flow) wait() (until time.Time, over bool) {
	f.relay.mu.Lock()
	defer f.relay.mu.Unlock()
	until = f.since.Add(idleTime)
	if f.open > 0 {
		until = f.since.Add(answerWait)
	}
	if now := time.Now(); !now.Before(until) {
		if f.sending { // the socket accepts nothing at the moment
			return now.Add(idleTime), f.elem == nil
		}
		f.endLocked()
	}
	return until, f.elem == nil
}

// answer passes msg on after the observer has learned what it needs from it.
func (f *flow) answer(msg []byte) {
	r := f.relay
	r.mu.Lock()
	q, waiting := f.last, f.asked.n > 0
	r.mu.Unlock()
	out := msg
	if waiting {
		if p, id, question, ok := parseQuestion(msg, true); ok {
			r.mu.Lock()
			hit := f.asked.take(id, question)
			r.mu.Unlock()
			if hit {
				out = r.learn.release(f.key.asker(), p, question, msg)
			}
		}
	}
	r.answers.Add(1)
	if err := q.Reply(out); err != nil {
		r.learn.log.warn("reply to DNS query", err, "src", f.key.src, "dst", f.key.dst)
	}
	r.mu.Lock()
	f.settleLocked(1, time.Now())
	r.mu.Unlock()
}

// refused tells the application that q can't be answered. An ICMP error names no query, so all open queries
// count as answered.
func (f *flow) refused(q Query, err error) {
	if !errors.Is(err, syscall.ECONNREFUSED) {
		f.relay.learn.log.warn("ask resolver", err, "dst", f.key.dst)
	}
	f.relay.mu.Lock()
	f.settleLocked(f.open, time.Now())
	f.relay.mu.Unlock()
	q.Unreachable(syscall.ECONNREFUSED)
}
