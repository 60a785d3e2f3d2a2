package proxy

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"
)

// memConn is one end of a connection in memory, for tests in a synctest bubble.
type memConn struct {
	r, w          net.Conn
	local, remote netip.AddrPort
	byReset       atomic.Bool
	reset, told   *atomic.Bool // by the peer; to the peer
}

func memPair(a, b netip.AddrPort) (*memConn, *memConn) {
	ar, bw := net.Pipe()
	br, aw := net.Pipe()
	var toA, toB atomic.Bool
	return &memConn{r: ar, w: aw, local: a, remote: b, reset: &toA, told: &toB},
		&memConn{r: br, w: bw, local: b, remote: a, reset: &toB, told: &toA}
}

func (c *memConn) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	switch {
	case err == io.EOF && c.reset.Load():
		err = syscall.ECONNRESET
	case err == io.ErrClosedPipe:
		err = net.ErrClosed
	}
	return n, err
}

func (c *memConn) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	if err == io.ErrClosedPipe {
		err = syscall.ECONNRESET
	}
	return n, err
}

func (c *memConn) CloseWrite() error { return c.w.Close() }

func (c *memConn) SetLinger(sec int) error {
	c.byReset.Store(sec == 0)
	return nil
}

func (c *memConn) Close() error {
	if c.byReset.Load() {
		c.told.Store(true)
	}
	_ = c.w.Close()
	return c.r.Close()
}

func (c *memConn) LocalAddr() net.Addr                { return net.TCPAddrFromAddrPort(c.local) }
func (c *memConn) RemoteAddr() net.Addr               { return net.TCPAddrFromAddrPort(c.remote) }
func (c *memConn) SetReadDeadline(t time.Time) error  { return c.r.SetReadDeadline(t) }
func (c *memConn) SetWriteDeadline(t time.Time) error { return c.w.SetWriteDeadline(t) }
func (c *memConn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// memory is a Flow's accept function with both ends in memory.
func memory() (app, ours Conn, err error) {
	a, b := memPair(netip.AddrPort{}, netip.AddrPort{})
	return a, b, nil
}

// memDialer connects to servers in memory, which come out of its channel.
type memDialer chan *memConn

func (d memDialer) Dial(_ context.Context, pin, dst netip.AddrPort) (Conn, error) {
	ours, upstream := memPair(pin, dst)
	d <- upstream
	return ours, nil
}
