package proxy

import (
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
)

// server is an upstream that accepts connections.
type server struct {
	addr  netip.AddrPort
	conns chan *net.TCPConn
}

// listen starts a server on a free port, or on the port in the address.
func listen(t testing.TB, address string) *server {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: addrPort(l.Addr()), conns: make(chan *net.TCPConn, 1000)}
	done := make(chan struct{})
	var all []net.Conn
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all = append(all, c)
			s.conns <- c.(*net.TCPConn)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
		for _, c := range all {
			_ = c.Close()
		}
	})
	return s
}

func (s *server) next(t testing.TB) *net.TCPConn {
	t.Helper()
	return receive(t, s.conns, "a connection at the server")
}

// nextFrom is next, but the connection must come from port.
func (s *server) nextFrom(t testing.TB, port uint16) *net.TCPConn {
	t.Helper()
	c := s.next(t)
	if got := addrPort(c.RemoteAddr()).Port(); got != port {
		t.Fatalf("the server sees source port %d, want %d", got, port)
	}
	return c
}

// lastPort is the source port that freePort tried last. They are above ip_local_port_range, so that no other
// connection of the tests uses them.
var lastPort = func() *atomic.Uint32 {
	p := new(atomic.Uint32)
	p.Store(uint32(os.Getpid() * 64))
	return p
}()

// freePorts returns the first of n source ports in a row that nobody uses.
func freePorts(t testing.TB, n int) uint16 {
	t.Helper()
	const first, many = 61000, 4500
	free := 0
	for range many {
		port := first + int(lastPort.Add(1)%many)
		if port == first {
			free = 0
		}
		if free++; !isFree(port) {
			free = 0
		}
		if free == n {
			return uint16(port - n + 1)
		}
	}
	t.Fatalf("no %d free source ports in a row", n)
	return 0
}

func freePort(t testing.TB) uint16 { return freePorts(t, 1) }

func isFree(port int) bool {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{Port: port})
	if err != nil {
		return false
	}
	_ = l.Close()
	return true
}
