package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// datagram is a Query that records what happened to it.
type datagram struct {
	src, dst    netip.AddrPort
	payload     []byte
	replies     chan []byte
	unreachable chan bool
	released    *atomic.Int64 // how often; the same for all of the socket
}

var nextPort atomic.Uint32

func newQuery(dst netip.AddrPort, payload []byte) *datagram {
	port := uint16(10000 + nextPort.Add(1)%50000)
	return &datagram{
		src: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port), dst: dst, payload: payload,
		replies: make(chan []byte, 16), unreachable: make(chan bool, 16), released: new(atomic.Int64),
	}
}

// again returns another datagram from the same application socket.
func (d *datagram) again(payload []byte) *datagram {
	next := *d
	next.payload = payload
	return &next
}

func (d *datagram) Src() netip.AddrPort       { return d.src }
func (d *datagram) Dst() netip.AddrPort       { return d.dst }
func (d *datagram) Payload() []byte           { return d.payload }
func (d *datagram) Release()                  { d.released.Add(1) }
func (d *datagram) Unreachable(syscall.Errno) { d.unreachable <- true }
func (d *datagram) Reply(b []byte) error {
	d.replies <- bytes.Clone(b)
	return nil
}

// serve runs r until the returned function is called, or the test ends.
func serve(t testing.TB, r *Relay) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func (r *Relay) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.busy.len() + r.idle.Len(); n != len(r.flows) {
		panic(fmt.Sprintf("%d flows in lists, %d in the map", n, len(r.flows)))
	}
	return len(r.flows)
}

func TestRelayUnchanged(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		t.Run(ip, func(t *testing.T) {
			leaks(t)
			asked := make(chan []byte, 1)
			big := make([]byte, 65000)
			binary.BigEndian.PutUint64(big, 0x0123456789abcdef)
			q := query(7, "bank.example.", dnsmessage.TypeA)
			truncated := answerTo(q, rec("bank.example.", 60, "203.0.113.1"))
			truncated[2] |= 0x02
			two := bytes.Clone(q)
			two[5] = 2
			reply := make(chan []byte, 1)
			dst := udpServer(t, ip, func(q []byte) [][]byte {
				asked <- q
				return [][]byte{<-reply}
			})
			r := NewRelay(directly, &observer{}, nil)
			serve(t, r)
			for name, x := range map[string][2][]byte{
				"DNS":           {q, answerTo(q, rec("bAnk.example.", 60, "203.0.113.1"))},
				"truncated":     {q, truncated},
				"big":           {q, big},
				"two questions": {two, big[:30]},
				"not DNS":       {[]byte("hello"), []byte("world")},
				"empty":         {{}, {}},
			} {
				reply <- x[1]
				d := newQuery(dst, x[0])
				r.Handle(d)
				if got := receive(t, asked); !bytes.Equal(got, x[0]) {
					t.Errorf("%s: the resolver saw %x, want %x", name, got, x[0])
				}
				if got := receive(t, d.replies); !bytes.Equal(got, x[1]) {
					t.Errorf("%s: the application saw %d bytes %.40x, want %d bytes %.40x", name, len(got), got, len(x[1]), x[1])
				}
			}
		})
	}
}

// The promise: no answer before Observe has returned.
func TestRelayOrder(t *testing.T) {
	leaks(t)
	var n atomic.Uint32
	sent := make(chan bool, 1)
	dst := udpServer(t, "127.0.0.1", func(q []byte) [][]byte {
		defer func() { sent <- true }()
		return [][]byte{answerTo(q, rec("bank.example.", 60, fmt.Sprintf("203.0.113.%d", n.Add(1))))}
	})
	entered, proceed := make(chan observed), make(chan error)
	obs := &observer{observe: func(o observed) error {
		entered <- o
		return <-proceed
	}}
	r := NewRelay(directly, obs, nil)
	serve(t, r)
	for i := 1; i <= 200; i++ {
		d := newQuery(dst, query(uint16(i), "Bank.Example.", dnsmessage.TypeA))
		r.Handle(d)
		receive(t, sent)
		got := receive(t, entered)
		want := fmt.Sprintf("{bank.example [203.0.113.%d] 1m0s}", i)
		if fmt.Sprint(got) != want {
			t.Fatalf("observed %v, want %v", got, want)
		}
		none(t, d.replies)
		proceed <- nil
		if a, ok := parseAnswer(receive(t, d.replies)); !ok || a.Addrs[0] != got.Addrs[0] {
			t.Fatalf("the application got %v", a)
		}
	}
}

func TestRelayFlowsDontWait(t *testing.T) {
	leaks(t)
	dst := udpServer(t, "127.0.0.1", func(q []byte) [][]byte {
		return [][]byte{answerTo(q, rec("bank.example.", 60, "203.0.113.1"))}
	})
	entered, proceed := make(chan bool, 2), make(chan error)
	obs := &observer{
		wants:   func(name string) bool { return name == "bank.example" },
		observe: func(observed) error { entered <- true; return <-proceed },
	}
	r := NewRelay(directly, obs, nil)
	serve(t, r)
	wanted := newQuery(dst, query(1, "bank.example.", dnsmessage.TypeA))
	r.Handle(wanted)
	receive(t, entered)
	unwanted := newQuery(dst, query(1, "x.example.", dnsmessage.TypeA))
	r.Handle(unwanted)
	receive(t, unwanted.replies)
	none(t, wanted.replies)
	proceed <- nil
	receive(t, wanted.replies)
}

func TestRelayObserveFails(t *testing.T) {
	leaks(t)
	var log safeBuffer
	dst := udpServer(t, "127.0.0.1", func(q []byte) [][]byte {
		return [][]byte{answerTo(q, rec("bank.example.", 60, "203.0.113.1"))}
	})
	obs := &observer{observe: func(o observed) error { return fmt.Errorf("put route %v: %w", o.Addrs, errNoRoute) }}
	r := NewRelay(directly, obs, slog.New(slog.NewTextHandler(&log, nil)))
	serve(t, r)
	for i := range uint16(5) {
		d := newQuery(dst, query(i, "bank.example.", dnsmessage.TypeA))
		r.Handle(d)
		got := receive(t, d.replies)
		if rcode(t, got) != dnsmessage.RCodeServerFailure || binary.BigEndian.Uint16(got) != i {
			t.Fatalf("got %x", got)
		}
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "name=bank.example") {
		t.Errorf("logged:\n%s", got)
	}
}

// An answer without addresses tells for which names they may be asked.
func TestRelayTellsOfAliases(t *testing.T) {
	leaks(t)
	dst := udpServer(t, "127.0.0.1", func(q []byte) [][]byte {
		return [][]byte{answerTo(q, cname("bank.example.", 60, "Cdn.example."))}
	})
	obs := &observer{}
	r := NewRelay(directly, obs, nil)
	serve(t, r)
	d := newQuery(dst, query(7, "bank.example.", dnsmessage.TypeA))
	r.Handle(d)
	receive(t, d.replies)
	if got := fmt.Sprint(obs.aliases, obs.all()); got != "[bank.example cdn.example] []" {
		t.Errorf("told of %s", got)
	}
}

// Only answers to queries that were asked are accepted.
func TestRelayBelief(t *testing.T) {
	leaks(t)
	const h = "bank.example."
	q := query(7, h, dnsmessage.TypeA)
	a := answerTo(q, rec(h, 60, "203.0.113.1"))
	for _, tt := range []struct {
		name    string
		queries [][]byte
		answers [][]byte
		learned int
	}{
		{"asked", [][]byte{q}, [][]byte{a}, 1},
		{"a second copy", [][]byte{q}, [][]byte{a, a}, 1},
		{"asked twice", [][]byte{q, q}, [][]byte{a, a}, 2},
		{"another ID", [][]byte{q}, [][]byte{answerTo(query(8, h, dnsmessage.TypeA), rec(h, 60, "203.0.113.1"))}, 0},
		{"another name", [][]byte{q}, [][]byte{answerTo(query(7, "evil.example.", dnsmessage.TypeA), rec("evil.example.", 60, "203.0.113.1"))}, 0},
		{"another type", [][]byte{q}, [][]byte{answerTo(query(7, h, dnsmessage.TypeAAAA), rec(h, 60, "2001:db8::1"))}, 0},
		{"another case", [][]byte{q}, [][]byte{answerTo(query(7, "BANK.example.", dnsmessage.TypeA), rec(h, 60, "203.0.113.1"))}, 1},
		{"a query back", [][]byte{q}, [][]byte{q}, 0},
		{"junk, then the answer", [][]byte{q}, [][]byte{[]byte("junk"), a}, 1},
		{"same ID, two questions", [][]byte{q, query(7, h, dnsmessage.TypeAAAA)}, [][]byte{answerTo(query(7, h, dnsmessage.TypeAAAA), rec(h, 60, "2001:db8::1")), a}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			left := len(tt.queries)
			dst := udpServer(t, "127.0.0.1", func([]byte) [][]byte {
				if left--; left > 0 {
					return nil
				}
				return tt.answers
			})
			obs := &observer{}
			r := NewRelay(directly, obs, nil)
			serve(t, r)
			d := newQuery(dst, nil)
			for _, q := range tt.queries {
				r.Handle(d.again(q))
			}
			for _, want := range tt.answers {
				if got := receive(t, d.replies); !bytes.Equal(got, want) {
					t.Errorf("got %x, want %x", got, want)
				}
			}
			if got := obs.all(); len(got) != tt.learned {
				t.Errorf("learned %v, want %d", got, tt.learned)
			}
		})
	}
}

func TestRelayUnreachable(t *testing.T) {
	leaks(t)
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dst := c.LocalAddr().(*net.UDPAddr).AddrPort()
	c.Close()
	r := NewRelay(directly, &observer{}, nil)
	serve(t, r)
	d := newQuery(dst, query(1, "bank.example.", dnsmessage.TypeA))
	for range 3 { // the flow continues after an ICMP error
		r.Handle(d)
		receive(t, d.unreachable)
	}
	if r.len() != 1 {
		t.Errorf("%d flows", r.len())
	}

	var log safeBuffer
	r = NewRelay(func(context.Context, string, netip.AddrPort) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}
	}, &observer{}, slog.New(slog.NewTextHandler(&log, nil)))
	serve(t, r)
	for range 5 {
		d := newQuery(dst, query(1, "bank.example.", dnsmessage.TypeA))
		r.Handle(d)
		receive(t, d.unreachable)
	}
	if got := log.String(); strings.Count(got, "\n") != 1 {
		t.Errorf("logged:\n%s", got)
	}
}

// pipeDialer returns connections and keeps their other ends. net.Pipe preserves datagram boundaries if the
// reader's buffer is large enough.
type pipeDialer struct {
	mu    sync.Mutex
	peers []net.Conn
}

func (p *pipeDialer) dial(context.Context, string, netip.AddrPort) (net.Conn, error) {
	a, b := net.Pipe()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.peers = append(p.peers, b)
	return a, nil
}

func (p *pipeDialer) peer(i int) net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.peers[i]
}

var resolverAddr = netip.MustParseAddrPort("198.51.100.53:53")

func TestRelayIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pipeDialer
		r := NewRelay(p.dial, &observer{}, nil)
		stop := serve(t, r)
		defer stop()
		buf := make([]byte, 512)
		d := newQuery(resolverAddr, query(1, "bank.example.", dnsmessage.TypeA))
		at := func(elapsed time.Duration, flows int) {
			t.Helper()
			time.Sleep(elapsed)
			synctest.Wait()
			if got := r.len(); got != flows {
				t.Fatalf("%d flows, want %d", got, flows)
			}
		}
		r.Handle(d)
		p.wait()
		p.peer(0).Read(buf)
		at(9*time.Second, 1)
		r.Handle(d) // asked again: the wait starts anew
		p.peer(0).Read(buf)
		at(9999*time.Millisecond, 1)
		at(time.Millisecond, 0)

		r.Handle(d) // a new flow
		p.wait()
		p.peer(1).Read(buf)
		p.peer(1).Write(answerTo(d.payload))
		<-d.replies
		at(1999*time.Millisecond, 1)
		r.Handle(d)
		p.peer(1).Read(buf)
		p.peer(1).Write(answerTo(d.payload))
		at(1999*time.Millisecond, 1)
		at(time.Millisecond, 0)
	})
}

// wait lets pending dials finish. It works only in a synctest bubble.
func (p *pipeDialer) wait() { synctest.Wait() }

// The flow that has been idle longest makes room. If all are waiting, the oldest does.
func TestRelayEvicts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pipeDialer
		r := NewRelay(p.dial, &observer{}, nil)
		r.most = 3
		stop := serve(t, r)
		defer stop()
		buf := make([]byte, 512)
		gone := func(i int) bool {
			synctest.Wait()
			p.peer(i).SetReadDeadline(time.Now())
			_, err := p.peer(i).Read(buf)
			return !errors.Is(err, os.ErrDeadlineExceeded)
		}
		ask := func(i int, answer bool) {
			d := newQuery(resolverAddr, []byte("?"))
			r.Handle(d)
			synctest.Wait()
			p.peer(i).Read(buf)
			if answer {
				p.peer(i).Write([]byte("!"))
				<-d.replies
			}
			synctest.Wait()
			if r.len() > 3 {
				t.Fatalf("%d flows", r.len())
			}
		}
		ask(0, false)
		ask(1, true)
		ask(2, true)
		ask(3, false)
		if gone(0) || !gone(1) || gone(2) {
			t.Error("not the one idle longest went")
		}
		ask(4, false)
		if !gone(2) {
			t.Error("not the last idle one went")
		}
		ask(5, false)
		if !gone(0) || gone(3) {
			t.Error("not the oldest went")
		}
	})
}

func TestRelayBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pipeDialer // its pipes accept data only when read
		r := NewRelay(p.dial, &observer{}, nil)
		stop := serve(t, r)
		defer stop()
		d := newQuery(resolverAddr, []byte("?"))
		for range 2 * maxQueued {
			r.Handle(d)
		}
		synctest.Wait()
		r.mu.Lock()
		queued := r.queued
		r.mu.Unlock()
		if queued > maxQueued/2 || queued < maxQueued/2-1 {
			t.Errorf("%d queued", queued)
		}
		stop()

		r = NewRelay(p.dial, &observer{}, nil)
		stop = serve(t, r)
		defer stop()
		got := 0
		for i := range uint16(2 * maxAsked) {
			r.Handle(d.again(query(i, "bank.example.", dnsmessage.TypeA)))
		}
		synctest.Wait()
		buf := make([]byte, 512)
		for {
			p.peer(1).SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := p.peer(1).Read(buf); err != nil {
				break
			}
			got++
		}
		if got != maxAsked {
			t.Errorf("%d queries were sent, want %d", got, maxAsked)
		}
		// Unanswered queries make room in the end. Unwanted queries always pass.
		time.Sleep(9 * time.Second)
		r.Handle(d.again([]byte("?")))
		p.peer(1).SetReadDeadline(time.Time{})
		if n, _ := p.peer(1).Read(buf); n != 1 {
			t.Errorf("%d bytes of an unwanted query", n)
		}
		time.Sleep(2 * time.Second)
		r.Handle(d.again(query(999, "bank.example.", dnsmessage.TypeA)))
		if n, _ := p.peer(1).Read(buf); n < headerLen {
			t.Errorf("%d bytes of a wanted query", n)
		}
	})
}

// Queries are released as soon as they are sent, or given up. Long ones are bounded by their bytes.
func TestRelayReleases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pipeDialer // its pipes accept data only when read
		r := NewRelay(p.dial, &observer{}, nil)
		stop := serve(t, r)
		defer stop()
		d := newQuery(resolverAddr, make([]byte, maxMessage))
		const sent = 1000
		for range sent {
			r.Handle(d)
		}
		synctest.Wait()
		r.mu.Lock()
		waiting, weight := len(r.flows[flowKey{d.src, d.dst}].queue), r.queued
		r.mu.Unlock()
		if bytes := waiting * maxMessage; bytes > maxQueued<<10 || bytes == 0 || weight != 64*waiting {
			t.Errorf("%d bytes wait, with a weight of %d", bytes, weight)
		}
		if n := d.released.Load(); n != int64(sent-waiting-1) { // one is being written
			t.Errorf("%d released, while %d wait", n, waiting)
		}
		buf := make([]byte, maxMessage)
		for range 3 {
			if _, err := p.peer(0).Read(buf); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := d.released.Load(); n != int64(sent-waiting-1+3) {
			t.Errorf("%d released after 3 were sent", n)
		}
		stop()
		r.Handle(d)
		if n := d.released.Load(); n != sent+1 {
			t.Errorf("%d released in the end, of %d", n, sent+1)
		}
		if r.queued != 0 {
			t.Errorf("a weight of %d is left", r.queued)
		}
	})
}

func TestRelayShutdown(t *testing.T) {
	leaks(t)
	dst := udpServer(t, "127.0.0.1", func(q []byte) [][]byte {
		return [][]byte{answerTo(q, rec("bank.example.", 60, "203.0.113.1"))}
	})
	entered, proceed := make(chan bool), make(chan error)
	obs := &observer{observe: func(observed) error { entered <- true; return <-proceed }}
	r := NewRelay(directly, obs, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Serve(ctx) }()
	d := newQuery(dst, query(1, "bank.example.", dnsmessage.TypeA))
	r.Handle(d)
	receive(t, entered)
	cancel()
	none(t, done)
	proceed <- nil
	receive(t, d.replies)
	if err := receive(t, done); err != nil {
		t.Error(err)
	}
	r.Handle(d)
	if r.len() != 0 {
		t.Error("a flow after the end")
	}
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// One query and its answer over real sockets, from an application socket that is known (flow) or new each time.
func BenchmarkRelay(b *testing.B) {
	q := query(1, "bank.example.", dnsmessage.TypeA)
	a := answerTo(q, rec("bank.example.", 60, "203.0.113.1"))
	dst := udpServer(b, "127.0.0.1", func([]byte) [][]byte { return [][]byte{a} })
	for _, wanted := range []bool{false, true} {
		for _, fresh := range []bool{false, true} {
			b.Run(fmt.Sprintf("wanted=%v/new=%v", wanted, fresh), func(b *testing.B) {
				r := NewRelay(directly, quiet(wanted), nil)
				serve(b, r)
				d := newQuery(dst, q)
				b.ReportAllocs()
				for b.Loop() {
					if fresh {
						d = newQuery(dst, q)
					}
					r.Handle(d)
					<-d.replies
				}
			})
		}
	}
	b.Run("direct", func(b *testing.B) {
		c, err := directly(b.Context(), "udp", dst)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		buf := make([]byte, 512)
		b.ReportAllocs()
		for b.Loop() {
			c.Write(q)
			if _, err := c.Read(buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}

type quiet bool

func (q quiet) Wants(string) bool                                        { return bool(q) }
func (q quiet) Admit(Asker, int) error                                   { return nil }
func (q quiet) Alias(string, string, time.Duration)                      {}
func (q quiet) Observe(Asker, string, []netip.Addr, time.Duration) error { return nil }
