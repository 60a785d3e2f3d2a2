package netns

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// The test binary becomes the commands of its tests, so TestMain begins as main does.
func TestMain(m *testing.M) {
	Main()
	lab.Main(m)
}

// start creates a child for a shell command.
func start(t *testing.T, script string) *Child {
	t.Helper()
	c, err := Start(t.Context(), Config{
		Path: "/bin/sh", Argv: []string{"sh", "-c", script},
		Offload: true,
		Addrs:   []netip.Addr{netip.MustParseAddr("192.0.0.8")},
		Routes:  []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
		Files:   []File{{Path: ResolvConf, Content: "nameserver 192.0.0.53\n", Make: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStartExecWaitClose(t *testing.T) {
	fds, threads := descriptors(t), len(children(t))
	for i := range 5 {
		out := filepath.Join(t.TempDir(), "out")
		c := start(t, "grep -c pin0 /proc/net/dev >"+out+"; cat /etc/resolv.conf >>"+out+"; exit 3")
		if c.Link() == nil || c.Link().Name() != "pin0" || !c.Link().Offload() {
			t.Errorf("link: %+v", c.Link())
		}
		if _, err := os.Stat(out); err == nil {
			t.Error("the command ran before Exec")
		}
		if err := c.Exec(); err != nil {
			t.Fatal(err)
		}
		if status := c.Wait(); status != 3 {
			t.Errorf("status %d, want 3", status)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if b, err := os.ReadFile(out); string(b) != "1\nnameserver 192.0.0.53\n" || err != nil {
			t.Errorf("the command saw %q, %v", b, err)
		}
		if i == 0 {
			fds = descriptors(t) // including the runtime's own, such as epoll
		}
	}
	if got := descriptors(t); got != fds {
		t.Errorf("%d descriptors are open, were %d", got, fds)
	}
	if got := len(children(t)); got != threads {
		t.Errorf("%d children are left, were %d", got, threads)
	}
}

// A child that is not to become the command ends and leaves nothing behind.
func TestCloseBeforeExec(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	c := start(t, "touch "+out)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for end := time.Now().Add(30 * time.Second); unix.Kill(c.pid, 0) == nil; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("the child goes on")
		}
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("the command ran")
	}
}

// systemd-resolved and its like replace the file that resolv.conf links to, and nscd makes its socket anew. The command
// keeps its own.
func TestFileIsReplaced(t *testing.T) {
	dir := t.TempDir()
	link, target, began, out := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "run", "stub.conf"), filepath.Join(dir, "began"), filepath.Join(dir, "out")
	socket := filepath.Join(dir, "nscd", "socket")
	put := func(path, content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(filepath.Dir(target), 0o755), os.Mkdir(filepath.Dir(socket), 0o755), os.Symlink("run/stub.conf", link), unix.Mkfifo(began, 0o600)); err != nil {
		t.Fatal(err)
	}
	put(target, "nameserver 127.0.0.53\n")
	put(filepath.Join(dir, "run", "other"), "other\n")
	put(socket, "nscd\n")
	c, err := Start(t.Context(), Config{
		Path: "/bin/sh", Argv: []string{"sh", "-c", "cat " + began + " " + link + " " + dir + "/run/other " + socket + " >" + out},
		Files: []File{{Path: link, Content: "nameserver 192.0.0.53\n", Dirs: []string{filepath.Dir(target)}}, {Path: socket, Content: "deaf\n", Alone: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Exec(); err != nil {
		t.Fatal(err)
	}
	put(target+".new", "nameserver 127.0.0.54\n")
	if err := errors.Join(os.Rename(target+".new", target), os.Remove(socket)); err != nil {
		t.Fatal(err)
	}
	put(socket, "nscd again\n")
	put(began, "") // the command waits for this
	if status := c.Wait(); status != 0 {
		t.Errorf("status %d", status)
	}
	if b, err := os.ReadFile(out); string(b) != "nameserver 192.0.0.53\nother\ndeaf\n" || err != nil {
		t.Errorf("the command saw %q, %v", b, err)
	}
	if b, err := os.ReadFile(link); string(b) != "nameserver 127.0.0.54\n" || err != nil {
		t.Errorf("the host sees %q, %v", b, err)
	}
}

func TestExecFails(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c, err := Start(t.Context(), Config{Path: script, Argv: []string{"script"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var exec *ExecError
	if err := c.Exec(); !errors.As(err, &exec) || !errors.Is(err, unix.ENOENT) || exec.Path != script {
		t.Errorf("Exec: %v", err)
	}
}

func TestStartFails(t *testing.T) {
	for name, test := range map[string]struct {
		c    Config
		step string
		is   error
	}{
		"device name": {Config{Link: "a/b"}, "make the device", nil},
		"route":       {Config{Routes: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/8")}}, "add the route to", unix.EINVAL},
		"file":        {Config{Files: []File{{Path: "/no/such/file"}}}, "cover /no/such/file", unix.ENOENT},
	} {
		test.c.Path, test.c.Argv = "/bin/true", []string{"true"}
		c, err := Start(t.Context(), test.c)
		if err == nil {
			_ = c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), test.step) || test.is != nil && !errors.Is(err, test.is) {
			t.Errorf("%s: Start: %v, want the step %q and %v", name, err, test.step, test.is)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := Start(ctx, Config{Path: "/bin/true", Argv: []string{"true"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("Start with an ended context: %v, %v", c, err)
	}
	if left := children(t); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
}

// The child's code cannot be run in namespaces that are not its own.
func TestOrderOutside(t *testing.T) {
	own, err := os.Readlink(nsNet)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []order{{}, {Net: own, Mnt: "mnt:[1]"}, {Net: "net:[1]"}} {
		if _, err := o.carryOut(); err == nil || !strings.HasPrefix(err.Error(), "enter namespaces: ") {
			t.Errorf("%+v was carried out: %v", o, err)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// children returns the processes that this one has started.
func children(t *testing.T) (pids []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, _ := os.ReadFile(f) // the thread may be gone
		for _, field := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
