package lab

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
)

// Server is a TCP server on a host, running in this process. Its methods are safe for concurrent use.
type Server struct {
	listener net.Listener
	serve    func(net.Conn)
	wait     sync.WaitGroup

	mu     sync.Mutex
	open   map[net.Conn]bool
	seen   []netip.AddrPort
	closed bool
}

// Serve listens on a TCP address ("203.0.113.2:7", ":7" for both families). It calls serve for every connection,
// each on its own goroutine. A connection is closed when serve returns, or with the network. [Echo], [Sink] and
// [Source] can be passed as serve.
func (h *Host) Serve(addr string, serve func(net.Conn)) *Server {
	h.net.helper()
	l, err := h.Listen("tcp", addr)
	h.check("listen on "+addr, err)
	s := &Server{listener: l, serve: serve, open: make(map[net.Conn]bool)}
	s.wait.Go(s.accept)
	h.net.atClose(func() error { s.Close(); return nil })
	return s
}

func (s *Server) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.closed {
			c.Close()
		} else {
			s.open[c] = true
			s.seen = append(s.seen, remote(c))
			s.wait.Go(func() { s.handle(c) })
		}
		s.mu.Unlock()
	}
}

func (s *Server) handle(c net.Conn) {
	s.serve(c)
	c.Close()
	s.mu.Lock()
	delete(s.open, c)
	s.mu.Unlock()
}

// Close ends the server and its connections, and waits for their goroutines.
func (s *Server) Close() {
	s.listener.Close()
	s.mu.Lock()
	s.closed = true
	for c := range s.open {
		c.Close()
	}
	s.mu.Unlock()
	s.wait.Wait()
}

// Addr returns the address the server listens on.
func (s *Server) Addr() netip.AddrPort {
	return s.listener.Addr().(*net.TCPAddr).AddrPort()
}

// Seen returns the remote addresses of all connections so far, in the order they were accepted.
func (s *Server) Seen() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

// remote returns where c comes from. IPv4 addresses are plain IPv4 even on a socket for both families.
func remote(c net.Conn) netip.AddrPort {
	a := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Echo sends back what it receives until the end of input, which it answers by ending its own output.
func Echo(c net.Conn) { io.Copy(c, c) }

// Sink reads until the end of input.
func Sink(c net.Conn) { io.Copy(io.Discard, c) }

// Source returns a server function that sends n zero bytes and ends.
func Source(n int64) func(net.Conn) {
	return func(c net.Conn) { io.CopyN(c, zeroes{}, n) }
}

type zeroes struct{}

func (zeroes) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
