package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// A single command, `pinproxy … -- CMD`, as root and as an ordinary user. The network is that of all end-to-end
// tests. pinproxy runs on the client, and CMD runs where it can see nothing of the client.

// user is the user who types the command.
type user struct {
	name string
	attr *syscall.SysProcAttr
}

// nobody is a user without any privilege.
const nobody = 65534

// eachUser runs test as root and as an ordinary user, each on a network of its own.
func eachUser(t *testing.T, test func(w *network, u user)) {
	t.Helper()
	t.Parallel()
	t.Run("root", func(t *testing.T) { test(newNetwork(t), user{name: "root"}) })
	t.Run("user", func(t *testing.T) {
		needRoot(t)
		test(newNetwork(t), nobodyUser())
	})
}

func nobodyUser() user {
	return user{"user", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody, Groups: []uint32{nobody}}}}
}

// by returns pinproxy with these arguments, started by u, whose PATH has the test binary's programs.
func (w *network) by(u user, args ...string) *exec.Cmd {
	w.t.Helper()
	cmd := program("pinproxy", args...)
	cmd.Env = append(cmd.Env, "PATH="+w.programs()+":"+os.Getenv("PATH"))
	if u.attr != nil {
		attr := *u.attr
		cmd.SysProcAttr = &attr
		cmd.Env = append(cmd.Env, "HOME=/") // not root's
	}
	cmd.Dir = "/"
	return cmd
}

// programs returns a directory that has the test binary under each of its names.
func (w *network) programs() string {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	dir := filepath.Dir(w.net.File("programs", ""))
	for name := range programs {
		if err := linkFile(self, filepath.Join(dir, name)); err != nil {
			w.t.Fatal(err)
		}
	}
	return dir
}

// linkFile makes a file available under another name, by copying it if it must.
func linkFile(from, to string) error {
	if _, err := os.Lstat(to); err == nil {
		return nil
	}
	if os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

// result is what a command did.
type result struct {
	out, said string
	status    int
}

// result runs cmd on the client.
func (w *network) result(cmd *exec.Cmd) result {
	w.t.Helper()
	out, said, err := w.Client.Run(cmd)
	return result{out, said, exitStatus(err)}
}

// runs expects a command to print want and nothing else, with status 0.
func (w *network) runs(cmd *exec.Cmd, want string) {
	w.t.Helper()
	if diff := cmp.Diff(result{want, "", 0}, w.result(cmd), cmp.AllowUnexported(result{})); diff != "" {
		w.t.Errorf("%q (-want +got):\n%s", cmd.Args, diff)
	}
}

// reach connects to each address and prints the local address or the errno. With a word after a comma, it sends the
// word and prints what comes back.
func reach() {
	for _, arg := range os.Args[1:] {
		addr, text, say := strings.Cut(arg, ",")
		c, err := net.DialTimeout("tcp", addr, patience)
		if err != nil {
			fmt.Println(errnoText(err))
			continue
		}
		if !say {
			fmt.Println("reached")
		} else if _, err = io.WriteString(c, text); err == nil {
			b := make([]byte, len(text))
			_, err = io.ReadFull(c, b)
			fmt.Println(string(b) + errorText(err))
		}
		_ = c.Close()
	}
}

// congestion connects to an address and prints the congestion control of the connection.
func congestion() {
	c, err := net.DialTimeout("tcp", os.Args[1], patience)
	if err != nil {
		fmt.Println(errnoText(err))
		return
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			name, gerr := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
			fmt.Println(name + errorText(gerr))
		})
	}
	if err != nil {
		fmt.Println(err)
	}
}

// Nothing paces the connection to netstack, whatever the host's congestion control is.
func TestIsNotPaced(t *testing.T) {
	w := newNetwork(t)
	w.Server.Serve(":7", lab.Echo)
	w.pinproxy("--rule", "*:7=63999")
	for _, server := range []string{lab.Server4, lab.Server6} {
		if out := w.must(program("congestion", at(server, 7))); out != "reno" {
			t.Errorf("congestion control towards %s is %s", server, out)
		}
	}
}

func TestRunIsNotPaced(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		w.Server.Serve(":7", lab.Echo)
		for _, server := range []string{lab.Server4, lab.Server6} {
			w.runs(w.by(u, "--rule", "*:7=63999", "--", "congestion", at(server, 7)), "reno\n")
		}
	})
}

// The command's kernel fills its packets, however many connections there are. The host's does what it did.
func TestRunFillsPackets(t *testing.T) {
	const file = "/proc/sys/net/ipv4/tcp_tso_rtt_log"
	if _, err := os.Stat(file); err != nil {
		return // a kernel before 5.18
	}
	eachUser(t, func(w *network, u user) {
		before := w.Client.SysctlGet("net.ipv4.tcp_tso_rtt_log")
		w.runs(w.by(u, "--rule", "*:7=63999", "--", "cat", file), "31\n")
		if now := w.Client.SysctlGet("net.ipv4.tcp_tso_rtt_log"); now != before {
			w.t.Errorf("the host's is %s, before %s", now, before)
		}
	})
}

// errnoText returns the last part of an error.
func errnoText(err error) string {
	text := err.Error()
	return text[strings.LastIndex(text, ": ")+2:]
}

// blurt sends n bytes to an address and ends at once.
func blurt() {
	n := flag.Int("n", 0, "")
	flag.Parse()
	c, err := net.Dial("tcp", flag.Arg(0))
	if err == nil {
		_, err = c.Write(make([]byte, *n))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0) // the connection is not closed before this
}

func TestRunExitStatus(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		dir := w.programs()
		script, foreign := filepath.Join(dir, "script"), filepath.Join(dir, "foreign")
		for path, mode := range map[string]os.FileMode{script: 0o755, filepath.Join(dir, "plain"): 0o644} {
			if err := os.WriteFile(path, []byte("echo script $0 $1\n"), mode); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(foreign, []byte("#!/bin/sh\r\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			argv      []string
			status    int
			out, said string
		}{
			{[]string{"true"}, 0, "", ""},
			{[]string{"sh", "-c", "exit 7"}, 7, "", ""},
			{[]string{"sh", "-c", "exit 255"}, 255, "", ""},
			{[]string{"sh", "-c", "kill -TERM $$"}, 143, "", ""},
			{[]string{"sh", "-c", "kill -KILL $$"}, 137, "", ""},
			{[]string{"sh", "-c", "ulimit -c 0; kill -SEGV $$"}, 139, "", ""},
			{[]string{"sh", "-c", "echo out; echo said >&2"}, 0, "out\n", "said\n"},
			{[]string{"no-such-program"}, 127, "", "pinproxy: error: no-such-program: command not found\n"},
			{[]string{"/no/such/program"}, 127, "", "pinproxy: error: /no/such/program: command not found\n"},
			{[]string{dir}, 126, "", "pinproxy: error: " + dir + ": is a directory\n"},
			{[]string{dir + "/plain"}, 126, "", "pinproxy: error: " + dir + "/plain: permission denied\n"},
			{[]string{foreign}, 127, "", "pinproxy: error: " + foreign + ": its interpreter does not exist: the one in its first line (#!), or the loader of a binary\n"},
			{[]string{"script", "word"}, 0, "script " + script + " word\n", ""}, // no #!
		} {
			got := w.result(w.by(u, append([]string{"--rule", "*:443=63999", "--"}, test.argv...)...))
			if want := (result{test.out, test.said, test.status}); got != want {
				w.t.Errorf("%q: %+v, want %+v", test.argv, got, want)
			}
		}
	})
}

// A command finds itself in the same state as without us.
func TestRunCommandIsAsWithout(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		script := `id -u; id -g; pwd; umask; ulimit -n; env | grep -v ^_= | sort
			cut -d ' ' -f 5,6 /proc/self/stat | sed s/$PPID/parent/g
			sed -n '/^Sig[BIC]/p;/^NoNewPrivs/p;/^Seccomp:/p' /proc/self/status
			for f in /proc/$$/fd/*; do echo ${f##*/}; done; cat <&5`
		with := func(cmd *exec.Cmd) result {
			r, err := os.Open(w.net.File("five", "from descriptor 5\n"))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			cmd.ExtraFiles = []*os.File{r, r, r} // 3, 4, 5
			cmd.Dir = "/usr"
			return w.result(cmd)
		}
		plain := with(u.is(w.by(u), "sh", "-c", script))
		ours := with(w.by(u, "--rule", "*:443=63999", "--", "sh", "-c", script))
		if diff := cmp.Diff(lines(plain.out), lines(ours.out)); diff != "" || plain.status != 0 || ours.said != "" {
			w.t.Errorf("a command sees, without us (-) and with us (+), status %d, said %s:\n%s", plain.status, ours.said, diff)
		}
	})
}

// is makes cmd another program, run by the same user.
func (u user) is(cmd *exec.Cmd, argv ...string) *exec.Cmd {
	other := exec.Command(argv[0], argv[1:]...)
	other.Env, other.Dir, other.SysProcAttr = cmd.Env, cmd.Dir, cmd.SysProcAttr
	return other
}

// An ordinary user's command has no capability.
func TestRunWithoutCapabilities(t *testing.T) {
	needRoot(t)
	w := newNetwork(t)
	w.runs(w.by(nobodyUser(), "--rule", "*:443=63999", "--", "sh", "-c", "grep '^Cap[^B]' /proc/self/status"),
		"CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapAmb:\t0000000000000000\n")
}

// Files with capabilities run, as ping is one on Debian, with capabilities over the command's namespaces.
func TestRunFileWithCapabilities(t *testing.T) {
	needRoot(t)
	w := newNetwork(t)
	w.Server.Serve(":7", lab.Echo)
	w.runs(w.by(nobodyUser(), "--rule", "*:7=63999", "--", w.able("reach"), at(lab.Server4, 7)+",hello"), "hello\n")
}

// able returns a copy of a program whose file has CAP_NET_BIND_SERVICE.
func (w *network) able(name string) string {
	w.t.Helper()
	file := filepath.Join(w.programs(), "able", name)
	_ = os.Mkdir(filepath.Dir(file), 0o755)
	if err := copyFile(filepath.Join(w.programs(), name), file); err != nil {
		w.t.Fatal(err)
	}
	// struct vfs_cap_data (include/uapi/linux/capability.h): revision 2 and effective; permitted: cap_net_bind_service.
	capability := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if err := unix.Setxattr(file, "security.capability", capability, 0); err != nil {
		w.t.Fatal(err)
	}
	return file
}

func TestRunPinsPlainClient(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		w.names()
		w.Server.HTTPS(":443", "www.bank.example", "v4.bank.example", "v6.bank.example", lab.Server4, lab.Server6)
		w.Firewall(63999)
		before := w.Client.Snapshot()
		for _, test := range []struct{ rule, url, from string }{
			{"v4.bank.example:443=63999", "https://v4.bank.example/", "198.51.100.2:63999"},
			{"v6.bank.example:443=63999", "https://v6.bank.example/", "[2001:db8:1::2]:63999"},
			{"*.bank.example:443=63999", "https://v4.bank.example/", "198.51.100.2:63999"},
			{"*.bank.example:443=63999", "https://v6.bank.example/", "[2001:db8:1::2]:63999"},
			{"203.0.113.0/24:443=198.51.100.2:63999", "https://203.0.113.2/", "198.51.100.2:63999"},
			{"[2001:db8:2::/48]:*=63999", "https://[2001:db8:2::2]/", "[2001:db8:1::2]:63999"},
		} {
			w.runs(w.by(u, "--rule", test.rule, "--", "visit", "-ca", w.net.CA(), test.url), "you came from "+test.from+"\n")
			w.runs(w.by(u, "--rule", test.rule, "--offload=off", "--", "visit", "-ca", w.net.CA(), test.url), "you came from "+test.from+"\n")
		}
		if diff := cmp.Diff(lines(before), lines(w.Client.Snapshot())); diff != "" {
			w.t.Errorf("the host is changed (-before +after):\n%s", diff)
		}
	})
}

// The test binary resolves names with the C library if it is linked to it, otherwise by itself.
func TestRunPinsStaticProgram(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		w.names()
		w.Server.HTTPS(":443", "www.bank.example")
		cmd := w.by(u, "--rule", "www.bank.example:443=63999", "--", "visit", "-ca", w.net.CA(), "https://www.bank.example/")
		cmd.Env = append(cmd.Env, "GODEBUG=netdns=go+tcp")
		if got := w.result(cmd); !strings.HasSuffix(got.out, ":63999\n") {
			w.t.Errorf("came of it: %+v", got)
		}
	})
}

// A connection that no rule is for leaves from any port, and fails as it does without us.
func TestRunUnpinned(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		w.names()
		server := w.Server.Serve(":7", lab.Echo)
		w.Client.Route("192.0.2.128/25", lab.Near4) // the router has no route there except back
		args := []string{"--rule", "other.example:443=63999", "--", "reach"}
		for _, f := range families {
			w.runs(w.by(u, append(args, at(f.server, 7)+",hello", at(f.server, 4), at("www.bank.example", 7))...), "hello\nconnection refused\nreached\n")
		}
		w.runs(w.by(u, append(args, "127.0.0.1:7", "[::1]:7")...), "connection refused\nconnection refused\n")
		for _, from := range server.Seen() {
			if from.Port() == 63999 {
				w.t.Errorf("a connection without a rule came from %v", from)
			}
		}
	})
}

// If the host has no route, the command has none, and it has IPv6 only if the host has it.
func TestRunUnreachable(t *testing.T) {
	t.Parallel()
	needTUN(t)
	n := lab.ForTest(t)
	w := &network{&lab.Topology{Client: n.Host("client")}, n, t, publicDir(t)}
	args := []string{"--rule", "*:443=63999", "--", "reach", "203.0.113.2:443", "203.0.113.2:80", "[2001:db8:2::2]:443"}
	w.runs(w.by(user{name: "root"}, args...), strings.Repeat("network is unreachable\n", 3))
	w.runs(w.by(user{name: "root"}, "--rule", "*:443=63999", "--", "sh", "-c", "grep -c pin0 /proc/net/if_inet6; true"), "0\n")
}

// Whether a program tries IPv6 or IPv4 first depends on the kind of IPv6 address that it would have (RFC 6724). With a
// unique local one it is IPv4.
func TestRunPrefersTheSameFamily(t *testing.T) {
	w := newNetwork(t)
	w.names()
	u := user{name: "root"}
	lookUp := []string{need(t, "getent"), "ahosts", "www.bank.example"}
	for _, first := range []string{lab.Server6, lab.Server4} {
		plain := w.result(u.is(w.by(u), lookUp...))
		if !strings.HasPrefix(plain.out, first) {
			t.Fatalf("without us, %s is not the first address: %+v", first, plain)
		}
		w.runs(w.by(u, append([]string{"--rule", "*:443=63999", "--"}, lookUp...)...), plain.out)
		if first == lab.Server6 {
			w.Client.Addr("eth0", "fd00::2/64")
			global := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(lab.Client6), Mask: net.CIDRMask(64, 128)}}
			link, err := w.Client.Netlink().LinkByName("eth0")
			if err == nil {
				err = w.Client.Netlink().AddrDel(link, global)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestRunLoopback(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		for _, addr := range []string{"127.0.0.1:7", "[::1]:7"} {
			l, err := w.Client.Listen("tcp", addr)
			if err != nil {
				w.t.Fatal(err)
			}
			go func() { // ends with l
				for c, err := l.Accept(); err == nil; c, err = l.Accept() {
					lab.Echo(c)
					_ = c.Close()
				}
			}()
		}
		w.runs(w.by(u, "--rule", "*:443=63999", "--host-loopback", "192.0.2.77", "--host-loopback", "2001:db8:77::1", "--",
			"reach", "127.0.0.1:7,mine", "[::1]:7,mine", "192.0.2.77:7,host's", "192.0.2.77:8", "[2001:db8:77::1]:7,host's"),
			"connection refused\nconnection refused\nhost's\nconnection refused\nhost's\n")
	})
}

func TestRunResolverFiles(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		got := w.result(w.by(u, "--rule", "*:443=63999", "--", "cat", "/etc/resolv.conf", "/etc/nsswitch.conf"))
		want := "# By pinproxy, for this command: each name server stands for one of the host's.\n" +
			"nameserver 192.0.0.53\nnameserver 192.0.0.54\noptions timeout:1\n" +
			"passwd: files\ngroup: files\nhosts: files dns\n"
		if got.out != want || got.said != "" {
			w.t.Errorf("the command reads\n%s%s\nwant\n%s", got.out, got.said, want)
		}
		strict := "umask 777; exec pinproxy --rule '*:443=63999' -- sh -c 'umask; grep -c nameserver /etc/resolv.conf'"
		w.runs(u.is(w.by(u), "sh", "-c", strict), "0777\n2\n")
	})
}

// Ports below 1024 are for processes with the capability. A file can have the capability, and then the process looks
// in /proc as if it belonged to root.
func TestRunLowPort(t *testing.T) {
	needRoot(t)
	w := newNetwork(t)
	server := w.Server.Serve(":7", lab.Echo)
	u := nobodyUser()
	args := []string{"--rule", "*:7=1000-1022", "--", "reach", at(lab.Server4, 7) + ",hello"}
	got := w.result(w.by(u, args...))
	if got.status != exitNotRun || !strings.Contains(got.said, "source port 1000") ||
		!strings.Contains(got.said, "setcap cap_net_bind_service") || !strings.Contains(got.said, "ip_unprivileged_port_start=1000") {
		t.Errorf("without privileges: %+v", got)
	}
	cmd := w.by(u, args...)
	cmd.Path = w.able("pinproxy")
	w.runs(cmd, "hello\n")
	w.Client.Sysctl("net.ipv4.ip_unprivileged_port_start", "1000")
	w.runs(w.by(u, args...), "hello\n")
	for _, from := range server.Seen() {
		if from.Port() < 1000 || from.Port() > 1022 {
			t.Errorf("a connection came from %v", from)
		}
	}
}

// copyFile copies a program. While a process forked in the meantime has the copy open for writing, it can't be
// executed (ETXTBSY, golang/go#22315), so nothing is forked during the copy.
func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(to, b, 0o755)
}
