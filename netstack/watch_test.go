package netstack_test

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pinproxy/netstack"
	"pinproxy/netstack/netstacktest"
)

// watched is a netstack.Conn that can be watched.
type watched interface {
	netstack.Conn
	Watch(w interface{ Wake() }) bool
	Unwatch()
	WatchReset(w interface{ Wake() }) bool
	Broken() bool
	Probe()
}

// bell is a watcher that can be woken.
type bell chan struct{}

func (b bell) Wake() {
	select {
	case b <- struct{}{}:
	default:
	}
}

func (b bell) rings(t *testing.T, why string) {
	t.Helper()
	select {
	case <-b:
	case <-time.After(30 * time.Second):
		t.Fatalf("not woken by %s", why)
	}
}

// Whatever ends a wait for bytes wakes the watcher, even if it happened before.
func TestWatch(t *testing.T) {
	conns := make(chan watched, 1)
	client, _ := start(t, netstack.Config{}, func(_ context.Context, f *netstack.Flow) {
		if c, err := f.Accept(); err == nil {
			f.Detach()
			conns <- c.(watched)
			go func() {
				<-t.Context().Done() // the flow outlives its handler, until the test ends
				_ = c.Close()
				f.Done()
			}()
		}
	})
	app := mustDial(t, client, server4)
	c, b := <-conns, make(bell, 1)

	c.Watch(b)
	_, _ = app.Write([]byte("one"))
	b.rings(t, "bytes")
	c.Unwatch()

	c.Watch(b)
	b.rings(t, "bytes that were there already")
	c.Unwatch()
	if _, err := io.ReadFull(c, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}

	c.Watch(b)
	c.Unwatch()
	_, _ = app.Write([]byte("two"))
	if _, err := io.ReadFull(c, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if len(b) != 0 {
		t.Error("woken although nobody watches any more")
	}

	c.Watch(b)
	_ = app.CloseWrite()
	b.rings(t, "the stream's end")
	c.Unwatch()
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("Read = %v, want the stream's end", err)
	}

	app = mustDial(t, client, server4)
	c = <-conns
	c.Watch(b)
	if c.Broken() {
		t.Error("broken before the reset")
	}
	app.Abort()
	b.rings(t, "a reset")
	c.Unwatch()
	if !c.Broken() {
		t.Error("not broken by a reset")
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Read = %v, want a reset", err)
	}
}

// A reset behind the end of the stream is told, whether it comes before or after somebody watches. An end in order is
// none.
func TestWatchReset(t *testing.T) {
	conns := make(chan watched, 1)
	client, s := start(t, netstack.Config{}, func(_ context.Context, f *netstack.Flow) {
		c, err := f.Accept()
		if err != nil {
			return
		}
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("Read = %v, want the stream's end", err)
		}
		f.Detach()
		conns <- c.(watched)
		go func() {
			<-t.Context().Done()
			_ = c.Close()
			f.Done()
		}()
	})
	ended := func() (*netstacktest.Conn, watched, bell) {
		app := mustDial(t, client, server4)
		_ = app.CloseWrite()
		return app, <-conns, make(bell, 1)
	}
	app, c, b := ended()
	c.WatchReset(b)
	if len(b) != 0 {
		t.Error("woken by the end alone")
	}
	app.Abort()
	b.rings(t, "a reset")

	app, c, b = ended()
	app.Abort()
	eventually(t, "the reset has come", c.Broken)
	c.WatchReset(b)
	b.rings(t, "a reset that has come before")

	app, c, b = ended()
	open := s.Stats().Open
	c.WatchReset(b)
	_ = c.CloseWrite()
	if _, err := io.ReadAll(app); err != nil {
		t.Error(err)
	}
	eventually(t, "both have ended", func() bool { return s.Stats().Open < open })
	if len(b) != 0 {
		t.Error("woken by an end in order")
	}
}

// An application that has closed and been forgotten is found out by probing, whereas one that listens yet is not broken.
func TestProbe(t *testing.T) {
	conns := make(chan watched, 2)
	client, _ := start(t, netstack.Config{}, func(_ context.Context, f *netstack.Flow) {
		if c, err := f.Accept(); err == nil {
			conns <- c.(watched)
			<-t.Context().Done()
			_ = c.Close()
		}
	})
	forgotten := mustDial(t, client, server4)
	c := <-conns
	listening := mustDial(t, client, server4)
	other := <-conns
	forgotten.Forget()
	_ = listening.CloseWrite()
	for _, conn := range []watched{c, other} {
		if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("Read = %v, want the stream's end", err)
		}
		if conn.Broken() {
			t.Error("broken by the stream's end")
		}
	}
	other.Probe()
	c.Probe()
	eventually(t, "it is broken", c.Broken)
	if other.Broken() {
		t.Error("probing has broken a connection that is still known")
	}
}

// A detached flow goes on without its handler. In the end Serve resets it and waits for it.
func TestDetach(t *testing.T) {
	var over atomic.Bool
	t.Cleanup(func() { // runs after the cleanup of start, in which Serve ends
		if !over.Load() {
			t.Error("Serve has not waited")
		}
	})
	watching := make(chan struct{})
	client, _ := start(t, netstack.Config{}, func(_ context.Context, f *netstack.Flow) {
		c, err := f.Accept()
		if err != nil {
			return
		}
		f.Detach()
		go func() {
			b := make(bell, 1)
			c.(watched).Watch(b)
			close(watching)
			<-b
			c.(watched).Unwatch()
			if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("Read = %v when the stack stops, want an error", err)
			}
			_ = c.Close()
			over.Store(true)
			f.Done()
		}()
	})
	if _, err := dial(t, client, netip.AddrPort{}, server4); err != nil {
		t.Fatal(err)
	}
	<-watching
	if over.Load() {
		t.Error("the flow has ended with its handler")
	}
}

// Work that Flow.Go runs may go on for a moment after the flow is done. Serve waits for it.
func TestGo(t *testing.T) {
	l, client, err := netstacktest.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	s, err := netstack.New(l, netstack.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var over atomic.Bool
	dialed, served := make(chan struct{}), make(chan error, 1)
	go func() {
		served <- s.Serve(ctx, func(_ context.Context, f *netstack.Flow) {
			c, err := f.Accept()
			if err != nil {
				return
			}
			f.Detach()
			f.Go(func() {
				<-dialed
				_ = c.Close()
				f.Done()
				cancel()
				time.Sleep(100 * time.Millisecond) // by then Serve has nothing else to wait for
				over.Store(true)
			})
		})
	}()
	<-s.Ready()
	mustDial(t, client, server4)
	close(dialed)
	if err := <-served; err != nil || !over.Load() {
		t.Errorf("Serve = %v before the work is over", err)
	}
}
