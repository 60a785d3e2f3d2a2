package terminal

import (
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// Dimensions returns how many characters fit on the terminal w, or 0 if w is not a terminal.
func Dimensions(w io.Writer) (width, height int) {
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

// TTY reports what happens to the terminal, and keeps it from showing typed characters.
type TTY struct {
	Resized, Stopped chan os.Signal

	was *unix.Termios // nil: standard input is not a terminal
}

// OpenTTY begins to report. The caller closes it.
func OpenTTY() *TTY {
	t := &TTY{Resized: make(chan os.Signal, 1), Stopped: make(chan os.Signal, 1)}
	signal.Notify(t.Resized, unix.SIGWINCH)
	signal.Notify(t.Stopped, unix.SIGTSTP)
	t.quiet()
	return t
}

func (t *TTY) quiet() {
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

func (t *TTY) restore() {
	if t.was != nil {
		_ = unix.IoctlSetTermios(int(os.Stdin.Fd()), unix.TCSETS, t.was)
		t.was = nil
	}
}

// Stop stops the process, as Ctrl-Z does, and returns when it continues.
func (t *TTY) Stop() {
	t.restore()
	cont := make(chan os.Signal, 1)
	signal.Notify(cont, unix.SIGCONT)
	defer signal.Stop(cont)
	_ = unix.Kill(unix.Getpid(), unix.SIGSTOP) // may return before another thread has taken the signal
	<-cont
	t.quiet()
}

// Close ends the reports, and shows typed characters again.
func (t *TTY) Close() {
	signal.Stop(t.Resized)
	signal.Stop(t.Stopped)
	t.restore()
}
