package main

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/netstack/lab"
	"pinproxy/netstack/netstacktest"
)

// How connections end: each end sees what the other one does.

func TestHalfCloseByApplication(t *testing.T) {
	each(t, func(w *network, f family) {
		w.Server.Serve(at(f.server, 7), func(c net.Conn) {
			b, err := io.ReadAll(c) // up to the end, and no further
			if err == nil {
				_, _ = c.Write([]byte(strings.ToUpper(string(b))))
			}
		})
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999")
		c := w.mustConnect(at(f.server, 7))
		text := strings.Repeat("a question ", 50_000)
		_, err := io.WriteString(c, text)
		if err == nil {
			err = c.CloseWrite()
		}
		if err != nil {
			w.t.Fatal(err)
		}
		if b, err := io.ReadAll(c); string(b) != strings.ToUpper(text) || err != nil {
			w.t.Errorf("answered after the end: %d of %d bytes, %v", len(b), len(text), err)
		}
		if e := p.await("flow", 1)[0]; e.End != "closed" {
			w.t.Errorf("logged %+v", e)
		}
	})
}

func TestHalfCloseByUpstream(t *testing.T) {
	each(t, func(w *network, f family) {
		received := make(chan string, 1)
		w.Server.Serve(at(f.server, 7), func(c net.Conn) {
			_, _ = c.Write([]byte("greeting"))
			_ = c.(*net.TCPConn).CloseWrite()
			b, err := io.ReadAll(c)
			received <- string(b) + errorText(err)
		})
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999")
		c := w.mustConnect(at(f.server, 7))
		if b, err := io.ReadAll(c); string(b) != "greeting" || err != nil {
			w.t.Errorf("read %q, %v", b, err)
		}
		text := strings.Repeat("after the end ", 50_000)
		if _, err := io.WriteString(c, text); err != nil {
			w.t.Error(err)
		}
		_ = c.CloseWrite()
		if got := <-received; got != text {
			w.t.Errorf("the server received %d of %d bytes", len(got), len(text))
		}
		if e := p.await("flow", 1)[0]; e.End != "closed" {
			w.t.Errorf("logged %+v", e)
		}
	})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestUpstreamResets(t *testing.T) {
	each(t, func(w *network, f family) {
		w.Server.Serve(at(f.server, 7), func(c net.Conn) {
			_, _ = c.Write(make([]byte, 100_000))
			delivered(c)
			_ = c.(*net.TCPConn).SetLinger(0) // and Close, once this returns
		})
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999")
		c := w.mustConnect(at(f.server, 7))
		p.await("flow", 1) // over before the application reads
		if b, err := io.ReadAll(c); len(b) != 100_000 || !errors.Is(err, unix.ECONNRESET) {
			w.t.Errorf("read %d bytes, %v; want all 100000, and then that the connection was reset", len(b), err)
		}
		if e := p.await("flow", 1)[0]; e.End != "reset by upstream" || e.Down != 100_000 {
			w.t.Errorf("logged %+v", e)
		}
	})
}

// delivered waits until the other end's kernel has everything that was written to c: a reset discards the rest.
func delivered(c net.Conn) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	for n := 1; n > 0 && err == nil; time.Sleep(time.Millisecond) {
		_ = raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	}
}

func TestApplicationResets(t *testing.T) {
	each(t, func(w *network, f family) {
		ended := make(chan error, 1)
		w.Server.Serve(at(f.server, 7), func(c net.Conn) {
			_, err := io.Copy(c, c)
			ended <- err
		})
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999")
		c := w.mustConnect(at(f.server, 7))
		echo(w.t, c, "hello")
		_ = c.SetLinger(0)
		_ = c.Close()
		if err := <-ended; !errors.Is(err, unix.ECONNRESET) {
			w.t.Errorf("the server's connection ended with %v, want that it was reset", err)
		}
		if e := p.await("flow", 1)[0]; e.End != "reset by application" {
			w.t.Errorf("logged %+v", e)
		}
	})
}

// haproxy's health check resets instead of acknowledging the SYN-ACK. That is no failure.
func TestHealthCheckResets(t *testing.T) {
	each(t, func(w *network, f family) {
		w.Server.Serve(at(f.server, 7), lab.Echo)
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999")
		dialer := net.Dialer{Timeout: patience, Control: func(_, _ string, c syscall.RawConn) (err error) {
			if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0) }); cerr != nil {
				return cerr
			}
			return err
		}}
		if err := w.Client.Do(func() error {
			c, err := dialer.DialContext(t.Context(), "tcp", at(f.server, 7))
			if err != nil {
				return err
			}
			return errors.Join(c.(*net.TCPConn).SetLinger(0), c.Close())
		}); err != nil {
			w.t.Fatal(err)
		}
		if e := p.await("flow", 1)[0]; e.End != "reset by application" || e.Local == "" {
			w.t.Errorf("logged %+v", e)
		}
		if list := p.entries("flow failed"); len(list) != 0 {
			w.t.Errorf("logged %+v", list)
		}
	})
}

// An application binds its own source port and connects repeatedly. If a SYN is lost, because somebody still knows
// the old connection, it is sent again after a second.
func TestApplicationReusesItsSourcePort(t *testing.T) {
	for _, test := range []struct {
		name  string
		serve func(net.Conn)
		end   func(*net.TCPConn)
	}{
		{"server closes first", lab.Source(1), func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }},
		{"client closes first", lab.Echo, func(*net.TCPConn) {}},
		{"client resets", lab.Echo, func(c *net.TCPConn) { _ = c.SetLinger(0) }},
	} {
		for _, f := range families {
			t.Run(test.name+" "+f.name, func(t *testing.T) {
				w := newNetworkAlone(t)
				pauses := netstacktest.WatchPauses(t)
				server := w.Server.Serve(at(f.server, 7), test.serve)
				w.pinproxy("--rule", inRule(f.server)+":7=63999")
				for i := range 200 {
					pauses.Longest() // up to this point
					start := time.Now()
					c, err := w.connectAgain(at(f.server, 7))
					if err != nil {
						t.Fatalf("connection %d: %v", i, err)
					}
					test.end(c.(*net.TCPConn))
					_ = c.Close()
					if took := time.Since(start); took > 800*time.Millisecond+10*pauses.Longest() {
						t.Fatalf("connection %d took %v", i, took)
					}
				}
				for _, from := range server.Seen() {
					if from.Port() != 63999 {
						t.Fatalf("a connection came from %v", from)
					}
				}
			})
		}
	}
}

// An application that asks for the pin itself, as it had to before, is not in its own way: its end of the flow has the
// device's address.
func TestApplicationAsksForThePin(t *testing.T) {
	each(t, func(w *network, f family) {
		server := w.Server.Serve(at(f.server, 7), lab.Echo)
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999 busy=fail")
		d := net.Dialer{LocalAddr: &net.TCPAddr{Port: 63999}, Timeout: patience} // without SO_REUSEADDR
		var c net.Conn
		if err := w.Client.Do(func() (err error) { c, err = d.Dial("tcp", at(f.server, 7)); return err }); err != nil {
			w.t.Fatal(err)
		}
		echo(w.t, c, "hello")
		if s, ok := w.statusNow(); !ok || len(s.Ports) != 1 || s.Ports[0].State != monitor.PortFlow || len(s.Ports[0].Holders) != 1 {
			w.t.Errorf("ports: %+v", s.Ports)
		}
		_ = c.Close()
		p.await("flow", 1)
		echo(w.t, w.mustConnect(at(f.server, 7)), "hello") // what is left of its end is not in the way either
		for _, from := range server.Seen() {
			if from.Port() != 63999 {
				w.t.Errorf("a connection came from %v", from)
			}
		}
	})
}

// A reset behind the application's FIN reaches an upstream that sends nothing, as it does without us.
func TestResetBehindTheApplicationsEnd(t *testing.T) {
	each(t, func(w *network, f family) {
		ended, saw := make(chan error), make(chan error)
		w.Server.Serve(at(f.server, 7), func(c net.Conn) {
			_, err := io.Copy(io.Discard, c)
			ended <- err
			saw <- failure(c)
		})
		w.resetBehindAnEnd(f, "application", func(c *net.TCPConn) {
			_, _ = c.Write([]byte("hello"))
			_ = c.CloseWrite()
			if err := <-ended; err != nil {
				w.t.Error(err)
			}
			_ = c.SetLinger(0)
			_ = c.Close()
			wantPipe(w.t, <-saw)
		})
	})
}

// A reset behind the upstream's FIN reaches an application that sends nothing.
func TestResetBehindTheUpstreamsEnd(t *testing.T) {
	each(t, func(w *network, f family) {
		ended := make(chan error)
		w.Server.Serve(at(f.server, 7), func(c net.Conn) {
			_, _ = c.Write([]byte("hello"))
			_ = c.(*net.TCPConn).CloseWrite()
			if err := <-ended; err != nil {
				w.t.Error(err)
			}
			_ = c.(*net.TCPConn).SetLinger(0)
		})
		w.resetBehindAnEnd(f, "upstream", func(c *net.TCPConn) {
			_, err := io.Copy(io.Discard, c)
			ended <- err
			wantPipe(w.t, failure(c))
			_ = c.Close()
		})
	})
}

// resetBehindAnEnd runs try with a connection to port 7, directly and pinned. Who resets is what the log must say.
func (w *network) resetBehindAnEnd(f family, who string, try func(*net.TCPConn)) {
	w.t.Helper()
	try(w.mustConnect(at(f.server, 7))) // directly
	p := w.pinproxy("--rule", inRule(f.server)+":7=63999")
	try(w.mustConnect(at(f.server, 7)))
	if line := p.await("flow", 1)[0]; line.End != "reset by "+who {
		w.t.Errorf("log: %+v", line)
	}
}

// failure waits until the kernel reports an error of the connection, which it returns.
func failure(c net.Conn) error {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	errno := 0
	err = raw.Read(func(fd uintptr) bool {
		errno, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		return errno != 0
	})
	return errors.Join(err, unix.Errno(errno))
}

func wantPipe(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, unix.EPIPE) {
		t.Errorf("the connection has ended by %v, want a reset behind a FIN: EPIPE", err)
	}
}

// connectAgain connects from one port. The client's own kernel refuses that while the last FIN is on its way.
func (w *network) connectAgain(addr string) (c net.Conn, err error) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if c, err = w.Client.DialFrom(soon(w.t), "tcp", ":40000", addr); !errors.Is(err, unix.EADDRNOTAVAIL) {
			break
		}
	}
	return c, err
}
