package main

// The client of these tests has its own system D-Bus and its own systemd-resolved. They are real ones, with files
// that only programs started through inside see.
//
//	 client                                                                         server
//	┌───────────────────────────────────────────────────────────┐                  ┌──────────────┐
//	│ application ─ 127.0.0.53 or nss-resolve ─ systemd-resolved │                  │ DNS          │
//	│                                       │            │      ├── router ────────┤ www., turn., │
//	│ pinproxy ── pin0 ◀── ~bank.example ────┘            └ others                  │ …            │
//	│     └────────── D-Bus: whom would you have asked?          │                  └──────────────┘
//	└───────────────────────────────────────────────────────────┘

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"pinproxy/cmd/pinproxy/identity"
	"pinproxy/netstack/lab"
)

// inside becomes a program with its own /run, and its own files in place of some of /etc. They are below the
// directory in its first argument. The mount namespace must be its own.
func inside() {
	dir, path := os.Args[1], os.Args[2]
	err := unix.Mount(filepath.Join(dir, "run"), "/run", "", unix.MS_BIND, "")
	files, _ := filepath.Glob(filepath.Join(dir, "etc", "*"))
	for _, file := range files {
		if err == nil {
			err = unix.Mount(file, filepath.Join("/etc", filepath.Base(file)), "", unix.MS_BIND, "")
		}
	}
	if err == nil {
		err = unix.Exec(path, os.Args[2:], os.Environ())
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// modest becomes the program of the test binary in its first argument, as user nobody with CAP_NET_ADMIN. With
// HIDEPID set, its /proc hides other users' processes.
func modest() {
	runtime.LockOSThread()
	id := identity.Identity{UID: nobody, GID: nobody, Groups: []int{nobody}, Caps: []int{unix.CAP_NET_ADMIN}}
	var err error
	if os.Getenv("HIDEPID") != "" {
		err = unix.Mount("proc", "/proc", "proc", 0, "hidepid=invisible")
	}
	if err == nil {
		err = id.Become()
	}
	if err == nil {
		err = unix.Exec(identity.OwnFile, os.Args[1:], os.Environ())
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// callers makes connections to name:port as any program would, one after the other, and expects each to be echoed:
// callers name:port count. A # in the name stands for the connection's number.
func callers() {
	count, err := strconv.Atoi(os.Args[2])
	for i := 0; i < count && err == nil; i++ {
		var c net.Conn
		if c, err = net.DialTimeout("tcp4", strings.ReplaceAll(os.Args[1], "#", strconv.Itoa(i)), patience); err != nil {
			break
		}
		_, _ = io.WriteString(c, "hello")
		_ = c.(*net.TCPConn).CloseWrite()
		_, err = io.Copy(io.Discard, c)
		_ = c.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// household is a client with D-Bus and systemd-resolved.
type household struct {
	*network
	dir      string
	libs     string // where libnss_resolve is
	resolved *lab.Process
}

// busConfig lets everybody do everything.
const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_type="*"/> <allow receive_type="*"/>
    <allow send_destination="*" eavesdrop="false"/>
  </policy>
</busconfig>
`

// needResolved returns where systemd-resolved is.
func needResolved(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{"/usr/lib/systemd", "/lib/systemd"} {
		if path, err := exec.LookPath(filepath.Join(dir, "systemd-resolved")); err == nil {
			return path
		}
	}
	return need(t, "systemd-resolved")
}

// newHome is a client with files of its own.
func newHome(t *testing.T) *household {
	t.Helper()
	needRoot(t)
	return &household{network: newNetwork(t), dir: t.TempDir()}
}

// newHousehold starts both, with settings in resolved.conf.
func newHousehold(t *testing.T, settings string) *household {
	t.Helper()
	program, bus := needResolved(t), need(t, "dbus-daemon")
	need(t, "resolvectl")
	h := newHome(t)
	w := h.network
	for _, dir := range []string{"..", "../lib", "../usr/lib", "../../usr/lib"} { // as installed, and as in .ci/run
		if nss, _ := filepath.Glob(filepath.Join(filepath.Dir(program), dir, "*/libnss_resolve.so.2")); len(nss) > 0 {
			h.libs = filepath.Dir(nss[0])
		}
	}
	h.write("run/dbus.conf", busConfig)
	h.write("run/dbus/.keep", "")
	h.write("run/systemd/resolved.conf.d/test.conf", "[Resolve]\nFallbackDNS=\nLLMNR=no\nMulticastDNS=no\nDNSSEC=no\n"+settings)
	h.write("etc/resolv.conf", "nameserver 127.0.0.53\noptions timeout:5\n")
	h.write("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files resolve [!UNAVAIL=return] dns\n")
	for file, user := range map[string]string{"passwd": "systemd-resolve:x:996:996::/:/usr/sbin/nologin\n", "group": "systemd-resolve:x:996:\n"} {
		have, err := os.ReadFile(filepath.Join("/etc", file))
		if err != nil {
			t.Fatal(err)
		}
		h.write("etc/"+file, withoutLine(string(have), "systemd-resolve:")+user)
	}
	daemon, err := w.Client.Start(h.command(bus, "--config-file=/run/dbus.conf", "--nofork", "--nopidfile", "--print-address"))
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Expect(soon(t), "unix:path="); err != nil {
		t.Fatal(err)
	}
	h.startResolved(program)
	return h
}

// withoutLine removes the lines that begin with prefix.
func withoutLine(text, prefix string) string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, prefix) {
			kept.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	return kept.String()
}

func (h *household) write(name, content string) {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(content), 0o644)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// command returns a program to run inside.
func (h *household) command(path string, args ...string) *exec.Cmd {
	cmd := program("inside", append([]string{h.dir, path}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	return cmd
}

// ours returns a program of these tests, to run inside.
func (h *household) ours(name string, args ...string) *exec.Cmd {
	link := filepath.Join(h.dir, name)
	if self, err := os.Executable(); err == nil {
		_ = os.Symlink(self, link)
	}
	return h.command(link, args...)
}

func (h *household) startResolved(program string) {
	h.t.Helper()
	cmd := h.command(program)
	cmd.Env = append(cmd.Env, "SYSTEMD_LOG_TARGET=console")
	var err error
	if h.resolved, err = h.Client.Start(cmd); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if h.t.Failed() {
			h.t.Logf("systemd-resolved:\n%s", h.resolved.Stderr())
		}
	})
	poll(h.t, "systemd-resolved", func() bool {
		_, _, err := h.Client.Run(h.command(need(h.t, "resolvectl"), "status"))
		return err == nil
	})
}

// resolvectl runs the program of that name and returns what it prints.
func (h *household) resolvectl(args ...string) string {
	h.t.Helper()
	return h.must(h.command(need(h.t, "resolvectl"), args...))
}

// pinproxy starts a pinproxy inside, and returns when it is ready.
func (h *household) pinproxy(args ...string) *running {
	h.t.Helper()
	return h.startPinproxy(h.ours("pinproxy", append([]string{"--log-format=json"}, args...)...))
}

func (h *household) startPinproxy(cmd *exec.Cmd) *running {
	h.t.Helper()
	cmd.Env = append(cmd.Env, "RUNTIME_DIRECTORY="+h.run)
	p := h.startCommand(cmd)
	p.expect(`"msg":"ready"`)
	return p
}

// call makes connections to a name, like a program inside.
func (h *household) call(name string, count int) {
	h.t.Helper()
	cmd := h.ours("callers", name+":443", strconv.Itoa(count))
	cmd.Env = append(cmd.Env, "GODEBUG=netdns=go")
	h.must(cmd)
}

// turning answers for every name with an address that it has never given before, valid for a second.
func (w *network) turning() *lab.DNS {
	var count atomic.Int32
	return w.answer(func(q lab.Query) lab.Answer {
		n := count.Add(1) % 120
		return lab.Addrs(q, time.Second, fmt.Sprintf("192.0.2.%d", n+1), fmt.Sprintf("2001:db8:cafe::%x", n+1))
	})
}

// cameFrom checks that all of some connections came from a port, or that none did.
func cameFrom(t *testing.T, seen []netip.AddrPort, want int, port uint16) {
	t.Helper()
	stray := slices.IndexFunc(seen, func(a netip.AddrPort) bool { return a.Port() != port })
	if len(seen) != want || stray >= 0 {
		t.Errorf("%d connections came, want %d; number %d was the first that did not come from port %d: %v", len(seen), want, stray, port, seen)
	}
}

const registered = "systemd-resolved asks pinproxy for the rules' names"

// A wildcard's names have other addresses each time. Programs ask systemd-resolved in both ways.
func TestResolved(t *testing.T) {
	h := newHousehold(t, "DNS="+lab.Server4+"\n")
	names := h.turning()
	server := h.Server.Serve(":443", lab.Echo)
	h.Server.Serve(":80", lab.Echo)

	h.call("early.bank.example", 1) // systemd-resolved now has it in its cache
	early := len(server.Seen())

	p := h.pinproxy("--rule", "*.bank.example:443=63999", "--rule", "www.shop.example:443=63998", "--rule", "*:9=60000")
	if e := p.entries(registered); len(e) != 1 {
		t.Errorf("the log has %d lines that say so, want 1, before ready", len(e))
	}
	status := h.resolvectl("status", "pin0")
	for _, want := range []string{"~bank.example", "~www.shop.example", "192.0.0.53", "-DefaultRoute", "-LLMNR", "-mDNS"} {
		if !strings.Contains(status, want) {
			t.Errorf("resolvectl shows no %s:\n%s", want, status)
		}
	}

	h.call("early.bank.example", 1)
	h.call("turn#.bank.example", 30)
	cameFrom(t, server.Seen()[early:], 31, 63999)
	h.call("www.shop.example", 1)
	cameFrom(t, server.Seen()[early+31:], 1, 63998)
	h.call("other.example", 1)
	if last := server.Seen()[early+32]; last.Port() >= 63998 {
		t.Errorf("a connection to a name of no rule came from %v", last)
	}

	if h.libs != "" {
		cmd := h.command(need(t, "getent"), "ahostsv4", "nss.bank.example")
		cmd.Env = append(cmd.Env, "LD_LIBRARY_PATH="+h.libs)
		found, _, _ := strings.Cut(h.must(cmd), " ")
		before := len(server.Seen())
		c := h.mustConnect(found + ":443")
		echo(t, c, "hello")
		_ = c.Close()
		cameFrom(t, server.Seen()[before:], 1, 63999)
	} else {
		lacking(t, "libnss_resolve.so.2 is not installed")
	}

	for _, q := range names.Queries() {
		if q.Src.Addr().String() != lab.Client4 && q.Src.Addr().String() != lab.Client6 {
			t.Errorf("a query came from %v", q.Src)
		}
	}
	p.stop()
	if status := h.resolvectl("status"); strings.Contains(status, "bank.example") || strings.Contains(status, "192.0.0.53") {
		t.Errorf("resolvectl still shows something of pinproxy:\n%s", status)
	}
	h.call("late.bank.example", 1)
}

// systemd-resolved ends and starts again, and somebody removes the settings.
func TestResolvedForgets(t *testing.T) {
	h := newHousehold(t, "DNS="+lab.Server4+"\n")
	h.turning()
	server := h.Server.Serve(":443", lab.Echo)
	p := h.pinproxy("--rule", "*.bank.example:443=63999")
	_ = h.resolved.Signal(unix.SIGTERM)
	<-h.resolved.Done()
	h.startResolved(needResolved(t))
	p.poll("the link to be registered again", func() bool { return strings.Contains(h.resolvectl("domain", "pin0"), "~bank.example") })
	p.poll("systemd-resolved to be ready", func() bool { return strings.Contains(h.resolvectl("status", "pin0"), "Scopes: DNS") })
	h.call("turn#.bank.example", 5)
	cameFrom(t, server.Seen(), 5, 63999)

	h.resolvectl("revert", "pin0")
	p.await("put back the link's DNS settings, which somebody changed", 1)
	h.call("turn#.bank.example", 5)
	cameFrom(t, server.Seen(), 10, 63999)
	h.resolvectl("dns", "pin0", "198.51.100.1")
	p.await("put back the link's DNS settings, which somebody changed", 2)
	h.call("turn#.bank.example", 5)
	cameFrom(t, server.Seen(), 15, 63999)
}

// SIGHUP brings different rules with different names.
func TestResolvedReload(t *testing.T) {
	h := newHousehold(t, "DNS="+lab.Server4+"\n")
	h.turning()
	server := h.Server.Serve(":443", lab.Echo)
	file := filepath.Join(h.dir, "rules")
	h.write("rules", "198.51.100.0/24:443=60000\n")
	p := h.pinproxy("--rules", file)
	if len(p.entries(registered)) != 0 {
		t.Error("systemd-resolved was told something although no rule has a name")
	}
	at := 0
	for i, rule := range []string{"*.bank.example:443=63001", "*.shop.example:443=63002\n*.bank.example:443=63003", "www.bank.example:443=63004"} {
		h.write("rules", rule+"\n")
		_ = p.Signal(unix.SIGHUP)
		p.await("rules reread", i+1)
		h.call("www.bank.example", 1)
		cameFrom(t, server.Seen()[at:], 1, uint16([]int{63001, 63003, 63004}[i]))
		at++
	}
	if domains := h.resolvectl("domain", "pin0"); !strings.Contains(domains, "~www.bank.example") || strings.Contains(domains, "shop") {
		t.Errorf("registered are %s", domains)
	}
	h.write("rules", "198.51.100.0/24:443=60000\n")
	_ = p.Signal(unix.SIGHUP)
	p.await("rules reread", 4)
	if status := h.resolvectl("status", "pin0"); strings.Contains(status, "bank.example") || strings.Contains(status, "192.0.0.53") {
		t.Errorf("without any name systemd-resolved still has:\n%s", status)
	}
}

// A pinproxy that was never root may not tell systemd-resolved anything, unless polkit allows it. It says so, and
// goes on.
func TestResolvedForbids(t *testing.T) {
	h := newHousehold(t, "DNS="+lab.Server4+"\n")
	h.turning()
	server := h.Server.Serve(":443", lab.Echo)
	h.run = publicDir(t)
	if err := os.Chown(h.run, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	p := h.startPinproxy(h.ours("modest", "pinproxy", "--log-format=json", "--rule", "*.bank.example:443=63999", "--rule", "192.0.2.126:443=63998"))
	p.expect("allow it to this user by a polkit rule")
	if status := h.resolvectl("status"); strings.Contains(status, "bank.example") {
		t.Errorf("it was allowed to:\n%s", status)
	}
	c := h.mustConnect("192.0.2.126:443")
	echo(t, c, "hello")
	_ = c.Close()
	cameFrom(t, server.Seen(), 1, 63998)
	h.call("turn#.bank.example", 1) // unpinned, but not broken
	p.stop()
}

// A /proc that shows users only their own processes does not tell in which network systemd-resolved is.
func TestResolvedIsHidden(t *testing.T) {
	h := newHousehold(t, "DNS="+lab.Server4+"\n")
	h.turning()
	h.run = publicDir(t)
	if err := os.Chown(h.run, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	cmd := h.ours("modest", "pinproxy", "--log-format=json", "--rule", "*.bank.example:443=63999")
	cmd.Env = append(cmd.Env, "HIDEPID=1")
	p := h.startPinproxy(cmd)
	p.expect("ProtectProc=default in a unit")
	p.stop()
}

// systemd-resolved looks up names below local by multicast DNS. A rule for one does not change that, and is followed.
func TestResolvedLeavesMulticastAlone(t *testing.T) {
	h := newHousehold(t, "DNS="+lab.Server4+"\nMulticastDNS=yes\n")
	h.names()
	server := h.Server.Serve(":443", lab.Echo)
	answerMulticast(t, h.Router, "printer.local.")
	h.resolvectl("mdns", "eth0", "yes")
	h.call("printer.local", 1)
	p := h.pinproxy("--rule", "printer.local:443=63999", "--rule", "*.bank.example:443=63998")
	h.call("printer.local", 1)
	cameFrom(t, server.Seen()[1:], 1, 63999)
	if domains := h.resolvectl("domain", "pin0"); !strings.Contains(domains, "~bank.example") || strings.Contains(domains, "local") {
		t.Errorf("registered are %s", domains)
	}
	p.stop()
}

// An interface has a wildcard's domain as its own, so that systemd-resolved asks its server as well, and a domain below
// another wildcard's. What comes from there first is not seen. Exact names are asked for here alone.
func TestResolvedHasARival(t *testing.T) {
	h := newHousehold(t, "")
	h.turning()
	server := h.Server.Serve(":443", lab.Echo)
	h.resolvectl("dns", "eth0", lab.Server4)
	h.resolvectl("domain", "eth0", "bank.example", "eu.shop.example")
	h.call("www.bank.example", 1)
	p := h.pinproxy("--rule", "*.bank.example:443=63999", "--rule", "www.bank.example:443=63998", "--rule", "*.shop.example:443=63997")
	h.call("www.bank.example", 10)
	cameFrom(t, server.Seen()[1:], 10, 63998)
	if domains := h.resolvectl("domain", "pin0"); !strings.Contains(domains, "~eu.shop.example") || !strings.Contains(domains, "~www.bank.example") {
		t.Errorf("registered are %s", domains)
	}
	p.await("systemd-resolved asks another interface too for names in these domains, and takes the first answer, mostly that one's: connections to names that only a wildcard is for leave unpinned", 1)

	// As the hint says.
	before := len(server.Seen())
	h.resolvectl("domain", "eth0", "")
	h.call("turn#.bank.example", 10)
	cameFrom(t, server.Seen()[before:], 10, 63999)
}

// answerMulticast makes a host answer multicast DNS for a name of the server, on its first link.
func answerMulticast(t *testing.T, on *lab.Host, name string) {
	t.Helper()
	for network, group := range map[string]string{"udp4": "224.0.0.251", "udp6": "ff02::fb"} {
		var c *net.UDPConn
		err := on.Do(func() error {
			dev, err := net.InterfaceByName("eth0")
			if err == nil {
				c, err = net.ListenMulticastUDP(network, dev, &net.UDPAddr{IP: net.ParseIP(group), Port: 5353})
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan bool)
		t.Cleanup(func() { c.Close(); <-done })
		go func() {
			answerAll(c, name)
			close(done)
		}()
	}
}

// answerAll answers what is asked about name until c is closed.
func answerAll(c net.PacketConn, name string) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || m.Response || len(m.Questions) == 0 || m.Questions[0].Name.String() != name {
			continue
		}
		head := dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 120}
		m = dnsmessage.Message{Header: dnsmessage.Header{Response: true, Authoritative: true}, Answers: []dnsmessage.Resource{
			{Header: head, Body: &dnsmessage.AResource{A: netip.MustParseAddr(lab.Server4).As4()}},
			{Header: head, Body: &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr(lab.Server6).As16()}},
		}}
		if b, err := m.Pack(); err == nil {
			_, _ = c.WriteTo(b, from)
		}
	}
}
