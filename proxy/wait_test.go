package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// kept is a Dialer whose kernel keeps the 4-tuple for a while after the first refusal, and says so.
type kept struct {
	Dialer
	until time.Time
	left  bool // whether it says how long
	dials atomic.Int32
	looks atomic.Int32
	takes time.Duration // a look
}

func (k *kept) Dial(ctx context.Context, pin, dst netip.AddrPort) (Conn, error) {
	k.dials.Add(1)
	if time.Now().Before(k.until) {
		return nil, errKept
	}
	return k.Dialer.Dial(ctx, pin, dst)
}

var errKept = &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)}

func (k *kept) Obstacle(netip.AddrPort, netip.AddrPort) Obstacle {
	k.looks.Add(1)
	time.Sleep(k.takes)
	o := Obstacle{Cause: "the last connection is in TIME_WAIT", Hint: "a range"}
	if k.left {
		o.Left = time.Until(k.until)
	}
	return o
}

// A rule that does not say how long to wait outlasts a TIME_WAIT that can't be cut short, without spinning. The log
// counts down.
func TestTimeWaitIsWaitedOut(t *testing.T) {
	for _, c := range []struct {
		busy   string
		answer string
		after  time.Duration
		lines  []string // what the log counts down
	}{
		{"", "accept", 57 * time.Second, []string{"57s", "47s", "37s", "27s", "17s", "7s"}},
		{" busy=wait:20s", "permission denied", 20 * time.Second, []string{"57s", "47s"}},
		{" busy=wait:2m", "accept", 57 * time.Second, []string{"57s", "47s", "37s", "27s", "17s", "7s"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			upstreams := make(memDialer, 1)
			k := &kept{Dialer: upstreams, until: time.Now().Add(57 * time.Second), left: true}
			h := newHarness(t, Config{Dialer: k}, "*:*=1000"+c.busy)
			start := time.Now()
			f := h.openWith(t, dst4, memory)
			time.Sleep(time.Second)
			if list := h.Flows(); list[0].Stage != Waiting || !strings.Contains(list[0].Cause, "TIME_WAIT") || list[0].Hint != "a range" {
				t.Errorf("%+v", list)
			}
			tries := k.dials.Load()
			if answer, took := <-f.answers, time.Since(start).Round(100*time.Millisecond); answer != c.answer || took != c.after {
				t.Errorf("busy=%q: %s after %v, want %s after %v", c.busy, answer, took, c.answer, c.after)
			}
			if n := k.dials.Load() - tries; int(n) > len(c.lines) {
				t.Errorf("%d tries while the kernel says how long", n)
			}
			lines := h.log.with("flow waits for the kernel to free its source port")
			var left []string
			for _, line := range lines {
				left = append(left, line.Attrs["left"])
			}
			if !slices.Equal(left, c.lines) || lines[0].Level != slog.LevelWarn || lines[0].Attrs["hint"] != "a range" {
				t.Errorf("log: %v", lines)
			}
		})
	}
}

// A flow that goes on with the next port of its pin does not wait, however long a busy machine takes for the first one.
func TestNextPortIsNoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstreams := make(memDialer, 1)
		k := &kept{Dialer: dialFunc(func(ctx context.Context, pin, dst netip.AddrPort) (Conn, error) {
			if pin.Port() == 1000 {
				time.Sleep(lookAfter)
				return nil, errKept
			}
			return upstreams.Dial(ctx, pin, dst)
		})}
		h := newHarness(t, Config{Dialer: k}, "*:*=1000-1001")
		f := h.openWith(t, dst4, memory)
		f.answered(t, "accept")
		if lines := h.log.with("flow waits for the kernel to free its source port"); len(lines) > 0 {
			t.Errorf("log: %v", lines)
		}
		_, _ = (<-upstreams).Close(), f.app.Close()
		f.ended(t)
	})
}

// Where the kernel does not say how long, the port is tried often enough to be taken within 100 ms of being free. The
// log says so every ten seconds, not at every try.
func TestTakenPortIsPolled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &kept{Dialer: make(memDialer, 1), until: time.Now().Add(25*time.Second + 7*time.Millisecond)}
		h := newHarness(t, Config{Dialer: k}, "*:*=1000")
		start := time.Now()
		f := h.openWith(t, dst4, memory)
		<-f.answers
		if late := time.Since(start) - 25*time.Second; late > 100*time.Millisecond {
			t.Errorf("the port was free for %v", late)
		}
		if n := k.dials.Load(); n > 25*20+20 {
			t.Errorf("%d tries in 25 s", n)
		}
		if lines := h.log.with("flow waits for the kernel to free its source port"); len(lines) != 3 {
			t.Errorf("%d lines in 25 s, want 3", len(lines))
		}
	})
}

// However many ports the kernel refuses, and however many flows wait for them, tries are few, and looks take a small part
// of the time. Nevertheless the flows go on soon after the ports are free, and one that fails can say what was in its way.
func TestWidePinIsPolledSparingly(t *testing.T) {
	const (
		ports, flows = 2000, 100
		free         = 25*time.Second + 7*time.Millisecond
		takes        = 2 * time.Millisecond
	)
	other := netip.MustParseAddrPort("198.51.100.8:443")
	synctest.Test(t, func(t *testing.T) {
		k := &kept{Dialer: make(memDialer, flows), until: time.Now().Add(free), takes: takes}
		h := newHarness(t, Config{Dialer: k}, fmt.Sprintf("%s:*=1000-%d", dst4.Addr(), 999+ports), fmt.Sprintf("%s:*=3000-%d busy=wait:20s", other.Addr(), 2999+ports))
		start := time.Now()
		var waiting, failing []*testFlow
		for range flows {
			waiting = append(waiting, h.openWith(t, dst4, memory))
			failing = append(failing, h.openWith(t, other, memory))
		}
		for _, f := range failing {
			if answer := <-f.answers; answer != "permission denied" {
				t.Errorf("a flow without a port: %s", answer)
			}
		}
		for _, f := range waiting {
			if answer := <-f.answers; answer != "accept" {
				t.Errorf("a flow that waited long enough: %s", answer)
			}
		}
		if late := time.Since(start) - free; late > time.Second {
			t.Errorf("the last flow went on %v after the ports were free", late)
		}
		if n, most := int(k.dials.Load()), 2*(2*freeTries*flows+2*int(free/tryPace)); n > most {
			t.Errorf("%d tries, want %d at most", n, most)
		}
		if n, most := int(k.looks.Load())-flows, int(free/(10*takes)); n > most { // each that fails has one of its own
			t.Errorf("%d looks, want %d at most", n, most)
		}
		for _, line := range h.log.with("flow failed") {
			if !strings.Contains(line.Attrs["err"], "in TIME_WAIT") || line.Attrs["hint"] != "a range" {
				t.Errorf("%v", line)
			}
		}
	})
}

// Who does not wait does not look either: with busy=any that would be a look for each connection beyond the ports.
func TestRestingPortIsNotLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &kept{Dialer: make(memDialer, 1)}
		h := newHarness(t, Config{Dialer: k}, "*:*=1000 cooldown=1m busy=fail")
		first := h.openWith(t, dst4, memory)
		if answer := <-first.answers; answer != "accept" {
			t.Fatal(answer)
		}
		first.app.Close()
		(<-k.Dialer.(memDialer)).Close()
		synctest.Wait()
		if answer := <-h.openWith(t, dst4, memory).answers; answer != "permission denied" {
			t.Errorf("while the port rests: %s", answer)
		}
		if n := k.looks.Load(); n != 0 {
			t.Errorf("%d looks", n)
		}
	})
}

// What the kernel says about a pin, in words, with what to do about it.
func TestExplain(t *testing.T) {
	pin, from, dst := netip.MustParseAddrPort("0.0.0.0:22"), netip.MustParseAddrPort("192.0.2.10:1000"), dst4
	for _, c := range []struct {
		call  string
		errno syscall.Errno
		pin   netip.AddrPort
		cause string
		hint  string
		ours  bool // about the pin, not the upstream
	}{
		{"bind", syscall.EACCES, pin, "source port 22 is privileged", "ip_unprivileged_port_start=22", true},
		{"bind", syscall.EADDRNOTAVAIL, from, "source address 192.0.2.10 is not on this host", "ip address add 192.0.2.10", true},
		{"bind", syscall.EADDRINUSE, pin, "address already in use", "", false}, // busy's business
		{"connect", syscall.EADDRNOTAVAIL, pin, "cannot assign requested address", "", false},
		{"connect", syscall.EPERM, pin, "a firewall of this host forbids the connection", "let source port 22 to 198.51.100.7:443 pass", false},
		{"connect", syscall.EPERM, netip.AddrPort{}, "a firewall of this host", "let any source port", false},
		{"connect", syscall.ENETUNREACH, from, "no way to 198.51.100.7 from source address 192.0.2.10", "ip route get 198.51.100.7 from 192.0.2.10", false},
		{"connect", syscall.EINVAL, from, "no way to 198.51.100.7 from source address 192.0.2.10", "ip route get", false},
		{"connect", syscall.ENETUNREACH, pin, "network is unreachable", "", false},
		{"connect", syscall.ECONNREFUSED, from, "connection refused", "", false},
		{"socket", syscall.EMFILE, pin, "too many open files", "LimitNOFILE", false},
	} {
		err := explain(&net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError(c.call, c.errno)}, c.pin, dst)
		if !strings.Contains(err.Error(), c.cause) || !errors.Is(err, c.errno) || unavailable(err) != c.ours {
			t.Errorf("%s: %v: %q, about the pin: %v", c.call, c.errno, err, unavailable(err))
		}
		if hint := hintOf(err); c.hint == "" && hint != "" || !strings.Contains(hint, c.hint) {
			t.Errorf("%s: %v: hint %q, want %q", c.call, c.errno, hint, c.hint)
		}
	}
	for _, err := range []error{errLoop, errSelf, errCrowd, notAccepted(syscall.ETIMEDOUT, false)} {
		if hintOf(fmt.Errorf("x: %w", &pinError{err: err})) == "" {
			t.Errorf("no hint for %v", err)
		}
	}
	for _, err := range []error{notAccepted(syscall.ETIMEDOUT, true), notAccepted(syscall.ECONNRESET, false)} {
		if hint := hintOf(err); hint != "" {
			t.Errorf("%v: %s", err, hint)
		}
	}
}
