//go:build unix

package proxy

import (
	"io"
	"net"
	"os"
	"syscall"
)

// upstream is a kernel socket that is read without holding a buffer while
// nothing comes.
type upstream struct {
	*net.TCPConn
	raw syscall.RawConn
}

func newUpstream(c *net.TCPConn) (Conn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return &upstream{TCPConn: c, raw: raw}, nil
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
