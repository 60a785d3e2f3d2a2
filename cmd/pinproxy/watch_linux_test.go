package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/netstack/lab"
)

// On a terminal the status is redrawn repeatedly, at the size of the terminal, and a key ends it. The terminal is
// then what it was.
func TestStatusWatch(t *testing.T) {
	w := newNetwork(t)
	w.Server.Serve(":443", lab.Echo)
	w.pinproxy("--rule", "203.0.113.2:443=63999", "--rule", "*.a-rather-long-name.bank.example:443,8443=63000-63009 busy=wait:10s")
	ptmx, tty := w.pty(user{})
	defer tty.Close()
	was, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	size := func(columns, rows uint16) {
		t.Helper()
		if err := unix.IoctlSetWinsize(int(ptmx.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}); err != nil {
			t.Fatal(err)
		}
	}
	size(80, 24)
	cmd := w.command("status", "--watch")
	on(tty, cmd)
	p, err := w.Client.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	term := &pty{w: w, ptmx: ptmx, out: make(chan string, 1000)}
	go term.read()
	term.expect(screenEnter)
	term.expect("0 open, 0 waiting")
	fits(t, term.expect(screenRest), 80, 24)
	c := w.mustConnect("203.0.113.2:443")
	echo(t, c, "hello")
	term.expect("1 open, 0 waiting")
	screen := term.expect(screenRest)
	fits(t, screen, 80, 24)
	if !strings.Contains(screen, "flow 1") || !strings.Contains(screen, "198.51.100.2:63999") {
		t.Errorf("the flow's port is missing:\n%s", screen)
	}
	size(60, 8)
	term.expect("more lines")
	fits(t, term.expect(screenHome), 60, 8)
	term.typed("x") // this is not shown
	term.typed(ctrlZ)
	term.expect(screenLeave)
	poll(t, "the process to be stopped", func() bool { return stopped(p.Pid()) })
	if now, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS); err != nil || now.Lflag != was.Lflag {
		t.Error("the terminal of the stopped one is not as it was", err)
	}
	if err := p.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	term.expect(screenEnter)
	term.expect(screenRest)
	term.typed(ctrlC)
	term.expect(screenLeave)
	if got := exitStatus(p.Wait()); got != exitOK {
		t.Errorf("status %d", got)
	}
	if now, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS); err != nil || now.Lflag != was.Lflag {
		t.Error("the terminal is not as it was", err)
	}
}

// fits fails the test if drawn lines go beyond the screen.
func fits(t *testing.T, drawn string, width, height int) {
	t.Helper()
	for _, code := range []string{screenHome, lineRest, screenRest, inverse, plain} {
		drawn = strings.ReplaceAll(drawn, code, "")
	}
	list := strings.Split(drawn, "\n")
	for _, line := range list {
		if n := len([]rune(line)); n > width {
			t.Errorf("%d characters in a terminal of %d: %q", n, width, line)
		}
	}
	if len(list) > height {
		t.Errorf("%d lines in a terminal of %d", len(list), height)
	}
}

// stopped says whether a signal has stopped the process.
func stopped(pid int) bool {
	b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	_, state, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(state, "T")
}

// Without a terminal, tables or lines of JSON follow each other until pinproxy ends.
func TestStatusWatchWithoutTerminal(t *testing.T) {
	w := newNetwork(t)
	p := w.pinproxy("--rule", "203.0.113.2:443=63999")
	text, err := w.Client.Start(w.command("status", "--watch"))
	if err != nil {
		t.Fatal(err)
	}
	rows, err := w.Client.Start(w.command("status", "--watch", "--json"))
	if err != nil {
		t.Fatal(err)
	}
	poll(t, "two tables and two lines", func() bool {
		return strings.Count(text.Stdout(), "RULE  ") > 1 && strings.Count(rows.Stdout(), "\n") > 1
	})
	if strings.Contains(text.Stdout(), "\x1b") {
		t.Errorf("%q", text.Stdout())
	}
	for line := range strings.Lines(rows.Stdout()) {
		var s monitor.Status
		if err := json.Unmarshal([]byte(line), &s); err != nil || s.PID != p.Pid() || len(s.Rules) != 1 {
			t.Errorf("%q: %v", line, err)
		}
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	cmd := w.command("status", "--watch", "--json")
	cmd.Stdout = full
	unprinted, err := w.Client.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if got := exitStatus(unprinted.Wait()); got != exitFailed || unprinted.Stderr() != "pinproxy: error: print: write /dev/stdout: no space left on device\n" {
		t.Errorf("status %d, %q", got, unprinted.Stderr())
	}
	p.stop()
	for _, watching := range []*lab.Process{text, rows} {
		if got := exitStatus(watching.Wait()); got != exitFailed || !strings.Contains(watching.Stderr(), "pinproxy: error: ") {
			t.Errorf("status %d, %q", got, watching.Stderr())
		}
	}
}

// A named group may ask, and nobody else.
func TestControlSocketGroup(t *testing.T) {
	if many, err := otherUsers("user"); err != nil || !many {
		needRoot(t)
	}
	w := newNetwork(t)
	if err := os.Chmod(w.run, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(w.run, "s")
	w.pinproxy("--rule", "203.0.113.2:443=63999", "--socket", path, "--socket-group", "4242")
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if gid := info.Sys().(*syscall.Stat_t).Gid; info.Mode() != fs.ModeSocket|0o660 || gid != 4242 {
		t.Errorf("mode %v, group %d", info.Mode(), gid)
	}
	refused := &monitor.AskError{Path: path, Again: "status", Err: fs.ErrPermission}
	if hint := refused.Hint(); !strings.Contains(hint, "its user's, its group's and root's: sudo pinproxy status") {
		t.Error(hint)
	}
}

// The group can reach the socket, whatever umask pinproxy was started with. A directory that is there stays as it is.
func TestRunDirWithUmask(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pinproxy")
	defer syscall.Umask(syscall.Umask(0o077))
	for _, want := range []fs.FileMode{0o755, 0o700} {
		if err := makeRunDir(dir); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("mode %v, want %v", info.Mode().Perm(), want)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
}

// The group is looked up before anything is done.
func TestGroupOf(t *testing.T) {
	for name, want := range map[string]int{"": -1, "4242": 4242, "root": 0} {
		if got, err := groupOf(name); got != want || err != nil {
			t.Errorf("%q: %d, %v", name, got, err)
		}
	}
	for _, name := range []string{"no-such-group-at-all", "-1", "4294967295"} {
		if _, err := groupOf(name); err == nil || !strings.Contains(err.Error(), "there is no such group") {
			t.Errorf("%q: %v", name, err)
		}
	}
}
