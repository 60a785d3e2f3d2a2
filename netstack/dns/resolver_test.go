package dns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// fakeResolver is a real Resolver with scripted lookups.
func fakeResolver(obs *observer, log io.Writer, lookup func(ctx context.Context, name string) (found, error)) *Resolver {
	r := NewResolver(nil, obs.refresh, slog.New(slog.NewTextHandler(log, nil)))
	r.lookup = lookup
	return r
}

func TestResolverFirstRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		obs := &observer{}
		var now, most atomic.Int32
		r := fakeResolver(obs, io.Discard, func(ctx context.Context, name string) (found, error) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			time.Sleep(time.Second)
			return found{addrs: addrs("203.0.113.1"), ttl: time.Hour, wire: true}, nil
		})
		var names []string
		for i := range 40 {
			names = append(names, fmt.Sprintf("N%d.example.", i), fmt.Sprintf("n%d.example", i))
		}
		ctx, cancel := context.WithCancel(t.Context())
		ready, done := make(chan time.Time, 2), make(chan error)
		start := time.Now()
		go func() { done <- r.Run(ctx, names, func() { ready <- time.Now() }) }()
		if got := (<-ready).Sub(start); got != 3*time.Second {
			t.Errorf("ready after %v", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		none(t, ready)
		if got := obs.all(); len(got) != 40 || most.Load() != atOnce {
			t.Errorf("%d names, %d at a time", len(got), most.Load())
		}
	})
}

func TestResolverReadyIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := fakeResolver(&observer{}, io.Discard, func(ctx context.Context, name string) (found, error) {
			<-ctx.Done()
			return found{}, errTimeout
		})
		for _, names := range [][]string{{"a", "b"}, nil} {
			ctx, cancel := context.WithCancel(t.Context())
			ready, done := make(chan bool), make(chan error)
			start := time.Now()
			go func() { done <- r.Run(ctx, names, func() { close(ready) }) }()
			<-ready
			if got, want := time.Since(start), firstWait*time.Duration(min(len(names), 1)); got != want {
				t.Errorf("ready after %v, want %v", got, want)
			}
			cancel()
			<-done
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := r.Run(ctx, []string{"a"}, func() { t.Error("ready though canceled") }); err != nil {
			t.Error(err)
		}
	})
}

// When a name is looked up again, depending on the last lookup's result.
func TestResolverSchedule(t *testing.T) {
	for _, tt := range []struct {
		got      found
		want     time.Duration
		observed time.Duration // at least
	}{
		{found{ttl: 0, wire: true}, soonest, soonest},
		{found{ttl: 2 * time.Second, wire: true}, soonest, soonest},
		{found{ttl: 5 * time.Minute, wire: true}, 5 * time.Minute, 5 * time.Minute},
		{found{ttl: 24 * time.Hour, wire: true}, latest, 24 * time.Hour},
		{found{ttl: 0, wire: false}, hostsEvery, hostsEvery},
	} {
		synctest.Test(t, func(t *testing.T) {
			obs := &observer{}
			looked := make(chan time.Time)
			r := fakeResolver(obs, io.Discard, func(ctx context.Context, name string) (found, error) {
				select {
				case looked <- time.Now():
				case <-ctx.Done():
				}
				tt.got.addrs = addrs("203.0.113.1")
				return tt.got, nil
			})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- r.Run(ctx, []string{"a"}, nil) }()
			last := <-looked
			for i := range 20 {
				now := <-looked
				if d := now.Sub(last); d < tt.want || d > tt.want+tt.want/10 {
					t.Errorf("%v again after %v", tt.got, d)
				}
				if ttl := obs.all()[i].TTL; ttl < max(tt.observed, now.Sub(last)) {
					t.Errorf("%v: observed TTL %v", tt.got, ttl)
				}
				last = now
			}
			cancel()
			<-done
		})
	}
}

func TestResolverTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log safeBuffer
		var at []time.Duration
		start := time.Now()
		errs := slices.Concat(slices.Repeat([]error{errTimeout}, 9), []error{errNoName, errNoName, nil, errTimeout})
		obs := &observer{}
		ctx, cancel := context.WithCancel(t.Context())
		r := fakeResolver(obs, &log, func(ctx context.Context, name string) (found, error) {
			at = append(at, time.Since(start))
			if len(at) == len(errs) {
				cancel()
			}
			if err := errs[len(at)-1]; err != nil {
				return found{}, err
			}
			return found{addrs: addrs("203.0.113.1"), ttl: time.Minute, wire: true}, nil
		})
		r.Run(ctx, []string{"a"}, func() {})
		for i := range 8 {
			want := min(time.Second<<i, time.Minute)
			if d := at[i+1] - at[i]; d < want || d > want+want/10 {
				t.Errorf("try %d after %v, want %v", i+1, d, want)
			}
		}
		got := log.String()
		for _, want := range []string{"timeout", "does not exist", "resolves again"} {
			if strings.Count(got, want) != 1 {
				t.Errorf("%q not once in\n%s", want, got)
			}
		}
		if len(obs.all()) != 1 {
			t.Errorf("observed %v", obs.all())
		}
	})
	synctest.Test(t, func(t *testing.T) { // a failing observer is called again soon
		var log safeBuffer
		ctx, cancel := context.WithCancel(t.Context())
		times := 0
		obs := &observer{observe: func(observed) error {
			if times++; times == 3 {
				cancel()
			}
			return errNoRoute
		}}
		r := fakeResolver(obs, &log, func(context.Context, string) (found, error) {
			return found{addrs: addrs("203.0.113.1"), ttl: time.Hour, wire: true}, nil
		})
		start := time.Now()
		r.Run(ctx, []string{"a"}, nil)
		if d := time.Since(start); d > 4*time.Second || strings.Count(log.String(), "\n") != 1 {
			t.Errorf("%v\n%s", d, log.String())
		}
	})
}

// What is known of one family is used, and the other is asked for again soon.
func TestResolverKnowsAPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log safeBuffer
		var at []time.Duration
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		obs := &observer{}
		r := fakeResolver(obs, &log, func(context.Context, string) (found, error) {
			at = append(at, time.Since(start))
			got := found{addrs: addrs("203.0.113.1"), ttl: 10 * time.Second, wire: true}
			if len(at) == 9 {
				cancel()
			}
			if len(at) < 7 {
				return got, errTimeout
			}
			return got, nil
		})
		r.Run(ctx, []string{"a"}, nil)
		for i, want := range []time.Duration{1, 2, 4, 8, 10, 10, 10, 10} {
			want *= time.Second
			if d := at[i+1] - at[i]; d < want || d > want+want/10 {
				t.Errorf("try %d after %v, want %v", i+1, d, want)
			}
		}
		if n := len(obs.all()); n < 8 {
			t.Errorf("observed %d times", n)
		}
		if got := log.String(); strings.Count(got, "timeout") != 1 || strings.Count(got, "resolves again") != 1 {
			t.Error(got)
		}
	})
}

// dnsServer answers over UDP and TCP on one port. A UDP query for a name that begins with "big" gets a
// truncated answer.
func dnsServer(t *testing.T, answer func(q []byte, h string, typ dnsmessage.Type) []byte) netip.AddrPort {
	var l net.Listener
	var u *net.UDPConn
	var err error
	for range 10 { // the other protocol's port of that number may be in use
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if u, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(l.Addr().(*net.TCPAddr).AddrPort())); err == nil {
			break
		}
		l.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	do := func(msg []byte) ([]byte, string) {
		_, _, q, ok := parseQuestion(msg, false)
		if !ok {
			t.Errorf("asked %x", msg)
		}
		return answer(msg, q.name, q.typ), q.name
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := u.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if a, name := do(buf[:n]); strings.HasPrefix(name, "big") {
				a = answerTo(buf[:n])
				a[2] |= 0x02
				u.WriteToUDPAddrPort(a, from)
			} else if a != nil {
				u.WriteToUDPAddrPort(a, from)
			}
		}
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 4096)
			n, _ := io.ReadAtLeast(c, b, frameLen+headerLen+5)
			a, _ := do(b[frameLen:n])
			c.Write(frame(a))
			c.Close()
		}
	})
	t.Cleanup(func() {
		l.Close()
		u.Close()
		wg.Wait()
	})
	return addr
}

// net.Resolver together with our sockets, over the wire.
func TestLookup(t *testing.T) {
	leaks(t)
	server := dnsServer(t, func(msg []byte, h string, typ dnsmessage.Type) []byte {
		owner := h + "."
		switch {
		case h == "nx.pinproxy.example":
			a := answerTo(msg)
			a[3] |= 3
			return a
		case h == "broken.pinproxy.example":
			a := answerTo(msg)
			a[3] |= 2
			return a
		case h == "silent.pinproxy.example", h == "mute6.pinproxy.example" && typ == dnsmessage.TypeAAAA:
			return nil
		case h == "half4.pinproxy.example" && typ == dnsmessage.TypeAAAA, h == "half6.pinproxy.example" && typ == dnsmessage.TypeA:
			a := answerTo(msg)
			a[3] |= 2
			return a
		case h == "local.pinproxy.example" && typ == dnsmessage.TypeA:
			return answerTo(msg, rec(owner, 60, "127.0.0.1"))
		case h == "v4.pinproxy.example" && typ == dnsmessage.TypeAAAA:
			return answerTo(msg)
		case h == "local.pinproxy.example":
			return answerTo(msg)
		case typ == dnsmessage.TypeAAAA:
			return answerTo(msg, rec(owner, 70, "2001:db8::1"))
		}
		return answerTo(msg, cname(owner, 50, "cdn.example."), rec("cdn.example.", 90, "203.0.113.1"))
	})
	dialed := make(map[string]int)
	var mu sync.Mutex
	dial := func(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
		mu.Lock()
		dialed[network]++
		mu.Unlock()
		return directly(ctx, network, server)
	}
	for _, tt := range []struct {
		name, want string
		ttl        time.Duration
		err        error
	}{
		{name: "ok.pinproxy.example", want: "203.0.113.1 2001:db8::1", ttl: 50 * time.Second},
		{name: "v4.pinproxy.example", want: "203.0.113.1", ttl: 50 * time.Second},
		{name: "big.pinproxy.example", want: "203.0.113.1 2001:db8::1", ttl: 50 * time.Second},
		{name: "half4.pinproxy.example", want: "203.0.113.1", ttl: 50 * time.Second, err: errors.New("its IPv6 addresses: server misbehaving")},
		{name: "half6.pinproxy.example", want: "2001:db8::1", ttl: 70 * time.Second, err: errors.New("its IPv4 addresses: server misbehaving")},
		{name: "nx.pinproxy.example", err: errNoName},
		{name: "local.pinproxy.example", err: errLocalOnly},
		{name: "broken.pinproxy.example", err: errors.New("server misbehaving")},
	} {
		got, err := lookup(t.Context(), dial, tt.name)
		if fmt.Sprint(err) != fmt.Sprint(tt.err) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.err)
			continue
		}
		slices.SortFunc(got.addrs, netip.Addr.Compare)
		if !slices.Equal(got.addrs, addrs(tt.want)) || got.ttl != tt.ttl || got.wire != (tt.want != "") {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
	if dialed["tcp"] != 2 {
		t.Errorf("dialed %v", dialed)
	}

	if b, err := os.ReadFile("/etc/hosts"); err != nil || !strings.Contains(string(b), "localhost") {
		t.Log("not tested: /etc/hosts has no localhost")
	} else if got, err := lookup(t.Context(), dial, "localhost"); err != errLocalOnly {
		t.Errorf("localhost: %+v %v", got, err)
	}

	// The silence about one family does not cost the other.
	half, end := context.WithTimeout(t.Context(), 2*time.Second)
	defer end()
	if got, err := lookup(half, dial, "mute6.pinproxy.example"); !slices.Equal(got.addrs, addrs("203.0.113.1")) || !errors.Is(err, errTimeout) {
		t.Errorf("no answer about IPv6: %+v, %v", got, err)
	}

	// Canceling ends a lookup that waits for a silent server.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := lookup(ctx, dial, "silent.pinproxy.example"); !errors.Is(err, errTimeout) {
		t.Error(err)
	}
	refuse := func(context.Context, string, netip.AddrPort) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	}
	if _, err := lookup(t.Context(), refuse, "ok.pinproxy.example"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
}

// A resolver on this host, or behind it, asks others what we ask it: while we wait for its answer, and after an old one.
func TestResolverAsksThroughAnother(t *testing.T) {
	const name = "www.pinproxy.example"
	app, other := netip.MustParseAddr("192.0.0.8"), netip.MustParseAddr("198.51.100.53")
	for _, test := range []struct {
		resolver string
		by       []netip.Addr // of app and other
	}{{"127.0.0.53:53", []netip.Addr{app, other}}, {"198.51.100.53:53", []netip.Addr{other}}, {"203.0.113.53:53", nil}} {
		synctest.Test(t, func(t *testing.T) {
			dst := netip.MustParseAddrPort(test.resolver)
			r := NewResolver(nil, nil, nil)
			asking := func(name string) (by []netip.Addr) {
				for _, host := range []netip.Addr{app, other} {
					if r.Asking(Asker{Host: host}, name) {
						by = append(by, host)
					}
				}
				return by
			}
			dial := r.dialFor(name, func(context.Context, string, netip.AddrPort) (net.Conn, error) {
				return between{nil, netip.MustParseAddrPort("192.0.2.2:40000"), dst}, nil
			})
			first, end := context.WithCancel(t.Context())
			second, endSecond := context.WithCancel(t.Context())
			for _, ctx := range []context.Context{first, second} {
				if _, err := dial(ctx, "udp", dst); err != nil {
					t.Fatal(err)
				}
			}
			end()
			time.Sleep(time.Minute)
			during := asking(name)
			endSecond()
			synctest.Wait()
			after := asking(name)
			if !slices.Equal(during, test.by) || !slices.Equal(after, test.by) {
				t.Errorf("%s asks others as %v and %v, want %v", dst, during, after, test.by)
			}
			if by := asking("other.example"); len(by) > 0 {
				t.Errorf("%v asks for another name", by)
			}
			time.Sleep(passWait)
			synctest.Wait()
			if by := asking(name); len(by) > 0 || len(r.passed) > 0 {
				t.Errorf("%v still asks; kept: %v", by, r.passed)
			}
		})
	}
}

// between is a connection between two addresses.
type between struct {
	net.Conn
	from, to netip.AddrPort
}

func (b between) LocalAddr() net.Addr  { return net.UDPAddrFromAddrPort(b.from) }
func (b between) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(b.to) }

func TestThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log safeBuffer
		th := newThrottle(slog.New(slog.NewTextHandler(&log, nil)))
		for i := range 130 { // seconds
			th.warn("ask", fmt.Errorf("try %d: %w", i, errNoRoute))
			time.Sleep(time.Second)
		}
		th.warn("ask", errTimeout)
		got := log.String()
		if strings.Count(got, "\n") != 4 || strings.Count(got, "repeated=59") != 2 {
			t.Error(got)
		}
		for i := range 130 { // joined errors, as the observer's are, have an innermost cause too
			th.warn("withhold", errors.Join(fmt.Errorf("keep address %d: %w", i, errNoRoute), errTimeout))
			time.Sleep(time.Second)
		}
		if n := strings.Count(log.String(), "withhold"); n != 3 {
			t.Errorf("%d lines in 130 s, want 3:\n%s", n, log.String())
		}
		for i := range 1000 {
			th.warn("ask", fmt.Errorf("cause %d", i))
		}
		if len(th.causes) > throttleCauses {
			t.Error(len(th.causes))
		}
	})
}
