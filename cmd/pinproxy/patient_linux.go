package main

import (
	"io"
	"log/slog"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// logPatience is how long a line of the log waits for somebody to read it.
const logPatience = time.Second

// patient writes the log to a file, as long as somebody reads it. If nobody does, as with a terminal after Ctrl-S or a
// pager behind a pipe, a write would last until somebody does again, and whoever has something to log would hang: flows,
// DNS, the end. So after a second without room lines are lost, and when there is room again it says how many. A write of
// a page fits where the kernel reports room; longer lines are not known.
//
// Its caller holds a lock.
type patient struct {
	f    *os.File
	raw  syscall.RawConn
	lost int
	log  *slog.Logger // straight to the file
}

// withPatience returns w in a form that does not hang. handler makes what is in its log's form.
func withPatience(w io.Writer, handler func(io.Writer) slog.Handler) io.Writer {
	f, ok := w.(*os.File)
	if !ok {
		return w
	}
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		return w // always has room
	}
	raw, err := f.SyscallConn() // unlike Fd, leaves the file's mode as it is
	if err != nil {
		return w
	}
	return &patient{f: f, raw: raw, log: slog.New(handler(f))}
}

func (p *patient) Write(line []byte) (int, error) {
	wait := logPatience
	if p.lost > 0 {
		wait = 0
	}
	if !p.room(wait) {
		p.lost++
		return len(line), nil
	}
	if p.lost > 0 {
		p.log.Warn("lines of this log are lost: nobody read it", "lost", p.lost)
		p.lost = 0
		if !p.room(logPatience) {
			p.lost = 1
			return len(line), nil
		}
	}
	return p.f.Write(line)
}

// room waits until a write would not block. An error is for the write to report.
func (p *patient) room(wait time.Duration) bool {
	room := true
	end := time.Now().Add(wait)
	err := p.raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		for {
			n, err := unix.Poll(fds, int(max(0, time.Until(end)).Milliseconds()))
			if err != unix.EINTR {
				room = n != 0
				return
			}
		}
	})
	return err != nil || room
}
