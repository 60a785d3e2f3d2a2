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

// life serves the command from its start to its end: it passes signals on, stops and continues with it, and
// has its status.
//
//	waiter ── wait4: stopped, ended ──▶ attend ── kill ──▶ command
//	os/signal ─────────────────────────▶  │
//	                                      └─ ended, hurry
type life struct {
	pid     int
	hadTTY  bool
	runs    atomic.Bool // the process is the command by now
	arrived chan os.Signal

	ended  chan struct{} // closed when the command has ended
	status unix.WaitStatus

	hurry context.Context
	rush  context.CancelFunc

	quit chan struct{} // closed by close
	wg   sync.WaitGroup
}

// newLife begins to hold back the signals.
func newLife() *life {
	l := &life{ended: make(chan struct{}), quit: make(chan struct{}), arrived: make(chan os.Signal, 64)}
	l.hurry, l.rush = context.WithCancel(context.Background())
	for _, s := range passedOn() {
		if !signal.Ignored(s) { // as nohup(1) has it; the command inherits it
			signal.Notify(l.arrived, s)
		}
	}
	// Go ends a program whose standard error is a broken pipe, which would take the network away from the
	// command (`pinproxy … -- CMD 2>&1 | head`), unless it has a handler.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	return l
}

// passedOn are the signals that are received for the command. Left out are those that a program raises by
// its own doing, those that stop, and real-time signals: to listen to all of them slows the start.
func passedOn() []syscall.Signal {
	return []syscall.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGWINCH, unix.SIGCONT,
	}
}

// watch begins to serve the process, which has been started: it must not inherit what we ignore.
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

// close ends the goroutines. The process has ended, or is about to, or was never there.
func (l *life) close() {
	close(l.quit)
	l.wg.Wait()
	l.rush()
}

// waiter tells how the process fares, until it has ended. It does not wait again before what it told was seen.
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

// wait waits for the process to stop or end; with WNOHANG there may be no news.
func (l *life) wait(options int) (s unix.WaitStatus, news bool) {
	for {
		pid, err := unix.Wait4(l.pid, &s, unix.WUNTRACED|options, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 1 << 8, true // it can't be waited for: as if it had exited with status 1
		default:
			return s, pid == l.pid
		}
	}
}

// attend brings both together.
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

// ends says whether a signal is meant to end programs.
func ends(s unix.Signal) bool {
	return s == unix.SIGINT || s == unix.SIGTERM || s == unix.SIGHUP || s == unix.SIGQUIT
}

// pass sends a signal on to the command, unless the command has it already.
func (l *life) pass(s unix.Signal) {
	switch {
	case !l.runs.Load():
		// It may have come before there was a process; and what is no command yet only ends by it.
		_ = unix.Kill(l.pid, s)
	case s == unix.SIGCONT && (l.hadTTY || !isStopped(l.pid)):
		// With a terminal this is what stopAlong has seen, and may come when the command has stopped again.
	case l.fromTerminal(s):
	default:
		_ = unix.Kill(l.pid, s) // it may have ended
	}
}

// fromTerminal tells whether a signal is taken to come from the terminal, which sends it to its whole
// foreground group: who sent a signal, Go does not say.
func (l *life) fromTerminal(s unix.Signal) bool {
	if !l.hadTTY || group(l.pid) != unix.Getpgrp() {
		return false
	}
	tty, err := openTTY()
	if err != nil {
		return s == unix.SIGHUP // the terminal is gone, which is what this signal says
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

// isStopped reads the state of a process: the field behind its name, which is in parentheses (proc(5)).
func isStopped(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	return strings.HasPrefix(rest, "T")
}

// stopAlong stops this process as the command has stopped, for the shell to see, and returns when both go
// on, with what has become of the command meanwhile. Without a terminal there is no job control: who
// stops the command then continues it as well, and must not have to know of us.
func (l *life) stopAlong(s unix.Signal) (next unix.WaitStatus, news bool) {
	tty, err := openTTY()
	if err != nil {
		return 0, false
	}
	defer unix.Close(tty)
	before, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	theirs := group(l.pid)
	stopSelf(s)
	// Continued. A command with process groups of its own, a shell, had the terminal; whoever continues us
	// has given it to our group.
	if now, nerr := unix.IoctlGetInt(tty, unix.TIOCGPGRP); err == nil && nerr == nil &&
		before == theirs && theirs > 0 && now == unix.Getpgrp() && now != theirs {
		_ = unix.IoctlSetPointerInt(tty, unix.TIOCSPGRP, theirs) // SIGTTOU is ignored
	}
	// The shell continues our group. It may have done so long before we run again, and the command be
	// stopped anew: that is news, and no reason to continue it.
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

// stopSelf stops this process by s, and returns when it is continued. The signal goes to this thread, which
// acts on it before it returns from the call; another one might be late, and find the signal ignored again.
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

// dispose sets what becomes of a signal, if that can be. os/signal knows no way to have the default of one
// that stops programs, or of one that ends them without a handler.
func dispose(s unix.Signal, to uintptr) {
	action := [8]uintptr{to} // struct sigaction of the kernel begins with the handler; no flags, no mask
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
}

// Wait returns the command's exit status when it has ended, as a shell would: 128 and the signal's number for
// a signal.
func (c *Child) Wait() int {
	<-c.life.ended
	if c.life.status.Signaled() {
		return 128 + int(c.life.status.Signal())
	}
	return c.life.status.ExitStatus()
}

// Drain returns when nothing is left in the device that the command has sent and that has not been read,
// when ctx ends, or after a second.
func (c *Child) Drain(ctx context.Context) {
	fds := []unix.PollFd{{Fd: int32(c.device.FD), Events: unix.POLLIN}}
	for end := time.Now().Add(time.Second); ctx.Err() == nil && time.Now().Before(end); time.Sleep(50 * time.Microsecond) {
		if n, err := unix.Poll(fds, 0); n == 0 && !errors.Is(err, unix.EINTR) {
			return // no event tells of a queue that is empty
		}
	}
}

// Hurry ends when the command has ended and then a signal comes that is meant to end programs.
func (c *Child) Hurry() context.Context { return c.life.hurry }
