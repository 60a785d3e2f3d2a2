package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/netstack/lab"
)

// A long time under mixed load, during which nothing may grow. `make soak` takes an hour. The tests take some
// seconds, which show that it works.

var (
	soakFor  = flag.Duration("soak", 2*time.Second, "how long TestSoak has load, that of earlier runs included")
	soakFile = flag.String("soak-file", "", "file in which TestSoak keeps its samples, to go on from when it was interrupted")
	soakPage = flag.String("soak-page", "", "page whose section on it TestSoak writes")
)

const (
	soakTalk    = 1 << 20 // bytes that an end of a talk sends at most
	soakNames   = 1000
	soakSilence = 3 * time.Second // --dial-timeout
)

// soak is a pinproxy under load, and another host whose pinproxy is killed repeatedly.
type soak struct {
	*network
	victim  *network
	p       *running
	ts      *talks
	pinned  origins
	socket  string
	client  *http.Client
	unhurt  string   // snapshot of the victim
	env     []string // with a PATH that has the programs
	long    bool
	stretch int
	began   time.Time
	earlier load    // of earlier stretches
	offset  float64 // seconds of them

	connections, refusals, questions, commands, kills, wrongs atomic.Int64
}

func TestSoak(t *testing.T) {
	samples, err := soakSamples()
	if err != nil {
		t.Fatal(err)
	}
	s := newSoak(t, samples)
	look := func(resting bool) {
		one, err := s.look(resting)
		if err != nil {
			t.Fatal(err)
		}
		samples = append(samples, one)
		if *soakFile != "" {
			if err := keepSample(*soakFile, one); err != nil {
				t.Fatal(err)
			}
		}
	}
	look(true)
	s.began = time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	under := s.load(ctx)
	tick := time.NewTicker(min(5*time.Second, *soakFor/20))
	defer tick.Stop()
	for began := len(samples); samples[len(samples)-1].At < soakFor.Seconds() || !s.done().all() || len(samples)-began < 8; {
		<-tick.C
		look(false)
		s.progress(samples[len(samples)-1])
		if late := soakFor.Seconds() + patience.Seconds(); samples[len(samples)-1].At > late {
			t.Errorf("not all of it could be done: %v", s.done())
			break
		}
	}
	cancel()
	under.Wait()
	fmt.Println()
	s.rest(samples[0])
	look(true)

	v, ok := judgeSoak(samples)
	if !ok {
		t.Fatalf("%d samples are too few", len(samples))
	}
	t.Logf("%v: %v", v, v.load)
	if *soakPage != "" {
		if err := writeSection(*soakPage, v.page(time.Now())); err != nil {
			t.Error(err)
		}
	}
	if *soakFile != "" {
		_ = os.Remove(*soakFile) // the next soak begins anew
	}
	if s.long && v.String() != "flat" {
		t.Error(v)
	}
	s.p.stop()
}

// soakSamples returns the samples of earlier runs.
func soakSamples() ([]sample, error) {
	if *soakFile == "" {
		return nil, nil
	}
	return readSamples(*soakFile)
}

func newSoak(t *testing.T, earlier []sample) *soak {
	w, victim := newNetwork(t), newNetworkAlone(t)
	s := &soak{network: w, victim: victim, ts: newTalks(soakTalk), long: *soakFor > time.Minute, stretch: 1}
	if n := len(earlier); n > 0 {
		s.stretch, s.offset, s.earlier = earlier[n-1].Stretch+1, earlier[n-1].At, earlier[n-1].Load
	}
	s.ts.orderly = !s.long
	w.answer(soakZone)
	w.Server.Serve(":7", s.ts.serve)
	w.Server.Serve(":10", lab.Echo)
	w.Server.Serve(":443", s.pinned.echo)
	w.routeTo(w.Router, unix.RTN_BLACKHOLE, netip.MustParsePrefix("192.0.2.128/25"))

	victim.names()
	victim.Server.Serve(":443", lab.Echo)
	victim.Server.Serve(":10", lab.Echo)
	s.env = w.by(user{}).Env
	s.unhurt = victim.Client.Snapshot()

	s.socket = filepath.Join(w.run, "soak.sock")
	s.client = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", s.socket)
		},
	}, Timeout: patience}
	s.p = w.pinproxy("--rule", "*:7=20000-20999", "--rule", "www.bank.example:443=63999", "--rule", "*.bank.example:443=63000-63099",
		"--rule", "192.0.2.128/25:9=62000-62999", "--rule", "203.0.113.0/24:11=61000-61099",
		"--dial-timeout", soakSilence.String(), "--socket", s.socket)
	return s
}

// soakZone knows www.bank.example and a thousand other names, each for a second.
func soakZone(q lab.Query) lab.Answer {
	host, _, _ := strings.Cut(q.Name, ".")
	if number, ok := strings.CutPrefix(host, "a"); ok {
		if n, err := strconv.Atoi(number); err == nil {
			return lab.Addrs(q, time.Second, fmt.Sprintf("192.0.2.%d", 1+n%120), fmt.Sprintf("2001:db8:cafe::%x", 1+n))
		}
	}
	return lab.Zone(zone)(q)
}

// wrong records something that should not have happened. The first are told at once, as a soak may be interrupted.
func (s *soak) wrong(format string, args ...any) {
	if s.wrongs.Add(1) <= 10 {
		s.t.Errorf("after %v: "+format, append([]any{time.Since(s.began).Round(time.Millisecond)}, args...)...)
	}
}

// load runs all kinds of load until ctx ends. Whatever is in progress then ends in order.
func (s *soak) load(ctx context.Context) *sync.WaitGroup {
	var all sync.WaitGroup
	pace := func(long time.Duration, do func(ctx context.Context, n int)) {
		if !s.long {
			long /= 20
		}
		all.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				do(context.WithoutCancel(ctx), n)
				select {
				case <-time.After(time.Duration(rand.Int64N(int64(2 * long)))):
				case <-ctx.Done():
				}
			}
		})
	}
	var seeds atomic.Uint64
	for range 8 {
		pace(500*time.Millisecond, func(context.Context, int) {
			seed := seeds.Add(1) + uint64(s.stretch)<<32
			if err := s.talk(s.ts, seed, at(families[seed%2].server, 7)); err != nil {
				s.wrong("talk: %v", err)
			}
		})
	}
	pace(200*time.Millisecond, s.connectOnce)
	pace(time.Second, s.refusal)
	pace(200*time.Millisecond, s.question)
	pace(10*time.Second, s.oneCommand)
	pace(20*time.Second, s.kill)
	return &all
}

// connectOnce makes a short connection to a name, from its only port.
func (s *soak) connectOnce(ctx context.Context, n int) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	s.connections.Add(1)
	network := "ip" + families[n%2].name[3:]
	found, err := s.Client.Resolver().LookupNetIP(ctx, network, "www.bank.example")
	if err != nil || len(found) == 0 {
		s.wrong("resolve www.bank.example: %v, %v", found, err)
		return
	}
	c, err := s.Client.Dial(ctx, "tcp", at(found[0].Unmap().String(), 443))
	if err != nil {
		s.wrong("connect to www.bank.example: %v", err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	text := make([]byte, 1+n%5000)
	if _, err = c.Write(text); err == nil {
		_, err = io.ReadFull(c, text)
	}
	if err != nil {
		s.wrong("echo of www.bank.example: %v", err)
	}
	for _, from := range s.pinned.take() {
		if from.Port() != 63999 {
			s.wrong("www.bank.example heard %v", from)
		}
	}
}

// origins records where connections that said something came from. Those that only connect come from pinproxy
// itself, which tries another port after an upstream's silence.
type origins struct {
	mu   sync.Mutex
	list []netip.AddrPort
}

func (o *origins) echo(c net.Conn) {
	first := make([]byte, 1)
	if _, err := io.ReadFull(c, first); err != nil {
		return
	}
	o.mu.Lock()
	o.list = append(o.list, netip.MustParseAddrPort(c.RemoteAddr().String()))
	o.mu.Unlock()
	if _, err := c.Write(first); err == nil {
		lab.Echo(c)
	}
}

func (o *origins) take() []netip.AddrPort {
	o.mu.Lock()
	defer o.mu.Unlock()
	taken := o.list
	o.list = nil
	return taken
}

// refusal connects to a port where nobody listens, or where nobody answers.
func (s *soak) refusal(ctx context.Context, n int) {
	s.refusals.Add(1)
	addr, timeout := at(lab.Server4, 11), patience
	right := func(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }
	if n%2 == 1 {
		addr, timeout, right = at(fmt.Sprintf("192.0.2.%d", 128+n%128), 9), 100*time.Millisecond, isTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c, err := s.Client.Dial(ctx, "tcp", addr)
	if err == nil {
		_ = c.Close()
	}
	if !right(err) {
		s.wrong("connect to %s: %v", addr, err)
	}
}

// question asks for one of many names, whose addresses become routes.
func (s *soak) question(ctx context.Context, n int) {
	s.questions.Add(1)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	name := fmt.Sprintf("a%d.bank.example", rand.IntN(soakNames))
	if found, err := s.Client.Resolver().LookupNetIP(ctx, "ip", name); err != nil || len(found) == 0 {
		s.wrong("resolve %s: %v, %v", name, found, err)
	}
}

// oneCommand runs a command under a pinproxy of its own.
func (s *soak) oneCommand(ctx context.Context, n int) {
	s.commands.Add(1)
	port := 22000 + n%1000
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "--rule", lab.Server4+":10="+strconv.Itoa(port), "--", "reach", at(lab.Server4, 10)+",hello")
	cmd.Args[0], cmd.Dir, cmd.Env = "pinproxy", "/", s.env
	out, said, err := s.Client.Run(cmd)
	if out != "hello\n" || err != nil {
		s.wrong("command: %q, %q, %v", out, said, err)
	}
}

// kill kills a pinproxy, on a host of its own.
func (s *soak) kill(ctx context.Context, n int) {
	s.kills.Add(1)
	w := s.victim
	p, err := w.Client.Start(w.command(everything...))
	if err != nil {
		s.wrong("start: %v", err)
		return
	}
	loaded, cancel := context.WithCancel(ctx)
	load := w.load(loaded)
	time.Sleep(rand.N(200 * time.Millisecond)) // any moment is right
	_ = p.Signal(unix.SIGKILL)
	<-p.Done()
	if c, err := w.Client.Dial(ctx, "tcp", at(lab.Server4, 10)); err != nil {
		s.wrong("other traffic after a kill: %v", err)
	} else {
		_ = c.Close()
	}
	cancel()
	load.Wait()
	if n%4 != 0 {
		return
	}
	if _, said, err := w.Client.Run(w.command("cleanup")); err != nil {
		s.wrong("cleanup: %v, %s", err, said)
	} else if diff := cmp.Diff(lines(s.unhurt), lines(w.Client.Snapshot())); diff != "" {
		s.wrong("cleanup left the host changed (-before +after):\n%s", diff)
	}
}

// done returns what was done so far.
func (s *soak) done() load {
	return s.earlier.add(load{
		s.ts.count.Load(), s.ts.bytes.Load() >> 20, s.connections.Load(), s.refusals.Load(),
		s.questions.Load(), s.commands.Load(), s.kills.Load(), s.wrongs.Load(),
	})
}

// look takes a sample.
func (s *soak) look(resting bool) (sample, error) {
	one := sample{Stretch: s.stretch, At: s.offset, Resting: resting, Load: s.done()}
	if !s.began.IsZero() {
		one.At += time.Since(s.began).Seconds()
	}
	r, err := s.client.Get("http://pinproxy/status")
	if err != nil {
		return one, err
	}
	defer r.Body.Close()
	var status monitor.Status
	if err := json.NewDecoder(r.Body).Decode(&status); err != nil {
		return one, err
	}
	one.Goroutines, one.Endpoints, one.Heap = float64(status.Process.Goroutines), float64(status.Process.Endpoints), float64(status.Process.Heap)/(1<<20)
	one.Kernel = float64(len(lines(s.Client.Snapshot())))
	return one, s.p.measure(&one)
}

// measure reads what /proc says of pinproxy and its host.
func (p *running) measure(to *sample) error {
	dir := fmt.Sprintf("/proc/%d/", p.Pid())
	fds, err := descriptorsIn(dir + "fd")
	if err != nil {
		return err
	}
	to.Descriptors = float64(fds)
	text := make(map[string]string)
	for _, name := range []string{"status", "stat", "net/sockstat", "net/sockstat6"} {
		b, err := os.ReadFile(dir + name)
		if err != nil {
			return err
		}
		text[name] = string(b)
	}
	to.RSS = after(text["status"], "VmRSS:") / 1024
	to.Threads = after(text["status"], "Threads:")
	to.Sockets = after(text["net/sockstat"], "TCP: inuse") + after(text["net/sockstat"], " tw") + after(text["net/sockstat6"], "TCP6: inuse")
	_, fields, _ := strings.Cut(text["stat"], ") ") // the name may have spaces
	f := strings.Fields(fields)
	user, err1 := strconv.ParseFloat(f[11], 64)
	system, err2 := strconv.ParseFloat(f[12], 64)
	to.CPU = (user + system) / 100
	return errors.Join(err1, err2)
}

// descriptorsIn counts the entries of a /proc/PID/fd. To list 20,000 takes as long as dozens of a bystander's
// connections, so the kernel is asked for their number, which it gives as the directory's size since Linux 6.2.
func descriptorsIn(dir string) (int64, error) {
	i, err := os.Stat(dir)
	if err == nil && i.Size() > 0 {
		return i.Size(), nil
	}
	list, err := os.ReadDir(dir)
	return int64(len(list)), err
}

// after returns the number after a word in a text, or 0 if there is none.
func after(text, word string) float64 {
	_, rest, _ := strings.Cut(text, word)
	number, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	number, _, _ = strings.Cut(number, "\n")
	n, _ := strconv.ParseFloat(number, 64)
	return n
}

// rest waits until nothing of the load is left in pinproxy.
func (s *soak) rest(before sample) {
	s.t.Helper()
	s.p.poll("pinproxy to come to rest", func() bool {
		now, err := s.look(true)
		if err != nil {
			s.t.Fatal(err)
		}
		return now.Endpoints == 0 && now.Descriptors <= before.Descriptors && now.Goroutines <= before.Goroutines+64
	})
}

// progress shows a line that replaces the last one on a terminal.
func (s *soak) progress(now sample) {
	if !s.long {
		return
	}
	fmt.Printf("\r%v of %v: %v; %.0f goroutines, %.0f endpoints, %.0f fds, %.0f MiB RSS, %.0f routes ",
		time.Duration(now.At*float64(time.Second)).Round(time.Second), *soakFor, now.Load,
		now.Goroutines, now.Endpoints, now.Descriptors, now.RSS, now.Kernel)
}

// The verdict notices growth, and what is not released.
func TestSoakVerdict(t *testing.T) {
	var samples []sample
	flat := func(at float64) sample {
		return sample{Stretch: 1, At: at, Goroutines: 50, Descriptors: 40, RSS: 30, Load: load{Talks: int64(at)}}
	}
	for i := range 40 {
		samples = append(samples, flat(float64(i)))
	}
	samples[0].Resting, samples[39].Resting = true, true
	for name, test := range map[string]struct {
		spoil func(s *sample, i int)
		want  string
	}{
		"flat":     {func(*sample, int) {}, "flat"},
		"start":    {func(s *sample, i int) { s.RSS = min(float64(i), 8) * 10 }, "flat"},
		"grows":    {func(s *sample, i int) { s.RSS = float64(i) }, "NOT flat: RSS, MiB: 14 → 33"},
		"not back": {func(s *sample, i int) { s.Descriptors += float64(i / 39 * 20) }, "NOT flat: descriptors at rest: 40 before, 60 after"},
		"wrong":    {func(s *sample, i int) { s.Load.Wrong = 2 }, "NOT flat: 2 things went wrong"},
		"killed": {func(s *sample, i int) {
			s.Resting = i == 0
			s.Descriptors += float64(i / 39 * 20)
		}, "flat"},
	} {
		spoiled := append([]sample(nil), samples...)
		for i := range spoiled {
			test.spoil(&spoiled[i], i)
		}
		v, ok := judgeSoak(spoiled)
		if got := v.String(); got != test.want || !ok {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
	if _, ok := judgeSoak(samples[:3]); ok {
		t.Error("three samples are enough for a verdict")
	}
}

// Samples outlive the run, and so does the section in the page.
func TestSoakFiles(t *testing.T) {
	file, page := filepath.Join(t.TempDir(), "samples"), filepath.Join(t.TempDir(), "page.md")
	want := []sample{{Stretch: 1, At: 1}, {Stretch: 2, At: 2, Load: load{Kills: 3}}}
	for _, s := range want {
		if err := keepSample(file, s); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteString(`{"Stretch":2,"At":`) // and then it was killed
	_ = f.Close()
	for range 2 {
		if got, err := readSamples(file); err != nil || !cmp.Equal(got, want) {
			t.Errorf("%v, %v", got, err)
		}
		want = append(want, sample{Stretch: 3})
		if err := keepSample(file, sample{Stretch: 3}); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := readSamples(file + "x"); err != nil || got != nil {
		t.Errorf("%v, %v", got, err)
	}
	if err := os.WriteFile(page, []byte("# Page\n\n## Soak\n\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, section := range []string{"one\n", "two\n"} {
		if err := writeSection(page, section); err != nil {
			t.Fatal(err)
		}
	}
	got, _ := os.ReadFile(page)
	if want := "# Page\n\n## Soak\n\n\n" + soakBegin + "\ntwo\n\n" + soakEnd; string(got) != want {
		t.Errorf("%q", got)
	}
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}
