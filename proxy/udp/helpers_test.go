package udp

import (
	"context"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var (
	app4 = netip.MustParseAddrPort("192.0.2.1:5000")
	app6 = netip.MustParseAddrPort("[2001:db8::1]:5000")
	dst4 = netip.MustParseAddrPort("203.0.113.5:443")
	dst6 = netip.MustParseAddrPort("[2001:db8:2::5]:443")
)

// datagram is a datagram of an application that keeps what it gets.
type datagram struct {
	src, dst netip.AddrPort
	payload  string
	whole    bool
	got      *inbox
	released atomic.Int32
}

// inbox is what an application has received.
type inbox struct {
	replies     chan string
	unreachable chan syscall.Errno
	icmp        chan ICMPError
}

func newInbox() *inbox {
	return &inbox{make(chan string, 1000), make(chan syscall.Errno, 1000), make(chan ICMPError, 1000)}
}

func (i *inbox) from(src, dst netip.AddrPort, payload string) *datagram {
	return &datagram{src: src, dst: dst, payload: payload, got: i}
}

func (d *datagram) Src() netip.AddrPort { return d.src }
func (d *datagram) Dst() netip.AddrPort { return d.dst }
func (d *datagram) TTL() uint8          { return 64 }
func (d *datagram) DontFragment() bool  { return d.whole }
func (d *datagram) Payload() []byte     { return []byte(d.payload) }
func (d *datagram) Release()            { d.released.Add(1) }

func (d *datagram) Reply(b []byte) error {
	d.got.replies <- string(b)
	return nil
}

func (d *datagram) Unreachable(errno syscall.Errno) { d.got.unreachable <- errno }

func (d *datagram) ICMP(e ICMPError) {
	e.About = []byte(string(e.About)) // not ours to keep
	d.got.icmp <- e
}

// start serves r until the test ends, which checks that no goroutine is left.
func start(t testing.TB, r *Relay) {
	t.Helper()
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- r.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve = %v", err)
		}
		if s := r.Stats(); s.Flows != 0 || r.queued.Load() != 0 || r.order.oldest() != nil {
			t.Errorf("after Serve: %+v, %d bytes queued, in order: %v", s, r.queued.Load(), r.order.oldest())
		}
		eventually(t, "goroutines are back to the start", func() bool { return runtime.NumGoroutine() <= before })
	})
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("not within 30 s:", what)
		}
	}
}

// receive returns the next value of c.
func receive[T any](t *testing.T, what string, c <-chan T) (got T) {
	t.Helper()
	select {
	case got = <-c:
	case <-time.After(30 * time.Second):
		t.Fatal("not within 30 s:", what)
	}
	return got
}

// lines is a log that counts.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
