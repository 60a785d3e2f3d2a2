package netstack_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"pinproxy/netstack"
)

// What an application does not read is kept up to the size that was set. On top of that, its own kernel, which is a
// netstack here too, takes 1 MiB. The same holds for what we do not read; there the application's kernel keeps 1 MiB,
// and up to 4 MiB.
func TestBufferIsBounded(t *testing.T) {
	const receive, send, theirs, most, slack = 256 << 10, 128 << 10, 1 << 20, 4 << 20, 128 << 10
	taken, over := make(chan int, 1), make(chan struct{})
	client, s := start(t, netstack.Config{}, func(_ context.Context, f *netstack.Flow) {
		c, err := f.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_ = c.SetLinger(0)
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := c.Write(make([]byte, 8<<20))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write to one that does not read = %d, %v", n, err)
		}
		taken <- n
		<-over
	})
	defer close(over)
	s.SetBuffer(receive, send)
	c := mustDial(t, client, server4)
	if n := <-taken; n > theirs+send+slack {
		t.Errorf("%d bytes were taken, want %d for us and %d for the application at most", n, send, theirs)
	}
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	if n, err := c.Write(make([]byte, 8<<20)); err == nil || n > most+receive+slack {
		t.Errorf("the application could write %d bytes, %v; want %d for us and %d for itself at most", n, err, receive, most)
	}
}

// Buffers of any size carry all bytes, even on connections that begin while the size changes.
func TestBuffersChange(t *testing.T) {
	client, s := start(t, netstack.Config{}, echo)
	want := make([]byte, 2<<20)
	_, _ = rand.Read(want)
	for name, dst := range both {
		for _, size := range []int{512 << 10, 128 << 10, 0, 256 << 10} {
			conn := mustDial(t, client, dst)
			go func() {
				s.SetBuffer(2*size, size) // of the next connection
				_, _ = conn.Write(want)
				_ = conn.CloseWrite()
			}()
			got, err := io.ReadAll(conn)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, beside %d: %d bytes came back, %v; want the %d sent", name, size, len(got), err, len(want))
			}
		}
	}
}
