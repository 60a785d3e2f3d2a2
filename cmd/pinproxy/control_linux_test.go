package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Everything else works without a control socket.
func TestControlSocketIsNotNeeded(t *testing.T) {
	w := newNetwork(t)
	p := w.pinproxy("--rule", "203.0.113.2:443=63999", "--socket", "/nowhere/at/all.sock")
	if e := p.await("no control socket: check and status can't ask this pinproxy", 1)[0]; e.Level != "WARN" || e.Err != "listen on /nowhere/at/all.sock: no such file or directory" {
		t.Errorf("%+v", e)
	}
	out, _, err := w.Client.Run(w.command("check", "203.0.113.2:443"))
	if exitStatus(err) != exitFailed || !strings.Contains(out, "but can't be asked by which rule: ask it: it has no control socket") {
		t.Errorf("%v\n%s", err, out)
	}
}

// check and status find the socket wherever it is, and --socket finds it as well. It goes with the process.
func TestControlSocketElsewhere(t *testing.T) {
	w := newNetwork(t)
	dir := publicDir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	cmd := w.command("--log-format=json", "--rule", "203.0.113.2:443=63999", "--socket", "s")
	cmd.Dir = dir
	p := w.startCommand(cmd)
	p.expect(`"msg":"ready"`)
	for _, args := range [][]string{{"status"}, {"status", "--socket", path}, {"check", "203.0.113.2:443"}} {
		cmd := program("pinproxy", args...) // without our RUNTIME_DIRECTORY
		if _, _, err := w.Client.Run(cmd); err != nil {
			t.Errorf("%q: %v", args, err)
		}
	}
	if _, _, err := w.Client.Run(w.command("status", "--socket", "/nowhere")); exitStatus(err) != exitFailed || !strings.Contains(err.Error(), "ask /nowhere: no such file or directory") || !strings.Contains(err.Error(), "say by --socket") {
		t.Error(err)
	}
	p.stop()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the socket is still there", err)
	}
}

// To say by --socket where it is does not help who has deleted it.
func TestControlSocketIsDeleted(t *testing.T) {
	w := newNetwork(t)
	dir := publicDir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	p := w.pinproxy("--rule", "203.0.113.2:443=63999", "--socket", path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("hint: if the socket was deleted, a restart of pid %d makes it again", p.Pid())
	if _, _, err := w.Client.Run(w.command("status")); exitStatus(err) != exitFailed || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}

// check does not mix what a pinproxy of another network namespace knows with what the kernel says of this one. status
// has it all from the other.
func TestControlSocketOfAnotherNamespace(t *testing.T) {
	w := newNetwork(t)
	p := w.pinproxy("--rule", "203.0.113.2:443=63999")
	sockets, err := filepath.Glob(filepath.Join(w.run, "pinproxy*.sock"))
	if err != nil || len(sockets) != 1 {
		t.Fatalf("%v, %v", sockets, err)
	}
	if out, _, err := w.Server.Run(w.command("status", "--socket", sockets[0])); err != nil || !strings.Contains(out, "203.0.113.2:443=63999") {
		t.Errorf("status: %v\n%s", err, out)
	}
	out, _, err := w.Server.Run(w.command("check", "--socket", sockets[0], "198.51.100.2:443"))
	want := fmt.Sprintf("pid %d, is in another network namespace", p.Pid())
	if exitStatus(err) != exitFailed || out != "" || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "nsenter") {
		t.Errorf("check: %v\n%s", err, out)
	}
	if out, _, err := w.Client.Run(w.command("check", "--socket", sockets[0], "203.0.113.2:443")); err != nil {
		t.Errorf("check in its own: %v\n%s", err, out)
	}
}

// A pinproxy that is stopped is still there, and what the kernel says of connections is still true.
func TestCheckOfStoppedPinproxy(t *testing.T) {
	w := newNetwork(t)
	p := w.pinproxy("--rule", "203.0.113.2:443=63999")
	if err := p.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	out, _, err := w.Client.Run(w.command("check", "203.0.113.2:443"))
	_, _, serr := w.Client.Run(w.command("status"))
	if err := p.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("pid %d, but can't ask for its control socket: it does not answer", p.Pid())
	if exitStatus(serr) != exitFailed || !strings.Contains(serr.Error(), want) {
		t.Errorf("status: %v", serr)
	}
	if exitStatus(err) != exitFailed || !strings.Contains(out, want) || !strings.Contains(out, "captured  yes, into pin0") {
		t.Errorf("%v\n%s", err, out)
	}
}
