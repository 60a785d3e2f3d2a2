package proxy

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// When a direction ends, the other continues, whichever ends first.
func TestHalfClose(t *testing.T) {
	for _, first := range []string{"application", "upstream"} {
		t.Run(first, func(t *testing.T) {
			leaks(t)
			h, s := pinnedServer(t)
			f, up := connected(t, h, s)
			var one, other Conn = f.app, up
			if first == "upstream" {
				one, other = up, f.app
			}
			write(t, one, "request")
			_ = one.CloseWrite()
			if got := wantEnd(t, other, nil); string(got) != "request" {
				t.Fatalf("%q arrived", got)
			}
			for range 3 {
				write(t, other, "answer")
				wantRead(t, one, "answer")
			}
			_ = other.CloseWrite()
			wantEnd(t, one, nil)
			endsAs(t, h, f, "closed")
		})
	}
}

// A reset arrives after the bytes that were sent before it.
func TestResetBehindData(t *testing.T) {
	data := make([]byte, 700_000)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	for _, by := range []string{"application", "upstream"} {
		t.Run(by, func(t *testing.T) {
			leaks(t)
			h, s := pinnedServer(t)
			f, up := connected(t, h, s)
			var one, other Conn = f.app, up
			if by == "upstream" {
				one, other = up, f.app
			}
			sent := make(chan error, 1)
			go func() {
				_, err := one.Write(data)
				closeByReset(one)
				sent <- err
			}()
			if got := wantEnd(t, other, syscall.ECONNRESET); !bytes.Equal(got, data) {
				t.Errorf("%d bytes arrived before the reset, want %d", len(got), len(data))
			}
			if err := receive(t, sent, "everything is sent"); err != nil {
				t.Error(err)
			}
			endsAs(t, h, f, "reset by "+by)
		})
	}
}

// One end has ended its own direction, and then breaks while being written to.
func TestBreakAfterFIN(t *testing.T) {
	for _, by := range []string{"application", "upstream"} {
		t.Run(by, func(t *testing.T) {
			leaks(t)
			h, s := pinnedServer(t)
			f, up := connected(t, h, s)
			var one, other Conn = f.app, up
			if by == "upstream" {
				one, other = up, f.app
			}
			_ = one.CloseWrite()
			wantEnd(t, other, nil)
			write(t, other, "answer")
			wantRead(t, one, "answer")
			_ = one.SetLinger(0)
			_ = one.Close()
			_ = other.SetWriteDeadline(time.Now().Add(patience))
			var err error
			for err == nil {
				_, err = other.Write(make([]byte, 1000))
			}
			if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Errorf("writing ends by %v", err)
			}
			endsAs(t, h, f, "reset by "+by)
		})
	}
}

// The other end has then already seen the end of the stream. It must be told although nothing is under way to it.
func TestBreakAfterFINIsTold(t *testing.T) {
	for _, by := range []string{"application", "upstream"} {
		synctest.Test(t, func(t *testing.T) {
			h, upstreams := inMemory(t, "*:*=1000")
			f := h.openWith(t, dst4, memory)
			f.answered(t, "accept")
			one, other := f.app.(*memConn), <-upstreams
			if by == "upstream" {
				one, other = other, one
			}
			_ = one.CloseWrite()
			wantEnd(t, other, nil)
			_ = one.SetLinger(0)
			_ = one.Close()
			write(t, other, "more")
			endsAs(t, h, f, "reset by "+by)
			if !other.reset.Load() {
				t.Errorf("reset by the %s: the other end was not told", by)
			}
		})
	}
}

// We end a flow while one end takes nothing. What that end received is not the whole stream, even if it has ended its
// own direction, and what the other end sent is lost.
func TestEndedShort(t *testing.T) {
	for _, stuck := range []string{"application", "upstream"} {
		for _, halfClosed := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				h, upstreams := inMemory(t, "*:*=1000")
				f := h.openWith(t, dst4, memory)
				f.answered(t, "accept")
				one, other := f.app.(*memConn), <-upstreams
				if stuck == "upstream" {
					one, other = other, one
				}
				if halfClosed {
					_ = one.CloseWrite()
					wantEnd(t, other, nil)
				}
				write(t, other, "nobody reads this")
				synctest.Wait()
				start := time.Now()
				h.only(t).end("stopped")
				endsAs(t, h, f, "stopped")
				if took := time.Since(start); took != endLinger {
					t.Errorf("ended after %v, want %v", took, endLinger)
				}
				if !one.reset.Load() || !other.reset.Load() {
					t.Errorf("%s stuck, half-closed %v: reset %v, the other end %v, want both", stuck, halfClosed, one.reset.Load(), other.reset.Load())
				}
			})
		}
	}
}
