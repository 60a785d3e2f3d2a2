package udp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a Dialer whose other ends the test holds.
type pipes struct {
	mu   sync.Mutex
	ends map[netip.AddrPort]net.Conn
	err  error
}

func (p *pipes) dial(_ context.Context, dst netip.AddrPort) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return nil, p.err
	}
	ours, theirs := net.Pipe()
	if p.ends == nil {
		p.ends = make(map[netip.AddrPort]net.Conn)
	}
	p.ends[dst] = theirs
	return ours, nil
}

func (p *pipes) end(t *testing.T, dst netip.AddrPort) net.Conn {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.ends[dst]
	if c == nil {
		t.Fatalf("no socket for %s", dst)
	}
	return c
}

func (p *pipes) read(t *testing.T, dst netip.AddrPort) string {
	t.Helper()
	b := make([]byte, 100)
	n, err := p.end(t, dst).Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// inBubble runs f with a relay that uses synctest's clock.
func inBubble(t *testing.T, f func(r *Relay, p *pipes, got *inbox)) {
	synctest.Test(t, func(t *testing.T) {
		p := new(pipes)
		r := New(p.dial, nil, Timeouts{})
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- r.Serve(ctx) }()
		f(r, p, newInbox())
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve = %v", err)
		}
		if s := r.Stats(); s.Flows != 0 {
			t.Errorf("%d flows after Serve", s.Flows)
		}
	})
}

func TestUnansweredFlowEnds(t *testing.T) {
	inBubble(t, func(r *Relay, p *pipes, got *inbox) {
		r.Handle(got.from(app4, dst4, "one"))
		synctest.Wait()
		p.read(t, dst4)
		time.Sleep(29 * time.Second)
		r.Handle(got.from(app4, dst4, "two"))
		synctest.Wait()
		p.read(t, dst4)
		time.Sleep(29 * time.Second)
		synctest.Wait()
		if s := r.Stats(); s.Flows != 1 || s.Total != 1 {
			t.Errorf("29 s after the last datagram: %+v, want the one flow", s)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s := r.Stats(); s.Flows != 0 {
			t.Errorf("31 s after the last datagram: %+v, want no flow", s)
		}
		if _, err := p.end(t, dst4).Read(make([]byte, 1)); err == nil {
			t.Error("the socket is still open")
		}
	})
}

func TestAnsweredFlowStays(t *testing.T) {
	inBubble(t, func(r *Relay, p *pipes, got *inbox) {
		r.Handle(got.from(app4, dst4, "one"))
		synctest.Wait()
		p.read(t, dst4)
		fmt.Fprint(p.end(t, dst4), "answer")
		if s := <-got.replies; s != "answer" {
			t.Errorf("the application got %q", s)
		}
		time.Sleep(179 * time.Second)
		synctest.Wait()
		if s := r.Stats(); s.Flows != 1 {
			t.Errorf("after 179 s: %+v, want the flow", s)
		}
		fmt.Fprint(p.end(t, dst4), "late")
		<-got.replies
		time.Sleep(179 * time.Second)
		synctest.Wait()
		if s := r.Stats(); s.Flows != 1 {
			t.Errorf("179 s after another one: %+v, want the flow", s)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s := r.Stats(); s.Flows != 0 {
			t.Errorf("after 181 s: %+v, want no flow", s)
		}
	})
}

// port returns addr with another port.
func port(addr netip.AddrPort, p uint16) netip.AddrPort { return netip.AddrPortFrom(addr.Addr(), p) }

func TestEvictionUnansweredFirst(t *testing.T) {
	inBubble(t, func(r *Relay, p *pipes, got *inbox) {
		r.most = 3
		has := func(n uint16) bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.flows[key{app4, port(dst4, n)}] != nil
		}
		send := func(n uint16) {
			r.Handle(got.from(app4, port(dst4, n), "x"))
			synctest.Wait()
			p.read(t, port(dst4, n))
			time.Sleep(time.Millisecond)
		}
		send(1)
		fmt.Fprint(p.end(t, port(dst4, 1)), "answer") // the oldest, but answered
		<-got.replies
		synctest.Wait()
		send(2)
		send(3)
		send(2) // used again
		send(4)
		if !has(1) || !has(2) || has(3) || !has(4) {
			t.Error("want the flow evicted that was never answered and is unused for longest")
		}
		for n := range uint16(2) {
			fmt.Fprint(p.end(t, port(dst4, 2+2*n)), "answer")
			<-got.replies
			synctest.Wait()
		}
		send(5) // all are answered
		if has(1) || !has(2) || !has(4) || !has(5) {
			t.Error("want the flow evicted that is unused for longest")
		}
		if s := r.Stats(); s.Evicted != 2 || s.Flows != 3 {
			t.Errorf("%+v, want 3 flows and 2 evicted", s)
		}
	})
}

func TestQueueIsBounded(t *testing.T) {
	inBubble(t, func(r *Relay, p *pipes, got *inbox) {
		var sent []*datagram
		for range 1000 { // nobody reads the pipe
			d := got.from(app4, dst4, strings.Repeat("x", 1000))
			sent = append(sent, d)
			r.Handle(d)
		}
		synctest.Wait()
		// The last one may not have fitted, and the sender may have one more in hand.
		if q := r.queued.Load(); q > maxQueued || q < maxQueued-int64(2*cost(sent[0])) {
			t.Errorf("%d bytes wait, want %d at most and about", q, maxQueued)
		}
		r.mu.Lock()
		f := r.flows[key{app4, dst4}]
		r.mu.Unlock()
		r.remove(f)
		f.close()
		synctest.Wait()
		if q := r.queued.Load(); q != 0 {
			t.Errorf("%d bytes wait in a closed flow", q)
		}
		for i, d := range sent {
			if n := d.released.Load(); n != 1 {
				t.Fatalf("datagram %d was released %d times", i, n)
			}
		}
	})
}

func TestDialErrorIsTold(t *testing.T) {
	for _, test := range []struct{ err, want syscall.Errno }{
		{syscall.ENETUNREACH, syscall.ENETUNREACH},
		{syscall.EPERM, syscall.EACCES},
		{syscall.EACCES, syscall.EACCES},
	} {
		inBubble(t, func(r *Relay, p *pipes, got *inbox) {
			var log lines
			r.log = newThrottle(log.logger())
			p.err = &net.OpError{Op: "dial", Net: "udp", Err: os.NewSyscallError("connect", test.err)}
			for range 3 {
				d := got.from(app4, dst4, "x")
				r.Handle(d)
				synctest.Wait()
				if errno := <-got.unreachable; errno != test.want {
					t.Errorf("dial fails with %v: the application is told %v, want %v", test.err, errno, test.want)
				}
				if d.released.Load() != 1 {
					t.Error("the datagram was not released")
				}
			}
			if n := strings.Count(log.String(), "\n"); n != 1 {
				t.Errorf("%d lines for one cause, want 1:\n%s", n, &log)
			}
			time.Sleep(throttleEvery)
			r.Handle(got.from(app4, dst4, "x"))
			synctest.Wait()
			if n := strings.Count(log.String(), "\n"); n != 2 {
				t.Errorf("%d lines after a minute, want 2:\n%s", n, &log)
			}
		})
	}
}

// Without a descriptor left, one flow has to end so that another can begin.
func TestNoDescriptorMakesRoom(t *testing.T) {
	for _, answered := range []bool{false, true} {
		inBubble(t, func(r *Relay, p *pipes, got *inbox) {
			r.Handle(got.from(app4, dst4, "x"))
			synctest.Wait()
			if answered {
				p.read(t, dst4)
				fmt.Fprint(p.end(t, dst4), "answer")
				<-got.replies
			}
			p.err = syscall.EMFILE
			r.Handle(got.from(app4, dst6, "x"))
			synctest.Wait()
			if s := r.Stats(); s.Flows != 0 || s.Evicted != 1 {
				t.Errorf("%+v, want the old flow evicted, answered: %v", s, answered)
			}
			if len(got.unreachable) != 0 {
				t.Error("the application was told that the destination is unreachable")
			}
		})
	}
}

func TestNotCarried(t *testing.T) {
	inBubble(t, func(r *Relay, _ *pipes, got *inbox) {
		for dst, told := range map[string]bool{
			"224.0.0.251:5353": false, "[ff02::fb]:5353": false, "255.255.255.255:67": false,
			"0.0.0.0:1": false, "127.0.0.1:53": false, "[::1]:53": false, "[fe80::1]:53": true,
		} {
			d := got.from(app4, netip.MustParseAddrPort(dst), "x")
			r.Handle(d)
			if s := r.Stats(); s.Total != 0 || d.released.Load() != 1 || len(got.unreachable) > 0 != told {
				t.Errorf("to %s: %+v, released %d times, told %v", dst, s, d.released.Load(), len(got.unreachable) > 0)
			}
			for len(got.unreachable) > 0 {
				<-got.unreachable
			}
		}
	})
}

func TestHandleAfterServe(t *testing.T) {
	var r *Relay
	got := newInbox()
	inBubble(t, func(relay *Relay, _ *pipes, _ *inbox) { r = relay })
	d := got.from(app4, dst4, "x")
	r.Handle(d)
	if s := r.Stats(); s.Flows != 0 || d.released.Load() != 1 {
		t.Errorf("%+v, released %d times", s, d.released.Load())
	}
}
