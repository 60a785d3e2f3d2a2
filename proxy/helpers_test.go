package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pinproxy/rules"
)

// patience bounds every wait in these tests.
const patience = 30 * time.Second

func receive[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("not within %v: %s", patience, what)
		panic("unreachable")
	}
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); runtime.Gosched() {
		if time.Now().After(end) {
			buf := make([]byte, 1<<20)
			t.Fatalf("not within %v: %s\n%s", patience, what, buf[:runtime.Stack(buf, true)])
		}
	}
}

// leaks makes the test fail if it ends with more goroutines or descriptors than there are now.
func leaks(t testing.TB) {
	t.Helper()
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err != nil { // opens what the poller needs
		t.Fatal(err)
	} else {
		_ = l.Close()
	}
	goroutines, files := runtime.NumGoroutine(), descriptors()
	t.Cleanup(func() {
		eventually(t, "goroutines and descriptors are as many as before", func() bool {
			return runtime.NumGoroutine() <= goroutines && descriptors() <= files
		})
	})
}

// descriptors returns how many are open, or 0 if the system does not tell.
func descriptors() int {
	list, _ := os.ReadDir("/proc/self/fd")
	return len(list)
}

// setOf compiles rules.
func setOf(t testing.TB, texts ...string) *rules.Set {
	t.Helper()
	var list []*rules.Rule
	for _, text := range texts {
		r, err := rules.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	set, err := rules.NewSet(list)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// byName is a Names that knows one name. Unlike rules.Names, which leaves loopback addresses to the kernel, it knows
// them too.
type byName struct {
	set   *rules.Set
	name  string
	addrs []netip.Addr
	held  atomic.Int32
}

func (n *byName) Decide(dst netip.AddrPort) rules.Decision {
	return rules.Decision{Rule: n.set.Match(n.name, dst), Name: n.name}
}

func (n *byName) Others(_ string, addr netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(n.addrs), func(a netip.Addr) bool { return a == addr })
}

func (n *byName) Hold(netip.Addr) func() {
	n.held.Add(1)
	return func() { n.held.Add(-1) }
}

// recorder is a slog.Handler that keeps what is logged.
type recorder struct {
	mu   sync.Mutex
	list []record
}

type record struct {
	Level slog.Level
	Msg   string
	Keys  []string
	Attrs map[string]string
}

func (*recorder) Enabled(context.Context, slog.Level) bool { return true }
func (r *recorder) WithAttrs([]slog.Attr) slog.Handler     { return r }
func (r *recorder) WithGroup(string) slog.Handler          { return r }

func (r *recorder) Handle(_ context.Context, in slog.Record) error {
	out := record{Level: in.Level, Msg: in.Message, Attrs: make(map[string]string)}
	in.Attrs(func(a slog.Attr) bool {
		out.Keys = append(out.Keys, a.Key)
		out.Attrs[a.Key] = a.Value.String()
		return true
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, out)
	return nil
}

// with returns the records with that message.
func (r *recorder) with(msg string) []record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.list), func(r record) bool { return r.Msg != msg })
}

// harness is a proxy under test.
type harness struct {
	*Proxy
	log   *recorder
	flows atomic.Int32

	signed bool // the next flows' applications sign
}

// newHarness returns a proxy with rules, or with c.Names. At its end the test checks that the proxy holds nothing any
// more.
func newHarness(t testing.TB, c Config, texts ...string) *harness {
	t.Helper()
	if c.Names == nil {
		c.Names = rules.NewNames(setOf(t, texts...))
	}
	if c.Dialer == nil {
		c.Dialer = Sockets{}
	}
	h := &harness{log: new(recorder)}
	c.Log = slog.New(h.log)
	h.Proxy = New(c)
	t.Cleanup(func() {
		if held, waiting := h.leases.Counts(); held != 0 || waiting != 0 {
			t.Errorf("%d leases are held and %d waited for after the last flow", held, waiting)
		}
		if st := h.Stats(); st.Live != 0 {
			t.Errorf("%+v after the last flow", st)
		}
	})
	return h
}

// testFlow is an application's connection.
type testFlow struct {
	number   uint64
	src, dst netip.AddrPort
	signed   bool
	accept   func() (app, ours Conn, err error)
	giveUp   context.CancelFunc
	done     chan struct{}          // it is over
	goesOn   sync.WaitGroup         // from Detach to Done
	turn     atomic.Pointer[func()] // what Turn does

	answers chan string
	app     Conn // the application's end, once accepted
}

func (f *testFlow) Number() uint64      { return f.number }
func (f *testFlow) Src() netip.AddrPort { return f.src }
func (f *testFlow) Dst() netip.AddrPort { return f.dst }
func (f *testFlow) Signed() bool        { return f.signed }

func (f *testFlow) AcceptFunc(then func(Conn, error)) {
	app, ours, err := f.accept()
	f.app = app
	f.answers <- "accept"
	f.goesOn.Go(func() { then(ours, err) })
}

func (f *testFlow) Reject(errno syscall.Errno) { f.answers <- errno.Error() }
func (f *testFlow) Drop()                      { f.answers <- "drop" }
func (f *testFlow) Detach()                    { f.goesOn.Add(1) }
func (f *testFlow) Go(work func())             { go work() }
func (f *testFlow) Done()                      { f.goesOn.Done() }

func (f *testFlow) Turn() {
	if turn := f.turn.Load(); turn != nil {
		(*turn)()
	}
}

// handle returns when the flow is over.
func (h *harness) handle(ctx context.Context, f *testFlow) {
	h.Handle(ctx, f)
	f.goesOn.Wait()
}

// open handles a flow to dst. At its end the test ends the flow, and checks that it was answered once.
func (h *harness) open(t testing.TB, dst netip.AddrPort) *testFlow {
	return h.openWith(t, dst, loopback)
}

func (h *harness) openWith(t testing.TB, dst netip.AddrPort, accept func() (app, ours Conn, err error)) *testFlow {
	src := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(40001+h.flows.Load()))
	return h.openFrom(t, src, dst, accept)
}

func (h *harness) openFrom(t testing.TB, src, dst netip.AddrPort, accept func() (app, ours Conn, err error)) *testFlow {
	ctx, cancel := context.WithCancel(context.Background())
	f := &testFlow{
		number:  uint64(h.flows.Add(1)),
		src:     src,
		dst:     dst,
		signed:  h.signed,
		accept:  accept,
		giveUp:  cancel,
		done:    make(chan struct{}),
		answers: make(chan string, 8),
	}
	go func() {
		defer close(f.done)
		h.handle(ctx, f)
	}()
	t.Cleanup(func() {
		cancel()
		if f.app != nil {
			_ = f.app.SetLinger(0)
			_ = f.app.Close()
		}
		receive(t, f.done, "the flow ends with its application")
		if n := len(f.answers); n > 0 {
			t.Errorf("flow to %s: %d answers too many, the first %q", dst, n, <-f.answers)
		}
	})
	return f
}

// answered waits for the application's connect() to end as wanted.
func (f *testFlow) answered(t testing.TB, want string) {
	t.Helper()
	if got := receive(t, f.answers, "an answer, "+want); got != want {
		t.Fatalf("flow to %s: answer %q, want %q", f.dst, got, want)
	}
}

// ended waits for Handle to return.
func (f *testFlow) ended(t testing.TB) {
	t.Helper()
	receive(t, f.done, "the flow ends")
}

// connected returns a flow that has just been spliced, and its upstream end.
func connected(t testing.TB, h *harness, s *server) (*testFlow, *net.TCPConn) {
	t.Helper()
	f := h.open(t, s.addr)
	f.answered(t, "accept")
	return f, s.next(t)
}

// endsAs waits for the flow's end and checks what the log says about it.
func endsAs(t testing.TB, h *harness, f *testFlow, end string) {
	t.Helper()
	f.ended(t)
	lines := h.log.with("flow")
	if len(lines) == 0 || lines[len(lines)-1].Attrs["end"] != end {
		t.Errorf("log: %v, want end %q", lines, end)
	}
}

func pinnedServer(t testing.TB) (*harness, *server) {
	t.Helper()
	s := listen(t, "127.0.0.1:0")
	return newHarness(t, Config{}, fmt.Sprintf("*:*=%d busy=fail", freePort(t))), s
}

// loopback returns the two ends of a socket connection.
func loopback() (app, ours Conn, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = l.Close() }()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	b, err := l.Accept()
	if err != nil {
		_ = a.Close()
		return nil, nil, err
	}
	ours, err = newUpstream(b.(*net.TCPConn))
	return a.(*net.TCPConn), ours, err
}

func write(t testing.TB, c io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

// wantRead reads exactly s.
func wantRead(t testing.TB, c net.Conn, s string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, len(s))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != s {
		t.Fatalf("read %q, %v, want %q", got, err, s)
	}
}

// wantEnd reads up to the stream's end, which must be as wanted: nil is a FIN.
func wantEnd(t testing.TB, c net.Conn, want error) (got []byte) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	got, err := io.ReadAll(c)
	if !errors.Is(err, want) {
		t.Fatalf("stream ends by %v after %d bytes, want %v", err, len(got), want)
	}
	return got
}

// dialFunc is a Dialer.
type dialFunc func(ctx context.Context, pin, dst netip.AddrPort) (Conn, error)

func (f dialFunc) Dial(ctx context.Context, pin, dst netip.AddrPort) (Conn, error) {
	return f(ctx, pin, dst)
}

// failing is a Dialer that fails like the kernel's call.
func failing(call string, errno syscall.Errno) Dialer {
	return dialFunc(func(context.Context, netip.AddrPort, netip.AddrPort) (Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError(call, errno)}
	})
}
