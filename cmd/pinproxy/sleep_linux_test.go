package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"pinproxy/netstack"
	"pinproxy/netstack/netstacktest"
	"pinproxy/proxy"
	"pinproxy/rules"
)

// asleepNet is netstack and proxy put together, in memory on the application's side:
//
//	netstacktest.Client ══ pipe ══ netstack ── proxy ── loopback ── server
type asleepNet struct {
	t      *testing.T
	client *netstacktest.Client
	pins   *proxy.Proxy
	conns  chan net.Conn // at the server
}

func newAsleepNet(t *testing.T) *asleepNet {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &asleepNet{t: t, conns: make(chan net.Conn, 1000)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.conns <- c
		}
	}()
	set, err := rules.NewSet(nil)
	if err != nil {
		t.Fatal(err)
	}
	n.pins = proxy.New(proxy.Config{
		Names:  rules.NewNames(set),
		Dialer: proxy.Sockets{},
		Log:    slog.New(slog.DiscardHandler),
		Direct: func(netip.AddrPort) bool { return true },
		Apart:  true,
	})
	dev, client, err := netstacktest.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	n.client = client
	stack, err := netstack.New(dev, netstack.Config{})
	if err != nil {
		t.Fatal(err)
	}
	server := l.Addr().(*net.TCPAddr).AddrPort()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- stack.Serve(ctx, func(ctx context.Context, f *netstack.Flow) { n.pins.Handle(ctx, outwardFlow{f, server}) })
	}()
	<-stack.Ready()
	t.Cleanup(func() {
		_ = l.Close()
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve = %v", err)
		}
		if st := n.pins.Stats(); st.Live != 0 || st.Asleep != 0 {
			t.Errorf("after Serve: %+v", st)
		}
		client.Close()
	})
	return n
}

// connect returns both ends of a connection.
func (n *asleepNet) connect() (app *netstacktest.Conn, server *net.TCPConn) {
	n.t.Helper()
	app, err := n.client.Dial(n.t.Context(), netip.AddrPort{}, netip.MustParseAddrPort("203.0.113.5:443"))
	if err != nil {
		n.t.Fatal(err)
	}
	return app, (<-n.conns).(*net.TCPConn)
}

// asleep waits until that many flows are asleep.
func (n *asleepNet) asleep(want int) {
	n.t.Helper()
	for end := time.Now().Add(20 * time.Second); n.pins.Stats().Asleep != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("%+v, want %d asleep", n.pins.Stats(), want)
		}
	}
}

// sleepTalk sends bytes from one end to the other.
func sleepTalk(from, to net.Conn, seed uint64) error {
	sent := make([]byte, 1+rand.New(rand.NewPCG(seed, 1)).IntN(200_000))
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(sent)
	failed := make(chan error, 1)
	go func() {
		_, err := from.Write(sent)
		failed <- err
	}()
	got := make([]byte, len(sent))
	_ = to.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := io.ReadFull(to, got); err != nil {
		return fmt.Errorf("%d bytes of %d: %w", n, len(sent), err)
	}
	if !bytes.Equal(got, sent) {
		return errors.New("what arrived is not what was sent")
	}
	return <-failed
}

// Flows that have fallen asleep, all at about the same time, are woken by either side, by bytes and by each way to
// end. Those asleep at the end are reset.
func TestFlowsSleepAndWake(t *testing.T) {
	t.Parallel()
	const each = 12
	n := newAsleepNet(t)
	ways := map[string]func(app *netstacktest.Conn, server *net.TCPConn) error{
		"bytes up":   func(app *netstacktest.Conn, server *net.TCPConn) error { return sleepTalk(app, server, 1) },
		"bytes down": func(app *netstacktest.Conn, server *net.TCPConn) error { return sleepTalk(server, app, 2) },
		"application's FIN": func(app *netstacktest.Conn, server *net.TCPConn) error {
			_ = app.CloseWrite()
			return errors.Join(ends(server, nil), sleepTalk(server, app, 3))
		},
		"server's FIN": func(app *netstacktest.Conn, server *net.TCPConn) error {
			_ = server.CloseWrite()
			return errors.Join(ends(app, nil), sleepTalk(app, server, 4))
		},
		"application's reset": func(app *netstacktest.Conn, server *net.TCPConn) error {
			app.Abort()
			return ends(server, syscall.ECONNRESET)
		},
		"server's reset": func(app *netstacktest.Conn, server *net.TCPConn) error {
			_, _ = server.SetLinger(0), server.Close()
			return ends(app, syscall.ECONNRESET)
		},
	}
	type pair struct {
		app    *netstacktest.Conn
		server *net.TCPConn
		way    string
	}
	var pairs []pair
	for way := range ways {
		for range each {
			app, server := n.connect()
			if err := errors.Join(sleepTalk(app, server, 5), sleepTalk(server, app, 6)); err != nil {
				t.Fatal(err)
			}
			pairs = append(pairs, pair{app, server, way})
		}
	}
	n.asleep(len(pairs))
	var wg sync.WaitGroup
	for _, p := range pairs {
		wg.Go(func() {
			if err := ways[p.way](p.app, p.server); err != nil {
				t.Errorf("%s: %v", p.way, err)
			}
		})
	}
	wg.Wait()
	n.asleep(4 * each) // the rest was reset
	t.Cleanup(func() {
		for _, p := range pairs {
			_ = p.server.Close()
		}
	})
}

// ends reads to the end of the stream, which must be want.
func ends(c net.Conn, want error) error {
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, want) && (want != nil || err != io.EOF) {
		return fmt.Errorf("read %d bytes, %v, want the end by %v", n, err, want)
	}
	return nil
}
