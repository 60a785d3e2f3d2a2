package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// The end of pinproxy as flows see it.

func TestStopEndsIdleFlowsInOrder(t *testing.T) {
	each(t, func(w *network, f family) {
		ended := make(chan error, 1)
		w.Server.Serve(at(f.server, 7), func(c net.Conn) {
			_, err := io.Copy(c, c)
			ended <- err
		})
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999")
		c := w.mustConnect(at(f.server, 7))
		echo(w.t, c, "hello")
		_ = p.Signal(unix.SIGTERM)
		if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
			w.t.Errorf("the application read %q, %v; want the end", b, err)
		}
		if err := <-ended; err != nil {
			w.t.Errorf("the server's connection ended with %v; want the end", err)
		}
		_ = c.Close()
		p.gone()
		if e := p.await("flow", 1)[0]; e.End != "stopped" {
			w.t.Errorf("logged %+v", e)
		}
	})
}

// A transfer that is short enough may finish. Meanwhile, new connections belong to the kernel alone.
func TestStopLetsTransfersFinish(t *testing.T) {
	each(t, func(w *network, f family) {
		server := w.Server.Serve(at(f.server, 7), lab.Echo)
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999")
		c := w.mustConnect(at(f.server, 7))
		echo(w.t, c, "begun")
		_ = p.Signal(unix.SIGTERM)
		p.expect(`"msg":"ending"`)
		for i := range 50 {
			echo(w.t, c, fmt.Sprintf("part %d %s", i, strings.Repeat("x", 50_000)))
		}
		late := w.mustConnect(at(f.server, 7))
		echo(w.t, late, "unpinned")
		echo(w.t, c, "done")
		if err := c.CloseWrite(); err != nil {
			w.t.Error(err)
		}
		if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
			w.t.Errorf("the application read %q, %v; want the end", b, err)
		}
		_ = c.Close()
		p.gone()
		if e := p.await("flow", 1)[0]; e.End != "closed" {
			w.t.Errorf("logged %+v", e)
		}
		if seen := server.Seen(); len(seen) != 2 || seen[1].Port() == 63999 {
			w.t.Errorf("connections came from %v", seen)
		}
		echo(w.t, late, "still there")
	})
}

// While transfers finish, everybody who asks is told that pinproxy is ending, and nobody is told to send it a second
// signal, which would reset them.
func TestStopIsSaid(t *testing.T) {
	w := newNetwork(t)
	stop := make(chan struct{})
	w.Server.Serve(":7", func(c net.Conn) {
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				_, _ = c.Write([]byte("more and "))
			}
		}
	})
	defer close(stop)
	for range 5 {
		p := w.pinproxy("--rule", "*:7=63999")
		c := w.mustConnect(at(lab.Server4, 7))
		start := time.Now()
		_ = p.Signal(unix.SIGTERM)
		p.poll("the end of the capture", func() bool {
			rules, err := w.Client.Netlink().RuleList(unix.AF_INET)
			return err == nil && !slices.ContainsFunc(rules, func(r netlink.Rule) bool { return r.Dport != nil })
		})
		wrong := w.askAll(map[string][]string{
			"s, ending\n":    {"status"},
			`"ending": true`: {"status", "--json"},
			"is ending and captures no new connections": {"check", at(lab.Server4, 7)},
			"hint: it is ending: try again":             {"--rule", "*:7=1", "--tun", "eth0"}, // never starts
			"hint: it is ending, and takes back":        {"cleanup"},
		})
		late := time.Since(start) > drainGrace // on a machine that is this busy, it may have ended before it was asked
		_ = c.Close()
		p.gone()
		if len(wrong) == 0 {
			return
		}
		if !late {
			t.Fatalf("%q", wrong)
		}
	}
	t.Fatalf("five times it may have ended before it was asked: a stop took more than %v", drainGrace)
}

// askAll runs pinproxy with each of the arguments, at the same time, and returns what was said where it lacks the text.
func (w *network) askAll(args map[string][]string) (wrong []string) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for want, args := range args {
		all.Go(func() {
			out, said, _ := w.Client.Run(w.command(args...))
			if !strings.Contains(out+said, want) {
				mu.Lock()
				defer mu.Unlock()
				wrong = append(wrong, fmt.Sprintf("%q: %s%s", args, out, said))
			}
		})
	}
	all.Wait()
	return wrong
}

// A transfer that takes too long must not look as if it had ended.
func TestStopResetsLongTransfers(t *testing.T) {
	each(t, func(w *network, f family) {
		w.Server.Serve(at(f.server, 7), func(c net.Conn) {
			for range time.Tick(10 * time.Millisecond) {
				if _, err := c.Write([]byte("more and ")); err != nil {
					return
				}
			}
		})
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999")
		c := w.mustConnect(at(f.server, 7))
		if _, err := io.ReadFull(c, make([]byte, 9)); err != nil {
			w.t.Fatal(err)
		}
		start := time.Now()
		_ = p.Signal(unix.SIGTERM)
		if n, err := io.Copy(io.Discard, c); !errors.Is(err, unix.ECONNRESET) || time.Since(start) < drainGrace {
			w.t.Errorf("after %v the transfer ended with %v, %d bytes later; want a reset after %v", time.Since(start), err, n, drainGrace)
		}
		_ = c.Close()
		p.gone()
	})
}

// After the second signal, pinproxy waits for nothing any more.
func TestSecondSignalStopsAtOnce(t *testing.T) {
	each(t, func(w *network, f family) {
		w.Server.Serve(at(f.server, 7), lab.Echo)
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999")
		c := w.mustConnect(at(f.server, 7))
		echo(w.t, c, "hello")
		busy := make(chan error, 1)
		go func() { // ends with c
			_, err := io.Copy(c, c)
			busy <- err
		}()
		if _, err := io.WriteString(c, "round and round"); err != nil {
			w.t.Fatal(err)
		}
		_ = p.Signal(unix.SIGTERM)
		p.expect(`"msg":"ending"`)
		select {
		case <-p.Done():
			w.t.Error("the first signal ended a busy flow")
		case err := <-busy:
			w.t.Errorf("the first signal ended a busy flow by %v", err)
		default:
		}
		start := time.Now()
		p.stop() // sends the second
		if took := time.Since(start); took > drainGrace/2 {
			w.t.Errorf("after the second signal it took %v", took)
		}
		if err := <-busy; !errors.Is(err, unix.ECONNRESET) {
			w.t.Errorf("the application's connection ended with %v, want that it was reset", err)
		}
	})
}

func TestLogHasALineForEachFlow(t *testing.T) {
	w := newNetwork(t)
	w.names()
	w.Server.Serve(":7", lab.Echo)
	p := w.pinproxy("--rule", "*.bank.example:7=63998-63999 busy=wait:10s", "--rule", "203.0.113.0/24:8=63000")
	w.ask("ip4", "v4.bank.example")
	w.ask("ip6", "v6.bank.example")
	var want []entry
	for i, f := range families {
		c := w.mustConnect(at(f.server, 7))
		src := c.LocalAddr().String()
		echo(t, c, "hello")
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, c)
		_ = c.Close()
		want = append(want, entry{
			Level: "INFO", Msg: "flow", Src: src, Dst: at(f.server, 7), Name: []string{"v4.bank.example", "v6.bank.example"}[i],
			Rule: "*.bank.example:7=63998-63999 busy=wait:10s", Local: f.from(63998).String(), Up: 5, Down: 5, End: "closed", ID: uint64(i) + 1,
		})
	}
	w.fails(at(lab.Server4, 8), unix.ECONNREFUSED, atOnce)
	p.await("flow", 2)
	p.stop()
	got := p.entries("flow")
	for i := range got {
		if got[i].Took == "" || got[i].Took == "0" {
			t.Errorf("flow %d took %q", i, got[i].Took)
		}
		got[i].Took = ""
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("flows logged (-want +got):\n%s", diff)
	}
	failed := p.entries("flow failed") // one for each time that fails has connected
	if others := slices.ContainsFunc(failed, func(e entry) bool { return e.Rule != "203.0.113.0/24:8=63000" }); len(failed) == 0 || others {
		t.Errorf("failed flows logged: %+v", failed)
	}
}

func TestLogAsText(t *testing.T) {
	w := newNetwork(t)
	w.names()
	w.Server.Serve(":7", lab.Echo)
	p := w.startCommand(w.command("--rule", "www.bank.example:7=63999"))
	p.expect("level=INFO msg=ready link=pin0")
	c := w.mustConnect(at(lab.Server4, 7))
	echo(t, c, "hello")
	want := fmt.Sprintf(" level=INFO msg=flow id=1 src=%s dst=203.0.113.2:7 name=www.bank.example rule=%q local=198.51.100.2:63999 took=",
		c.LocalAddr(), "www.bank.example:7=63999")
	_ = c.Close()
	p.expect(want)
	p.expect(" up=5 down=5 end=closed\n")
}

// serviceManager returns a service manager for NOTIFY_SOCKET. Every user may send to it, as with systemd.
func serviceManager(t *testing.T) (path string, manager *net.UnixConn) {
	t.Helper()
	path = publicDir(t) + "/notify"
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = manager.Close() })
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	return path, manager
}

// WatchdogSec= in a unit.
func TestWatchdogIsFed(t *testing.T) {
	w := newNetwork(t)
	path, manager := serviceManager(t)
	_ = manager.SetDeadline(time.Now().Add(2 * patience))
	cmd := w.command("--log-format=json", "--rule", "*:7=63999")
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+path, "WATCHDOG_USEC=20000")
	w.startCommand(cmd)
	for fed := 0; fed < 3; {
		b := make([]byte, 1000)
		n, err := manager.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		switch got := string(b[:n]); got {
		case "WATCHDOG=1":
			fed++
		case "READY=1":
		default:
			t.Errorf("the manager was told %q", got)
		}
	}
}

// A service manager's watchdog sends SIGABRT. Go programs then end with status 2. That would be the status of a
// usage error, after which the unit does not start us again.
func TestAbortIsNoUsageError(t *testing.T) {
	w := newNetwork(t)
	var cores unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &cores); err != nil {
		t.Fatal(err)
	}
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Max: cores.Max}) // pinproxy inherits the limit, and leaves no core file
	p := w.pinproxy("--rule", "*:7=63999")
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &cores)
	_ = p.Signal(unix.SIGABRT)
	var failed *exec.ExitError
	if err := p.Wait(); !errors.As(err, &failed) || failed.Sys().(syscall.WaitStatus).Signal() != unix.SIGABRT {
		t.Errorf("it ended by %v", err)
	}
	if !strings.Contains(p.Stderr(), "goroutine ") {
		t.Errorf("it does not say where it was: %q", p.Stderr())
	}
	if out, said, err := w.Client.Run(w.command("cleanup")); err != nil || !strings.Contains(out, "\nrm "+w.run) {
		t.Errorf("cleanup printed %q, said %q, %v", out, said, err)
	}
	if left, err := os.ReadDir(w.run); len(left) > 0 || err != nil {
		t.Errorf("%v is left, %v", left, err)
	}
}

// sd_notify(3): the service manager is told what it has to know, and nothing else.
func TestServiceManagerIsTold(t *testing.T) {
	w := newNetwork(t)
	path, manager := serviceManager(t)
	_ = manager.SetDeadline(time.Now().Add(patience))
	told := func() string {
		b := make([]byte, 1000)
		n, err := manager.Read(b)
		return string(b[:n]) + errorText(err)
	}
	server := w.Server.Serve(":7", lab.Echo)
	cmd := w.command("--log-format=json", "--rule", "*:7=63999")
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+path)
	p := w.startCommand(cmd)
	if got := told(); got != "READY=1" {
		t.Errorf("at the start the manager was told %q", got)
	}
	c := w.mustConnect(at(lab.Server4, 7)) // ready means that this connection is captured
	echo(t, c, "hello")
	_ = c.Close()
	if seen := server.Seen(); seen[0].Port() != 63999 {
		t.Errorf("connection came from %v", seen)
	}
	p.stop()
	if got := told(); got != "STOPPING=1" {
		t.Errorf("at the end the manager was told %q", got)
	}
	_ = manager.SetDeadline(time.Now())
	if got := told(); !strings.Contains(got, "timeout") {
		t.Errorf("then the manager was told %q", got)
	}
}
