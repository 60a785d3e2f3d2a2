package main

// The end-to-end tests run a whole pinproxy, as a process of its own, on the client of this network, and
// look at what a plain program on the client and a plain server see:
//
//	 client                          router                          server
//	┌──────────────────┐ eth0   eth0┌──────────────┐eth1   eth0┌──────────────────────┐
//	│ application      ├────────────┤ firewall: TCP├───────────┤ HTTPS, echo, DNS, …  │
//	│   │         ▲    │.2        .1│ only from the│.1       .2│ www.bank.example     │
//	│   ▼ pin0    │    │            │ agreed source│           │ 192.0.2.0/25         │
//	│ pinproxy ───┘    │            │ ports        │           │ 2001:db8:cafe::/48   │
//	└──────────────────┘            └──────────────┘           └──────────────────────┘
//	       198.51.100.0/24, 2001:db8:1::/64   203.0.113.0/24, 2001:db8:2::/64
//
// Hosts are network namespaces (package lab). The test binary started under the name pinproxy is pinproxy, and
// started as visit it is a plain HTTPS client. At its end, every test ends its pinproxy with SIGTERM. The client
// must then be what it was before.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// programs lists what the test binary is under other names.
var programs = map[string]func(){
	"pinproxy": main,
	namerName:  namerMain,
	"visit":    visit,
	"apart":    apart,
	"occupy":   occupyPort,
	"again":    again,

	"unprivileged": unprivileged,
	"secluded":     secluded,
	"reach":        reach,
	"blurt":        blurt,
	"trap":         trap,
	"shuttle":      shuttle,
	"ask":          ask,
	"pinging":      pinging,
	"congestion":   congestion,
	"guarded":      guarded,
	"confined":     confined,
	"inside":       inside,
	"modest":       modest,
	"callers":      callers,
	"idlers":       idlers,
	"flooder":      flooder,
	"impatient":    impatient,
}

func TestMain(m *testing.M) {
	if programs[filepath.Base(os.Args[0])] == nil {
		if err := lab.Enter(); err != nil {
			fmt.Fprintln(os.Stderr, "lab:", err)
			os.Exit(1)
		}
	}
	testscript.Main(asking{m}, programs)
}

// asking runs the tests where all programs ask the server of their own network for names. All hosts share the files
// that say so. The files are made once, so that tests can run side by side.
type asking struct{ m *testing.M }

func (a asking) Run() (status int) {
	err := lab.Run(func(n *lab.Net) error {
		n.ResolvConf(lab.Server4, lab.Server6)
		if isRoot() {
			n.ShareTUN()
		}
		status = a.m.Run()
		return nil
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	return status
}

// program returns the test binary as a command under another name.
func program(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = name
	cmd.Env = append(environ(), "GORACE=atexit_sleep_ms=0")
	return cmd
}

// environ is our environment without variables that make programs behave differently.
func environ() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return strings.HasSuffix(strings.ToLower(name), "_proxy") || strings.HasPrefix(name, "GIT_") || strings.HasPrefix(name, "SSH_")
	})
}

// zone is what the name server knows.
const zone = `
	www.bank.example     30 A     203.0.113.2
	www.bank.example     30 AAAA  2001:db8:2::2
	v4.bank.example      30 A     203.0.113.2
	v6.bank.example      30 AAAA  2001:db8:2::2
	other.example        30 A     192.0.2.80
	other.example        30 AAAA  2001:db8:cafe::80
	three.bank.example   30 A     192.0.2.1
	three.bank.example   30 A     192.0.2.2
	three.bank.example   30 A     192.0.2.3
	three.bank.example   30 AAAA  2001:db8:cafe::1
	three.bank.example   30 AAAA  2001:db8:cafe::2
	three.bank.example   30 AAAA  2001:db8:cafe::3
	lure.bank.example    30 A     192.0.2.1
	lure.bank.example    30 A     198.51.100.2
	lure.bank.example    30 AAAA  2001:db8:cafe::1
	lure.bank.example    30 AAAA  2001:db8:1::2
`

// network is the drawing above, without a firewall and with no services yet.
type network struct {
	*lab.Topology
	net *lab.Net
	t   *testing.T
	run string // pinproxy's directory
}

// newNetwork makes a network and lets t run side by side with other tests.
func newNetwork(t *testing.T) *network {
	t.Parallel()
	return newNetworkAlone(t)
}

// newNetworkAlone is for tests that measure time and so need the machine for themselves.
func newNetworkAlone(t *testing.T) *network {
	needTUN(t)
	n := lab.ForTest(t)
	w := &network{n.Topology(), n, t, publicDir(t)}
	w.ServerOwns("192.0.2.0/25", "2001:db8:cafe::/48")
	return w
}

// publicDir returns a directory that users other than root may enter: pinproxy becomes one.
func publicDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; len(d) > len(os.TempDir()); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// names serves zone.
func (w *network) names() *lab.DNS { return w.answer(lab.Zone(zone)) }

func (w *network) answer(f func(lab.Query) lab.Answer) *lab.DNS {
	return w.Server.DNS(f, lab.Server4+":53", "["+lab.Server6+"]:53")
}

// keepTimeWait keeps a reset from ending a TIME_WAIT of the client's (RFC 1337). That happens on a busy machine: if
// an ACK takes so long that the peer repeats its FIN, the answer to that FIN meets a TIME_WAIT.
func (w *network) keepTimeWait() { w.Client.Sysctl("net.ipv4.tcp_rfc1337", "1") }

// running is a pinproxy on a host.
type running struct {
	*lab.Process
	t      *testing.T
	host   *lab.Host
	before string // the host's snapshot
}

// pinproxy starts a pinproxy on the client, logging as JSON, and returns when it is ready. The end of the test ends
// it, unless the test already has.
func (w *network) pinproxy(args ...string) *running {
	w.t.Helper()
	p := w.startPinproxy(args...)
	p.expect(`"msg":"ready"`)
	return p
}

// startPinproxy starts one and does not wait.
func (w *network) startPinproxy(args ...string) *running {
	w.t.Helper()
	return w.startCommand(w.command(append([]string{"--log-format=json"}, args...)...))
}

// command returns a pinproxy that keeps its state in the network's directory.
func (w *network) command(args ...string) *exec.Cmd {
	cmd := program("pinproxy", args...)
	cmd.Env = append(cmd.Env, "RUNTIME_DIRECTORY="+w.run)
	return cmd
}

func (w *network) startCommand(cmd *exec.Cmd) *running {
	w.t.Helper()
	p := &running{t: w.t, host: w.Client, before: w.Client.Snapshot()}
	var err error
	if p.Process, err = w.Client.Start(cmd); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		select {
		case <-p.Done():
		default:
			p.stop()
		}
		if w.t.Failed() {
			w.t.Logf("log of %q:\n%s", cmd.Args, p.Stderr())
		}
	})
	return p
}

// soon returns a context for what is expected to happen.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// expect waits for text in the log.
func (p *running) expect(text string) {
	p.t.Helper()
	if err := p.Expect(soon(p.t), text); err != nil {
		p.t.Fatal(err)
	}
}

// stop ends pinproxy by SIGTERM.
func (p *running) stop() {
	p.t.Helper()
	_ = p.Signal(unix.SIGTERM)
	p.gone()
}

// gone waits for pinproxy to end in order. After that the host must be what it was.
func (p *running) gone() {
	p.t.Helper()
	p.ended(exitOK)
	if diff := cmp.Diff(lines(p.before), lines(p.host.Snapshot())); diff != "" {
		p.t.Errorf("pinproxy left the host changed (-before +after):\n%s", diff)
	}
}

// ended waits for the process to end with this exit status.
func (p *running) ended(status int) {
	p.t.Helper()
	select {
	case <-p.Done():
	case <-time.After(patience):
		_ = p.Signal(unix.SIGQUIT) // make it print where it is stuck
		<-p.Done()
		p.t.Errorf("pinproxy did not end")
		return
	}
	if got := exitStatus(p.Wait()); got != status {
		p.t.Errorf("pinproxy ended with status %d, want %d", got, status)
	}
}

// exitStatus returns the exit status of a process, or -1 for a signal or if there was none.
func exitStatus(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

// lines splits a text for diffs.
func lines(text string) []string { return strings.Split(strings.TrimSpace(text), "\n") }

// entry is a line of the log.
type entry struct {
	Level, Msg, Src, Dst, Upstream, Name, Rule, Local, Took, End, Err, Cause, Hint, Leaves string

	ID, Up, Down uint64
}

// entries returns the log's lines with this message so far.
func (p *running) entries(msg string) (found []entry) {
	p.t.Helper()
	for text := range strings.Lines(p.Stderr()) {
		if !strings.HasSuffix(text, "\n") {
			break // still being written
		}
		var e struct {
			entry
			Took json.Number // nanoseconds
		}
		d := json.NewDecoder(strings.NewReader(text))
		if err := d.Decode(&e); err != nil {
			p.t.Fatalf("log line %q: %v", text, err)
		}
		e.entry.Took = e.Took.String()
		if e.Msg == msg {
			found = append(found, e.entry)
		}
	}
	return found
}

// await returns the first n lines with this message as soon as they are there.
func (p *running) await(msg string, n int) []entry {
	p.t.Helper()
	var found []entry
	p.poll(fmt.Sprintf("%d log lines %q", n, msg), func() bool {
		found = p.entries(msg)
		return len(found) >= n
	})
	return found[:n]
}

func (p *running) poll(what string, done func() bool) {
	p.t.Helper()
	poll(p.t, what, done)
}

// visit is a plain HTTPS client: it prints what the URLs return.
func visit() {
	timeout := flag.Duration("timeout", patience, "")
	ca := flag.String("ca", "", "")
	flag.Parse()
	pem, err := os.ReadFile(*ca)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	client := &http.Client{Timeout: *timeout, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	for _, url := range flag.Args() {
		var r *http.Response
		if r, err = client.Get(url); err != nil {
			break
		}
		_, err = io.Copy(os.Stdout, r.Body)
		_ = r.Body.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// visit starts the plain client and returns what it printed.
func (w *network) visit(timeout time.Duration, url string) (string, error) {
	w.t.Helper()
	out, _, err := w.Client.Run(program("visit", "-timeout", timeout.String(), "-ca", w.net.CA(), url))
	return strings.TrimSpace(out), err
}

// family is what differs between IPv4 and IPv6.
type family struct {
	name, client, near, server, elsewhere string
}

// families are both. The server also owns elsewhere, and more in its prefix.
var families = []family{
	{"IPv4", lab.Client4, lab.Near4, lab.Server4, "192.0.2.80"},
	{"IPv6", lab.Client6, lab.Near6, lab.Server6, "2001:db8:cafe::80"},
}

// at returns host:port.
func at(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// inRule returns an address as a rule writes it.
func inRule(addr string) string { return strings.TrimSuffix(at(addr, 0), ":0") }

// from returns the address from which the server sees a connection.
func (f family) from(port int) netip.AddrPort { return netip.MustParseAddrPort(at(f.client, port)) }

// connect connects as any program on the client does.
func (w *network) connect(addr string) (*net.TCPConn, error) { return w.connectFor(patience, addr) }

func (w *network) connectFor(timeout time.Duration, addr string) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := w.Client.Dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	w.t.Cleanup(func() { _ = c.Close() }) // before pinproxy is taken down
	return c.(*net.TCPConn), c.SetDeadline(time.Now().Add(talkPatience))
}

// mustConnect is connect where that can't fail.
func (w *network) mustConnect(addr string) *net.TCPConn {
	w.t.Helper()
	c, err := w.connect(addr)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// echo sends text through c to an echo server and fails the test if it does not come back.
func echo(t *testing.T, c net.Conn, text string) {
	t.Helper()
	_, err := io.WriteString(c, text)
	b := make([]byte, len(text))
	if err == nil {
		_, err = io.ReadFull(c, b)
	}
	if string(b) != text || err != nil {
		t.Errorf("sent %q, got back %q, %v", text, b, err)
	}
}
