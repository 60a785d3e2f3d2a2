//go:build unix

package proxy

import (
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
)

// upstream is a kernel socket that is read without holding a buffer while
// nothing comes.
type upstream struct {
	*net.TCPConn
	raw      syscall.RawConn
	finished atomic.Bool // we have ended our direction
}

func newUpstream(c *net.TCPConn) (Conn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return &upstream{TCPConn: c, raw: raw}, nil
}

// CloseWrite ends our direction.
func (u *upstream) CloseWrite() error {
	u.finished.Store(true)
	return u.TCPConn.CloseWrite()
}

// readChunk takes a buffer for each attempt and gives it back while it waits.
func (u *upstream) readChunk() (*[chunkSize]byte, int, error) {
	var (
		buf *[chunkSize]byte
		n   int
		err error
	)
	werr := u.raw.Read(func(fd uintptr) bool {
		buf = chunks.Get().(*[chunkSize]byte)
		for {
			n, err = syscall.Read(int(fd), buf[:])
			if err != syscall.EINTR {
				break
			}
		}
		if err == syscall.EAGAIN {
			chunks.Put(buf)
			buf = nil
			return false
		}
		// The kernel tells of a reset once. If it has told a writer, a reader is
		// shown the end of the stream; but only FINs both ways end it like that.
		if n == 0 && err == nil && !u.finished.Load() && gone(fd) {
			err = syscall.ECONNRESET
		}
		return true
	})
	switch {
	case werr != nil: // closed, or past the deadline
		return buf, 0, werr
	case err != nil:
		return buf, 0, &net.OpError{Op: "read", Net: "tcp", Source: u.LocalAddr(), Addr: u.RemoteAddr(), Err: os.NewSyscallError("read", err)}
	case n == 0:
		return buf, 0, io.EOF
	}
	return buf, n, nil
}
