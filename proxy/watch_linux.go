package proxy

import (
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// watch reports when sockets can be read, without a goroutine for each that Go's poller would wake. It has an epoll
// instance of its own and one goroutine. They exist while anything is watched.
type watch struct {
	mu    sync.Mutex
	poll  *os.File
	names uint64           // the last one given
	who   map[uint64]waker // by name
}

// What is watched for: bytes or the end of the stream, or only what is always reported, which is an error, a reset, or
// that both streams have ended. Each socket is reported once.
const (
	readable = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT
	hungUp   = unix.EPOLLONESHOT
)

// add makes the socket wake who when what is watched for happens, at once if it has happened. It reports false if the
// kernel has no room for it.
func (w *watch) add(raw syscall.RawConn, what uint32, who waker) (name uint64, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.poll == nil && !w.openLocked() {
		return 0, false
	}
	w.names++
	name = w.names
	// The descriptor's number would not do as a name. When the socket is closed, which ends the watch in the kernel,
	// the next socket gets the same number.
	event := unix.EpollEvent{Events: what, Fd: int32(uint32(name)), Pad: int32(uint32(name >> 32))}
	if w.control(unix.EPOLL_CTL_ADD, raw, &event) != nil {
		w.closeIfUnused()
		return 0, false
	}
	w.who[name] = who
	return name, true
}

// remove undoes add. The socket may have been closed meanwhile.
func (w *watch) remove(raw syscall.RawConn, name uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.who[name]; !ok {
		return
	}
	_ = w.control(unix.EPOLL_CTL_DEL, raw, nil)
	delete(w.who, name)
	w.closeIfUnused()
}

// control is epoll_ctl for a socket that is not closed. w.mu is held.
func (w *watch) control(op int, raw syscall.RawConn, event *unix.EpollEvent) error {
	poll, err := w.poll.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := poll.Control(func(epfd uintptr) {
		if cerr := raw.Control(func(fd uintptr) { err = unix.EpollCtl(int(epfd), op, int(fd), event) }); cerr != nil {
			err = cerr
		}
	}); cerr != nil {
		err = cerr
	}
	return err
}

func (w *watch) openLocked() bool {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return false
	}
	if err := unix.SetNonblock(fd, true); err != nil { // tells os that Go's poller can wait for it
		_ = unix.Close(fd)
		return false
	}
	poll := os.NewFile(uintptr(fd), "epoll")
	if poll.SetReadDeadline(time.Time{}) != nil { // but it can't
		_ = poll.Close()
		return false
	}
	w.poll, w.who = poll, make(map[uint64]waker)
	go w.tell(poll)
	return true
}

func (w *watch) closeIfUnused() {
	if len(w.who) == 0 {
		_ = w.poll.Close() // ends tell
		w.poll, w.who = nil, nil
	}
}

// tell wakes the wakers of sockets that can be read, until poll is closed.
func (w *watch) tell(poll *os.File) {
	raw, err := poll.SyscallConn()
	if err != nil {
		return // closed already
	}
	var events [128]unix.EpollEvent
	for {
		n := 0
		if err := raw.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events[:], 0)
			return n > 0
		}); err != nil {
			return
		}
		w.mu.Lock()
		for _, e := range events[:n] {
			if who := w.who[uint64(uint32(e.Fd))|uint64(uint32(e.Pad))<<32]; who != nil {
				who.Wake()
			}
		}
		w.mu.Unlock()
	}
}
