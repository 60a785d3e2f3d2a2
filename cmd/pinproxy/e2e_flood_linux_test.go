package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/netstack/lab"
)

// Far more than anybody needs, all at once. Programs that take no part in it must hardly notice: `make floods` says
// how much they do.

var floods = flag.Bool("floods", false, "flood with the numbers of docs/reliability.md, and hold others' latency to them")

// much returns full for `make floods`, and modest otherwise, which the tests have time for.
func much(full, modest int) int {
	if *floods {
		return full
	}
	return modest
}

// bystander is a program that repeatedly connects, says something and hears it back, from a pin of its own.
type bystander struct {
	w      *network
	p      *running
	server *lab.Server
	before time.Duration // median
	rss    float64       // MiB, before
}

const bystanderPort = 443

// watched starts pinproxy with args and a rule for a bystander, and measures how the bystander does without a flood.
func (w *network) watched(args ...string) *bystander {
	w.t.Helper()
	b := &bystander{w: w, server: w.Server.Serve(fmt.Sprint(":", bystanderPort), lab.Echo)}
	b.p = w.pinproxy(append([]string{"--rule", "*:443=64000-64099"}, args...)...)
	b.before = b.median(much(500, 20))
	b.rss = b.measure().RSS
	return b
}

func (b *bystander) measure() (s sample) {
	b.w.t.Helper()
	if err := b.p.measure(&s); err != nil {
		b.w.t.Fatal(err)
	}
	return s
}

// once makes one connection and returns the time until its answer arrives.
func (b *bystander) once() (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	start := time.Now()
	c, err := b.w.Client.Dial(ctx, "tcp", at(lab.Server4, bystanderPort))
	if err != nil {
		return 0, err
	}
	defer c.Close()
	_ = c.SetDeadline(start.Add(patience))
	if _, err = io.WriteString(c, "x"); err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	return time.Since(start), err
}

func (b *bystander) median(n int) time.Duration {
	b.w.t.Helper()
	var all []time.Duration
	for range n {
		d, err := b.once()
		if err != nil {
			b.w.t.Fatalf("a bystander's connection: %v", err)
		}
		all = append(all, d)
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// uncaptured is a port that no rule names. A flood of it costs the flooder, the server and the kernel as much as
// usual, and pinproxy nothing. Anything that shares the processors with the flood has to bear that in any case.
const uncaptured = 10

// meanwhile is how a bystander does in a flood.
type meanwhile struct {
	all  []time.Duration // sorted
	most sample          // of pinproxy, at its largest
	took time.Duration
}

func (m meanwhile) median() time.Duration { return m.all[len(m.all)/2] }

// in runs flood, and lets the bystander connect until it is over.
func (b *bystander) in(flood func()) meanwhile {
	t := b.w.t
	t.Helper()
	over := make(chan struct{})
	go func() { // ends with flood
		defer close(over)
		flood()
	}()
	var all []time.Duration
	var most sample
	start := time.Now()
	for running := true; running || len(all) < 5; {
		d, err := b.once()
		if err != nil {
			t.Fatalf("a bystander's connection, %v into the flood: %v", time.Since(start), err)
		}
		all = append(all, d)
		if now := b.measure(); now.RSS > most.RSS {
			most = now
		}
		select {
		case <-over:
			running = false
		case <-time.After(5 * time.Millisecond):
		}
	}
	took := time.Since(start)
	slices.Sort(all)
	return meanwhile{all, most, took}
}

// during reports how the bystander does in a flood, what the flood costs, and how long it takes until everything is
// released, which is when gone is true. beside, unless nil, is the same flood not through pinproxy.
func (b *bystander) during(flood, beside func(), gone func(now monitor.Status) bool) {
	t := b.w.t
	t.Helper()
	fair, of := max(b.before, time.Millisecond), "without the flood"
	if beside != nil {
		other := b.in(beside)
		t.Logf("not through pinproxy: took %v; bystander's median %v (p99 %v)",
			other.took.Round(time.Millisecond), other.median().Round(time.Microsecond), other.all[len(other.all)*99/100].Round(time.Microsecond))
		if other.median() > fair {
			fair, of = other.median(), "beside the same flood that pinproxy has nothing to do with"
		}
	}
	m := b.in(flood)
	ended := time.Now()
	b.p.poll("the flood to be over", func() bool {
		now, ok := b.w.statusNow()
		return ok && gone(now)
	})
	recovered := time.Since(ended)
	after := b.median(much(500, 20))
	t.Logf("took %v; bystander's median %v before, %v meanwhile (p99 %v), %v after; RSS %.0f → %.0f MiB, %.0f descriptors at most; over %v later",
		m.took.Round(time.Millisecond), b.before.Round(time.Microsecond), m.median().Round(time.Microsecond), m.all[len(m.all)*99/100].Round(time.Microsecond),
		after.Round(time.Microsecond), b.rss, m.most.RSS, m.most.Descriptors, recovered.Round(10*time.Millisecond))
	for _, from := range b.server.Seen() {
		if from.Port() < 64000 || from.Port() > 64099 {
			t.Errorf("a bystander came from %v", from)
		}
	}
	if *floods && m.median() > 2*fair {
		t.Errorf("a bystander's connection took %v, %v %s", m.median(), fair, of)
	}
	const limit = 1024 // MiB; see docs/reliability.md
	if m.most.RSS > limit {
		t.Errorf("pinproxy took %.0f MiB, want %d at most", m.most.RSS, limit)
	}
}

// statusNow asks the control socket, which may be slow to answer in a flood.
func (w *network) statusNow() (s monitor.Status, ok bool) {
	out, _, err := w.Client.Run(w.command("status", "--json"))
	return s, err == nil && json.Unmarshal([]byte(out), &s) == nil
}

// noneTo reports whether no flow to a port is left.
func noneTo(port uint16) func(monitor.Status) bool {
	return func(s monitor.Status) bool {
		return !slices.ContainsFunc(s.Flows, func(f monitor.Flow) bool { return f.Dst.Port() == port })
	}
}

// flooder floods from a process of its own, so that the bystander has its own share of the processors: flooder what
// address port count.
func flooder() {
	yieldAlways()
	to := at(os.Args[2], number(os.Args[3]))
	var n atomic.Int64
	n.Store(int64(number(os.Args[4])))
	way := map[string]struct {
		workers int
		once    func(string) error
	}{"knock": {4, knock}, "reset": {8, connectAndReset}, "ask": {1, askSilent}, "half": {1, halfOpen}, "look": {1000, lookUpMany}}[os.Args[1]]
	var all sync.WaitGroup
	for range way.workers {
		all.Go(func() {
			for n.Add(-1) >= 0 {
				if err := way.once(to); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
			}
		})
	}
	all.Wait()
}

// otherHosts is program for a program that stands for another host. With the numbers of `make floods`, it yields to
// everything else that runs here. With modest numbers it should finish soon, next to other tests.
func otherHosts(name string, args ...string) *exec.Cmd {
	cmd := program(name, args...)
	if *floods {
		cmd.Env = append(cmd.Env, yieldEnv+"=1")
	}
	return cmd
}

const yieldEnv = "YIELD_ALWAYS"

// yieldAlways makes a process of otherHosts run only when others leave a processor idle. The lowest nice value is
// not enough: a process that wakes up then waits until such a process has had its slice of some milliseconds
// (RUN_TO_PARITY in kernel/sched/fair.c).
func yieldAlways() {
	if os.Getenv(yieldEnv) == "" {
		return
	}
	threads, err := os.ReadDir("/proc/self/task") // sched(7): the policy belongs to a thread, and threads that it starts inherit it
	if err != nil {
		panic(err)
	}
	for _, thread := range threads {
		if err := unix.SchedSetAttr(number(thread.Name()), &unix.SchedAttr{Policy: unix.SCHED_IDLE}, 0); err != nil {
			panic(err)
		}
	}
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

// floods returns a function that floods a port from the client.
func (w *network) floods(what, addr string, port, n int) func() {
	return func() {
		if _, _, err := w.Client.Run(otherHosts("flooder", what, addr, strconv.Itoa(port), strconv.Itoa(n))); err != nil {
			w.t.Error(err)
		}
	}
}

// knocks counts the SYNs sent.
var knocks atomic.Uint32

// knock sends a SYN as a program does that connects and gives up at once, to each address of 192.0.2.128/25 in turn.
func knock(to string) error {
	dst := netip.MustParseAddrPort(to)
	addr := dst.Addr().As4()
	addr[3] += byte(knocks.Add(1) % 128)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(dst.Port()), Addr: addr}); !errors.Is(err, unix.EINPROGRESS) {
		return fmt.Errorf("connect without waiting: %w", err)
	}
	return nil
}

func connectAndReset(to string) error {
	c, err := net.DialTimeout("tcp", to, patience)
	if err != nil {
		return err
	}
	_ = c.(*net.TCPConn).SetLinger(0)
	return c.Close()
}

// SYNs to silent destinations: each is a dial that nobody answers, from a program that is no longer there.
func TestFloodOfSYNs(t *testing.T) {
	w := newNetwork(t)
	w.routeTo(w.Router, unix.RTN_BLACKHOLE, netip.MustParsePrefix("192.0.2.128/25"))
	b := w.watched("--rule", "192.0.2.128/25:9=20000-29999 busy=fail", "--dial-timeout=2s")
	n := much(100_000, 200)
	b.during(w.floods("knock", "192.0.2.128", 9, n), w.floods("knock", "192.0.2.128", uncaptured, n), noneTo(9))
}

// Half-open: the application's host never answers our SYN-ACK. Its address is not one of the client's, so nobody
// resets the connection.
func TestFloodOfHalfOpen(t *testing.T) {
	w := newNetwork(t)
	n := much(10_000, 100)
	if most := descriptors(t, n+1000); most < n+1000 {
		t.Fatalf("%d descriptors are allowed, %d are needed (ulimit -Hn)", most, n+1000)
	}
	// Not lab.Echo: each of its connections has two more descriptors, for a pipe to splice through.
	w.Server.Serve(":9", lab.Sink)
	b := w.watched("--rule", lab.Server4+":9=20000-39999")
	b.during(w.floods("half", lab.Server4, 9, n), nil, func(s monitor.Status) bool { return noneTo(9)(s) && s.Process.Endpoints == 0 })
}

// rawSocket sends IPv4 packets into pin0.
var rawSocket = sync.OnceValues(func() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return -1, err
	}
	return fd, unix.BindToDevice(fd, "pin0")
})

// halfOpen sends a SYN from one of a hundred hosts that do not exist.
func halfOpen(to string) error {
	fd, err := rawSocket()
	if err != nil {
		return err
	}
	k := int(knocks.Add(1)) - 1
	if k%100 == 99 {
		time.Sleep(2 * time.Millisecond) // we don't test the device's queue
	}
	dst := netip.MustParseAddrPort(to)
	from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(100 + k%100)}), uint16(1024+k/100))
	return unix.Sendto(fd, rawSYN(from, dst), 0, &unix.SockaddrInet4{Addr: dst.Addr().As4()})
}

// rawSYN returns a SYN as an IPv4 packet.
func rawSYN(from, to netip.AddrPort) []byte {
	b := make([]byte, 40)
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	src, dst := from.Addr().As4(), to.Addr().As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	tcp := b[20:]
	binary.BigEndian.PutUint16(tcp, from.Port())
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	binary.BigEndian.PutUint32(tcp[4:], 1)
	tcp[12], tcp[13] = 5<<4, 2 // SYN
	binary.BigEndian.PutUint16(tcp[14:], 65535)
	pseudo := slices.Concat(src[:], dst[:], []byte{0, unix.IPPROTO_TCP, 0, byte(len(tcp))}, tcp)
	binary.BigEndian.PutUint16(tcp[16:], checksum(pseudo))
	binary.BigEndian.PutUint16(b[10:], checksum(b[:20]))
	return b
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// A program that connects and resets as fast as it can.
func TestFloodOfResets(t *testing.T) {
	w := newNetwork(t)
	w.Server.Serve(":9", lab.Echo)
	w.Server.Serve(fmt.Sprint(":", uncaptured), lab.Echo)
	b := w.watched("--rule", lab.Server4+":9=20000-20099")
	n := much(50_000, 200)
	b.during(w.floods("reset", lab.Server4, 9, n), w.floods("reset", lab.Server4, uncaptured, n), noneTo(9))
}
