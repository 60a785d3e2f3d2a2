package monitor

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSocketFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pinproxy.sock")
	listen := func() (net.Listener, func() error) {
		t.Helper()
		l, remove, err := Listen(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		return l, remove
	}
	refused := func(want string) {
		t.Helper()
		before, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := Listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
			t.Error("what was there is not there any more", err)
		}
	}
	l, remove := listen()
	if info, err := os.Lstat(path); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	refused("another process listens there")
	_ = l.Close() // as if killed: the file stays
	second, removeSecond := listen()
	if err := remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error("the first has removed the second's socket")
	}
	_ = second.Close()
	for range 2 {
		if err := removeSecond(); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("a file that is no socket")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", path); err != nil {
		t.Fatal(err)
	}
	refused("a file that is no socket")
}

// A group is let in only if one is given.
func TestShare(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, c := range []struct {
		group int
		mode  fs.FileMode
	}{{-1, 0o600}, {os.Getgid(), 0o660}} {
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Share(path, c.group); err != nil {
			t.Error(err)
		}
		if info, err := os.Lstat(path); err != nil || info.Mode() != fs.ModeSocket|c.mode {
			t.Errorf("group %d: mode %v, %v", c.group, info.Mode(), err)
		}
	}
	if err := Share(path+".not", os.Getgid()); err == nil {
		t.Error("a file that is not there was shared")
	}
}
