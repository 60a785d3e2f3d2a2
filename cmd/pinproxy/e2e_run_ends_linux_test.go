package main

import (
	"crypto/rand"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// How a single command ends, what it leaves behind, and that its bytes arrive.

// shuttle connects to an address, sends standard input and prints what comes back.
func shuttle() {
	conn, err := net.Dial("tcp", os.Args[1])
	if err == nil {
		c := conn.(*net.TCPConn)
		go func() {
			_, _ = io.Copy(c, os.Stdin)
			_ = c.CloseWrite()
		}()
		_, err = io.Copy(os.Stdout, c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// What a command has written arrives even if the command ends at once and the other end reads slowly.
func TestRunLastBytesArrive(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		const size = 4 << 20
		arrived := make(chan int64, 1)
		w.Server.Serve(":7", func(c net.Conn) {
			n, _ := io.Copy(io.Discard, c)
			arrived <- n
		})
		w.Server.Serve(":8", func(c net.Conn) {
			b := make([]byte, size/20)
			var n int64
			for err := error(nil); err == nil; time.Sleep(20 * time.Millisecond) { // a slow reader
				var k int
				k, err = io.ReadFull(c, b)
				n += int64(k)
			}
			arrived <- n
		})
		for _, port := range []int{7, 7, 7, 8} {
			w.runs(w.by(u, "--rule", "*:*=63990-63999", "--", "blurt", "-n", fmt.Sprint(size), at(lab.Server4, port)), "")
			if n := <-arrived; n != size {
				w.t.Errorf("port %d: %d bytes of %d arrived", port, n, size)
			}
		}
	})
}

// A server that does not close its end makes nobody wait, and loses nothing.
func TestRunServerDoesNotClose(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		arrived, done := make(chan int64, 1), make(chan struct{})
		defer close(done)
		w.Server.Serve(":7", func(c net.Conn) {
			n, _ := io.Copy(io.Discard, c)
			arrived <- n
			<-done
		})
		var took time.Duration
		for range 5 { // a busy machine may be slow now and then
			start := time.Now()
			w.runs(w.by(u, "--rule", "*:7=63000-63999", "--", "blurt", "-n", "100000", at(lab.Server4, 7)), "")
			if n := <-arrived; n != 100_000 {
				w.t.Errorf("%d bytes arrived, want 100000", n)
			}
			if took = time.Since(start); took < endsAtOnce {
				return
			}
		}
		w.t.Errorf("it took %v each time, want less than %v", took, endsAtOnce)
	})
}

// endsAtOnce is shorter than the time that a flow lingers after a moment of silence.
const endsAtOnce = time.Second

// The data test for a command's streams and for its connections, 64 MiB each.
func TestRunCarriesData(t *testing.T) {
	const size = 64 << 20
	eachUser(t, func(w *network, u user) {
		server := w.Server.Serve(":7", lab.Echo)
		for _, argv := range [][]string{{"cat"}, {"shuttle", at(lab.Server4, 7)}, {"shuttle", at(lab.Server6, 7)}} {
			cmd := w.by(u, append([]string{"--rule", "*:7=63999", "--"}, argv...)...)
			sent, got := sha256.New(), sha256.New()
			cmd.Stdin = io.TeeReader(io.LimitReader(rand.Reader, size), sent)
			cmd.Stdout = got
			if r := w.result(cmd); r.status != 0 || r.said != "" || string(sent.Sum(nil)) != string(got.Sum(nil)) {
				w.t.Errorf("%q: %+v; sent %x, got back %x", argv, r, sent.Sum(nil), got.Sum(nil))
			}
		}
		for _, from := range server.Seen() {
			if from.Port() != 63999 {
				w.t.Errorf("a connection came from %v", from)
			}
		}
	})
}

// background starts a shell that waits for a file, and then writes to another file how it reaches the server. It
// returns the script, the path of that other file, and a function that lets the shell go on.
func (w *network) background() (script, out string, goOn func()) {
	w.t.Helper()
	dir := w.t.TempDir()
	for d := dir; len(d) > len(os.TempDir()); d = filepath.Dir(d) {
		_ = os.Chmod(d, 0o777)
	}
	out, sign := filepath.Join(dir, "out"), filepath.Join(dir, "sign")
	// The kernel takes up to a second to notice that a device has lost its carrier (linkwatch). On a busy machine a
	// program may take as long to start.
	script = fmt.Sprintf(`while ! test -e %s; do sleep 0.02; done
		for a in 203.0.113.2:7 [2001:db8:2::2]:7; do
			until timeout 2 reach $a | grep unreachable; do :; done >>%s.new
		done; mv %s.new %s`, sign, out, out, out)
	return script, out, func() {
		if err := os.WriteFile(sign, nil, 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
}

// comesTo waits until a file has this content.
func (w *network) comesTo(file, want string) {
	w.t.Helper()
	var got []byte
	poll(w.t, file, func() (there bool) {
		b, err := os.ReadFile(file)
		got = b
		return err == nil
	})
	if string(got) != want {
		w.t.Errorf("it came to %q, want %q", got, want)
	}
}

const noNetwork = "network is unreachable\nnetwork is unreachable\n"

func TestRunKilledParent(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		w.Server.Serve(":7", lab.Echo)
		before, mounts := w.Client.Snapshot(), mountinfo(w.t)
		script, out, goOn := w.background()
		p, err := w.Client.Start(w.by(u, "--rule", "*:443=63999", "--", "sh", "-c", "reach 203.0.113.2:7; "+script))
		if err != nil {
			w.t.Fatal(err)
		}
		w.expect(p, "reached")
		_ = p.Signal(unix.SIGKILL)
		<-p.Done()
		goOn()
		w.comesTo(out, noNetwork)
		w.unchanged(before, mounts)
	})
}

func TestRunBackgroundChildLosesNetwork(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		w.Server.Serve(":7", lab.Echo)
		script, out, goOn := w.background()
		start := time.Now()
		w.runs(w.by(u, "--rule", "*:443=63999", "--", "sh", "-c", "reach 203.0.113.2:7; ("+script+") >/dev/null 2>&1 &"), "reached\n")
		if took := time.Since(start); took > patience {
			w.t.Errorf("it took %v", took)
		}
		goOn()
		w.comesTo(out, noNetwork)
	})
}

// unchanged checks that the client and this mount namespace are what they were.
func (w *network) unchanged(before, mounts string) {
	w.t.Helper()
	if diff := cmp.Diff(lines(before), lines(w.Client.Snapshot())); diff != "" {
		w.t.Errorf("the host is changed (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(lines(mounts), lines(mountinfo(w.t))); diff != "" {
		w.t.Errorf("mounts are changed (-before +after):\n%s", diff)
	}
}

func mountinfo(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	// Mounts on /run/netns belong to others on this machine, and may go while we look.
	var own strings.Builder
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, " /run/netns/") {
			own.WriteString(line)
		}
	}
	return own.String()
}

var commandRounds = flag.Int("command-rounds", 5, "how often TestRunManySideBySide runs 20 commands")

// Many commands, 20 at a time, each with a connection of its own, share one pool of ports: none fails, and nothing
// is left behind. The host is unchanged while they run.
func TestRunManySideBySide(t *testing.T) {
	const atATime = 20
	eachUser(t, func(w *network, u user) {
		w.names()
		server := w.Server.Serve(":7", lab.Echo)
		before, mounts := w.Client.Snapshot(), mountinfo(w.t)
		w.programs()
		for range *commandRounds {
			var all sync.WaitGroup
			for i := range atATime {
				cmd := w.by(u, "--rule", "*.bank.example:7=63000-63099", "--", "reach", at(families[i%2].nested(), 7)+",hello")
				all.Go(func() {
					// A message about a port that another command has just had is fine.
					if got := w.result(cmd); got.out != "hello\n" || got.status != 0 {
						w.t.Errorf("%+v", got)
					}
				})
			}
			w.unchanged(before, mounts)
			all.Wait()
		}
		w.unchanged(before, mounts)
		if n := len(server.Seen()); n != *commandRounds*atATime {
			w.t.Errorf("%d connections came, want %d", n, *commandRounds*atATime)
		}
		for _, from := range server.Seen() {
			if from.Port() < 63000 || from.Port() > 63099 {
				w.t.Errorf("a connection came from %v", from)
			}
		}
	})
}

// The log is for the user, and says nothing while all is well.
func TestRunLog(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		w.Server.Serve(":7", lab.Echo)
		argv := []string{"--", "sh", "-c", "reach 203.0.113.2:7 2>&1; exec 2>/dev/null"}
		w.runs(w.by(u, append([]string{"--rule", "*:7=63999"}, argv...)...), "reached\n")
		got := w.result(w.by(u, append([]string{"--rule", "*:7=63999", "--log-level=info"}, argv...)...))
		if !strings.Contains(got.said, "msg=ready link=pin0") || !strings.Contains(got.said, "local=198.51.100.2:63999") {
			w.t.Errorf("with --log-level=info it said\n%s", got.said)
		}
		// If a pin can't be had, the log says so.
		l, err := w.Client.Listen("tcp", ":63999")
		if err != nil {
			w.t.Fatal(err)
		}
		defer l.Close()
		got = w.result(w.by(u, "--rule", "*:7=63999 busy=fail", "--", "reach", at(lab.Server4, 7)))
		if got.out != "no route to host\n" || !strings.Contains(got.said, "address already in use") || len(lines(got.said)) != 1 {
			w.t.Errorf("with the port taken: %+v", got)
		}
	})
}

// A standard error that nobody reads any more is no reason to end.
func TestRunSurvivesBrokenPipe(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		w.Server.Serve(":7", lab.Echo)
		r, broken, err := os.Pipe()
		if err != nil {
			w.t.Fatal(err)
		}
		defer broken.Close()
		_ = r.Close()
		cmd := w.by(u, "--rule", "*:7=63999", "--log-level=debug", "--", "sh", "-c", "for i in 1 2 3; do reach 203.0.113.2:7; done")
		cmd.Stderr = broken
		if got := w.result(cmd); got.out != "reached\nreached\nreached\n" || got.status != 0 {
			w.t.Errorf("%+v", got)
		}
	})
}
