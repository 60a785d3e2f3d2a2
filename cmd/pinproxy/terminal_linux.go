package main

import (
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// terminalSize returns how many characters fit on the terminal w, or 0 if w is not a terminal.
func terminalSize(w io.Writer) (width, height int) {
	f, ok := w.(*os.File)
	if !ok {
		return 0, 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	if size.Col == 0 || size.Row == 0 { // a serial line, or a pty whose size nobody has set
		return 80, 24
	}
	return int(size.Col), int(size.Row)
}

// tty reports what happens to the terminal, and keeps it from showing typed characters.
type tty struct {
	resized, stopped chan os.Signal

	was *unix.Termios // nil: standard input is not a terminal
}

func openTTY() *tty {
	t := &tty{resized: make(chan os.Signal, 1), stopped: make(chan os.Signal, 1)}
	signal.Notify(t.resized, unix.SIGWINCH)
	signal.Notify(t.stopped, unix.SIGTSTP)
	t.quiet()
	return t
}

func (t *tty) quiet() {
	was, err := unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS)
	if err != nil {
		return
	}
	silent := *was
	silent.Lflag &^= unix.ECHO
	if unix.IoctlSetTermios(int(os.Stdin.Fd()), unix.TCSETS, &silent) == nil {
		t.was = was
	}
}

func (t *tty) restore() {
	if t.was != nil {
		_ = unix.IoctlSetTermios(int(os.Stdin.Fd()), unix.TCSETS, t.was)
		t.was = nil
	}
}

// stop stops the process, as Ctrl-Z does, and returns when it continues.
func (t *tty) stop() {
	t.restore()
	cont := make(chan os.Signal, 1)
	signal.Notify(cont, unix.SIGCONT)
	defer signal.Stop(cont)
	_ = unix.Kill(unix.Getpid(), unix.SIGSTOP) // may return before another thread has taken the signal
	<-cont
	t.quiet()
}

func (t *tty) close() {
	signal.Stop(t.resized)
	signal.Stop(t.stopped)
	t.restore()
}
