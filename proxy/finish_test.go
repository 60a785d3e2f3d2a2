package proxy

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// The silences that Finish takes for an end, after the application's FIN and without it.
const (
	finishIdle = finishLooks * finishTick
	lastIdle   = lastLooks * finishTick
)

// finish runs Finish and returns its result, and how long it took.
func (h *harness) finish(ctx context.Context, grace time.Duration) (ended bool, took time.Duration) {
	start := time.Now()
	ended = h.Finish(ctx, grace)
	return ended, time.Since(start)
}

// The application is gone. The upstream has received everything, and keeps its end open.
func TestFinishDoesNotWaitForUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, upstreams := inMemory(t, "*:*=1000")
		f := h.openWith(t, dst4, memory)
		f.answered(t, "accept")
		up := <-upstreams
		go func() { _, _ = f.app.Write([]byte("last words")) }()
		wantRead(t, up, "last words")
		_ = f.app.Close()
		wantEnd(t, up, nil)
		if ended, took := h.finish(t.Context(), time.Minute); ended || took < finishIdle || took > 3*finishIdle {
			t.Errorf("Finish: %v after %v, want false after %v", ended, took, 2*finishIdle)
		}
		// The process ends now, so this is the last that the log can say of the flow.
		if lines := h.log.with("flow"); len(lines) != 1 || lines[0].Attrs["end"] != "stopped" || lines[0].Attrs["up"] != "10" {
			t.Errorf("log: %v", lines)
		}
		_ = up.Close()
		f.ended(t)
		if ended, took := h.finish(t.Context(), time.Minute); !ended || took != 0 {
			t.Errorf("Finish without flows: %v after %v, want true at once", ended, took)
		}
	})
}

// A slow upstream may take the last bytes as slowly as it likes until grace is over.
func TestFinishWaitsForSlowUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, upstreams := inMemory(t, "*:*=1000")
		f := h.openWith(t, dst4, memory)
		f.answered(t, "accept")
		up := <-upstreams
		go func() { _, _ = f.app.Write([]byte("last words, and nobody reads them yet")) }()
		synctest.Wait()
		read := make(chan string, 1)
		go func() {
			time.Sleep(10 * finishIdle)
			b := make([]byte, 100)
			n, _ := up.Read(b)
			read <- string(b[:n])
			_ = up.Close()
		}()
		if _, took := h.finish(t.Context(), time.Minute); took < 10*finishIdle || took > 14*finishIdle+lastIdle {
			t.Errorf("Finish returned after %v, want little more than %v", took, 10*finishIdle+lastIdle)
		}
		if got := <-read; got == "" {
			t.Error("the last bytes did not arrive")
		}
		_ = f.app.Close()
		f.ended(t)
	})
}

// Nobody waits any more for the answer to a dial.
func TestFinishGivesUpDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := dialFunc(func(ctx context.Context, _, _ netip.AddrPort) (Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		h := newHarness(t, Config{Dialer: silent}, "*:*=1000")
		f := h.openWith(t, dst4, memory)
		synctest.Wait()
		if ended, took := h.finish(t.Context(), time.Minute); !ended || took > 2*finishIdle {
			t.Errorf("Finish: %v after %v", ended, took)
		}
		f.answered(t, "drop")
		f.ended(t)
	})
}

// The application is gone, and its kernel pauses before it hands over the rest.
func TestFinishWaitsForLastBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, upstreams := inMemory(t, "*:*=1000")
		f := h.openWith(t, dst4, memory)
		f.answered(t, "accept")
		up := <-upstreams
		go func() {
			time.Sleep(3 * finishIdle)
			_, _ = f.app.Write([]byte("last words"))
			_ = f.app.Close()
		}()
		got := make(chan error, 1)
		go func() {
			b, err := io.ReadAll(up)
			if string(b) != "last words" {
				err = fmt.Errorf("%q arrived, and then %w", b, err)
			}
			_ = up.Close()
			got <- err
		}()
		if ended, took := h.finish(t.Context(), time.Minute); !ended || took < 3*finishIdle || took > 4*finishIdle {
			t.Errorf("Finish: %v after %v, want true after %v", ended, took, 3*finishIdle)
		}
		if err := <-got; err != nil {
			t.Error(err)
		}
		f.ended(t)
	})
}

// `ssh -f`: the command ends, and a process that it has started in the background loses its connection. That is worth
// a line even where only warnings are logged.
func TestFinishTellsOfWhatIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, upstreams := inMemory(t, "*:*=1000")
		f := h.openWith(t, dst4, memory)
		f.answered(t, "accept")
		up := <-upstreams
		_, _ = h.finish(t.Context(), time.Minute)
		if lines := h.log.with("flow"); len(lines) != 1 || lines[0].Level != slog.LevelWarn || lines[0].Attrs["end"] != leftBehind {
			t.Errorf("log: %v", lines)
		}
		_, _ = up.Close(), f.app.Close()
		f.ended(t)
	})
}

// Time in which nobody looks does not count, because perhaps nobody could have carried anything either.
func TestStillness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLive(nil, &testFlow{}, nil)
		looks := func(want int) {
			t.Helper()
			if still, needed := l.stillness(); still != want || needed != lastLooks {
				t.Errorf("%d of %d looks, want %d of %d", still, needed, want, lastLooks)
			}
		}
		looks(0) // not spliced yet
		looks(0)
		l.moved()
		looks(0)
		time.Sleep(time.Hour)
		looks(1)
		looks(2)
		l.writing.Add(1)
		looks(0)
		l.writing.Add(-1)
		looks(0)
		looks(1)
		time.Sleep(time.Millisecond)
		l.moved()
		looks(0)
		l.heard.Store(true)
		if _, needed := l.stillness(); needed != finishLooks {
			t.Errorf("%d looks after the application's end, want %d", needed, finishLooks)
		}
	})
}
