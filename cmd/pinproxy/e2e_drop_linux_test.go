package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"pinproxy/cmd/pinproxy/identity"
	"pinproxy/netstack/lab"
	"pinproxy/netstack/link"
	"pinproxy/proxy/sockdiag"
)

// What is left of root's privileges when pinproxy is ready. All other tests show that everything works without them,
// if they are run as root.

// credentials returns a line for each field of /proc/PID/status that tells what a process may do, for each of its
// threads.
func credentials(t *testing.T, pid int) []string {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("process %d has no threads: %v", pid, err)
	}
	var found []string
	for _, path := range threads {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		var s []string
		for line := range strings.Lines(string(b)) {
			name, value, _ := strings.Cut(line, ":")
			if slices.Contains([]string{"Uid", "Gid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"}, name) {
				s = append(s, name+" "+strings.Join(strings.Fields(value), " "))
			}
		}
		if all := strings.Join(s, ", "); !slices.Contains(found, all) {
			found = append(found, all)
		}
	}
	return found
}

// may is what credentials returns for a process of uid if all of its threads have exactly these capabilities.
func may(uid int, caps ...int) []string {
	var set uint64
	for _, c := range caps {
		set |= 1 << c
	}
	return []string{fmt.Sprintf("Uid %[1]d %[1]d %[1]d %[1]d, Gid %[1]d %[1]d %[1]d %[1]d, "+
		"CapInh %016[2]x, CapPrm %016[2]x, CapEff %016[2]x, CapBnd %016[2]x, CapAmb %016[2]x, NoNewPrivs 1", uid, set)}
}

func TestPrivilegesAreDropped(t *testing.T) {
	needRoot(t)
	t.Parallel()
	id, err := identity.Find(defaultUser)
	if err != nil {
		id.UID = nobody
	}
	const admin, bind = unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE
	usual := []int{admin}
	if !sockdiag.EndsTimeWait() {
		usual = append(usual, bind)
	}
	for _, test := range []struct {
		name string
		args []string
		want []string
	}{
		{"by itself", []string{"--rule", "203.0.113.2:7=63999"}, may(id.UID, usual...)},
		{"low pin", []string{"--rule", "203.0.113.2:7=999"}, may(id.UID, admin, bind)},
		{"rules file", []string{"--rules", "FILE"}, may(id.UID, admin, bind)},
		{"user by name", []string{"--rule", "203.0.113.2:7=63999", "--user", "daemon"}, may(1, usual...)},
		{"user by number", []string{"--rule", "203.0.113.2:7=63999", "--user", "54321"}, may(54321, usual...)},
		{"root", []string{"--rule", "203.0.113.2:7=63999", "--user", "root"}, may(0, usual...)},
		{"without offload", []string{"--rule", "203.0.113.2:7=63999", "--offload", "off"}, may(id.UID, usual...)},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newNetwork(t)
			server := w.Server.Serve(":7", lab.Echo)
			if i := slices.Index(test.args, "FILE"); i >= 0 {
				test.args[i] = w.rulesFile("203.0.113.2:7=999\n", 0o600)
			}
			p := w.pinproxy(test.args...)
			if got := credentials(t, p.Pid()); !slices.Equal(got, test.want) {
				t.Errorf("it is\n%q, want\n%q", got, test.want)
			}
			if got := len(p.entries("keeps more privileges than it needs")); got != 0 {
				t.Errorf("it says so %d times", got)
			}
			echo(t, w.mustConnect(at(lab.Server4, 7)), "hello")
			if from := server.Seen()[0].Port(); from != 63999 && from != 999 {
				t.Errorf("the connection came from port %d", from)
			}
		})
	}
}

// rulesFile makes a file in a place where other users may go. They may not necessarily read it.
func (w *network) rulesFile(text string, mode os.FileMode) string {
	w.t.Helper()
	path := filepath.Join(publicDir(w.t), "rules")
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// A rules file is read by root at the start, and by another user later. Who saves it anew for root alone is told which
// user that is.
func TestUnreadableRulesFileIsWarnedOf(t *testing.T) {
	needRoot(t)
	w := newNetwork(t)
	path := w.rulesFile("203.0.113.2:7=63999\n", 0o600)
	p := w.pinproxy("--rules", path, "--user", "daemon")
	p.expect("rules file " + path + " can't be read again, so SIGHUP will fail: permission denied to user daemon, as whom pinproxy runs")
	if err := p.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	want := "read rules file " + path + ": permission denied to user daemon, as whom pinproxy runs"
	if e := p.await("rules not reread, the former ones stay", 1)[0]; e.Err != want {
		t.Errorf("%+v, want %q", e, want)
	}
}

// A FIFO holds up neither the start, nor the end when SIGHUP has us read it and nobody writes to it.
func TestRulesFromAFIFO(t *testing.T) {
	w := newNetwork(t)
	path := filepath.Join(publicDir(t), "rules")
	if err := unix.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
	p := w.startPinproxy("--rules", path)
	// write returns the writing end, once there is a reader.
	write := func(text string) (f *os.File) {
		p.poll("somebody to read the rules", func() (read bool) {
			var err error
			f, err = os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
			return err == nil
		})
		if _, err := f.WriteString(text); err != nil {
			t.Error(err)
		}
		return f
	}
	_ = write("203.0.113.2:7=63999\n").Close()
	p.expect(`"msg":"ready"`)
	_ = p.Signal(unix.SIGHUP)
	defer write("").Close()
	p.stop()
}

// A file that can be read only once is read only once.
func TestRulesFromAPipe(t *testing.T) {
	w := newNetwork(t)
	server := w.Server.Serve(":7", lab.Echo)
	cmd := w.command("--log-format=json", "--rules", "/dev/stdin")
	cmd.Stdin = strings.NewReader("203.0.113.2:7=63999\n")
	p := w.startCommand(cmd)
	p.expect(`"msg":"ready"`)
	echo(t, w.mustConnect(at(lab.Server4, 7)), "hello")
	if from := server.Seen()[0].Port(); from != 63999 {
		t.Errorf("the connection came from port %d", from)
	}
}

// The namer has what it needs to see whose a socket is, and nothing else. It always ends with pinproxy.
func TestNamer(t *testing.T) {
	needRoot(t)
	t.Parallel()
	for _, end := range []syscall.Signal{unix.SIGTERM, unix.SIGKILL} {
		t.Run(end.String(), func(t *testing.T) {
			w := newNetwork(t)
			cmd := w.command("--log-format=json", "--rule", "203.0.113.2:7=63999")
			open, err := os.Create(filepath.Join(t.TempDir(), "open in the shell"))
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()
			cmd.ExtraFiles = []*os.File{open, open} // 3 and 4
			p := w.startCommand(cmd)
			p.expect(`"msg":"ready"`)
			namer := w.namer(p)
			uid := strings.Fields(credentials(t, p.Pid())[0])[1]
			n, _ := strconv.Atoi(uid)
			for _, file := range []string{"comm", "cmdline"} { // as pidof and pkill look
				poll(t, "the namer's name in "+file, func() bool { // it has that of its file at first
					name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", namer, file))
					return strings.HasPrefix(string(name), namerName)
				})
			}
			if got, want := credentials(t, namer), may(n, naming...); !slices.Equal(got, want) {
				t.Errorf("the namer is\n%q, want\n%q", got, want)
			}
			for _, s := range []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} { // as a terminal sends them to all processes
				if err := unix.Kill(namer, s); err != nil {
					t.Errorf("the namer has ended: %v", err)
				}
			}
			files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", namer))
			if err != nil || len(files) < 4 {
				t.Fatalf("the namer has %q open, %v", files, err)
			}
			for _, file := range files {
				if to, _ := os.Readlink(file); to == open.Name() {
					t.Errorf("the namer has %s", to)
				}
			}
			w.occupy("listen", 63998)
			if end == unix.SIGKILL {
				p.kill()
				out, _, err := w.Client.Run(w.command("cleanup"))
				if err != nil {
					t.Errorf("%s, %v", out, err)
				}
			} else {
				p.stop()
			}
			poll(t, "the namer's end", func() bool { return unix.Kill(namer, 0) != nil || zombie(namer) })
		})
	}
}

// namer returns the process that p has for names.
func (w *network) namer(p *running) int {
	w.t.Helper()
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.Pid()))
	var pids []int
	for _, path := range lists {
		b, _ := os.ReadFile(path)
		for _, f := range strings.Fields(string(b)) {
			pid, _ := strconv.Atoi(f)
			pids = append(pids, pid)
		}
	}
	if len(pids) != 1 {
		w.t.Fatalf("pinproxy has the children %v", pids)
	}
	poll(w.t, "the namer to be one", func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pids[0]))
		return strings.Contains(string(b), namerReady)
	})
	return pids[0]
}

func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(b), ") Z ")
}

func TestUserThatCannotBe(t *testing.T) {
	needRoot(t)
	w := newNetwork(t)
	for _, test := range []struct{ guard, user, error, hint string }{
		{"user", "daemon", "--user daemon: only root can become another user", "leave out --user"},
		{"few capabilities", "daemon", "become user daemon: that takes CAP_SETUID and CAP_SETGID", "leave out --user"},
	} {
		cmd := w.command("--rule", "203.0.113.2:7=63999", "--user", test.user)
		if test.guard != "" {
			cmd.Args = append([]string{"guarded", test.guard}, cmd.Args...)
		}
		got := w.result(cmd)
		said := lines(got.said)
		if got.status != exitFailed || len(said) != 2 || said[0] != "pinproxy: error: "+test.error || !strings.HasPrefix(said[1], "pinproxy: hint: ") || !strings.Contains(said[1], test.hint) {
			t.Errorf("%+v: %+v", test, got)
		}
	}
}

// Root of a container with few privileges continues as root.
func TestRootThatCannotBeAnother(t *testing.T) {
	needRoot(t)
	w := newNetwork(t)
	w.Server.Serve(":7", lab.Echo)
	cmd := w.command("--log-format=json", "--rule", "203.0.113.2:7=63999")
	cmd.Args = append([]string{"guarded", "no other user"}, cmd.Args...)
	p := w.startCommand(cmd)
	p.expect(`"msg":"ready"`)
	p.expect("keeps more privileges than it needs: become user")
	if got, want := credentials(t, p.Pid()), may(0, unix.CAP_NET_ADMIN); !slices.Equal(got, want) {
		t.Errorf("it is\n%q, want\n%q", got, want)
	}
	echo(t, w.mustConnect(at(lab.Server4, 7)), "hello")
}

// A directory that is not pinproxy's own is not given away. Root then stays root, because another user could not
// work there.
func TestDirectoryOfOthersStaysTheirs(t *testing.T) {
	needRoot(t)
	t.Parallel()
	for _, test := range []struct {
		name   string
		theirs func(run string) error
		says   string
	}{
		{"file", func(run string) error { return os.WriteFile(filepath.Join(run, "theirs"), nil, 0o600) }, "others have files there"},
		{"foreign", func(run string) error { // named like pinproxy's, but somebody else's
			path := filepath.Join(run, "pinproxy.state")
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, nobody, nobody))
		}, "others have files there"},
		{"writable", func(run string) error { return os.Chmod(run, 0o777) }, "others may write there"},
		{"parent", func(run string) error { return os.Chmod(filepath.Dir(run), 0o700) }, "it is in a directory for others"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newNetwork(t)
			if err := test.theirs(w.run); err != nil {
				t.Fatal(err)
			}
			p := w.pinproxy("--rule", "203.0.113.2:7=63999")
			p.expect(test.says)
			if info, err := os.Stat(w.run); err != nil || owner(info) != 0 {
				t.Errorf("it is not root's any more: %v, %v", info, err)
			}
			if got, want := credentials(t, p.Pid()), may(0, unix.CAP_NET_ADMIN); !slices.Equal(got, want) {
				t.Errorf("it is\n%q, want\n%q", got, want)
			}
			p.stop()
			out := w.result(w.command("--rule", "203.0.113.2:7=63999", "--user", "daemon"))
			if out.status != exitFailed || !strings.Contains(out.said, "pinproxy: error: give ") {
				t.Errorf("with --user it said %+v", out)
			}
		})
	}
}

// What one user's pinproxy has left behind, another user's takes over and removes.
func TestAnotherUserCleansUp(t *testing.T) {
	needRoot(t)
	w := newNetwork(t)
	before := w.Client.Snapshot()
	w.pinproxy("--rule", "203.0.113.2:7=63999", "--user", "daemon").kill()
	if left, _ := filepath.Glob(w.run + "/pinproxy.*"); len(left) == 0 {
		t.Fatal("it left nothing behind")
	}
	p := w.pinproxy("--rule", "203.0.113.2:7=63998", "--user", "54321")
	p.before = before
	p.expect("cleaned up after a killed pinproxy")
	if got, want := credentials(t, p.Pid()), may(54321, unix.CAP_NET_ADMIN); !slices.Equal(got, want) {
		t.Errorf("it is\n%q, want\n%q", got, want)
	}
	p.stop()
	if left, _ := filepath.Glob(w.run + "/*"); len(left) != 0 {
		t.Errorf("it left %q behind", left)
	}
}

// confined changes files in its first argument and elsewhere.
func confined() {
	runtime.LockOSThread() // only this thread is confined
	dir, elsewhere := os.Args[1], os.Args[2]
	if err := identity.Confine([]identity.Writable{{Path: dir, Access: identity.MakeFiles}}); err != nil {
		fmt.Println(err)
	}
	for _, d := range []string{dir, elsewhere} {
		fmt.Println(filepath.Base(d), os.WriteFile(d+"/new", nil, 0o600) == nil, os.WriteFile(d+"/old", nil, 0o600) == nil, os.Remove(d+"/old") == nil, os.Mkdir(d+"/dir", 0o700) == nil)
	}
	_, err := os.ReadFile(elsewhere + "/read")
	fmt.Println("read", err == nil)
}

func TestConfined(t *testing.T) {
	needRoot(t)
	w := newNetwork(t)
	base := t.TempDir()
	for _, path := range []string{"here/old", "there/old", "there/read"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(base, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(base, path), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got := w.result(program("confined", base+"/here", base+"/there"))
	want := "here true true true false\nthere false false false false\nread true\n"
	if version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION); errno != 0 {
		t.Logf("no Landlock in this kernel (%v): nothing is confined", errno)
		want = "here true true true true\nthere true true true true\nread true\n"
	} else if version < 1 {
		t.Fatal(version)
	}
	if got.out != want || got.status != 0 {
		t.Errorf("%+v, want\n%s", got, want)
	}
}

// Only a device that may be another pinproxy's is worth waiting for: one in use, and not one of another kind.
func TestForeignDevice(t *testing.T) {
	for errno, want := range map[syscall.Errno]bool{unix.EBUSY: true, unix.EINVAL: false} {
		if got := mayVanish(fmt.Errorf("make tun: %w: %w", link.ErrNameTaken, errno)); got != want {
			t.Errorf("%v may vanish: %v", errno, got)
		}
	}
	needRoot(t)
	w := newNetwork(t)
	_, said, err := w.Client.Run(w.command("--rule", "203.0.113.2:7=63999", "--tun", "lo"))
	if exitStatus(err) != exitFailed || !strings.Contains(said, "by a device that is no TUN") || !strings.Contains(said, "--tun pin1") {
		t.Errorf("%q, %v", said, err)
	}
}
