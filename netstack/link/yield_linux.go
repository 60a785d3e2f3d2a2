package link

import (
	"encoding/binary"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Yielder lets on all who can run and all whom the network has news for. runtime.Gosched does not: who has called it can
// run, and as long as anybody can, Go does not ask the network for news (findRunnable), except every 10 ms (sysmon). So Yield
// waits for the network itself: for an eventfd that it writes to. It costs two microseconds.
//
// Yield may be called from any goroutine; those who are in it at the same time come out one after another.
type Yielder struct {
	file *os.File
	raw  syscall.RawConn
}

// NewYielder takes a descriptor, which Close gives back.
func NewYielder() (*Yielder, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	file := os.NewFile(uintptr(fd), "eventfd")
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &Yielder{file, raw}, nil
}

// one is what is added to the eventfd's counter. Nobody reads it: the poller is told of each write, for its watch is
// edge-triggered, and 64 bits last.
var one = binary.NativeEndian.AppendUint64(nil, 1)

// Yield returns when others have been let on, or at once after Close.
func (y *Yielder) Yield() {
	written := false
	_ = y.raw.Read(func(fd uintptr) bool {
		if written {
			return true
		}
		written = true
		_, err := unix.Write(int(fd), one)
		return err != nil
	})
}

// Close ends it.
func (y *Yielder) Close() error { return y.file.Close() }
