package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// More connections at once than the pin has ports: what busy= does.

func TestBusyOtherAddress(t *testing.T) {
	each(t, func(w *network, f family) {
		w.names()
		var mu sync.Mutex
		var reached []string // the server's own addresses, by connection
		server := w.Server.Serve(":7", func(c net.Conn) {
			mu.Lock()
			reached = append(reached, c.LocalAddr().(*net.TCPAddr).IP.String())
			mu.Unlock()
			lab.Echo(c)
		})
		p := w.pinproxy("--rule", "three.bank.example:7=63999 busy=other-address")
		addrs := w.ask("ip"+f.name[3:], "three.bank.example")
		first := netip.AddrPortFrom(addrs[0], 7).String()
		for range addrs {
			echo(w.t, w.mustConnect(first), "hello")
		}
		w.fails(first, unix.EHOSTUNREACH, atOnce) // there are only three

		want := []string{addrs[0].String(), "", ""}
		for _, from := range server.Seen() {
			if from != f.from(63999) {
				w.t.Errorf("connection came from %v", from)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if len(reached) != 3 || reached[0] != want[0] || reached[1] == reached[2] || reached[1] == reached[0] || reached[2] == reached[0] {
			w.t.Errorf("connections to %s reached %v", first, reached)
		}
		p.await("flow failed", 1)
	})
}

func TestBusyAny(t *testing.T) {
	each(t, func(w *network, f family) {
		server := w.Server.Serve(at(f.server, 7), lab.Echo)
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999 busy=any")
		for range 2 {
			echo(w.t, w.mustConnect(at(f.server, 7)), "hello")
		}
		if seen := server.Seen(); seen[0] != f.from(63999) || seen[1].Port() == 63999 {
			w.t.Errorf("connections came from %v", seen)
		}
		if e := p.await("flow leaves unpinned, as busy=any allows", 1)[0]; e.Level != "WARN" || e.Dst != at(f.server, 7) || e.Cause == "" {
			w.t.Errorf("logged %+v", e)
		}
	})
}

func TestBusyWaitIsFirstComeFirstServed(t *testing.T) {
	each(t, func(w *network, f family) {
		var mu sync.Mutex
		var served []string
		w.Server.Serve(at(f.server, 7), func(c net.Conn) {
			b, _ := io.ReadAll(c)
			mu.Lock()
			served = append(served, string(b))
			mu.Unlock()
		})
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999")
		holder := w.mustConnect(at(f.server, 7))
		var waiters sync.WaitGroup
		want := []string{"holder"}
		for i := range 5 {
			name := "waiter " + strconv.Itoa(i)
			want = append(want, name)
			waiters.Go(func() {
				c, err := w.connect(at(f.server, 7))
				if err == nil {
					_, err = io.WriteString(c, name)
				}
				if err == nil {
					err = c.Close()
				}
				if err != nil {
					w.t.Errorf("%s: %v", name, err)
				}
			})
			p.await("flow waits for its source port", i+1)
		}
		_, _ = io.WriteString(holder, "holder")
		_ = holder.Close()
		waiters.Wait()
		w.poll("all to be served", func() bool { mu.Lock(); defer mu.Unlock(); return len(served) == len(want) })
		if diff := cmp.Diff(want, served); diff != "" {
			w.t.Errorf("served (-want +got):\n%s", diff)
		}
	})
}

func (w *network) poll(what string, done func() bool) {
	w.t.Helper()
	poll(w.t, what, done)
}

func TestBusyWaitEnds(t *testing.T) {
	each(t, func(w *network, f family) {
		w.Server.Serve(at(f.server, 7), lab.Echo)
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999 busy=wait:300ms")
		holder := w.mustConnect(at(f.server, 7))
		start := time.Now()
		w.fails(at(f.server, 7), unix.EHOSTUNREACH, afterSYN)
		if took := time.Since(start); took < 300*time.Millisecond {
			w.t.Errorf("it waited only %v", took)
		}
		e := p.await("flow failed", 1)[0]
		if !strings.Contains(e.Err, holder.LocalAddr().String()) && !strings.Contains(e.Err, "flow 1 from") {
			w.t.Errorf("who holds the port is not in %+v", e)
		}
	})
}

// The idle flow is ended in order, and the waiting one gets its port.
func TestBusyReclaim(t *testing.T) {
	each(t, func(w *network, f family) {
		server := w.Server.Serve(at(f.server, 7), lab.Echo)
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999 busy=reclaim:200ms")
		idle := w.mustConnect(at(f.server, 7))
		echo(w.t, idle, "keep alive")
		c := make(chan *net.TCPConn, 1)
		go func() { // ends by its timeout
			second, err := w.connect(at(f.server, 7))
			if err != nil {
				w.t.Error(err)
			}
			c <- second
		}()
		if b, err := io.ReadAll(idle); len(b) != 0 || err != nil {
			w.t.Errorf("the idle application read %q, %v; want the end", b, err)
		}
		_ = idle.Close()
		if second := <-c; second != nil {
			echo(w.t, second, "hello")
		}
		if seen := server.Seen(); len(seen) != 2 || seen[1] != f.from(63999) {
			w.t.Errorf("connections came from %v", seen)
		}
		if e := p.await("flow", 1)[0]; e.End != "reclaimed for a waiting flow" {
			w.t.Errorf("logged %+v", e)
		}
	})
}

// Without reclaim, the log tells about a flow that waits behind an idle one.
func TestBusyWaitBehindIdleIsHinted(t *testing.T) {
	w := newNetwork(t)
	w.Server.Serve(at(lab.Server4, 7), lab.Echo)
	p := w.pinproxy("--rule", "203.0.113.2:7=63999")
	idle := w.mustConnect(at(lab.Server4, 7))
	echo(t, idle, "keep alive")
	ctx, giveUp := context.WithCancel(context.Background())
	defer giveUp()
	var waiting sync.WaitGroup
	waiting.Go(func() { // ends with ctx
		if c, err := w.Client.Dial(ctx, "tcp", at(lab.Server4, 7)); err == nil {
			_ = c.Close()
		}
	})
	if hint := p.await("flow waits behind an idle one", 1)[0].Hint; !strings.Contains(hint, "busy=reclaim") {
		t.Errorf("the hint is %q", hint)
	}
	giveUp()
	waiting.Wait()
}

// Parallel downloads by a client that keeps finished connections open, over one port.
func TestParallelCurlOverOnePort(t *testing.T) {
	need(t, "curl")
	w := newNetwork(t)
	w.names()
	server := w.Server.HTTPS(":443", "www.bank.example")
	w.pinproxy("--rule", "www.bank.example:443=63999 busy=reclaim:1s")
	args := []string{"-4", "-sS", "-Z", "--parallel-immediate", "--http1.1", "--max-time", "60", "--cacert", w.net.CA()}
	for i := range 3 {
		args = append(args, fmt.Sprintf("https://www.bank.example/%d", i))
	}
	out := w.must(tool(t, "curl", args...))
	if got := strings.Count(out, "you came from 198.51.100.2:63999"); got != 3 || len(server.Seen()) != 3 {
		t.Errorf("%d downloads came from the pin: %s", got, out)
	}
}

// Only the 4-tuple rests.
func TestCooldown(t *testing.T) {
	each(t, func(w *network, f family) {
		const cooldown = 3 * time.Second // longer than checking it takes
		server := w.Server.Serve(":7", lab.Echo)
		p := w.pinproxy("--rule", "*:7=63999 cooldown="+cooldown.String())
		visit := func(addr string) (stood time.Time) {
			c := w.mustConnect(addr)
			stood = time.Now()
			_ = c.CloseWrite()
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
			return stood
		}
		begun := time.Now()
		visit(at(f.server, 7))
		p.await("flow", 1)
		if took := visit(at(f.elsewhere, 7)).Sub(begun); took > cooldown {
			w.t.Errorf("another destination had to wait: both took %v", took)
		}
		if took := visit(at(f.server, 7)).Sub(begun); took < cooldown || took > 5*cooldown {
			w.t.Errorf("the second connection came %v after the first, want %v", took, cooldown)
		}
		for _, from := range server.Seen() {
			if from != f.from(63999) {
				w.t.Errorf("connection came from %v", from)
			}
		}
	})
}
