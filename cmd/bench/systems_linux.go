package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

const (
	startPatience = 15 * time.Second // for a system to carry its first connection
	endPatience   = 3 * time.Second  // for a system to end when told to
	pinRange      = "20000-29999"
	tunAddr       = "192.0.2.1" // on a peer's device
)

// system is one thing that is measured, on a client host of its own.
type system struct {
	kind
	net    *network
	host   *lab.Host
	addr   string // the host's
	dir    string // of its log and other files
	binary string // of pinproxy, or the peer

	logFile     *os.File
	client      *agent
	inner       *lab.Host // the host behind, if it is a gateway
	behind      *agent    // on inner
	unfit       error     // why it is not a gateway
	processes   []*lab.Process
	proxy       []*lab.Process // processes whose time and memory count
	descendants bool           // whether their children's count too
	local       bool           // its listeners are on loopback
	mounted     string         // file of a namespace
	broken      error          // why it is not measured any more
}

// newSystem gives a system its host, and a host behind that if it is to be a gateway. It starts nothing yet.
func newSystem(w *network, k kind, gateway bool, binary, dir string) (*system, error) {
	name := k.key
	if gateway {
		name += " gateway"
	}
	s := &system{kind: k, net: w, dir: filepath.Join(dir, name), binary: binary}
	s.host, s.addr = w.client(name)
	if gateway {
		s.inner = w.behind(s.host, s.addr)
	}
	return s, os.Mkdir(s.dir, 0o755)
}

// start starts the system and the load with it, and checks that connections go the way they should.
func (s *system) start(ctx context.Context) error {
	err := attempt(func() error { return s.launch(ctx) })
	if err == nil {
		err = s.check(ctx, s.client, s.to(portWho))
	}
	if err == nil && s.inner != nil {
		err = s.startBehind(ctx)
	}
	if err != nil {
		s.stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%s: %w%s", s.title, err, s.lastWords())
	}
	return nil
}

// startBehind starts the load on the host behind. A peer that does not serve this host may still be measured in
// other ways.
func (s *system) startBehind(ctx context.Context) (err error) {
	if s.behind, err = s.agent(s.inner); err != nil {
		return err
	}
	s.unfit = s.check(ctx, s.behind, serverAddrs(portWho))
	if s.program == "" {
		return s.unfit
	}
	return nil
}

// attempt returns the error with which f, or package lab within it, has failed. That failure is of one system, not
// of the network.
func attempt(f func() error) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case runtime.Error:
			panic(r)
		case error:
			err = r
		default:
			panic(r)
		}
	}()
	return f()
}

func (s *system) launch(ctx context.Context) error {
	s.local, s.descendants = false, false
	var err error
	if s.logFile, err = os.Create(filepath.Join(s.dir, "log")); err != nil {
		return err
	}
	switch s.key {
	case keyDirect:
		return s.load(s.host)
	case keyPinproxy:
		return s.pinproxy(ctx, s.rules()...)
	case keyCommand:
		return s.command()
	case keyMany:
		return s.many(ctx)
	}
	return s.peer(ctx)
}

// stop ends everything that start has started.
func (s *system) stop() {
	for _, a := range []*agent{s.behind, s.client} {
		if a != nil {
			a.end()
		}
	}
	s.behind, s.client = nil, nil
	for _, p := range slices.Backward(s.processes) {
		p.Signal(syscall.SIGTERM)
	}
	end := time.After(endPatience)
	for _, p := range s.processes {
		select {
		case <-p.Done():
		case <-end:
			end = nil
			for _, p := range s.processes {
				p.Signal(syscall.SIGKILL)
			}
			<-p.Done()
		}
	}
	s.processes, s.proxy = nil, nil
	if s.mounted != "" {
		_ = unix.Unmount(s.mounted, unix.MNT_DETACH) // otherwise the end of the mount namespace does it
		s.mounted = ""
	}
	if s.logFile != nil {
		s.logFile.Close()
		s.logFile = nil
	}
}

// run starts a program whose time and memory count.
func (s *system) run(name string, args ...string) (*lab.Process, error) {
	cmd := exec.Command(name, args...)
	s.outfit(cmd)
	p, err := s.host.Start(cmd)
	if err == nil {
		s.processes = append(s.processes, p)
		s.proxy = append(s.proxy, p)
	}
	return p, err
}

// outfit makes cmd write to the log and keep its state in the system's directory.
func (s *system) outfit(cmd *exec.Cmd) {
	cmd.Stdout, cmd.Stderr = s.logFile, s.logFile
	cmd.Env = append(os.Environ(), "RUNTIME_DIRECTORY="+s.dir)
}

// log returns what the system has written so far.
func (s *system) log() (string, error) {
	text, err := os.ReadFile(filepath.Join(s.dir, "log"))
	return string(text), err
}

// lastWords returns the end of the log, for an error.
func (s *system) lastWords() string {
	text, _ := s.log()
	lines := strings.Split(strings.TrimSpace(text), "\n")
	words := strings.Join(lines[max(0, len(lines)-3):], "\n")
	if words == "" {
		return ""
	}
	return "\n" + words[max(0, len(words)-600):]
}

// load starts the load generator on h.
func (s *system) load(h *lab.Host) (err error) {
	s.client, err = s.agent(h)
	return err
}

func (s *system) agent(h *lab.Host) (*agent, error) {
	argv, err := agentCommand()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	s.outfit(cmd)
	return startAgent(h, cmd)
}

// rules returns the rules for pinproxy.
func (s *system) rules() []string {
	args := []string{"--rule", serverPrefix + ":*=" + pinRange}
	for _, port := range []uint16{portPinned, portPlain} {
		args = append(args, "--rule", fmt.Sprintf("%s:%d=%d", serverPrefix, port, pinnedTo[port]))
	}
	return args
}

// pinproxy starts pinproxy for the whole host.
func (s *system) pinproxy(ctx context.Context, args ...string) error {
	if s.inner != nil {
		args = append(args, "--gateway", innerLink)
	}
	p, err := s.run(s.binary, args...)
	if err == nil {
		err = s.saysReady(ctx, p)
	}
	if err != nil {
		return err
	}
	return s.load(s.host)
}

func (s *system) saysReady(ctx context.Context, p *lab.Process) error {
	return waitFor(startPatience, func() error {
		if err := errors.Join(ctx.Err(), ended(p)); err != nil {
			return nil // the next one to use it sees this
		}
		text, err := s.log()
		if err == nil && !strings.Contains(text, "msg=ready") {
			err = errors.New("it does not say that it is ready")
		}
		return err
	})
}

func ended(p *lab.Process) error {
	select {
	case <-p.Done():
		return fmt.Errorf("it has ended: %v", p.Wait())
	default:
		return nil
	}
}

// command starts pinproxy for one command, the load generator.
func (s *system) command() error {
	argv, err := agentCommand()
	if err != nil {
		return err
	}
	cmd := exec.Command(s.binary, slices.Concat(s.rules(), []string{"--"}, argv)...)
	s.outfit(cmd)
	if s.client, err = startAgent(s.host, cmd); err != nil {
		return err
	}
	s.processes = append(s.processes, s.client.process)
	s.proxy = append(s.proxy, s.client.process)
	return nil
}

// many starts pinproxy with many rules and makes it learn many addresses.
func (s *system) many(ctx context.Context) error {
	file := filepath.Join(s.dir, "rules")
	if err := os.WriteFile(file, []byte(manyRulesFile()), 0o644); err != nil {
		return err
	}
	if err := s.pinproxy(ctx, "--rules", file); err != nil {
		return err
	}
	r, err := s.client.do(ctx, task{
		Do: "resolve", To: []netip.AddrPort{netip.MustParseAddrPort(nameServer)}, N: manyNames, Time: time.Minute,
	})
	if want := manyAddrs + len(serverAddrs(0)); err == nil && r.OK != want {
		err = fmt.Errorf("%d addresses learned of %d", r.OK, want)
	}
	return err
}

// to returns the addresses at which the load finds a service.
func (s *system) to(port uint16) []netip.AddrPort {
	if s.local {
		return []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)}
	}
	return serverAddrs(port)
}

// check has an agent try connections until one arrives, and checks that it went through the system.
func (s *system) check(ctx context.Context, from *agent, to []netip.AddrPort) error {
	var r report
	err := waitFor(startPatience, func() (err error) {
		if ctx.Err() != nil {
			return nil
		}
		r, err = from.do(ctx, task{Do: "who", To: to})
		if errors.Is(err, errBroken) {
			return nil
		}
		for _, p := range s.processes {
			if ended(p) != nil {
				return nil
			}
		}
		return err
	})
	for _, p := range s.processes {
		err = errors.Join(err, ended(p))
	}
	if err = errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	seen, err := netip.ParseAddrPort(r.Seen)
	pinned := seen.Port() >= 20000 && seen.Port() <= 29999
	switch {
	case err != nil:
		return fmt.Errorf("the server says %q instead of an address", r.Seen)
	case (s.key == keyDirect) != (r.Local == r.Seen) && s.key != "nft": // nft keeps a port that is already in the range
		return fmt.Errorf("a connection from %s came from %s", r.Local, r.Seen)
	case slices.Contains([]string{keyPinproxy, keyCommand, keyMany, "nft"}, s.key) && !pinned:
		return fmt.Errorf("a connection came from port %s instead of %s", strconv.Itoa(int(seen.Port())), pinRange)
	}
	return nil
}
