package proxy

import (
	"fmt"
	"log/slog"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The one log line of a spliced flow, to the letter.
func TestLogEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstreams := make(memDialer, 1)
		names := &byName{set: setOf(t, "www.example:443=192.0.2.10:1000"), name: "www.example"}
		h := newHarness(t, Config{Dialer: upstreams, Names: names})
		f := h.openWith(t, dst4, memory)
		f.answered(t, "accept")
		up := <-upstreams
		write(t, f.app, "ping")
		wantRead(t, up, "ping")
		time.Sleep(1500 * time.Millisecond)
		write(t, up, "answer")
		wantRead(t, f.app, "answer")
		_, _ = up.Close(), f.app.Close()
		f.ended(t)
		want := []record{{
			Level: slog.LevelInfo,
			Msg:   "flow",
			Keys:  []string{"id", "src", "dst", "name", "rule", "local", "took", "up", "down", "end"},
			Attrs: map[string]string{
				"id":    "1",
				"src":   "192.0.2.1:40001",
				"dst":   "198.51.100.7:443",
				"name":  "www.example",
				"rule":  "www.example:443=192.0.2.10:1000",
				"local": "192.0.2.10:1000",
				"took":  "1.5s",
				"up":    "4",
				"down":  "6",
				"end":   "closed",
			},
		}}
		if diff := cmp.Diff(want, h.log.list); diff != "" {
			t.Error(diff)
		}
	})
}

// An application that has connected and reset before it could be spliced, as health checks do, has had its connection.
func TestLogResetAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstreams := make(memDialer, 1)
		h := newHarness(t, Config{Dialer: upstreams}, "*:*=1000")
		f := h.openWith(t, dst4, func() (Conn, Conn, error) {
			return nil, nil, fmt.Errorf("answer: %w", syscall.ECONNRESET)
		})
		f.answered(t, "accept")
		<-f.done
		if _, err := (<-upstreams).Read(make([]byte, 1)); err == nil {
			t.Error("the upstream connection is still open")
		}
		list := h.log.list
		if len(list) != 1 || list[0].Msg != "flow" || list[0].Attrs["end"] != "reset by application" || list[0].Attrs["local"] != "0.0.0.0:1000" {
			t.Errorf("%+v", list)
		}
		if s := h.Stats(); s.Live != 0 || s.Ended != 1 || s.Failed != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// The one log line of a flow that was not spliced.
func TestLogFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, Config{Dialer: failing("connect", syscall.ECONNREFUSED)}, "*:*=1000")
		f := h.openWith(t, dst4, memory)
		<-f.done
		f.answered(t, "connection refused")
		want := []record{{
			Level: slog.LevelInfo,
			Msg:   "flow failed",
			Keys:  []string{"id", "src", "dst", "rule", "took", "err"},
			Attrs: map[string]string{
				"id":   "1",
				"src":  "192.0.2.1:40001",
				"dst":  "198.51.100.7:443",
				"rule": "*:*=1000",
				"took": "0s",
				"err":  "dial tcp: connect: connection refused",
			},
		}}
		if diff := cmp.Diff(want, h.log.list); diff != "" {
			t.Error(diff)
		}
	})
}

// A flow is busy until it is spliced, and idle since its last byte.
func TestIdleSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstreams := make(memDialer)
		h := newHarness(t, Config{Dialer: upstreams}, "*:*=1000")
		f := h.openWith(t, dst4, memory)
		synctest.Wait()
		l := h.only(t)
		if since := l.IdleSince(); !since.IsZero() {
			t.Errorf("idle since %v while dialing", since)
		}
		time.Sleep(time.Second)
		up := <-upstreams
		f.answered(t, "accept")
		synctest.Wait()
		spliced := time.Now()
		for range 2 {
			if since := l.IdleSince(); !since.Equal(spliced) {
				t.Errorf("idle since %v, want %v", since, spliced)
			}
			time.Sleep(time.Second)
		}
		write(t, up, "hello")
		synctest.Wait()
		if since := l.IdleSince(); !since.IsZero() {
			t.Errorf("idle since %v while the application has not taken its bytes", since)
		}
		time.Sleep(time.Second)
		wantRead(t, f.app, "hello")
		synctest.Wait()
		if idle := time.Since(l.IdleSince()); idle != 0 {
			t.Errorf("idle for %v, want 0", idle)
		}
		_ = up.Close()
	})
}

// Idle times come from a clock that nobody sets.
func TestIdleSinceIsMonotonic(t *testing.T) {
	l := newLive(new(Proxy), &testFlow{}, func() {})
	l.moved()
	if since := l.IdleSince(); since == since.Round(0) {
		t.Errorf("idle since %v has no monotonic reading", since)
	}
}

// The first reason to end a flow counts.
func TestEndTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, upstreams := inMemory(t, "*:*=1000")
		f := h.openWith(t, dst4, memory)
		f.answered(t, "accept")
		up := <-upstreams
		synctest.Wait()
		l := h.only(t)
		l.Reclaim()
		l.end("stopped")
		_, _ = hangUp(f.app), hangUp(up)
		endsAs(t, h, f, "reclaimed for a waiting flow")
		l.abort("stopped")
		l.Reclaim()
		if got, want := fmt.Sprint(l), "flow 1 from 192.0.2.1:40001"; got != want {
			t.Errorf("String() = %q, want %q", got, want)
		}
		if st := h.Stats(); st != (Stats{Ended: 1}) {
			t.Errorf("%+v", st)
		}
	})
}
