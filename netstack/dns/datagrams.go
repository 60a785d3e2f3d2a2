package dns

import (
	"net"
	"sync"
	"syscall"
)

const maxMessage = 65535 // largest DNS message, over UDP or TCP

// buffers holds *[maxMessage]byte. A flow takes a buffer only while it handles a datagram. Thousands of waiting
// flows hold none.
var buffers = sync.Pool{New: func() any { return new([maxMessage]byte) }}

// datagrams reads a connected UDP socket.
type datagrams struct {
	conn net.Conn
	raw  syscall.RawConn // nil: conn can't be read without blocking
}

func newDatagrams(conn net.Conn) *datagrams {
	d := &datagrams{conn: conn}
	if c, ok := conn.(syscall.Conn); ok && canReadRaw {
		if raw, err := c.SyscallConn(); err == nil {
			d.raw = raw
		}
	}
	return d
}

// next waits for a datagram and calls f with it. f must not retain it.
func (d *datagrams) next(f func([]byte)) error {
	if d.raw != nil {
		return d.nextRaw(f)
	}
	buf := buffers.Get().(*[maxMessage]byte)
	defer buffers.Put(buf)
	n, err := d.conn.Read(buf[:])
	if err != nil {
		return err
	}
	f(buf[:n])
	return nil
}

// nextRaw is next for a socket that reports when it is readable.
func (d *datagrams) nextRaw(f func([]byte)) error {
	var (
		buf     *[maxMessage]byte
		n       int
		readErr error
	)
	err := d.raw.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[maxMessage]byte)
		n, readErr = readRaw(fd, buf[:])
		if readErr == syscall.EAGAIN {
			buffers.Put(buf)
			buf = nil
			return false
		}
		return true
	})
	if buf != nil {
		defer buffers.Put(buf)
	}
	if err != nil {
		return err
	}
	if readErr != nil {
		return &net.OpError{Op: "read", Net: "udp", Source: d.conn.LocalAddr(), Addr: d.conn.RemoteAddr(), Err: readErr}
	}
	f(buf[:n])
	return nil
}
