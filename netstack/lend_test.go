package netstack_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	mrand "math/rand/v2"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"pinproxy/netstack"
	"pinproxy/netstack/netstacktest"
)

// lending is a netstack.Conn whose bytes can be lent.
type lending interface {
	netstack.Conn
	WaitRead() error
	Lend(take func(pieces [][]byte, urgent bool) int) (int, error)
}

// lenders starts a stack and returns a function that makes a connection: the application's end and ours.
func lenders(t *testing.T) func() (*netstacktest.Conn, lending) {
	conns := make(chan lending, 1)
	client, _ := start(t, netstack.Config{}, func(_ context.Context, f *netstack.Flow) {
		c, err := f.Accept()
		if err != nil {
			t.Errorf("Accept: %v", err)
			close(conns)
			return
		}
		defer c.Close()
		conns <- c.(lending)
		<-t.Context().Done()
	})
	return func() (*netstacktest.Conn, lending) {
		app := mustDial(t, client, server4)
		c, ok := <-conns
		if !ok {
			t.FailNow()
		}
		return app, c
	}
}

// all takes everything that is lent.
func all(pieces [][]byte, _ bool) (n int) {
	for _, p := range pieces {
		n += len(p)
	}
	return n
}

// Whatever part is taken at a time, all bytes come once and in order, followed by the end of the stream.
func TestLend(t *testing.T) {
	connect := lenders(t)
	for name, part := range map[string]func(there int) int{
		"all":  func(there int) int { return there },
		"some": func(there int) int { return mrand.IntN(there + 1) },
		"few":  func(there int) int { return min(there, mrand.IntN(3000)) },
	} {
		app, c := connect()
		want := make([]byte, 1<<20)
		_, _ = rand.Read(want)
		go func() {
			for rest := want; len(rest) > 0; {
				n := min(len(rest), 1+mrand.IntN(200_000))
				_, _ = app.Write(rest[:n])
				rest = rest[n:]
			}
			_ = app.CloseWrite()
		}()
		var got []byte
		var err error
		for err == nil {
			var n, took int
			if err = c.WaitRead(); err == nil {
				n, err = c.Lend(func(pieces [][]byte, _ bool) int {
					there := bytes.Join(pieces, nil)
					took = part(len(there))
					got = append(got, there[:took]...)
					return took
				})
			}
			if n != took {
				t.Fatalf("%s: %d bytes were taken, Lend says %d", name, took, n)
			}
		}
		if err != io.EOF || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes came, %v; want the %d sent and the end", name, len(got), err, len(want))
		}
	}
}

// Without bytes nothing is lent, and the caller learns the reason as a reader does.
func TestLendWithoutBytes(t *testing.T) {
	connect := lenders(t)
	none := func([][]byte, bool) int { t.Error("something was lent"); return 0 }
	for name, c := range map[string]struct {
		end  func(app *netstacktest.Conn, c netstack.Conn)
		want error
	}{
		"idle":     {func(*netstacktest.Conn, netstack.Conn) {}, nil},
		"ended":    {func(app *netstacktest.Conn, _ netstack.Conn) { _ = app.CloseWrite() }, io.EOF},
		"reset":    {func(app *netstacktest.Conn, _ netstack.Conn) { app.Abort() }, syscall.ECONNRESET},
		"closed":   {func(_ *netstacktest.Conn, c netstack.Conn) { _ = c.Close() }, net.ErrClosed},
		"deadline": {func(_ *netstacktest.Conn, c netstack.Conn) { _ = c.SetReadDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded},
	} {
		app, conn := connect()
		c.end(app, conn)
		var err error
		if c.want != nil {
			err = conn.WaitRead()
		}
		n := 0
		if err == nil {
			n, err = conn.Lend(none)
		}
		if n != 0 || !errors.Is(err, c.want) {
			t.Errorf("%s: %d bytes, %v; want %v", name, n, err, c.want)
		}
	}
}

// A deadline that has passed ends the wait even if there is something to read. Otherwise a fast flow could not be
// ended.
func TestDeadlineBesideBytes(t *testing.T) {
	app, c := lenders(t)()
	_, _ = app.Write([]byte("bytes"))
	if err := c.WaitRead(); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Unix(1, 0))
	if err := c.WaitRead(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("WaitRead = %v, want the deadline", err)
	}
	if n, err := c.Lend(all); n != 5 || err != nil { // what is there may still be carried
		t.Errorf("Lend = %d, %v", n, err)
	}
}

// While bytes are lent, nothing frees them: neither Close nor a reset, although both throw received bytes away.
func TestLentBytesStay(t *testing.T) {
	connect := lenders(t)
	for name, end := range map[string]func(app *netstacktest.Conn, c netstack.Conn){
		"close": func(_ *netstacktest.Conn, c netstack.Conn) { _ = c.SetLinger(0); _ = c.Close() },
		"reset": func(app *netstacktest.Conn, _ netstack.Conn) { app.Abort() },
	} {
		app, c := connect()
		other, others := connect() // if the lent bytes were freed, these would take their place
		want := bytes.Repeat([]byte("lent"), 50_000)
		_, _ = app.Write(want)
		if err := c.WaitRead(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		n, err := c.Lend(func(pieces [][]byte, _ bool) int {
			go func() { end(app, c); close(ended) }()
			for range 20 {
				_, _ = other.Write(make([]byte, 64<<10))
				_, _ = io.ReadFull(others, make([]byte, 64<<10))
			}
			there := bytes.Join(pieces, nil)
			if !bytes.Equal(there, want[:len(there)]) {
				t.Errorf("%s: what was lent has changed", name)
			}
			return len(there)
		})
		if n == 0 || err != nil {
			t.Errorf("%s: Lend = %d, %v", name, n, err)
		}
		<-ended
	}
}
