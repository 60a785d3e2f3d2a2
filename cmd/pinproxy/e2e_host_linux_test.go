package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/host"
	"pinproxy/netstack/lab"
	"pinproxy/netstack/link"
)

// What pinproxy does to the host, and that it leaves nothing behind.

// everything is one rule of each kind.
var everything = []string{
	"--rule", "www.bank.example:443=63999",
	"--rule", "*.bank.example:*=63000-63099",
	"--rule", "192.0.2.0/25:443,8000-8010=198.51.100.2:62000",
	"--rule", "[2001:db8:cafe::/48]:*=61000-61001",
	"--rule", "*:9=60000",
}

// use connects to everything that everything has rules for, and returns when all connections have ended.
func (w *network) use() {
	w.t.Helper()
	for _, f := range families {
		for _, addr := range []string{at(f.server, 443), at(f.elsewhere, 443), at(f.server, 9)} {
			c := w.mustConnect(addr)
			echo(w.t, c, "hello")
			_ = c.CloseWrite()
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}
	w.ask("ip4", "three.bank.example")
}

func TestHostIsLeftAsItWas(t *testing.T) {
	t.Parallel()
	for _, reserved := range []string{"", "8080,61000,63050-63999"} {
		t.Run("reserved "+reserved, func(t *testing.T) {
			w := newNetwork(t)
			w.names()
			w.Server.Serve(":443", lab.Echo)
			w.Server.Serve(":9", lab.Echo)
			w.Client.Sysctl("net.ipv4.ip_local_reserved_ports", reserved)
			p := w.pinproxy(everything...)
			if during := w.Client.Snapshot(); during == p.before {
				t.Error("pinproxy is ready and has done nothing")
			}
			w.use()
			p.stop()
		})
	}
}

// Ports that others reserve while pinproxy runs stay reserved.
func TestOthersReservedPortsStay(t *testing.T) {
	const key = "net.ipv4.ip_local_reserved_ports"
	w := newNetwork(t)
	p := w.pinproxy("--rule", "*:443=63990-63999")
	if got := w.Client.SysctlGet(key); got != "63990-63999" {
		t.Errorf("reserved are %s", got)
	}
	w.Client.Sysctl(key, "8080,63980-63999")
	p.before = strings.Replace(p.before, "ip_local_reserved_ports = ", "ip_local_reserved_ports = 8080,63980-63989", 1)
	p.stop()
}

// kill ends pinproxy in a way that lets it undo nothing.
func (p *running) kill() {
	p.t.Helper()
	_ = p.Signal(unix.SIGKILL)
	<-p.Done()
}

func TestKilled(t *testing.T) {
	w := newNetwork(t)
	w.names()
	server := w.Server.Serve(":443", lab.Echo)
	w.Server.Serve(":9", lab.Echo)
	p := w.pinproxy(everything...)
	w.use()
	p.kill()

	// Unpinned traffic works at once, by itself. So does traffic that was pinned, from any port. A lost SYN would be
	// sent again after 1 s, and a lost query after 5 s.
	sentAgain := w.synsSentAgain()
	for _, f := range families {
		start := time.Now()
		w.ask("ip"+f.name[3:], "www.bank.example")
		for _, addr := range []string{at(f.server, 443), at(f.elsewhere, 443)} {
			c := w.mustConnect(addr)
			echo(t, c, "still there")
			_ = c.Close()
			seen := server.Seen()
			if last := seen[len(seen)-1]; last.Addr() != f.from(1).Addr() {
				t.Errorf("connection came from %v", last)
			}
		}
		if took, n := time.Since(start), w.synsSentAgain()-sentAgain; n > 0 || took > 4*time.Second {
			t.Errorf("%s took %v, and %d SYNs were sent again", f.name, took, n)
		}
	}

	if w.Client.Snapshot() == p.before {
		t.Error("nothing was left to clean up")
	}
	out, _, err := w.Client.Run(w.command("cleanup"))
	if err != nil || !strings.Contains(out, "ip rule del") {
		t.Errorf("cleanup printed %q, %v", out, err)
	}
	if diff := cmp.Diff(lines(p.before), lines(w.Client.Snapshot())); diff != "" {
		t.Errorf("cleanup left the host changed (-before +after):\n%s", diff)
	}
	out, said, err := w.Client.Run(w.command("cleanup"))
	if err != nil || out != "" || said != "pinproxy: nothing to clean up\n" {
		t.Errorf("the second cleanup printed %q, said %q, %v", out, said, err)
	}
	if left, err := os.ReadDir(w.run); len(left) > 0 || err != nil {
		t.Errorf("%v is left, %v", left, err)
	}
}

// An application that only reads is told that its connection is lost, at the next start or by cleanup. One that has
// read everything up to the end keeps that. So does another's connection that has an address of the host.
func TestKilledWhileApplicationsRead(t *testing.T) {
	for _, name := range []string{"cleanup", "start"} {
		t.Run(name, func(t *testing.T) {
			w := newNetwork(t)
			w.Server.Serve(":7", lab.Echo)
			w.Server.Serve(":19", lab.Source(100_000))
			p := w.pinproxy("--rule", "*:7,19=63000-63999")
			var reading, complete []*net.TCPConn
			for _, f := range families {
				c := w.mustConnect(at(f.server, 7))
				echo(t, c, "hello")
				reading = append(reading, c)
				complete = append(complete, w.mustConnect(at(f.server, 19)))
			}
			for _, c := range complete {
				w.poll("the end to be there", func() bool { return stateOf(t, c) == unix.BPF_TCP_CLOSE_WAIT })
			}
			p.kill()
			other := w.mustConnect(at(lab.Server4, 7))
			echo(t, other, "hello")
			if name == "start" {
				w.pinproxy("--rule", "*:7=63999").before = p.before
			} else if out, _, err := w.Client.Run(w.command("cleanup")); err != nil || !strings.HasPrefix(out, "ss -tK src 192.0.0.8\nss -tK src fd86:e9ca:f62c::8\nip rule del ") {
				t.Errorf("cleanup printed %q, %v", out, err)
			}
			for _, c := range reading {
				_ = c.SetReadDeadline(time.Now().Add(patience))
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
					t.Errorf("an application that reads from %s was told %v", c.RemoteAddr(), err)
				}
			}
			for _, c := range complete {
				if b, err := io.ReadAll(c); len(b) != 100_000 || err != nil {
					t.Errorf("of what was there when it was killed, %d bytes were read from %s, and %v", len(b), c.RemoteAddr(), err)
				}
			}
			echo(t, other, "still there")
		})
	}
}

// A program that connects again as soon as it is told that its connection is lost, as the kernel's NFS client does, is
// captured by the next start.
func TestKilledWhileApplicationsConnectAgain(t *testing.T) {
	w := newNetwork(t)
	server := w.Server.Serve(":7", lab.Echo)
	p := w.pinproxy("--rule", "*:7=63999")
	c := w.mustConnect(at(lab.Server4, 7))
	echo(t, c, "hello")
	again := make(chan error, 1)
	go func() {
		_, _ = c.Read(make([]byte, 1))
		c, err := w.connect(at(lab.Server4, 7))
		if err == nil {
			_, err = c.Write([]byte("x"))
		}
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		again <- err
	}()
	p.kill()
	w.pinproxy("--rule", "*:7=62999").before = p.before
	if err := <-again; err != nil {
		t.Fatal(err)
	}
	if seen := server.Seen(); len(seen) != 2 || seen[1].Port() != 62999 {
		t.Errorf("connections came from %v, want the second from port 62999", seen)
	}
}

// Somebody takes a running pinproxy's addresses, and asks for a clean-up before they are put back.
func TestCleanupWhileItsAddressesAreGone(t *testing.T) {
	w := newNetwork(t)
	w.Server.Serve(":7", lab.Echo)
	p := w.pinproxy("--rule", "*:7=63999")
	c := w.mustConnect(at(lab.Server4, 7))
	_ = p.Signal(unix.SIGSTOP) // so that it takes its time
	if err := w.deleteAddresses(); err != nil {
		t.Fatal(err)
	}
	if out, said, err := w.Client.Run(w.command("cleanup")); exitStatus(err) != 1 || out != "" || !strings.Contains(said, fmt.Sprint("pid ", p.Pid())) {
		t.Errorf("cleanup printed %q, said %q, %v", out, said, err)
	}
	_ = p.Signal(unix.SIGCONT)
	p.await("put back what somebody took away", 1)
	echo(t, c, "still there")
	_ = c.Close()
	p.stop()
}

// stateOf returns the state that a connection has for the application's kernel.
func stateOf(t *testing.T, c *net.TCPConn) uint8 {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	if cerr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return info.State
}

// synsSentAgain returns how often the client's kernel has repeated a SYN that nobody had answered.
func (w *network) synsSentAgain() (n int) {
	w.t.Helper()
	var b []byte
	err := w.Client.Do(func() (err error) {
		b, err = os.ReadFile("/proc/thread-self/net/netstat")
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	text := lines(string(b)) // pairs of lines: names, and their values
	names, values := strings.Fields(text[0]), strings.Fields(text[1])
	i := slices.Index(names, "TCPSynRetrans")
	if i < 0 {
		w.t.Fatalf("the kernel does not count SYNs sent again, but %q", names)
	}
	if n, err = strconv.Atoi(values[i]); err != nil {
		w.t.Fatal(err)
	}
	return n
}

func TestStartCleansUpAfterAKilledOne(t *testing.T) {
	w := newNetwork(t)
	w.names()
	server := w.Server.Serve(":443", lab.Echo)
	killed := w.pinproxy(everything...)
	killed.kill()
	p := w.pinproxy("--rule", "*:443=50000")
	p.before = killed.before
	if len(p.entries("cleaned up after a killed pinproxy")) == 0 {
		t.Error("the log does not say that anything was cleaned up")
	}
	c := w.mustConnect(at(lab.Server4, 443))
	echo(t, c, "hello")
	_ = c.Close()
	if seen := server.Seen(); seen[0].Port() != 50000 {
		t.Errorf("connection came from %v", seen)
	}
	if got := w.Client.SysctlGet("net.ipv4.ip_local_reserved_ports"); got != "50000" {
		t.Errorf("reserved ports are %s", got)
	}
	p.stop()
}

// A damaged state file prevents no start, and `cleanup` does what it can. Both say what stays and how to end that.
func TestStateIsDamaged(t *testing.T) {
	const reserved = "net.ipv4.ip_local_reserved_ports"
	w := newNetwork(t)
	before := w.Client.Snapshot()
	damage := func() {
		t.Helper()
		w.pinproxy("--rule", "*:443=63999").kill()
		files, err := filepath.Glob(filepath.Join(w.run, "*.state"))
		if err != nil || len(files) != 1 {
			t.Fatalf("%v, %v", files, err)
		}
		if err := os.Truncate(files[0], 10); err != nil {
			t.Fatal(err)
		}
	}

	damage()
	p := w.pinproxy("--rule", "*:443=50000")
	p.before = strings.Replace(before, "ip_local_reserved_ports = ", "ip_local_reserved_ports = 63999", 1)
	if said := p.entries("ports that a killed pinproxy reserved may stay reserved"); len(said) != 1 {
		t.Errorf("the start says %v", said)
	}
	p.stop()
	w.Client.Sysctl(reserved, "")

	damage()
	out, said, err := w.Client.Run(w.command("cleanup"))
	if exitStatus(err) != 1 || !strings.Contains(out, "ip rule del") || !strings.Contains(out, ".sock") ||
		!strings.Contains(said, "all stay reserved: 63999\n") || !strings.Contains(said, "hint: sudo sysctl -w "+reserved) {
		t.Errorf("cleanup printed %q, said %q, %v", out, said, err)
	}
	w.Client.Sysctl(reserved, "")
	if diff := cmp.Diff(lines(before), lines(w.Client.Snapshot())); diff != "" {
		t.Errorf("cleanup left the host changed (-before +after):\n%s", diff)
	}
	if left, err := os.ReadDir(w.run); len(left) > 0 || err != nil {
		t.Errorf("%v is left, %v", left, err)
	}
}

func TestSecondStart(t *testing.T) {
	w := newNetwork(t)
	server := w.Server.Serve(":443", lab.Echo)
	p := w.pinproxy("--rule", "*:443=63999")
	before := w.Client.Snapshot()
	for _, args := range [][]string{{"--rule", "*:80=1", "--tun", "pin1"}, {"cleanup"}} {
		_, said, err := w.Client.Run(w.command(args...))
		if exitStatus(err) != 1 || !strings.Contains(said, fmt.Sprint("pid ", p.Pid())) || !strings.Contains(said, fmt.Sprintf("hint: stop it with `kill %d`", p.Pid())) {
			t.Errorf("%q ended with %v and said %q, want 1 and process %d", args, err, said, p.Pid())
		}
	}
	if diff := cmp.Diff(lines(before), lines(w.Client.Snapshot())); diff != "" {
		t.Errorf("the second changed the host (-before +after):\n%s", diff)
	}
	echo(t, w.mustConnect(at(lab.Server4, 443)), "hello")
	if seen := server.Seen(); seen[0].Port() != 63999 {
		t.Errorf("connection came from %v", seen)
	}
}

// The device of a pinproxy that was killed may outlive its lock for a moment.
func TestStartWhileADeviceGoes(t *testing.T) {
	w := newNetwork(t)
	device := link.Config{Name: "pin0"}
	err := w.Client.Do(func() error {
		old, err := link.OpenFD(device)
		if err != nil {
			return err
		}
		time.AfterFunc(50*time.Millisecond, func() { _ = unix.Close(old.FD) })
		fd, err := openAlone(device)
		if err != nil {
			return err
		}
		return unix.Close(fd.FD)
	})
	if err != nil {
		t.Error(err)
	}
}

// Somebody removes what pinproxy needs. It is put back, and the next connections are pinned again.
func TestHostIsChangedUnderUs(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		disturb func(w *network) error
	}{
		{"device set down", (*network).setDown},
		{"device set down and up", func(w *network) error {
			return errors.Join(w.setDown(), w.Client.Netlink().LinkSetUp(w.device()))
		}},
		{"rules deleted", (*network).deleteRules},
		{"routes deleted", (*network).deleteRoutes},
		{"addresses deleted", (*network).deleteAddresses},
	} {
		t.Run(test.name, func(t *testing.T) {
			each(t, func(w *network, f family) {
				server := w.Server.Serve(at(f.server, 7), lab.Echo)
				p := w.pinproxy("--rule", inRule(f.server)+":7=63999")
				start := time.Now()
				if err := test.disturb(w); err != nil {
					w.t.Fatal(err)
				}
				p.await("put back what somebody took away", 1)
				poll(w.t, "a connection from the pin", func() bool {
					c, err := w.connectFor(time.Second, at(f.server, 7))
					if err != nil {
						return false
					}
					_ = c.Close()
					seen := server.Seen()
					return len(seen) > 0 && seen[len(seen)-1] == f.from(63999)
				})
				if took := time.Since(start); took > 10*time.Second { // a regular check would not put it back so soon
					w.t.Errorf("it took %v until connections were pinned again", took)
				}
			})
		})
	}
}

func (w *network) device() netlink.Link {
	w.t.Helper()
	l, err := w.Client.Netlink().LinkByName(host.Link)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

func (w *network) setDown() error { return w.Client.Netlink().LinkSetDown(w.device()) }

func (w *network) deleteRules() error {
	rules, err := w.Client.Netlink().RuleList(netlink.FAMILY_ALL)
	n := 0
	for _, r := range rules {
		if r.Protocol == host.Protocol && err == nil {
			err = w.Client.Netlink().RuleDel(&r)
			n++
		}
	}
	if err == nil && n < 4 {
		err = fmt.Errorf("there are only %d rules of pinproxy's", n)
	}
	return err
}

func (w *network) deleteRoutes() error {
	h := w.Client.Netlink()
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.RouteListFiltered(fam, &netlink.Route{Protocol: host.Protocol, Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if err == nil && len(routes) == 0 {
			err = fmt.Errorf("there are no routes of pinproxy's")
		}
		for _, r := range routes {
			if err == nil {
				err = h.RouteDel(&r)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *network) deleteAddresses() error {
	h := w.Client.Netlink()
	addrs, err := h.AddrList(w.device(), netlink.FAMILY_ALL)
	for _, a := range addrs {
		if err == nil {
			err = h.AddrDel(w.device(), &a)
		}
	}
	return err
}

func TestDryRunChangesNothing(t *testing.T) {
	w := newNetwork(t)
	w.names()
	before := w.Client.Snapshot()
	out, said, err := w.Client.Run(w.command(append(everything, "--dry-run")...))
	if err != nil || said != "" {
		t.Errorf("it said %q, %v", said, err)
	}
	if diff := cmp.Diff(lines(before), lines(w.Client.Snapshot())); diff != "" {
		t.Errorf("the host is changed (-before +after):\n%s", diff)
	}
	for _, want := range []string{
		"ip tuntap add", "ip link set", "ip rule add", "ip -6 rule add", "ip route add 203.0.113.2", "ip -6 route add 2001:db8:2::2",
		"sysctl -w net.ipv4.ip_local_reserved_ports=", "192.0.2.0/25", "2001:db8:cafe::/48",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not print %q, but\n%s", want, out)
		}
	}
}
