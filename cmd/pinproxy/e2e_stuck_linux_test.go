package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// A pinned port never gets stuck: back-to-back connections, crowds, other programs, firewalls that remember.

// visitOnce makes a connection that the application closes first, and returns when both ends have.
func (w *network) visitOnce(addr string) error {
	c, err := w.connect(addr)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if _, err = io.WriteString(c, "x"); err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	if err == nil {
		err = c.CloseWrite()
	}
	if err == nil {
		_, err = io.Copy(io.Discard, c)
	}
	return err
}

// One port, one destination, one connection after the other, whether or not the server uses timestamps.
func TestBackToBack(t *testing.T) {
	for _, timestamps := range []string{"1", "0"} {
		t.Run("timestamps="+timestamps, func(t *testing.T) {
			each(t, func(w *network, f family) {
				w.Server.Sysctl("net.ipv4.tcp_timestamps", timestamps)
				server := w.Server.Serve(at(f.server, 7), lab.Echo)
				w.pinproxy("--rule", inRule(f.server)+":7=63999")
				const visits = 200
				for i := range visits {
					if err := w.visitOnce(at(f.server, 7)); err != nil {
						w.t.Fatalf("visit %d: %v", i, err)
					}
				}
				seen := server.Seen()
				if n := len(slices.DeleteFunc(seen, func(a netip.AddrPort) bool { return a == f.from(63999) })); n > 0 || len(server.Seen()) != visits {
					w.t.Errorf("of %d connections %d came from elsewhere", len(server.Seen()), n)
				}
			})
		})
	}
}

// 200 clients at once on one port are served in the order of their arrival, and each waits only for those before it.
func TestCrowdIsServedInOrder(t *testing.T) {
	w := newNetworkAlone(t)
	const clients = 200
	const visit = 2 * time.Millisecond // how long a client takes with its connection
	var mu sync.Mutex
	var served []string // clients' addresses, as the server heard them
	w.Server.Serve(at(lab.Server4, 7), func(c net.Conn) {
		b, _ := io.ReadAll(c)
		mu.Lock()
		defer mu.Unlock()
		served = append(served, string(b))
	})
	p := w.pinproxy("--rule", "203.0.113.2:7=63999 busy=wait:5m") // a busy machine may take that long
	holder := w.mustConnect(at(lab.Server4, 7))
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			c, err := w.connectFor(3*patience, at(lab.Server4, 7))
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(c, c.LocalAddr().String())
			time.Sleep(visit)
			_ = c.Close()
		})
	}
	p.poll("all to wait", func() bool { return strings.Count(w.status(), `"stage":"waiting"`) == clients })
	_ = holder.Close()
	begun := time.Now()
	all.Wait()
	took := time.Since(begun)
	w.poll("all to be heard", func() bool { mu.Lock(); defer mu.Unlock(); return len(served) == clients+1 })

	order := make(map[string]uint64) // of arrival, by address
	for _, e := range p.await("flow", clients+1) {
		order[e.Src] = e.ID
	}
	mu.Lock()
	heard := slices.Clone(served[1:])
	mu.Unlock()
	if !slices.IsSortedFunc(heard, func(a, b string) int { return int(order[a]) - int(order[b]) }) {
		t.Errorf("served out of turn: %v", heard)
	}
	const alone = 20
	start := time.Now()
	for range alone { // as slow as this machine is at present
		c := w.mustConnect(at(lab.Server4, 7))
		_, _ = io.WriteString(c, "x")
		_ = c.Close()
	}
	usual := time.Since(start) / alone
	if limit := clients * (visit + 20*time.Millisecond + 2*usual); took > limit {
		t.Errorf("%d connections of %v after each other took %v, want less than %v", clients, visit, took, limit)
	}
	t.Logf("%d connections of %v each, one after the other: %v; alone each takes %v", clients, visit, took, usual)
}

// A name with eight addresses serves eight connections from one port at once. The ninth waits.
func TestEightAddressesOnePort(t *testing.T) {
	each(t, func(w *network, f family) {
		var zone strings.Builder
		for i := range 8 {
			fmt.Fprintf(&zone, "eight.bank.example 30 A 192.0.2.%d\neight.bank.example 30 AAAA 2001:db8:cafe::%d\n", 1+i, 1+i)
		}
		w.answer(lab.Zone(zone.String()))
		server := w.Server.Serve(":7", lab.Echo)
		p := w.pinproxy("--rule", "eight.bank.example:7=63999 busy=other-address,wait")
		addr := netip.AddrPortFrom(w.ask("ip"+f.name[3:], "eight.bank.example")[0], 7).String()
		var open []*net.TCPConn
		for range 8 {
			c := w.mustConnect(addr)
			echo(w.t, c, "hello")
			open = append(open, c)
		}
		ninth := make(chan *net.TCPConn)
		go func() {
			c, err := w.connect(addr)
			if err != nil {
				w.t.Error(err)
			}
			ninth <- c
		}()
		p.await("flow waits for its source port", 1)
		_ = open[0].Close() // the one to the address that was asked for
		if c := <-ninth; c != nil {
			echo(w.t, c, "hello")
		}
		for _, from := range server.Seen() {
			if from != f.from(63999) {
				w.t.Errorf("connection came from %v", from)
			}
		}
		if n := len(server.Seen()); n != 9 {
			w.t.Errorf("%d connections", n)
		}
	})
}

// Twelve downloads, six at a time, by a client that keeps its connections, through one port.
func TestTwelveDownloadsOverOnePort(t *testing.T) {
	need(t, "curl")
	w := newNetworkAlone(t)
	w.names()
	server := w.Server.HTTPS(":443", "www.bank.example")
	w.pinproxy("--rule", "www.bank.example:443=63999 busy=reclaim:1s")
	args := []string{"-4", "-sS", "-Z", "--parallel-max", "6", "--parallel-immediate", "--http1.1", "--max-time", "60", "--cacert", w.net.CA()}
	for i := range 12 {
		args = append(args, fmt.Sprintf("https://www.bank.example/%d", i))
	}
	out := w.must(tool(t, "curl", args...))
	if got := strings.Count(out, "you came from 198.51.100.2:63999"); got != 12 || len(server.Seen()) > 12 {
		t.Errorf("%d downloads came from the pin, over %d connections: %s", got, len(server.Seen()), out)
	}
}

// resume is the longest time that a port may be idle after it has become free. If connections take long, it also
// takes long to find out who has the port, each time that the kernel refuses it: as long as some connections.
const resume = 100 * time.Millisecond

// Another program has the port. Nothing leaves from elsewhere, the log names the program, and service resumes as
// soon as it is gone.
func TestOtherProgramOnThePort(t *testing.T) {
	for _, c := range []struct{ name, code, says string }{
		{"listener", "listen", "listens on"},
		{"connection elsewhere", "connect", "is connected from"},
		{"connection to the same place", "same", "is connected from"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for try := 1; ; try++ { // a busy machine has pauses of its own
				took, usual, cause := resumed(t, c.code, c.says)
				t.Logf("service went on %v after the port was free; a connection takes %v; %s", took, usual, cause)
				if took <= resume+20*usual && strings.Contains(cause, "(pid ") { // the program may not be identified in time
					return
				}
				if try == 5 {
					t.Fatalf("want %v, and 20 times a connection, and the program named", resume)
				}
			}
		})
	}
}

// resumed has a connection wait for a port that another program has. It returns how long after the program's end the
// connection is done, how long the slowest of some connections takes that do not have to wait, and what cause the
// log gave.
func resumed(t *testing.T, code, says string) (took, usual time.Duration, cause string) {
	t.Helper()
	w := newNetworkAlone(t)
	server := w.Server.Serve(at(lab.Server4, 7), lab.Echo)
	w.Server.Serve("192.0.2.80:7", lab.Echo)
	firewall := w.Firewall(63999)
	other := w.occupy(code, 63999)
	p := w.pinproxy("--rule", "203.0.113.2:7=63999")
	dropped := firewall.Dropped()
	type result struct {
		at  time.Time
		err error
	}
	ended := make(chan result, 1)
	go func() {
		err := w.visitOnce(at(lab.Server4, 7))
		ended <- result{time.Now(), err}
	}()
	e := p.await("flow waits for the kernel to free its source port", 1)[0]
	for _, want := range []string{says, "63999"} {
		if !strings.Contains(e.Cause, want) {
			t.Errorf("%q is not in the cause: %s", want, e.Cause)
		}
	}
	if want := fmt.Sprintf("(pid %d)", other.Pid()); strings.Contains(e.Cause, "(pid ") && !strings.Contains(e.Cause, want) {
		t.Errorf("another process than %s is in the cause: %s", want, e.Cause)
	}
	select {
	case r := <-ended:
		t.Fatalf("the port is taken, and yet: %v", r.err)
	case <-time.After(7 * resume): // the kernel is asked less and less often, until as seldom as this bound allows for
	}
	_ = other.Signal(unix.SIGKILL)
	<-other.Done()
	gone := time.Now()
	r := <-ended
	if r.err != nil {
		t.Fatal(r.err)
	}
	if n := firewall.Dropped() - dropped; n != 0 {
		t.Errorf("%d packets left from another port", n)
	}
	for _, from := range server.Seen() {
		if from.Port() != 63999 {
			t.Errorf("connection came from %v", from)
		}
	}
	for range 5 {
		start := time.Now()
		if err := w.visitOnce(at(lab.Server4, 7)); err != nil {
			t.Fatal(err)
		}
		usual = max(usual, time.Since(start))
	}
	return r.at.Sub(gone), usual, e.Cause
}

// occupy starts a program that takes the port, and returns when it has.
func (w *network) occupy(how string, port int) *lab.Process {
	w.t.Helper()
	p, err := w.Client.Start(program("occupy", how, fmt.Sprint(port)))
	if err != nil {
		w.t.Fatal(err)
	}
	if err := p.Expect(soon(w.t), "occupied"); err != nil {
		w.t.Fatal(err)
	}
	return p
}

// occupyPort is that program: it listens on the port, or connects from it as programs do that don't use
// SO_REUSEADDR, and stays.
func occupyPort() {
	flag.Parse()
	how, port := flag.Arg(0), flag.Arg(1)
	var taken io.Closer
	var err error
	switch how {
	case "listen":
		taken, err = net.Listen("tcp", ":"+port)
	default:
		to := map[string]string{"connect": "192.0.2.80:7", "same": at(lab.Server4, 7)}[how]
		local, _ := net.ResolveTCPAddr("tcp4", ":"+port)
		taken, err = (&net.Dialer{LocalAddr: local}).Dial("tcp", to)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "occupied")
	for { // without cgo, `select {}` would be a deadlock, which ends the program
		time.Sleep(time.Hour)
		runtime.KeepAlive(taken)
	}
}

// A firewall that remembers closed connections loses no SYNs if the rule's cooldown accounts for it, and does lose
// some if not.
func TestCooldownForAFirewallThatRemembers(t *testing.T) {
	for _, c := range []struct {
		rule   string
		visits int
		lost   bool
	}{
		{"203.0.113.2:7=63999 cooldown=2s", 4, false},
		{"203.0.113.2:7=63999", 2, true},
	} {
		t.Run(c.rule, func(t *testing.T) {
			w := newNetwork(t)
			w.Server.Serve(at(lab.Server4, 7), lab.Echo)
			middlebox := w.Router.Middlebox(2 * time.Second)
			p := w.pinproxy("--rule", c.rule)
			for i := range c.visits {
				if err := w.visitOnce(at(lab.Server4, 7)); err != nil {
					t.Errorf("visit %d: %v", i, err)
				}
				p.await("flow", i+1)
			}
			if n := middlebox.Dropped(); n > 0 != c.lost {
				t.Errorf("the firewall dropped %d SYNs", n)
			}
		})
	}
}

// A destination that is deaf only to the pin, as behind a firewall that does not let it in, is distinguished from
// one that is down.
func TestDeafDestinationIsExplained(t *testing.T) {
	w := newNetwork(t)
	w.Server.Serve(at(lab.Server4, 7), lab.Echo)
	w.Router.Firewall(lab.Filter{Ports: []lab.PortRange{{First: 1024, Last: 60999}}})
	p := w.pinproxy("--dial-timeout=2s", "--rule", "203.0.113.2:7=63999") // long enough to be answered, from another port
	if _, err := w.connectFor(4*time.Second, at(lab.Server4, 7)); err == nil {
		t.Error("the firewall let it in")
	}
	e := p.await("flow failed", 1)[0]
	if !strings.Contains(e.Err, "no answer from 203.0.113.2:7 to source port 63999") || !strings.Contains(e.Err, "was answered at once") || !strings.Contains(e.Hint, "cooldown=") {
		t.Errorf("logged %+v", e)
	}
}
