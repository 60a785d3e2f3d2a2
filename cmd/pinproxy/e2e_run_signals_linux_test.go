package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// Signals, job control and the terminal of a command.

// trap prints the signals it gets, one a line, beginning with "trapping PID". It ends at SIGTERM with status 9.
func trap() {
	c := make(chan os.Signal, 16)
	signal.Notify(c, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH)
	fmt.Println("trapping", os.Getpid())
	for s := range c {
		fmt.Println("got", unix.SignalName(s.(syscall.Signal)))
		if s == unix.SIGTERM {
			os.Exit(9)
		}
	}
}

func TestRunPassesSignalsOn(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		p, err := w.Client.Start(w.by(u, "--rule", "*:443=63999", "--", "trap"))
		if err != nil {
			w.t.Fatal(err)
		}
		for i, s := range []syscall.Signal{unix.SIGUSR1, unix.SIGUSR2, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGWINCH, unix.SIGTERM} {
			if i == 0 {
				w.expect(p, "trapping")
			}
			_ = p.Signal(s)
			w.expect(p, "got "+unix.SignalName(s)+"\n")
		}
		if got := exitStatus(p.Wait()); got != 9 {
			w.t.Errorf("status %d, want the command's own, 9", got)
		}
		if n := strings.Count(p.Stdout(), "got "); n != 7 {
			w.t.Errorf("7 signals sent, %d received:\n%s", n, p.Stdout())
		}
	})
}

// expect waits for what a process prints.
func (w *network) expect(p *lab.Process, text string) {
	w.t.Helper()
	if err := p.Expect(soon(w.t), text); err != nil {
		w.t.Fatal(err)
	}
}

// A signal that ends the command ends pinproxy with the same status.
func TestRunSignalThatKills(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		for _, s := range []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP} {
			p, err := w.Client.Start(w.by(u, "--rule", "*:443=63999", "--", "sh", "-c", "echo here; exec sleep 100"))
			if err != nil {
				w.t.Fatal(err)
			}
			w.expect(p, "here")
			_ = p.Signal(s)
			if got := exitStatus(p.Wait()); got != 128+int(s) {
				w.t.Errorf("%v: status %d, want %d", s, got, 128+int(s))
			}
		}
	})
}

// pty is a pseudo-terminal with bash on it, in a session of its own.
type pty struct {
	w    *network
	ptmx *os.File
	out  chan string // the output, piece by piece
	seen string
	all  strings.Builder
}

// pty makes a pseudo-terminal that belongs to u.
func (w *network) pty(u user) (ptmx, tty *os.File) {
	w.t.Helper()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = ptmx.Close() })
	n, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	tty, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	if u.attr != nil {
		_ = tty.Chown(nobody, nobody)
	}
	return ptmx, tty
}

// on makes cmd run in a session of its own on the terminal.
func on(tty *os.File, cmd *exec.Cmd) {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
}

// terminal starts an interactive shell as u.
func (w *network) terminal(u user) *pty {
	w.t.Helper()
	bash := need(w.t, "bash")
	ptmx, tty := w.pty(u)
	defer tty.Close()
	cmd := u.is(w.by(u), bash, "--norc", "--noprofile", "--noediting", "-i")
	cmd.Env = append(cmd.Env, "PS1=ready> ", "TERM=dumb", "HISTFILE=", "HOME=/")
	on(tty, cmd)
	if _, err := w.Client.Start(cmd); err != nil {
		w.t.Fatal(err)
	}
	term := &pty{w: w, ptmx: ptmx, out: make(chan string, 1000)}
	go term.read()
	term.expect("ready> ")
	return term
}

// read ends with the terminal.
func (t *pty) read() {
	r := bufio.NewReader(t.ptmx)
	b := make([]byte, 1000)
	for {
		n, err := r.Read(b)
		t.out <- string(b[:n])
		if err != nil {
			close(t.out)
			return
		}
	}
}

// typed sends what a person would type.
func (t *pty) typed(text string) {
	t.w.t.Helper()
	if _, err := t.ptmx.WriteString(text); err != nil {
		t.w.t.Fatal(err)
	}
}

// expect waits for text after the text expected before, and returns what came in between.
func (t *pty) expect(text string) string {
	t.w.t.Helper()
	late := time.After(patience)
	for {
		if before, after, ok := strings.Cut(t.seen, text); ok {
			t.seen = after
			return before
		}
		select {
		case more, ok := <-t.out:
			if !ok {
				t.w.t.Fatalf("the terminal ended without %q; it said %q", text, t.seen)
			}
			more = strings.ReplaceAll(more, "\r", "")
			t.seen += more
			t.all.WriteString(more)
		case <-late:
			t.w.t.Fatalf("in vain waited for %q; the terminal said %q, after all of\n%s", text, t.seen, t.all.String())
		}
	}
}

const (
	ctrlC = "\x03"
	ctrlD = "\x04"
	ctrlZ = "\x1a"
	quit  = "\x1c" // Ctrl-\
)

const pinned = "pinproxy --rule '*:443=63999' -- "

func TestRunCtrlC(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		term := w.terminal(u)
		// A command that catches the signal gets it once, and goes on.
		term.typed(pinned + "trap\n")
		term.expect("trapping ")
		for range 3 {
			term.typed(ctrlC)
			term.expect("got SIGINT\n")
		}
		term.typed(quit)
		if before := term.expect("got SIGQUIT\n"); strings.Contains(before, "SIGINT") {
			w.t.Errorf("SIGINT came twice: %q", before)
		}
		_ = unix.IoctlSetWinsize(int(term.ptmx.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 30, Col: 90})
		if before := term.expect("got SIGWINCH\n"); strings.Contains(before, "SIGQUIT") {
			w.t.Errorf("SIGQUIT came twice: %q", before)
		}
		term.typed(ctrlC)
		if before := term.expect("got SIGINT\n"); strings.Contains(before, "SIGWINCH") {
			w.t.Errorf("SIGWINCH came twice: %q", before)
		}
		// A TERM sent to us by another process reaches it through us.
		term.typed(ctrlZ)
		term.expect("Stopped")
		term.typed("kill %1; fg; echo status=$?\n")
		term.expect("got SIGTERM")
		term.expect("status=9\n")
		// A command that does not catch the signal ends, with the shell's usual status.
		seconds := map[string]string{"root": "86401", "user": "86402"}[u.name] // nobody else's
		term.typed(pinned + "sleep " + seconds + "\n")
		w.awaitCommand("sleep\x00" + seconds + "\x00")
		term.typed(ctrlC)
		term.expect("ready> ")
		term.typed("echo status=$?\n")
		term.expect("status=130\n")
	})
}

// awaitCommand waits until a process has this command line.
func (w *network) awaitCommand(line string) (pid int) {
	w.t.Helper()
	poll(w.t, fmt.Sprintf("%q", line), func() bool {
		files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && string(b) == line {
				pid, _ = strconv.Atoi(strings.Split(f, "/")[2])
				return true
			}
		}
		return false
	})
	return pid
}

// Whenever Ctrl-C comes, it ends what is being started.
func TestRunCtrlCAtTheStart(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		ptmx, tty := w.pty(u)
		defer tty.Close()
		for i := range 40 {
			cmd := w.by(u, "--rule", "*:443=63999", "--", "sleep", "100")
			on(tty, cmd)
			p, err := w.Client.Start(cmd)
			if err != nil {
				w.t.Fatal(err)
			}
			time.Sleep(time.Duration(i) * 500 * time.Microsecond) // any moment is right
			if _, err := ptmx.WriteString(ctrlC); err != nil {
				w.t.Fatal(err)
			}
			select {
			case <-p.Done():
			case <-time.After(patience):
				w.t.Fatalf("not ended by Ctrl-C after %d * 0.5 ms", i)
			}
			// Killed by the signal before pinproxy could listen for it, or in the way the command would be.
			if got := exitStatus(p.Wait()); got != -1 && got != 130 {
				w.t.Errorf("after %d * 0.5 ms status %d, want 130", i, got)
			}
		}
	})
}

func TestRunCtrlZ(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		term := w.terminal(u)
		term.typed(pinned + "cat\n")
		term.typed("echoed\n")
		term.expect("echoed\nechoed\n")
		for range 3 {
			term.typed(ctrlZ)
			term.expect("Stopped")
			term.expect("ready> ")
			term.typed("fg\n")
			term.expect("cat\n") // what fg says
			term.typed("again\n")
			term.expect("again\nagain\n")
		}
		term.typed(ctrlD)
		term.expect("ready> ")
		// In the background it stops as soon as it reads.
		term.typed(pinned + "cat &\n")
		term.expect("ready> ")
		poll(w.t, "the shell to see its job stopped", func() bool {
			term.typed("jobs; echo end\n")
			return strings.Contains(term.expect("\nend\n"), "Stopped")
		})
		term.typed("kill -9 %1\n")
		term.typed("echo $((6*7))\n")
		term.expect("42\n")
	})
}

// A shell under pinproxy has job control of its own, and stops and continues as a job.
func TestRunInteractiveShell(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		term := w.terminal(u)
		term.typed(pinned + "bash --norc --noprofile --noediting -i\n")
		term.expect("-i\n")
		term.expect("ready> ")
		term.typed("PS1='in''ner> '\n") // the echo of this is not a prompt
		term.expect("inner> ")
		term.typed("cat\n")
		term.typed("one\n")
		term.expect("one\none\n")
		term.typed(ctrlZ)
		term.expect("Stopped")
		term.expect("inner> ")
		term.typed("fg\n")
		term.expect("cat\n")
		term.typed("two\n")
		term.expect("two\ntwo\n")
		term.typed(ctrlC)
		term.expect("inner> ")
		term.typed("sleep 100 & jobs\n")
		term.expect("Running")
		term.typed("kill %1; suspend\n")
		term.expect("Stopped")
		term.expect("ready> ")
		term.typed("fg\n")
		term.expect("inner> ")
		term.typed("exit 5\n")
		term.expect("ready> ")
		term.typed("echo status=$?\n")
		term.expect("status=5\n")
	})
}

// What nohup(1) does to a signal holds for the command.
func TestRunIgnoredSignals(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		script := "trap '' HUP INT; exec pinproxy --rule '*:443=63999' -- grep ^SigIgn /proc/self/status"
		got := w.result(u.is(w.by(u), "sh", "-c", script))
		if ignored := sigIgn(w.t, got.out) &^ sigIgnHere(w.t); ignored != 3 {
			w.t.Errorf("ignored are %q, want HUP and INT: %+v", got.out, got)
		}
	})
}

// sigIgnHere returns the signals that all programs here ignore because the starter of the tests did.
func sigIgnHere(t *testing.T) uint64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(status), "\nSigIgn:")
	line, _, _ = strings.Cut(line, "\n")
	return sigIgn(t, line)
}

// sigIgn reads a line of /proc/PID/status.
func sigIgn(t *testing.T, line string) uint64 {
	t.Helper()
	mask, err := strconv.ParseUint(strings.TrimSpace(strings.TrimPrefix(line, "SigIgn:")), 16, 64)
	if err != nil {
		t.Fatalf("signals %q: %v", line, err)
	}
	return mask
}
