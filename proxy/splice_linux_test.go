package proxy

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
)

// Either end may be reset in the middle of a conversation. The other end must never take that for the end of the
// stream. The kernel reports a reset only once, to a reader or to a writer.
func TestResetIsNoEnd(t *testing.T) {
	for _, by := range []string{"application", "upstream"} {
		t.Run(by, func(t *testing.T) {
			leaks(t)
			var finished atomic.Int32
			s := listen(t, "127.0.0.1:0")
			h := newHarness(t, Config{Wrap: func(_, _ netip.AddrPort, up Conn) Conn {
				return finishing{up.(*upstream), &finished}
			}}, fmt.Sprintf("*:*=%d", freePort(t)))
			for range 40 {
				f := h.openWith(t, s.addr, func() (Conn, Conn, error) {
					app, ours, err := loopback()
					return app, finishing{ours.(*upstream), &finished}, err
				})
				f.answered(t, "accept")
				var one, other Conn = f.app, s.next(t)
				if by == "upstream" {
					one, other = other, one
				}
				talked := make(chan struct{})
				go func() {
					defer close(talked)
					for chunk := make([]byte, 4<<10); ; {
						if _, err := other.Write(chunk); err != nil {
							return
						}
					}
				}()
				if _, err := io.CopyN(io.Discard, one, 100<<10); err != nil {
					t.Fatal(err)
				}
				_ = one.SetLinger(0)
				_ = one.Close()
				receive(t, talked, "the other end is told")
				_ = other.Close()
				endsAs(t, h, f, "reset by "+by)
			}
			if n := finished.Load(); n != 0 {
				t.Errorf("%d of 40 resets became the stream's end", n)
			}
		})
	}
}

// finishing counts how often a stream is ended in order.
type finishing struct {
	*upstream
	finished *atomic.Int32
}

func (c finishing) CloseWrite() error {
	c.finished.Add(1)
	return c.upstream.CloseWrite()
}

// waiter is a Conn that reports when a read would not block, as netstack's does.
type waiter struct {
	Conn
	raw syscall.RawConn
}

func (w waiter) WaitRead() error {
	return w.raw.Read(func(fd uintptr) bool {
		_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK)
		return err != syscall.EAGAIN
	})
}

// lent is a Conn that lends its bytes, as netstack's does, up to a limit at a time and in many pieces.
type lent struct {
	*upstream
	most int
}

func (l lent) WaitRead() error { return waiter{l.upstream, l.raw}.WaitRead() }

func (l lent) Lend(take func([][]byte, bool) int) (n int, err error) {
	buf := make([]byte, l.most)
	if rerr := l.raw.Read(func(fd uintptr) bool {
		n, _, err = syscall.Recvfrom(int(fd), buf, syscall.MSG_PEEK)
		return true
	}); rerr != nil {
		return 0, rerr
	}
	switch {
	case err == syscall.EAGAIN:
		return 0, nil
	case err != nil:
		return 0, l.fail("read", err)
	case n == 0:
		return 0, io.EOF
	}
	n = take(slices.Collect(slices.Chunk(buf[:n], 1000)), false)
	_, err = io.ReadFull(l.upstream, buf[:n])
	return n, err
}

// Both directions at once carry what was sent, whichever way our end is read.
func TestDuplex(t *testing.T) {
	for _, c := range []struct {
		name string
		size int64
		ours func(Conn) Conn
	}{
		{"chunks", 64 << 20, func(c Conn) Conn { return c }},
		{"waiter", 16 << 20, func(c Conn) Conn { return waiter{c, c.(*upstream).raw} }},
		{"lent", 64 << 20, func(c Conn) Conn { return lent{c.(*upstream), 400_000} }},
		{"lent in drops", 1 << 20, func(c Conn) Conn { return lent{c.(*upstream), 3_000} }},
		{"plain", 16 << 20, func(c Conn) Conn { return c.(*upstream).kernelConn }},
	} {
		t.Run(c.name, func(t *testing.T) {
			leaks(t)
			s := listen(t, "127.0.0.1:0")
			h := newHarness(t, Config{Wrap: func(_, _ netip.AddrPort, up Conn) Conn { return c.ours(up) }}, fmt.Sprintf("*:*=%d", freePort(t)))
			f := h.openWith(t, s.addr, func() (Conn, Conn, error) {
				app, ours, err := loopback()
				return app, c.ours(ours), err
			})
			f.answered(t, "accept")
			up := s.next(t)
			there, back := carried(f.app, up, 1, c.size), carried(up, f.app, 2, c.size)
			for _, way := range []<-chan bool{there, back} {
				if !receive(t, way, "everything has arrived") {
					t.Error("what arrived is not what was sent")
				}
			}
			f.ended(t)
			got := h.log.with("flow")[0].Attrs
			if want := fmt.Sprint(c.size); got["up"] != want || got["down"] != want || got["end"] != "closed" {
				t.Errorf("log: %v, want %s both ways", got, want)
			}
		})
	}
}

// A flow that moves many bytes at a time lets others run in between, whichever way it moves them. A flow that moves
// few does not.
func TestBulkYields(t *testing.T) {
	for name, ours := range map[string]func(Conn) Conn{
		"copied": func(c Conn) Conn { return c },
		"lent":   func(c Conn) Conn { return lent{c.(*upstream), 400_000} },
	} {
		var yields atomic.Int32
		s := listen(t, "127.0.0.1:0")
		h := newHarness(t, Config{Yield: func() { yields.Add(1) }}, fmt.Sprintf("*:*=%d", freePort(t)))
		f := h.openWith(t, s.addr, func() (Conn, Conn, error) {
			app, c, err := loopback()
			return app, ours(c), err
		})
		f.answered(t, "accept")
		up := s.next(t)
		for range 100 {
			write(t, f.app, "request")
			wantRead(t, up, "request")
		}
		if n := yields.Load(); n > 0 {
			t.Errorf("%s: a flow of 7 bytes at a time yielded %d times", name, n)
		}
		const size = 16 << 20
		if !receive(t, carried(f.app, up, 1, size), "everything has arrived") {
			t.Errorf("%s: what arrived is not what was sent", name)
		}
		if n := yields.Load(); n < size>>20/2 { // most bytes move in pieces larger than 32 KiB and smaller than 2 MiB
			t.Errorf("%s: a flow that moved %d bytes yielded %d times", name, size, n)
		}
		_ = up.CloseWrite()
		f.ended(t)
	}
}

// carried sends size random bytes and the end of the stream, and reports whether that is what arrived.
func carried(from, to Conn, seed byte, size int64) <-chan bool {
	same := make(chan bool, 1)
	go func() {
		sent := make(chan []byte, 1)
		go func() { sent <- send(from, seed, size) }()
		got := hash(to)
		same <- bytes.Equal(<-sent, got)
	}()
	return same
}

// send writes size bytes and the end of the stream, and returns their hash.
func send(c Conn, seed byte, size int64) []byte {
	random, sum := rand.NewChaCha8([32]byte{seed}), sha256.New()
	_, _ = io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(c, sum)}, io.LimitReader(random, size), make([]byte, 100_000))
	_ = c.CloseWrite()
	return sum.Sum(nil)
}

// hash returns the hash of what arrives.
func hash(c Conn) []byte {
	sum := sha256.New()
	_, _ = io.Copy(sum, struct{ io.Reader }{c})
	return sum.Sum(nil)
}
