package link

import (
	"encoding/binary"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Yielder lets every goroutine run that can run or that the network has news for. runtime.Gosched does not: its
// caller can still run, and as long as any goroutine can, Go does not ask the network for news (findRunnable), except
// every 10 ms (sysmon). So Yield itself waits for the network: for an eventfd that it writes to. It costs two
// microseconds.
//
// Yield may be called from any goroutine. Goroutines that are in it at the same time come out one after another.
type Yielder struct {
	file *os.File
	raw  syscall.RawConn
}

// NewYielder opens a descriptor, which Close closes.
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

// one is the value added to the eventfd's counter. Nobody reads the counter: the poller learns of each write because
// its watch is edge-triggered, and 64 bits are enough.
var one = binary.NativeEndian.AppendUint64(nil, 1)

// Yield returns once the others have run, or at once after Close.
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

// Close closes the descriptor.
func (y *Yielder) Close() error { return y.file.Close() }
