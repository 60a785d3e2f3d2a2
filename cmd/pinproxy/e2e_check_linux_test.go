package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// What `check` and `status` say in each situation, as transcripts on the client of the drawn network. In the output,
// numbers that differ each time are replaced by words in capitals: see variable.
//
//	start ARGS              pinproxy ARGS runs, and is ready
//	start-secluded ARGS     likewise, in a PID namespace, with a /proc, of its own
//	run STATUS ARGS         pinproxy ARGS ends with STATUS; stdout and stderr are looked at afterwards
//	run-as-user STATUS ARGS likewise, by an ordinary user; where there is one: [user]
//	run-secluded STATUS ARGS likewise, by root in a PID namespace, with a /proc, of its own
//	serve ADDR...           echo servers, of the server
//	listen ADDR             a listener, of the client
//	connect ADDR            a program's connection, which stays
//	waits ADDR              a program's, of which the log says that it waits
//	fails ADDR              a program's, which fails
//	hold LOCAL ADDR         another program's, from an address and port that it shares with nobody
//	over LOCAL ADDR         one that has been closed on our side
//	sysctl KEY VALUE        of the client
//	firewall RANGE...       of the router, which drops TCP from any other port
//	drop-output DEV         of the client's own firewall
//	no-route IPv4|IPv6      of the client: nothing but its own link can be reached
//	route-from PORT ADDR VIA of the client: a source address, of its own, for TCP from a port
//	forbid-from PORT        of the client: no route for TCP from a port
func TestCheckTranscripts(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/script/check/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			w := newNetwork(t)
			w.keepTimeWait()
			w.names()
			s := &checkScript{network: w}
			testscript.Run(t, testscript.Params{
				Files:         []string{file},
				UpdateScripts: *update,
				Condition:     otherUsers,
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"start":          s.start,
					"start-secluded": s.startSecluded,
					"run":            s.run,
					"run-as-user":    s.runAsUser,
					"run-secluded":   s.runSecluded,
					"serve":          s.serve,
					"listen":         s.listen,
					"connect":        s.connect,
					"waits":          s.waits,
					"fails":          s.fails,
					"hold":           s.hold,
					"over":           s.over,
					"sysctl":         s.sysctl,
					"firewall":       s.firewall,
					"drop-output":    s.dropOutput,
					"no-route":       s.noRoute,
					"route-from":     s.routeFrom,
					"forbid-from":    s.forbidFrom,
				},
			})
		})
	}
}

// checkScript has the commands of one transcript.
type checkScript struct {
	*network
	pinproxy *running
	waiting  int
}

func (s *checkScript) start(ts *testscript.TestScript, _ bool, args []string) {
	s.startAs(ts, args, func(*exec.Cmd) {})
}

func (s *checkScript) startSecluded(ts *testscript.TestScript, _ bool, args []string) {
	s.startAs(ts, args, seclude)
}

func (s *checkScript) startAs(ts *testscript.TestScript, args []string, change func(*exec.Cmd)) {
	cmd := s.command(append([]string{"--log-format=json"}, args...)...)
	cmd.Dir = ts.MkAbs(".")
	change(cmd)
	s.pinproxy = s.startCommand(cmd)
	ts.Check(s.pinproxy.Expect(soon(s.t), `"msg":"ready"`))
}

func (s *checkScript) run(ts *testscript.TestScript, _ bool, args []string) {
	s.runProgram(ts, "pinproxy", args)
}

func (s *checkScript) runAsUser(ts *testscript.TestScript, _ bool, args []string) {
	s.runProgram(ts, "unprivileged", args)
}

func (s *checkScript) runSecluded(ts *testscript.TestScript, _ bool, args []string) {
	s.runProgram(ts, "secluded", args)
}

// seclude makes PID and mount namespaces for cmd.
func seclude(cmd *exec.Cmd) {
	cmd.Args[0] = "secluded"
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
}

// secluded is pinproxy in PID and mount namespaces that were made for it.
func secluded() {
	err := unix.Mount("proc", "/proc", "proc", 0, "")
	if err == nil {
		err = unix.Exec("/proc/self/exe", append([]string{"pinproxy"}, os.Args[1:]...), os.Environ())
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(exitFailed)
}

// unprivileged is pinproxy as a user without any privilege, and without a file or a process.
func unprivileged() {
	const another = 65533 // other than the user that pinproxy becomes
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(another), syscall.Setuid(another)); err != nil {
		fmt.Fprintln(os.Stderr, "become another user:", err)
		os.Exit(exitFailed)
	}
	main()
}

// otherUsers says whether this process may become another user. It may not if an ordinary user runs the tests,
// because that user's namespace has only one user.
func otherUsers(name string) (bool, error) {
	if name != "user" {
		return false, fmt.Errorf("unknown condition %q", name)
	}
	b, err := os.ReadFile("/proc/self/uid_map")
	fields := strings.Fields(string(b))
	return len(fields) > 2 && len(fields[2]) >= len("65535"), err
}

func (s *checkScript) runProgram(ts *testscript.TestScript, name string, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	cmd := s.command(args[1:]...)
	cmd.Args[0], cmd.Dir = name, ts.MkAbs(".")
	if name == "secluded" {
		seclude(cmd)
	}
	p, err := s.Client.Start(cmd)
	ts.Check(err)
	status := exitStatus(p.Wait())
	fmt.Fprint(ts.Stdout(), s.steady(p.Stdout()))
	fmt.Fprint(ts.Stderr(), s.steady(p.Stderr()))
	if status != want {
		ts.Fatalf("pinproxy %q ended with status %d, want %d\n%s%s", args[1:], status, want, p.Stdout(), p.Stderr())
	}
}

// variable lists what differs from run to run, and what replaces it.
var variable = []struct{ pattern, with string }{
	{`\bin [0-9.]+[mµ]?s\b`, `in TIME`},
	{`"took": [0-9.e-]+`, `"took": TIME`},
	{`"(left|idle)": [0-9.e-]+`, `"$1": TIME`},
	{`"((?:up|down)_rate)": [0-9.e+-]+`, `"$1": RATE`},
	{`\b\d+/s (up|down)`, `RATE/s $1`},
	{`TIME_WAIT \d+s`, `TIME_WAIT TIME`},
	{`resting [0-9hms]+`, `resting TIME`},
	{`(held for|link pin0, for) [0-9.µm]+s`, `$1 TIME`},
	{`(bank.example +\S+) +(?:1m0|\d+)s`, `$1 TTL`},
	{` 0?[0-9]s`, ` TIME`},
	{`\b[0-9][0-9.ms]*s (more|ago)`, `TIME $1`},
	{`(192\.0\.0\.8|f62c::8\]):\d+`, `$1:PORT`},
	{`(198\.51\.100\.2|2001:db8:1::2\]):([345]\d{4})`, `$1:PORT`},
	{`pinproxy \(devel\)[^,"]*`, `pinproxy VERSION`},
	{`"20\d\d-[^"]*"`, `"WHEN"`},
	{`within [0-9.]+m?s`, `within TIME`},
	{`though port \d+`, `though port PORT`},
	{`"uid": \d+`, `"uid": UID`},
	{`"(goroutines|heap|endpoints)": \d+`, `"$1": COUNT`},
	{`"namespace": "[^"]*"`, `"namespace": "NAMESPACE"`},
}

// steady replaces what differs from run to run.
func (s *checkScript) steady(text string) string {
	if s.pinproxy != nil {
		text = regexp.MustCompile(fmt.Sprintf(`\b%d\b`, s.pinproxy.Pid())).ReplaceAllString(text, "PID")
	}
	name, _ := os.ReadFile("/proc/self/comm")
	text = strings.ReplaceAll(text, strings.TrimSpace(string(name)), "PROGRAM")
	text = regexp.MustCompile(fmt.Sprintf(`\b%d\b`, os.Getpid())).ReplaceAllString(text, "OTHER")
	text = strings.ReplaceAll(text, s.network.run, "RUN")
	text = regexp.MustCompile(`pinproxy\.i?\d+\.sock`).ReplaceAllString(text, "pinproxy.sock")
	for _, v := range variable {
		text = regexp.MustCompile(v.pattern).ReplaceAllString(text, v.with)
	}
	if strings.HasPrefix(text, "pinproxy VERSION") { // the tables of status are as wide as their contents
		text = regexp.MustCompile(` {3,}`).ReplaceAllString(text, "  ")
		text = regexp.MustCompile(`(?m)^(\S+=\S+(?:  \d+){5}|\d+  (?:open|waiting)  .*)  \S+  \S+$`).ReplaceAllString(text, "$1  RATE  RATE")
	}
	return text
}

func (s *checkScript) serve(_ *testscript.TestScript, _ bool, args []string) {
	for _, addr := range args {
		s.Server.Serve(addr, lab.Echo)
	}
}

func (s *checkScript) listen(ts *testscript.TestScript, _ bool, args []string) {
	_, err := s.Client.Listen("tcp", args[0])
	ts.Check(err)
}

func (s *checkScript) connect(ts *testscript.TestScript, _ bool, args []string) {
	c, err := s.network.connect(args[0])
	ts.Check(err)
	echo(s.t, c, "hello")
}

func (s *checkScript) waits(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		if c, err := s.Client.Dial(ctx, "tcp", args[0]); err == nil {
			_ = c.Close()
		}
	}()
	ts.Defer(func() { cancel(); <-done })
	s.waiting++
	s.pinproxy.await("flow waits for its source port", s.waiting)
}

func (s *checkScript) fails(ts *testscript.TestScript, _ bool, args []string) {
	if c, err := s.network.connect(args[0]); err == nil {
		ts.Fatalf("connect to %s succeeded from %s", args[0], c.LocalAddr())
	}
}

func (s *checkScript) hold(ts *testscript.TestScript, _ bool, args []string) {
	local := netip.MustParseAddrPort(args[0])
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(local), Timeout: patience}
	err := s.Client.Do(func() error {
		c, err := d.Dial("tcp", args[1])
		if err == nil {
			s.t.Cleanup(func() { _ = c.Close() })
		}
		return err
	})
	ts.Check(err)
}

func (s *checkScript) over(ts *testscript.TestScript, _ bool, args []string) {
	c, err := s.Client.DialFrom(soon(s.t), "tcp", args[0], args[1])
	ts.Check(err)
	tcp := c.(*net.TCPConn)
	ts.Check(tcp.CloseWrite())
	_ = tcp.SetReadDeadline(time.Now().Add(patience))
	_, _ = tcp.Read(make([]byte, 1)) // until the server has closed
	ts.Check(tcp.Close())
}

func (s *checkScript) sysctl(_ *testscript.TestScript, _ bool, args []string) {
	s.Client.Sysctl(args[0], args[1])
}

func (s *checkScript) firewall(ts *testscript.TestScript, _ bool, args []string) {
	var f lab.Filter
	for _, arg := range args {
		var r lab.PortRange
		_, err := fmt.Sscanf(arg, "%d-%d", &r.First, &r.Last)
		ts.Check(err)
		f.Ports = append(f.Ports, r)
	}
	s.Router.Firewall(f)
}

func (s *checkScript) dropOutput(_ *testscript.TestScript, _ bool, args []string) {
	s.Client.DropOutput(args[0])
}

func (s *checkScript) noRoute(ts *testscript.TestScript, _ bool, args []string) {
	for _, f := range families {
		if f.name == args[0] {
			all := netip.PrefixFrom(netip.MustParseAddr(f.client), 0).Masked()
			ts.Check(s.Client.Netlink().RouteDel(&netlink.Route{Dst: network4or6(all), Gw: net.ParseIP(f.near)}))
		}
	}
}

func (s *checkScript) routeFrom(ts *testscript.TestScript, _ bool, args []string) {
	port, err := strconv.ParseUint(args[0], 10, 16)
	ts.Check(err)
	s.Client.Addr("eth0", args[1]+"/32")
	s.Client.RouteFrom(uint16(port), args[1], args[2])
}

func (s *checkScript) forbidFrom(ts *testscript.TestScript, _ bool, args []string) {
	port, err := strconv.ParseUint(args[0], 10, 16)
	ts.Check(err)
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Type = unix.AF_INET, 100, unix.RTN_UNREACHABLE
	rule.IPProto, rule.Sport = unix.IPPROTO_TCP, netlink.NewRulePortRange(uint16(port), uint16(port))
	ts.Check(s.Client.Netlink().RuleAdd(rule))
}

// A program has a name's address from a file, which pinproxy does not see for a wildcard. Another name has the address
// of a rule's name. In both cases a connection does not follow the rule, or lack of one, of its name.
func TestCheckSeesWhichNameCounts(t *testing.T) {
	h := newHome(t)
	h.names()
	h.Server.Serve(":443", lab.Echo)
	h.write("etc/hosts", "127.0.0.1 localhost\n203.0.113.2 file.bank.example file.example\n")
	h.write("run/.keep", "")
	h.pinproxy("--rule", "*.bank.example:443=63999")
	check := func(name string, want ...string) {
		t.Helper()
		p, err := h.Client.Start(h.ours("pinproxy", "check", name+":443"))
		if err != nil {
			t.Fatal(err)
		}
		status := exitStatus(p.Wait())
		for _, w := range want {
			if !strings.Contains(p.Stdout(), w) || status != exitFailed {
				t.Errorf("status %d, want %d, and %q in\n%s", status, exitFailed, w, p.Stdout())
			}
		}
	}
	check("file.bank.example", "pinned    no: the running pinproxy has seen no DNS answer that says that 203.0.113.2 is an address of file.bank.example\n",
		"a rule for the address", "How is my source port chosen? By the kernel:")
	h.ask("ip4", "www.bank.example")
	const instead = "takes 203.0.113.2 for an address of www.bank.example, and goes by the rule *.bank.example:443=63999"
	check("file.example", instead, "How is my source port chosen? By the running pinproxy's rule *.bank.example:443=63999.")
}

// A server that does not close its end does not keep the pin's port from whoever comes after check.
func TestCheckOfAServerThatDoesNotClose(t *testing.T) {
	each(t, func(w *network, f family) {
		w.Server.Sysctl("net.ipv4.tcp_timestamps", "0")
		done := make(chan struct{})
		w.Server.Serve(at(f.server, 7), func(net.Conn) { <-done })
		w.t.Cleanup(func() { close(done) })
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999")
		for i := range 2 {
			said, _, err := w.Client.Run(w.command("check", "--connect", "--dial-timeout=10s", at(f.server, 7)))
			if err != nil {
				w.t.Fatalf("%v\n%s", err, said)
			}
			p.await("flow", i+1)
		}
	})
}
