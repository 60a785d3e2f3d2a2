package netns

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// life manages the command from its start to its end: it passes signals on, stops and continues together with the
// command, and keeps its status.
//
//	waiter ── wait4: stopped, ended ──▶ attend ── kill ──▶ command
//	os/signal ─────────────────────────▶  │
//	                                      └─ ended, hurry
type life struct {
	pid     int
	hadTTY  bool
	runs    atomic.Bool // the process has become the command
	arrived chan os.Signal

	ended  chan struct{} // closed when the command has ended
	status unix.WaitStatus

	hurry context.Context
	rush  context.CancelFunc

	quit chan struct{} // closed by close
	wg   sync.WaitGroup
}

// newLife starts to intercept the signals.
func newLife() *life {
	l := &life{ended: make(chan struct{}), quit: make(chan struct{}), arrived: make(chan os.Signal, 64)}
	l.hurry, l.rush = context.WithCancel(context.Background())
	for _, s := range passedOn() {
		if !signal.Ignored(s) { // as set by nohup(1); the command inherits it
			signal.Notify(l.arrived, s)
		}
	}
	// Without a handler, Go ends a program whose standard error is a broken pipe. The command would then lose its
	// network (`pinproxy … -- CMD 2>&1 | head`).
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	return l
}

// passedOn returns the signals that are received for the command. Three kinds are left out: those that a program
// causes itself, those that stop it, and real-time signals. Listening to all of them would slow down the start.
func passedOn() []syscall.Signal {
	return []syscall.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGWINCH, unix.SIGCONT,
	}
}

// watch starts to serve the process, which must already have been started: it must not inherit the signals that are
// ignored here.
func (l *life) watch(pid int) {
	l.pid = pid
	for _, s := range []unix.Signal{unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU} {
		dispose(s, sigIgn)
	}
	if tty, err := openTTY(); err == nil {
		l.hadTTY = true
		_ = unix.Close(tty)
	}
	states, seen := make(chan unix.WaitStatus), make(chan struct{})
	l.wg.Go(func() { l.waiter(states, seen) })
	l.wg.Go(func() { l.attend(states, seen) })
}

// close ends the goroutines. The process has ended, is about to end, or never existed.
func (l *life) close() {
	close(l.quit)
	l.wg.Wait()
	l.rush()
}

// waiter reports state changes of the process until it has ended. It waits for the next one only after the last was
// seen.
func (l *life) waiter(states chan<- unix.WaitStatus, seen <-chan struct{}) {
	for {
		s, _ := l.wait(0)
		select {
		case states <- s:
		case <-l.quit:
			return
		}
		if !s.Stopped() {
			return
		}
		select {
		case <-seen:
		case <-l.quit:
			return
		}
	}
}

// wait waits for the process to stop or end. With WNOHANG there may be no news.
func (l *life) wait(options int) (s unix.WaitStatus, news bool) {
	for {
		pid, err := unix.Wait4(l.pid, &s, unix.WUNTRACED|options, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 1 << 8, true // it can't be waited for: treat it as exited with status 1
		default:
			return s, pid == l.pid
		}
	}
}

// attend handles both state changes and signals.
func (l *life) attend(states <-chan unix.WaitStatus, seen chan<- struct{}) {
	running := true
	for {
		select {
		case s := <-states:
			news := true
			for news && s.Stopped() {
				s, news = l.stopAlong(s.StopSignal())
			}
			if news {
				l.status, running = s, false
				close(l.ended)
				continue
			}
			seen <- struct{}{}
		case s := <-l.arrived:
			if running {
				l.pass(s.(syscall.Signal))
			} else if ends(s.(syscall.Signal)) {
				l.rush()
			}
		case <-l.quit:
			return
		}
	}
}

// ends reports whether a signal is meant to end programs.
func ends(s unix.Signal) bool {
	return s == unix.SIGINT || s == unix.SIGTERM || s == unix.SIGHUP || s == unix.SIGQUIT
}

// pass sends a signal on to the command, unless the command has it already.
func (l *life) pass(s unix.Signal) {
	switch {
	case !l.runs.Load():
		// The signal may have come before there was a process. A process that is not the command yet just ends.
		_ = unix.Kill(l.pid, s)
	case s == unix.SIGCONT && (l.hadTTY || !isStopped(l.pid)):
		// With a terminal, this is the signal that stopAlong has seen, and it may arrive when the command has
		// stopped again.
	case l.fromTerminal(s):
	default:
		_ = unix.Kill(l.pid, s) // it may have ended
	}
}

// fromTerminal reports whether a signal is assumed to come from the terminal, which sends it to its whole foreground
// group. Go does not report who sent a signal.
func (l *life) fromTerminal(s unix.Signal) bool {
	if !l.hadTTY || group(l.pid) != unix.Getpgrp() {
		return false
	}
	tty, err := openTTY()
	if err != nil {
		return s == unix.SIGHUP // the terminal is gone, which is what this signal means
	}
	defer unix.Close(tty)
	foreground, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	return err == nil && foreground == unix.Getpgrp() && (s == unix.SIGINT || s == unix.SIGQUIT || s == unix.SIGWINCH)
}

func openTTY() (int, error) {
	return unix.Open("/dev/tty", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
}

func group(pid int) int {
	g, err := unix.Getpgid(pid)
	if err != nil {
		return -1
	}
	return g
}

// isStopped reads the state of a process: the field after its name, which is in parentheses (proc(5)).
func isStopped(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	return strings.HasPrefix(rest, "T")
}

// stopAlong stops this process the way the command has stopped, so that the shell sees it. It returns when both
// continue, with what has happened to the command meanwhile. Without a terminal there is no job control: the process
// that stopped the command also continues it, and need not know about pinproxy.
func (l *life) stopAlong(s unix.Signal) (next unix.WaitStatus, news bool) {
	tty, err := openTTY()
	if err != nil {
		return 0, false
	}
	defer unix.Close(tty)
	before, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	theirs := group(l.pid)
	stopSelf(s)
	// Continued. A command with process groups of its own, such as a shell, had the terminal. Whoever continued us
	// has given the terminal to our group.
	if now, nerr := unix.IoctlGetInt(tty, unix.TIOCGPGRP); err == nil && nerr == nil &&
		before == theirs && theirs > 0 && now == unix.Getpgrp() && now != theirs {
		_ = unix.IoctlSetPointerInt(tty, unix.TIOCSPGRP, theirs) // SIGTTOU is ignored
	}
	// The shell continues our group. It may have done so long before this code runs again, and the command may have
	// stopped again since. That is news, and no reason to continue the command.
	stopped := isStopped(l.pid)
	if next, news = l.wait(unix.WNOHANG); news || !stopped {
		return next, news
	}
	if theirs != unix.Getpgrp() && theirs > 0 {
		_ = unix.Kill(-theirs, unix.SIGCONT)
	} else {
		_ = unix.Kill(l.pid, unix.SIGCONT)
	}
	return 0, false
}

// stopSelf stops this process by s and returns when it is continued. The signal goes to this thread, which acts on
// it before the call returns. Another thread might be late and find the signal ignored again.
func stopSelf(s unix.Signal) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	dispose(s, sigDfl)
	_ = unix.Tgkill(unix.Getpid(), unix.Gettid(), s)
	dispose(s, sigIgn)
}

// Dispositions of a signal.
const (
	sigDfl = 0
	sigIgn = 1
)

// dispose sets the disposition of a signal, if possible. os/signal cannot restore the default of a signal that stops
// programs, or of one that ends them without a handler.
func dispose(s unix.Signal, to uintptr) {
	action := [8]uintptr{to} // the kernel's struct sigaction begins with the handler; no flags, no mask
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
}

// Wait returns the command's exit status when it has ended, as a shell would: for a signal, 128 plus the signal's
// number.
func (c *Child) Wait() int {
	<-c.life.ended
	if c.life.status.Signaled() {
		return 128 + int(c.life.status.Signal())
	}
	return c.life.status.ExitStatus()
}

// Drain returns when everything the command has sent into the device has been read, when ctx ends, or after a
// second.
func (c *Child) Drain(ctx context.Context) {
	fds := []unix.PollFd{{Fd: int32(c.device.FD), Events: unix.POLLIN}}
	for end := time.Now().Add(time.Second); ctx.Err() == nil && time.Now().Before(end); time.Sleep(50 * time.Microsecond) {
		if n, err := unix.Poll(fds, 0); n == 0 && !errors.Is(err, unix.EINTR) {
			return // no event reports that a queue is empty
		}
	}
}

// Hurry returns a context that ends when a signal meant to end programs arrives after the command has ended.
func (c *Child) Hurry() context.Context { return c.life.hurry }
