package host

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// hold takes the lock of h.
func hold(t *testing.T, h *lab.Host) (*Lock, error) {
	var l *Lock
	err := h.Do(func() (err error) {
		l, err = Hold(t.Context())
		return err
	})
	return l, err
}

// cleanUp does what `pinproxy cleanup` does, in the network namespace of the calling thread.
func cleanUp(ctx context.Context, stateDir string) (done []string, err error) {
	l, err := Hold(ctx)
	if err != nil {
		return nil, err
	}
	defer l.Release()
	return l.Cleanup(ctx, stateDir)
}

func TestLock(t *testing.T) {
	n := lab.ForTest(t)
	one, other := n.Host("one"), n.Host("other")
	first, err := hold(t, one)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_, err := hold(t, one)
		held, ok := errors.AsType[*HeldError](err)
		if !ok || held.PID != os.Getpid() {
			t.Errorf("second: %v", err)
		}
	}
	elsewhere, err := hold(t, other)
	if err != nil {
		t.Errorf("in another namespace: %v", err)
	} else if err := elsewhere.Release(); err != nil {
		t.Error(err)
	}
	if err := first.Release(); err != nil {
		t.Error(err)
	}
	if again, err := hold(t, one); err != nil {
		t.Errorf("after the release: %v", err)
	} else {
		again.Release()
	}
}

// TestLockOfDying kills a holder while another process waits for the lock.
func TestLockOfDying(t *testing.T) {
	h := lab.ForTest(t).Host("host")
	for range 5 {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestHelperHolds$", "-test.v")
		cmd.Env = append(os.Environ(), "HOST_TEST_HOLD=1")
		p, err := h.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Expect(t.Context(), "holding"); err != nil {
			t.Fatal(err)
		}
		_, err = hold(t, h)
		if held, ok := errors.AsType[*HeldError](err); !ok || held.PID != p.Pid() || !strings.Contains(err.Error(), "pid ") {
			t.Errorf("while it lives: %v", err)
		}
		if err := p.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for {
			l, err := hold(t, h)
			if err == nil {
				l.Release()
				break
			}
			if _, ok := errors.AsType[*HeldError](err); !ok {
				t.Fatal(err)
			}
		}
	}
}

// TestHelperHolds is the process that TestLockOfDying kills.
func TestHelperHolds(t *testing.T) {
	if os.Getenv("HOST_TEST_HOLD") == "" {
		return
	}
	if _, err := Hold(t.Context()); err != nil {
		t.Fatal(err)
	}
	os.Stdout.WriteString("holding\n")
	select {} // until it is killed
}

// A process that has the name without answering has the lock, as far as anyone can tell.
func TestLockWithoutAnswer(t *testing.T) {
	h := lab.ForTest(t).Host("host")
	var fd int
	err := h.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrUnix{Name: lockName})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err = h.Do(func() error {
		_, err := Hold(ctx)
		return err
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for range 4 { // until the queue is full, and beyond
		_, err := hold(t, h)
		if _, ok := errors.AsType[*HeldError](err); !ok {
			t.Error(err)
		}
	}
}

// poor has no descriptor free for the first connections.
type poor struct {
	net.Listener
	refuses int
}

func (p *poor) Accept() (net.Conn, error) {
	if p.refuses--; p.refuses >= 0 {
		return nil, os.NewSyscallError("accept4", unix.EMFILE)
	}
	return p.Listener.Accept()
}

// A holder that ran out of descriptors for a while says again where its control socket is.
func TestLockAfterEMFILE(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l := &Lock{listener: &poor{listener, 2}}
	l.Announce("/run/pinproxy.sock")
	l.served.Go(l.serve)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(patience))
	if b, err := io.ReadAll(c); string(b) != "/run/pinproxy.sock" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
}

func TestNamespace(t *testing.T) {
	n := lab.ForTest(t)
	seen := map[string]bool{"": true}
	for _, name := range []string{"one", "other"} {
		h := n.Host(name)
		for i := range 2 {
			err := h.Do(func() error {
				ns, err := Namespace()
				if seen[ns] != (i == 1) {
					t.Errorf("%s is called %q, the %d. time", name, ns, i+1)
				}
				seen[ns] = true
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
}
