package netstack_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pinproxy/netstack"
	"pinproxy/netstack/netstacktest"
)

var (
	server4 = netip.MustParseAddrPort("203.0.113.5:443")
	server6 = netip.MustParseAddrPort("[2001:db8:2::5]:443")
	both    = map[string]netip.AddrPort{"ipv4": server4, "ipv6": server6}
)

// start runs a stack with h and returns the application at its other end. At the end of the test it checks that no
// goroutine is left.
func start(t *testing.T, c netstack.Config, h netstack.Handler) (*netstacktest.Client, *netstack.Stack) {
	t.Helper()
	before := runtime.NumGoroutine()
	l, client, err := netstacktest.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s, err := netstack.New(l, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, h) }()
	select {
	case <-s.Ready():
	case err := <-served:
		t.Fatalf("Serve = %v", err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve = %v", err)
		}
		if st := s.Stats(); st.Open != 0 || st.Parked != 0 {
			t.Errorf("after Serve: %+v, want no flow", st)
		}
		client.Close()
		eventually(t, "goroutines are back to the start", func() bool { return runtime.NumGoroutine() <= before })
	})
	return client, s
}

var eventually = netstack.Eventually

func dial(t *testing.T, c *netstacktest.Client, local, dst netip.AddrPort) (*netstacktest.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return c.Dial(ctx, local, dst)
}

func mustDial(t *testing.T, c *netstacktest.Client, dst netip.AddrPort) *netstacktest.Conn {
	t.Helper()
	conn, err := dial(t, c, netip.AddrPort{}, dst)
	if err != nil {
		t.Fatalf("dial %s: %v", dst, err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func echo(_ context.Context, f *netstack.Flow) {
	c, err := f.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

func TestEcho(t *testing.T) {
	for name, dst := range both {
		t.Run(name, func(t *testing.T) {
			var src, seen atomic.Value
			client, _ := start(t, netstack.Config{}, func(ctx context.Context, f *netstack.Flow) {
				src.Store(f.Src())
				seen.Store(f.Dst())
				echo(ctx, f)
			})
			conn := mustDial(t, client, dst)
			want := make([]byte, 1<<20)
			_, _ = rand.Read(want)
			go func() {
				_, _ = conn.Write(want)
				_ = conn.CloseWrite()
			}()
			got, err := io.ReadAll(conn)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("echo returned %d bytes, %v; want the %d sent", len(got), err, len(want))
			}
			if seen.Load() != dst {
				t.Errorf("Dst = %v, want %v", seen.Load(), dst)
			}
			if got := src.Load().(netip.AddrPort).String(); got != conn.LocalAddr().String() {
				t.Errorf("Src = %v, want %v", got, conn.LocalAddr())
			}
		})
	}
}

func TestRejectErrnos(t *testing.T) {
	tests := []struct{ reject, want syscall.Errno }{
		{syscall.ECONNREFUSED, syscall.ECONNREFUSED},
		{syscall.EHOSTUNREACH, syscall.EHOSTUNREACH},
		{syscall.ENETUNREACH, syscall.ENETUNREACH},
		{syscall.EACCES, syscall.EHOSTUNREACH},
		{syscall.EINVAL, syscall.EHOSTUNREACH},
	}
	for name, dst := range both {
		for _, tt := range tests {
			if dst.Addr().Is6() && tt.want == syscall.EHOSTUNREACH {
				continue // as a client, gVisor does not know ICMPv6 address unreachable; another test asks the kernel
			}
			t.Run(name+"/"+tt.reject.Error(), func(t *testing.T) {
				pauses := netstacktest.WatchPauses(t)
				client, s := start(t, netstack.Config{}, func(_ context.Context, f *netstack.Flow) {
					f.Reject(tt.reject)
					f.Reject(tt.reject) // the second one does nothing
					if _, err := f.Accept(); !errors.Is(err, netstack.ErrGone) {
						t.Errorf("Accept after Reject = %v, want ErrGone", err)
					}
				})
				begin := time.Now()
				_, err := dial(t, client, netip.AddrPort{}, dst)
				if !errors.Is(err, tt.want) {
					t.Errorf("connect = %v, want %v", err, tt.want)
				}
				if d := time.Since(begin); d > 500*time.Millisecond+10*pauses.Longest() {
					t.Errorf("connect took %v, want at once", d)
				}
				eventually(t, "the flow is forgotten", func() bool { return s.Stats().Open == 0 })
			})
		}
	}
}

func TestNothingIsAnsweredBeforeAccept(t *testing.T) {
	release := make(chan struct{})
	flows := make(chan *netstack.Flow, 10)
	client, s := start(t, netstack.Config{}, func(ctx context.Context, f *netstack.Flow) {
		flows <- f
		<-release
		echo(ctx, f)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 1300*time.Millisecond)
	defer cancel()
	// Long enough for one retransmission, which must not become a second flow.
	if _, err := client.Dial(ctx, netip.AddrPort{}, server4); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("connect before Accept = %v, want silence", err)
	}
	close(release)
	if n := s.Stats().Flows; n != 1 {
		t.Errorf("flows = %d, want 1 for a SYN and its retransmission", n)
	}
	<-flows
}

func TestDropLetsTheNextSYNIn(t *testing.T) {
	var n atomic.Int32
	client, _ := start(t, netstack.Config{}, func(ctx context.Context, f *netstack.Flow) {
		if n.Add(1) == 1 {
			f.Drop()
			return
		}
		echo(ctx, f)
	})
	mustDial(t, client, server4)
	if n.Load() != 2 {
		t.Errorf("flows = %d, want 2: the first dropped, the second answered", n.Load())
	}
}

func TestGivenUpFlowEnds(t *testing.T) {
	local := netip.AddrPortFrom(netstacktest.Addr4, 4000)
	ended := make(chan struct{})
	ctx, giveUp := context.WithTimeout(t.Context(), 20*time.Second)
	defer giveUp()
	var n atomic.Int32
	client, _ := start(t, netstack.Config{}, func(ctx context.Context, f *netstack.Flow) {
		if n.Add(1) > 1 {
			echo(ctx, f)
			return
		}
		giveUp() // while this one waits
		<-ctx.Done()
		if _, err := f.Accept(); !errors.Is(err, netstack.ErrGone) {
			t.Errorf("Accept of a given up flow = %v, want ErrGone", err)
		}
		close(ended)
	})
	if _, err := client.Dial(ctx, local, server4); err == nil {
		t.Fatal("connect succeeded before Accept")
	}
	conn, err := dial(t, client, local, server4) // same 4-tuple, another sequence number
	if err != nil {
		t.Fatalf("second connect from the same port: %v", err)
	}
	defer conn.Close()
	<-ended
}

// A socket that is closed in SYN_SENT sends nothing. Its SYNs stop, while those of an application that still waits go
// on.
func TestSilentApplicationHasGivenUp(t *testing.T) {
	ended := make(chan netip.AddrPort, 2)
	release := make(chan struct{})
	client, s := start(t, netstack.Config{}, func(ctx context.Context, f *netstack.Flow) {
		select {
		case <-ctx.Done():
			ended <- f.Src()
		case <-release:
			echo(ctx, f)
		}
	})
	silent, patient := netip.AddrPortFrom(netstacktest.Addr4, 4000), netip.AddrPortFrom(netstacktest.Addr4, 4001)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, _ = client.Dial(ctx, silent, server4)
	connected := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		c, err := client.Dial(ctx, patient, server4)
		if err == nil {
			c.Close()
		}
		connected <- err
	}()
	select {
	case src := <-ended:
		if src != silent {
			t.Errorf("%s was given up, want %s", src, silent)
		}
	case <-time.After(10 * time.Second):
		t.Error("the silent flow still waits after 10 s")
	}
	if n := s.Stats().Parked; n != 1 {
		t.Errorf("%d flows parked, want the patient one", n)
	}
	close(release)
	if err := <-connected; err != nil {
		t.Errorf("the patient application: %v", err)
	}
}

func TestHalfClose(t *testing.T) {
	for name, dst := range both {
		t.Run(name, func(t *testing.T) {
			const back = 1 << 20
			client, _ := start(t, netstack.Config{}, func(_ context.Context, f *netstack.Flow) {
				c, err := f.Accept()
				if err != nil {
					t.Errorf("Accept: %v", err)
					return
				}
				defer c.Close()
				got, err := io.ReadAll(c)
				if err != nil || string(got) != "question" {
					t.Errorf("read %q, %v", got, err)
				}
				if _, err := c.Write(make([]byte, back)); err != nil {
					t.Errorf("write after the application's FIN: %v", err)
				}
			})
			conn := mustDial(t, client, dst)
			_, _ = conn.Write([]byte("question"))
			_ = conn.CloseWrite()
			got, err := io.ReadAll(conn)
			if err != nil || len(got) != back {
				t.Errorf("read %d bytes, %v; want %d and EOF", len(got), err, back)
			}
		})
	}
}

func TestResetReachesTheApplicationBehindTheData(t *testing.T) {
	const size = 700_000
	for _, test := range []struct{ ours, theirs bool }{{false, false}, {true, false}, {true, true}} { // which FINs come first
		client, _ := start(t, netstack.Config{}, func(_ context.Context, f *netstack.Flow) {
			c, err := f.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1)) // dial is over
			if test.theirs {
				_, _ = io.Copy(io.Discard, c)
			}
			_, _ = c.Write(make([]byte, size))
			if test.ours {
				_ = c.CloseWrite()
			}
			_ = c.SetLinger(0)
			_ = c.Close()
		})
		conn := mustDial(t, client, server4)
		_, _ = conn.Write([]byte("x"))
		if test.theirs {
			_ = conn.CloseWrite()
		}
		n, err := io.Copy(io.Discard, conn)
		if n != size || !test.ours && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%+v: read %d bytes, then %v; want %d, then ECONNRESET unless our FIN came before", test, n, err, size)
		}
	}
}

func TestApplicationsResetIsSeen(t *testing.T) {
	result, accepted := make(chan error, 1), make(chan struct{})
	client, s := start(t, netstack.Config{}, func(_ context.Context, f *netstack.Flow) {
		c, err := f.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		close(accepted)
		_, err = io.ReadAll(c)
		result <- err
		// The error is reported once, as by the kernel.
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write after a reset = %v, want EPIPE", err)
		}
	})
	conn := mustDial(t, client, server4)
	_, _ = conn.Write([]byte("x"))
	<-accepted
	conn.Abort()
	if err := <-result; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read = %v, want ECONNRESET", err)
	}
	eventually(t, "the flow is forgotten", func() bool { return s.Stats().Open == 0 })
}

// Whichever direction gVisor reports the reset to, the reader must not take it for the end of the stream.
func TestResetIsNoEndOfStream(t *testing.T) {
	result := make(chan error)
	client, _ := start(t, netstack.Config{}, func(_ context.Context, f *netstack.Flow) {
		c, err := f.Accept()
		if err != nil {
			result <- err
			return
		}
		wrote := make(chan struct{})
		go func() {
			defer close(wrote)
			for b := make([]byte, 4096); err == nil; {
				_, err = c.Write(b)
			}
		}()
		_, rerr := io.Copy(io.Discard, c)
		<-wrote
		_ = c.Close()
		result <- rerr
	})
	for range 100 {
		conn := mustDial(t, client, server4)
		_, _ = io.CopyN(io.Discard, conn, 50_000)
		conn.Abort()
		if err := <-result; !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("read = %v, want ECONNRESET", err)
		}
	}
}

// An application that binds its own source port comes back on the same 4-tuple as soon as its kernel permits,
// whichever side closed first.
func TestReusedSourcePort(t *testing.T) {
	const rounds = 300
	tests := []struct {
		name   string
		server func(c netstack.Conn)
		client func(t *testing.T, c *netstacktest.Conn)
	}{
		{
			"server closes first",
			func(c netstack.Conn) { _ = c.CloseWrite(); _, _ = io.Copy(io.Discard, c) },
			func(t *testing.T, c *netstacktest.Conn) { _, _ = io.Copy(io.Discard, c); c.Close() },
		},
		{
			"application resets",
			func(c netstack.Conn) { _, _ = io.Copy(io.Discard, c) },
			func(t *testing.T, c *netstacktest.Conn) { c.Abort() },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pauses := netstacktest.WatchPauses(t)
			client, s := start(t, netstack.Config{}, func(_ context.Context, f *netstack.Flow) {
				c, err := f.Accept()
				if err != nil {
					return
				}
				tt.server(c)
				c.Close()
			})
			local := netip.AddrPortFrom(netstacktest.Addr4, 4000)
			for range rounds {
				pauses.Longest() // discard pauses so far
				begin := time.Now()
				conn, err := dial(t, client, local, server4)
				if err != nil {
					t.Fatal(err)
				}
				if d := time.Since(begin); d > 800*time.Millisecond+10*pauses.Longest() {
					t.Errorf("connect took %v: a SYN was lost", d)
				}
				tt.client(t, conn)
				eventually(t, "the application's port is free", func() bool { return !conn.Registered() })
			}
			eventually(t, "all flows are forgotten", func() bool { return s.Stats().Open == 0 })
		})
	}
}

func TestMaxParked(t *testing.T) {
	client, s := start(t, netstack.Config{}, func(ctx context.Context, f *netstack.Flow) { <-ctx.Done() })
	s.SetMaxParked(2)
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, _ = client.Dial(ctx, netip.AddrPort{}, server4)
	}
	eventually(t, "two are parked and one is dropped", func() bool {
		st := s.Stats()
		return st.Parked == 2 && st.Dropped == 1
	})
}

// With many flows at once, each gets its turn. Those that still wait when the stack stops are ended.
func TestManyAtOnce(t *testing.T) {
	const n = 300
	var begun, ended, more atomic.Int64
	client, s := start(t, netstack.Config{}, func(ctx context.Context, f *netstack.Flow) {
		if begun.Add(1) > n {
			more.Add(1)
			<-ctx.Done()
			return
		}
		defer ended.Add(1)
		c, err := f.Accept()
		if err != nil {
			t.Errorf("Accept: %v", err)
			return
		}
		_ = c.Close()
	})
	var all sync.WaitGroup
	defer all.Wait()
	for range n {
		all.Go(func() {
			c, err := dial(t, client, netip.AddrPort{}, server4)
			if err != nil {
				t.Errorf("dial: %v", err)
				return
			}
			_ = c.Close()
		})
	}
	all.Wait()
	// An application has its connection before we have looked at the handshake's last segment.
	eventually(t, "all are answered", func() bool { return ended.Load() == n })
	if got := s.Stats(); got.Dropped != 0 || got.Parked != 0 {
		t.Errorf("stats = %+v, want nothing dropped or parked", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range n {
		all.Go(func() { _, _ = client.Dial(ctx, netip.AddrPort{}, server4) })
	}
	eventually(t, "some have begun", func() bool { return more.Load() > 0 })
}

func TestDeadlines(t *testing.T) {
	done, timedOut := make(chan struct{}), make(chan struct{})
	client, _ := start(t, netstack.Config{}, func(_ context.Context, f *netstack.Flow) {
		defer close(done)
		c, err := f.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		var timeout interface{ Timeout() bool }
		if _, err := c.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("read past the deadline = %v, want a timeout", err)
		}
		close(timedOut)
		_ = c.SetReadDeadline(time.Time{})
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Errorf("read after the deadline was taken away: %v", err)
		}
		n := 0
		for tries := 0; n == 0 && tries < 20; tries++ { // on a busy machine the time may pass before anything is sent
			_ = c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
			if n, err = c.Write(make([]byte, 64<<20)); !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Errorf("write to a full window = %d, %v; want a timeout", n, err)
				break
			}
		}
		if n == 0 {
			t.Error("write to a full window wrote nothing, want some bytes")
		}
		_ = c.SetLinger(0)
	})
	conn := mustDial(t, client, server4)
	<-timedOut
	_, _ = conn.Write([]byte("late"))
	<-done
}

func TestDatagrams(t *testing.T) {
	for name, dst := range both {
		t.Run(name, func(t *testing.T) {
			client, _ := start(t, netstack.Config{Datagrams: func(d *netstack.Datagram) {
				if string(d.Payload()) == "nobody" {
					d.Unreachable(syscall.ECONNREFUSED)
					return
				}
				if d.Dst() != dst {
					t.Errorf("Dst = %v, want %v", d.Dst(), dst)
				}
				if err := d.Reply(append(d.Payload(), d.Payload()...)); err != nil {
					t.Errorf("Reply: %v", err)
				}
			}}, func(context.Context, *netstack.Flow) {})
			conn, err := client.DialUDP(dst)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
			for _, size := range []int{1, 700, 1472, 20000} { // the last one is fragmented both ways
				want := make([]byte, size)
				_, _ = rand.Read(want)
				if _, err := conn.Write(want); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, 65535)
				n, err := conn.Read(got)
				if err != nil || !bytes.Equal(got[:n], append(want, want...)) {
					t.Fatalf("datagram of %d bytes: %d back, %v", size, n, err)
				}
			}
			_, _ = conn.Write([]byte("nobody"))
			if _, err := conn.Read(make([]byte, 1)); err == nil {
				t.Error("read after ICMP port unreachable succeeded")
			}
		})
	}
}
