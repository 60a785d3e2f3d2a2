package proxy

import (
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"pinproxy/netstack/lab"
	"pinproxy/proxy/sockdiag"
)

// ending is a connection from pin 63999 that ended while Endings looked on.
type ending struct {
	t       *testing.T
	top     *lab.Topology
	endings *Endings
	dst     netip.AddrPort
	hold    chan struct{} // closed to let the server close
	conn    Conn
}

// eachEnding makes a connection over IPv4 and one over IPv6, to a port that only root may bind. Timestamps are off, so
// that a TIME_WAIT would be in the way.
func eachEnding(t *testing.T, test func(e *ending)) {
	for _, family := range []struct{ name, from, to string }{{"IPv4", "0.0.0.0", lab.Server4}, {"IPv6", "::", lab.Server6}} {
		t.Run(family.name, func(t *testing.T) {
			e := &ending{t: t, top: lab.ForTest(t).Topology(), endings: new(Endings), hold: make(chan struct{})}
			e.dst = netip.AddrPortFrom(netip.MustParseAddr(family.to), 443)
			e.top.Client.Sysctl("net.ipv4.tcp_timestamps", "0")
			e.top.Client.Sysctl("net.ipv4.tcp_rfc1337", "0")
			e.top.Server.Serve(e.dst.String(), func(net.Conn) { <-e.hold })
			e.do(func() (err error) {
				dialer := Sockets{Mark: 1, Endings: e.endings}
				e.conn, err = dialer.Dial(t.Context(), netip.AddrPortFrom(netip.MustParseAddr(family.from), 63999), e.dst)
				return err
			})
			test(e)
		})
	}
}

func (e *ending) do(f func() error) {
	e.t.Helper()
	if err := e.top.Client.Do(f); err != nil {
		e.t.Fatal(err)
	}
}

// readToTheEnd lets the server close, and waits for its FIN.
func (e *ending) readToTheEnd() {
	e.t.Helper()
	close(e.hold)
	_ = e.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.Copy(io.Discard, e.conn); err != nil {
		e.t.Fatal(err)
	}
}

// socket returns what the kernel has of the connection.
func (e *ending) socket() (s sockdiag.Socket, found bool) {
	e.t.Helper()
	e.do(func() (err error) {
		s, found, err = sockdiag.Find(addrPort(e.conn.LocalAddr()), e.dst)
		return err
	})
	return s, found
}

// timeWait waits for the TIME_WAIT of the connection.
func (e *ending) timeWait() (s sockdiag.Socket) {
	e.t.Helper()
	eventually(e.t, "a TIME_WAIT", func() (found bool) {
		s, found = e.socket()
		return found && s.State == sockdiag.TimeWait
	})
	return s
}

// reached returns how many TCP segments have reached the server's host.
func (e *ending) reached() (n int) {
	e.t.Helper()
	if err := e.top.Server.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		_, counters, _ := strings.Cut(string(b), "\nTcp: RtoAlgorithm ")
		_, counters, _ = strings.Cut(counters, "\nTcp: ")
		const inSegs = 9 // as the line before names them
		n, err = strconv.Atoi(strings.Fields(counters)[inSegs])
		return err
	}); err != nil {
		e.t.Fatal(err)
	}
	return n
}

// end has Endings end the TIME_WAIT, and compares what comes of it.
func (e *ending) end(want bool) {
	e.t.Helper()
	s := e.timeWait()
	before := e.reached()
	var ended bool
	e.do(func() error { ended = e.endings.end(s, 1); return nil })
	left, found := e.socket()
	if ended != want || found == want {
		e.t.Errorf("ended: %v, want %v; left: %v %v", ended, want, found, left)
	}
	if after := e.reached(); after != before {
		e.t.Errorf("%d segments reached the server", after-before)
	}
}

// We closed first. That another program has the server's port number on this host does not matter.
func TestTimeWaitIsReset(t *testing.T) {
	eachEnding(t, func(e *ending) {
		l, err := e.top.Client.Listen("tcp", ":443")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_ = e.conn.CloseWrite()
		e.readToTheEnd()
		_ = e.conn.Close()
		e.end(true)
	})
}

// Both closed at the same time, and the server's FIN was faster than its acknowledgement of ours.
func TestTimeWaitOfBothIsReset(t *testing.T) {
	eachEnding(t, func(e *ending) {
		release := e.top.Router.Swallow("eth0") // from the client
		_ = e.conn.CloseWrite()
		e.readToTheEnd()
		if s, _ := e.socket(); s.State != sockdiag.Closing {
			e.t.Fatalf("the socket is %s", s)
		}
		_ = e.conn.Close()
		if err := e.top.Client.Do(func() error { return sockdiag.Bind(addrPort(e.conn.LocalAddr())) }); err != nil {
			e.t.Errorf("the port is barred to others: %v", err)
		}
		release()
		e.end(true)
	})
}

// RFC 1337 knows the danger of such resets, and has a way to ignore them.
func TestTimeWaitIgnoresReset(t *testing.T) {
	eachEnding(t, func(e *ending) {
		e.top.Client.Sysctl("net.ipv4.tcp_rfc1337", "1")
		_ = e.conn.CloseWrite()
		e.readToTheEnd()
		_ = e.conn.Close()
		e.end(false)
	})
}

// There is no TIME_WAIT after the server's FIN, nor one in the way after timestamps, nor a known end after a reset.
func TestEndingsThatAreNotRemembered(t *testing.T) {
	eachEnding(t, func(e *ending) { // the server is first
		e.readToTheEnd()
		_ = e.conn.Close()
		e.nothing()
	})
	eachEnding(t, func(e *ending) {
		closeByReset(e.conn)
		e.nothing()
		close(e.hold)
	})
	eachEnding(t, func(e *ending) { // the application gave up
		_ = e.conn.CloseWrite()
		_ = e.conn.Close()
		e.nothing()
		close(e.hold)
	})
	eachEnding(t, func(e *ending) {
		e.top.Client.Sysctl("net.ipv4.tcp_timestamps", "1")
		_ = e.conn.CloseWrite()
		close(e.hold)
		pin := addrPort(e.conn.LocalAddr())
		e.do(func() (err error) {
			dialer := Sockets{Mark: 1, Endings: e.endings}
			e.conn, err = dialer.Dial(e.t.Context(), netip.AddrPortFrom(pin.Addr(), 63998), e.dst)
			return err
		})
		_ = e.conn.CloseWrite()
		_, _ = io.Copy(io.Discard, e.conn)
		_ = e.conn.Close()
		e.nothing()
	})
}

func (e *ending) nothing() {
	e.t.Helper()
	if n := len(e.endings.recent) + len(e.endings.older); n != 0 {
		e.t.Errorf("%d endings are remembered", n)
	}
}

// What is remembered is bounded, and the older half is forgotten first.
func TestEndingsAreForgotten(t *testing.T) {
	e := new(Endings)
	at := func(n int) tuple {
		return tuple{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(n)), netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n >> 16)}), 443)}
	}
	now := time.Now()
	for n := range 3 * manyEndings {
		e.remember(at(n), uint32(n), now)
	}
	if has := len(e.recent) + len(e.older); has > 2*manyEndings {
		t.Errorf("%d endings are remembered", has)
	}
	if next, known := e.take(at(2 * manyEndings)); !known || next != 2*manyEndings {
		t.Errorf("a recent one: %v, %v", next, known)
	}
	if _, known := e.take(at(2 * manyEndings)); known {
		t.Error("it is known twice")
	}
	if _, known := e.take(at(0)); known {
		t.Error("the oldest is still known")
	}
	e.remember(at(1), 1, now.Add(timeWait+1))
	e.remember(at(2), 2, now.Add(2*timeWait+2))
	e.remember(at(3), 3, now.Add(3*timeWait+3))
	if has := len(e.recent) + len(e.older); has != 2 {
		t.Errorf("%d endings are remembered after minutes", has)
	}
}
