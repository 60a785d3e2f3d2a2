package proxy

import (
	"fmt"
	"io"
	"testing"
)

// BenchmarkSplice measures the throughput of one flow, loopback socket to loopback socket, sender and receiver
// included.
func BenchmarkSplice(b *testing.B) {
	const chunk = 1 << 20
	for _, way := range []string{"up", "down"} {
		b.Run(way, func(b *testing.B) {
			h, s := pinnedServer(b)
			f, up := connected(b, h, s)
			var from, to Conn = f.app, up
			if way == "down" {
				from, to = up, f.app
			}
			arrived := make(chan int64, 1)
			go func() {
				n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{to}, make([]byte, chunk))
				arrived <- n
			}()
			data := make([]byte, chunk)
			sent := int64(0)
			b.SetBytes(chunk)
			b.ReportAllocs()
			for b.Loop() {
				n, err := from.Write(data)
				if err != nil {
					b.Fatal(err)
				}
				sent += int64(n)
			}
			_ = from.CloseWrite()
			if n := <-arrived; n != sent {
				b.Errorf("%d bytes arrived of %d", n, sent)
			}
			_ = to.Close()
		})
	}
}

// BenchmarkFlow measures a flow from its SYN to its end over the kernel's loopback: decide, lease, dial, one byte
// down, close. The application's end is in memory.
func BenchmarkFlow(b *testing.B) {
	s := listen(b, "127.0.0.1:0")
	first := freePorts(b, 1000)
	h := newHarness(b, Config{}, fmt.Sprintf("*:*=%d-%d", first, first+999))
	go func() {
		for c := range s.conns {
			_, _ = c.Write([]byte{1})
			_ = c.Close()
		}
	}()
	b.Cleanup(func() { close(s.conns) })
	b.ReportAllocs()
	for b.Loop() {
		f := &testFlow{dst: s.addr, accept: memory, answers: make(chan string, 1)}
		done := make(chan struct{})
		go func() {
			h.handle(b.Context(), f)
			close(done)
		}()
		if got := <-f.answers; got != "accept" {
			b.Fatal(got)
		}
		if n, err := io.Copy(io.Discard, f.app); n != 1 || err != nil {
			b.Fatal(n, err)
		}
		_ = f.app.Close()
		<-done
	}
}
