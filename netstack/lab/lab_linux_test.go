package lab_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// The test binary also contains the programs that tests start; this variable says which one to run.
const role = "LAB_TEST_ROLE"

func TestMain(m *testing.M) {
	switch program, arg, _ := strings.Cut(os.Getenv(role), " "); program {
	case "lookup":
		addrs, err := net.LookupHost(arg)
		fmt.Println(addrs, err)
	case "exit":
		lab.Main(status(7))
	case "sleep":
		lab.Main(sleeper{})
	default:
		lab.Main(m)
	}
}

type status int

func (s status) Run() int { return int(s) }

type sleeper struct{}

func (sleeper) Run() int {
	fmt.Println("asleep in", os.Getpid())
	time.Sleep(time.Minute)
	return 0
}

func program(r string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), role+"="+r, "GORACE=atexit_sleep_ms=0")
	return cmd
}

func TestTopologyCarriesBothFamilies(t *testing.T) {
	t.Parallel()
	top := lab.ForTest(t).Topology()
	top.ServerOwns("192.0.2.0/24", "2001:db8:cafe::/48")
	server := top.Server.Serve(":7", lab.Echo)
	for _, addr := range []string{
		"203.0.113.2:7", "[2001:db8:2::2]:7", "192.0.2.77:7", "[2001:db8:cafe::77]:7",
	} {
		c, err := top.Client.DialFrom(t.Context(), "tcp", ":63999", addr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "hello")
		c.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(c); string(b) != "hello" || err != nil {
			t.Errorf("%s echoed %q, %v", addr, b, err)
		}
		c.Close()
	}
	client4, client6 := netip.MustParseAddrPort("198.51.100.2:63999"), netip.MustParseAddrPort("[2001:db8:1::2]:63999")
	want := []netip.AddrPort{client4, client6, client4, client6}
	if diff := cmp.Diff(want, server.Seen(), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if rx, tx := top.Router.Counters("eth1"); rx == 0 || tx == 0 {
		t.Errorf("router's eth1 counts %d, %d packets", rx, tx)
	}
}

func TestFirewallPassesBySourcePort(t *testing.T) {
	t.Parallel()
	top := lab.ForTest(t).Topology()
	top.Server.Serve(":443", lab.Sink)
	w := top.Firewall(63999)
	for _, addr := range []string{"203.0.113.2:443", "[2001:db8:2::2]:443"} {
		passed, dropped := w.Passed(), w.Dropped()
		c, err := top.Client.DialFrom(t.Context(), "tcp", ":63999", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		eventually(t, "SYN, ACK and FIN from 63999 to have passed", func() bool { return w.Passed() >= passed+3 })
		if w.Dropped() != dropped {
			t.Errorf("%s from 63999: %d dropped", addr, w.Dropped()-dropped)
		}
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() { // ends with ctx
			c, err := top.Client.DialFrom(ctx, "tcp", ":63998", addr)
			if err == nil {
				c.Close()
			}
			result <- err
		}()
		eventually(t, "a SYN from 63998 to be dropped", func() bool { return w.Dropped() > dropped || len(result) > 0 })
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Errorf("%s from 63998: %v, want that it waits", addr, err)
		}
	}
}

// eventually waits until done returns true.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain waited for %s", what)
		}
	}
}

func TestFirewallRejects(t *testing.T) {
	t.Parallel()
	top := lab.ForTest(t).Topology()
	top.Router.Firewall(lab.Filter{Ports: []lab.PortRange{{First: 63990, Last: 63999}}, Reject: true})
	for addr, want := range map[string]error{
		"203.0.113.2:443":     unix.EHOSTUNREACH,
		"[2001:db8:2::2]:443": unix.EACCES, // a second later: the first ICMPv6 arrives during connect() (LockDroppedIcmps)
	} {
		if _, err := top.Client.DialFrom(t.Context(), "tcp", ":63989", addr); !errors.Is(err, want) {
			t.Errorf("%s from 63989: %v, want %v", addr, err, want)
		}
		if _, err := top.Client.DialFrom(t.Context(), "tcp", ":63995", addr); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s from 63995: %v, want that nobody listens", addr, err)
		}
	}
}

func TestProcessLivesOnHost(t *testing.T) {
	t.Parallel()
	n := lab.ForTest(t)
	h := n.Host("solo")
	n.Link(h, nil, n.Host("other"), nil)
	out, _, err := h.Run(exec.Command("cat", "/proc/net/dev"))
	if err != nil || !strings.Contains(out, "eth0") {
		t.Errorf("devices: %s, %v", out, err)
	}
	if _, _, err := h.Run(exec.Command("sh", "-c", "echo no >&2; exit 3")); err == nil || !strings.Contains(err.Error(), "no") {
		t.Errorf("error is %v", err)
	}
	p, err := h.Start(exec.Command("sh", "-c", "echo ready; read x; echo got $x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Expect(t.Context(), "ready"); err != nil {
		t.Error(err)
	}
	if err := p.Expect(t.Context(), "never"); err == nil {
		t.Error("found what was never written")
	}
}

func TestCloseKillsProcesses(t *testing.T) {
	t.Parallel()
	n := lab.ForTest(t)
	p, err := n.Host("solo").Start(exec.Command("sleep", "60"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if err := p.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("sleep ended with %v", err)
	}
}

func TestSnapshotShowsWhatIsLeft(t *testing.T) {
	t.Parallel()
	n := lab.ForTest(t)
	h := n.Topology().Client
	before := h.Snapshot()
	if again := h.Snapshot(); before != again {
		t.Error(cmp.Diff(before, again))
	}

	rule := netlink.NewRule()
	rule.Priority, rule.Table, rule.IPProto, rule.Protocol = 5210, 7001, unix.IPPROTO_TCP, 99
	rule.Dport = netlink.NewRulePortRange(443, 443)
	rule.Family = unix.AF_INET6
	if err := h.Netlink().RuleAdd(rule); err != nil {
		t.Fatal(err)
	}
	pin0 := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "pin0"}, PeerName: "pin1"}
	if err := h.Netlink().LinkAdd(pin0); err != nil {
		t.Fatal(err)
	}
	h.Sysctl("net.ipv4.ip_local_reserved_ports", "63999")
	lines := strings.Split(h.Snapshot(), "\n")
	var added []string
	for _, l := range lines {
		if !strings.Contains(before, l+"\n") && l != "" {
			added = append(added, l)
		}
	}
	want := []string{
		"link pin0 veth mtu 1500 broadcast|multicast",
		"link pin1 veth mtu 1500 broadcast|multicast",
		"-6 rule priority 5210 ipproto 6 dport 443-443 lookup 7001 proto 99",
		"sysctl net/ipv4/ip_local_reserved_ports = 63999",
	}
	if diff := cmp.Diff(want, added); diff != "" {
		t.Error(diff)
	}

	h.Sysctl("net.ipv4.ip_local_reserved_ports", "")
	if err := h.Netlink().LinkDel(pin0); err != nil {
		t.Fatal(err)
	}
	if err := h.Netlink().RuleDel(rule); err != nil {
		t.Fatal(err)
	}
	if after := h.Snapshot(); before != after {
		t.Error(cmp.Diff(before, after))
	}
}

func TestResolvConf(t *testing.T) {
	real, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	n := lab.ForTest(t)
	top := n.Topology()
	top.Server.DNS(lab.Zone("www.bank.example 30 A 203.0.113.80"), lab.Server4+":53", "["+lab.Server6+"]:53")
	for _, server := range []string{lab.Server4, lab.Server6} {
		n.ResolvConf(server)
		out, _, err := top.Client.Run(program("lookup www.bank.example"))
		if want := "[203.0.113.80] <nil>\n"; out != want || err != nil {
			t.Errorf("by %s: %q, %v", server, out, err)
		}
	}
	n.Close()
	if now, _ := os.ReadFile("/etc/resolv.conf"); !bytes.Equal(now, real) {
		t.Errorf("resolv.conf is %q afterwards, was %q", now, real)
	}
}

func TestHTTPSSaysWhereYouCameFrom(t *testing.T) {
	t.Parallel()
	n := lab.ForTest(t)
	top := n.Topology()
	server := top.Server.HTTPS(":443", "www.bank.example", lab.Server4)
	server.Handle("/brew", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	pem, err := os.ReadFile(n.CA())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return top.Client.DialFrom(ctx, network, ":63999", lab.Server4+":443")
		},
	}}
	defer client.CloseIdleConnections()
	r, err := client.Get("https://www.bank.example/")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(r.Body)
	r.Body.Close()
	if want := "you came from 198.51.100.2:63999\n"; string(body) != want || err != nil {
		t.Errorf("body %q, %v", body, err)
	}
	if r, err := client.Get("https://www.bank.example/brew"); err != nil || r.StatusCode != http.StatusTeapot {
		t.Errorf("brew: %v, %v", r, err)
	}
	if seen := server.Seen(); len(seen) != 2 || seen[1].Port() != 63999 {
		t.Errorf("seen %v", seen)
	}
}

func TestDNS(t *testing.T) {
	t.Parallel()
	top := lab.ForTest(t).Topology()
	zone := lab.Zone(`
		www.bank.example 30 CNAME a.bank.example
		a.bank.example   30 A     203.0.113.80
		a.bank.example   30 AAAA  2001:db8:2::80
		b.bank.example   30 A     203.0.113.81
	`)
	asked := 0
	server := top.Server.DNS(func(q lab.Query) lab.Answer {
		switch q.Name {
		case "tcp.example":
			a := lab.Addrs(q, time.Minute, "203.0.113.7")
			a.Truncate = true
			return a
		case "turn.example":
			if q.Type != dnsmessage.TypeA {
				return lab.Answer{}
			}
			asked++
			return lab.Addrs(q, 0, fmt.Sprintf("203.0.113.%d", asked))
		case "fail.example":
			return lab.Answer{RCode: dnsmessage.RCodeServerFailure, Delay: time.Millisecond}
		}
		return zone(q)
	}, lab.Server4+":53", "["+lab.Server6+"]:53")

	resolver := top.Client.Resolver()
	resolver.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return top.Client.Dial(ctx, network, "["+lab.Server6+"]:53")
	}
	for _, test := range []struct{ name, want string }{
		{"WWW.bank.example.", "[2001:db8:2::80 203.0.113.80] <nil>"},
		{"b.bank.example.", "[203.0.113.81] <nil>"},
		{"tcp.example.", "[203.0.113.7] <nil>"},
		{"turn.example.", "[203.0.113.1] <nil>"},
		{"turn.example.", "[203.0.113.2] <nil>"},
		{"c.bank.example.", "no such host"},
		{"fail.example.", "server misbehaving"},
	} {
		addrs, err := resolver.LookupHost(t.Context(), test.name)
		slices.Sort(addrs)
		if got := fmt.Sprint(addrs, err); !strings.Contains(got, test.want) {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
	over := make(map[string]bool)
	for _, q := range server.Queries() {
		if q.Src.Addr() != netip.MustParseAddr(lab.Client6) || !q.EDNS {
			t.Errorf("query %+v", q)
		}
		over[q.Network] = true
	}
	if !over["udp"] || !over["tcp"] {
		t.Errorf("asked over %v", over)
	}
}

func TestRunReturnsErrors(t *testing.T) {
	t.Parallel()
	err := lab.Run(func(n *lab.Net) error {
		n.Host("solo").Route("default", "192.0.2.1")
		t.Error("went on")
		return nil
	})
	if !errors.Is(err, unix.ENETUNREACH) || !strings.Contains(err.Error(), "solo: add route default via 192.0.2.1") {
		t.Errorf("error is %v", err)
	}
	if err := lab.Run(func(*lab.Net) error { return io.EOF }); err != io.EOF && !errors.Is(err, io.EOF) {
		t.Errorf("error is %v", err)
	}
}

// outside returns a program that believes it is outside, without privileges if possible.
func outside(r string) *exec.Cmd {
	cmd := program(r)
	cmd.Env = append(cmd.Env, lab.Env+"=")
	if m, _ := os.ReadFile("/proc/self/uid_map"); len(strings.Fields(string(m))) == 3 && !strings.HasSuffix(strings.TrimSpace(string(m)), " 1") {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	return cmd
}

func TestMainPassesStatusOn(t *testing.T) {
	t.Parallel()
	h := lab.ForTest(t).Host("solo")
	_, _, err := h.Run(outside("exit"))
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("ended with %v, want status 7", err)
	}
}

func TestMainPassesSignalsOn(t *testing.T) {
	t.Parallel()
	p, err := lab.ForTest(t).Host("solo").Start(outside("sleep"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Expect(t.Context(), "asleep"); err != nil {
		t.Fatal(err)
	}
	p.Signal(unix.SIGTERM)
	var exit *exec.ExitError
	if err := p.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 128+int(unix.SIGTERM) {
		t.Errorf("ended with %v, want status 143", err)
	}
}

func TestMainDiesWithParent(t *testing.T) {
	t.Parallel()
	p, err := lab.ForTest(t).Host("solo").Start(outside("sleep"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Expect(t.Context(), "asleep in "); err != nil {
		t.Fatal(err)
	}
	_, pid, _ := strings.Cut(strings.TrimSpace(p.Stdout()), "asleep in ")
	p.Signal(unix.SIGKILL)
	p.Wait()
	for range time.Tick(time.Millisecond) { // the test's own deadline ends this
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return
		}
	}
}
