package proxy

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pinproxy/rules"
)

// deafTo is a Dialer that gets no answer for pinned ports. For others it does what other does.
func deafTo(pinned func(netip.AddrPort) bool, dials *atomic.Int32, other Dialer) Dialer {
	return dialFunc(func(ctx context.Context, pin, dst netip.AddrPort) (Conn, error) {
		if pinned(pin) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		dials.Add(1)
		return other.Dial(ctx, pin, dst)
	})
}

// A destination that is silent only to the pin is told apart from one that is down. This takes one connection from
// another port, at most once a minute.
func TestSilenceIsExplained(t *testing.T) {
	for _, c := range []struct {
		name, rule string
		other      Dialer
		cause      string
	}{
		{"answers another port", "*:*=1000", make(memDialer, 9), "no answer from 198.51.100.7:443 to source port 1000 within 30s, though port "},
		{"refuses another port", "*:*=1000", failing("connect", syscall.ECONNREFUSED), "though another port was refused at once"},
		{"with a source address", "*:*=192.0.2.10:1000", make(memDialer, 9), "was answered at once"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var others atomic.Int32
				dialer := deafTo(func(pin netip.AddrPort) bool { return pin.Port() == 1000 }, &others, c.other)
				h := newHarness(t, Config{Dialer: dialer}, c.rule)
				f := h.openWith(t, dst4, memory)
				<-f.done
				f.answered(t, "drop")
				failed(t, h, slog.LevelWarn, c.cause)
				if hint := h.log.with("flow failed")[0].Attrs["hint"]; !strings.Contains(hint, "cooldown=") {
					t.Errorf("hint %q", hint)
				}
				f = h.openWith(t, dst4, memory)
				<-f.done
				f.answered(t, "drop")
				if n := others.Load(); n != 1 {
					t.Errorf("%d connections from another port within a minute, want 1", n)
				}
				if list := h.Failures(); len(list) != 1 || list[0].Times != 2 || !strings.Contains(list[0].Cause, c.cause) || list[0].Hint == "" {
					t.Errorf("failures %+v: the second has lost what was found out for the first", list)
				}
				time.Sleep(probeEvery)
				f = h.openWith(t, dst4, memory)
				<-f.done
				f.answered(t, "drop")
				if n := others.Load(); n != 2 {
					t.Errorf("%d connections from another port after a minute, want 2", n)
				}
			})
		})
	}
}

// So is one that the application did not wait for, unless the application gave up at once.
func TestSilenceIsExplainedToTheImpatient(t *testing.T) {
	for _, c := range []struct {
		after time.Duration
		level slog.Level
		cause string
	}{
		{time.Second, slog.LevelInfo, errGaveUp.Error()},
		{4 * time.Second, slog.LevelWarn, "within 4s, though port 0 was answered at once: the application gave up"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var others atomic.Int32
			h := newHarness(t, Config{Dialer: deafTo(func(pin netip.AddrPort) bool { return pin.Port() == 1000 }, &others, make(memDialer, 1))}, "*:*=1000")
			f := h.openWith(t, dst4, memory)
			time.Sleep(c.after)
			f.giveUp()
			<-f.done
			f.answered(t, "drop")
			failed(t, h, c.level, c.cause)
		})
	}
}

// Probing does not delay the end.
func TestSilenceIsLeftUnexplainedAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var others atomic.Int32
		h := newHarness(t, Config{Dialer: deafTo(func(netip.AddrPort) bool { return true }, &others, nil)}, "*:*=1000")
		f := h.openWith(t, dst4, memory)
		if answer := <-f.answers; answer != "drop" { // the dial is over, and another is under way
			t.Fatal(answer)
		}
		start := time.Now()
		h.Drain(t.Context(), time.Second)
		<-f.done
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("Drain took %v", took)
		}
		for _, line := range h.log.with("flow failed") {
			if strings.Contains(line.Attrs["err"], "another port") {
				t.Errorf("log of a flow whose probe had no time: %v", line)
			}
		}
	})
}

// A rule or source address whose flows wait for an answer takes no more than its share. Other flows get through.
func TestCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var others atomic.Int32
		upstreams := make(memDialer, 9)
		h := newHarness(t, Config{
			Dialer: deafTo(func(pin netip.AddrPort) bool { return pin.Port() < 2000 }, &others, upstreams),
		}, "198.51.100.0/24:*=1000-1999", "203.0.113.0/24:*=2000-2999")
		h.crowd.perRule, h.crowd.perSource = 3, 4
		from := func(host string, port uint16, dst string) *testFlow {
			return h.openFrom(t, netip.AddrPortFrom(netip.MustParseAddr(host), port), netip.MustParseAddrPort(dst), memory)
		}
		for i := range 3 {
			f := from("192.0.2.1", uint16(1+i), "198.51.100.7:443")
			defer f.answered(t, "drop")
			defer f.giveUp()
		}
		synctest.Wait()
		from("192.0.2.1", 10, "198.51.100.7:443").answered(t, "drop")
		from("192.0.2.2", 11, "198.51.100.7:443").answered(t, "drop")
		from("192.0.2.1", 12, "203.0.113.7:443").answered(t, "accept")
		synctest.Wait()
		if lines := h.log.with("flow failed"); len(lines) != 1 || lines[0].Level != slog.LevelWarn || lines[0].Attrs["err"] != errCrowd.Error() {
			t.Errorf("log: %v, want one line a second", lines)
		}
		if list := h.Flows(); len(list) != 4 || list[0].Stage != Dialing || list[3].Stage != Open {
			t.Errorf("flows: %+v", list)
		}
	})
}

func TestCrowdOfOneSource(t *testing.T) {
	a, b := setOf(t, "198.51.100.0/24:*=1").Rules()[0], setOf(t, "203.0.113.0/24:*=2").Rules()[0]
	src, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	c := newCrowd(2, 3)
	for i, step := range []struct {
		rule *rules.Rule
		src  netip.Addr
		want bool
	}{
		{a, src, true}, {a, src, true}, {a, src, false}, {a, other, false}, // the rule's share
		{b, src, true}, {b, src, false}, {b, other, true}, // the source's
	} {
		if got := c.enter(step.rule, step.src); got != step.want {
			t.Errorf("step %d: %v, want %v", i, got, step.want)
		}
	}
	for _, in := range []struct {
		rule *rules.Rule
		src  netip.Addr
	}{{a, src}, {a, src}, {b, src}, {b, other}} {
		c.leave(in.rule, in.src)
	}
	if len(c.rules) != 0 || len(c.sources) != 0 {
		t.Errorf("left: %v, %v", c.rules, c.sources)
	}
}
