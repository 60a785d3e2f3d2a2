package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A service manager that does not read for a while is not waited for without end.
func TestNotifyIsNotHeldUp(t *testing.T) {
	at := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"}
	manager, err := net.ListenUnixgram("unixgram", at)
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	other, err := net.DialUnix("unixgram", nil, at)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for err == nil { // the socket takes some (net.unix.max_dgram_qlen)
		_ = other.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, err = other.Write([]byte("x"))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", at.Name)
	done := make(chan struct{})
	go func() {
		defer close(done)
		notify("WATCHDOG=1")
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("it waits")
	}
}

// A unit may have more than one directory, and then the variable has a list.
func TestStateDir(t *testing.T) {
	for list, want := range map[string]string{"": runDir, "/run/a": "/run/a", "/run/a:/run/b": "/run/a"} {
		t.Setenv("RUNTIME_DIRECTORY", list)
		if got := stateDir(); got != want {
			t.Errorf("%q: %q, want %q", list, got, want)
		}
	}
}
