package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// 64 MiB go each way at once. No two seeds have the same bytes.
func TestBytesArriveUnchangedBothWaysAtOnce(t *testing.T) {
	t.Parallel()
	for _, offload := range []string{"auto", "off"} {
		for _, f := range families {
			t.Run(f.name+" offload "+offload, func(t *testing.T) {
				w := newNetwork(t)
				served := make(chan error, 1)
				w.Server.Serve(at(f.server, 7), func(c net.Conn) { served <- exchange(c, 1, 2) })
				p := w.pinproxy("--rule", inRule(f.server)+":7=63999", "--offload", offload)
				if err := exchange(w.mustConnect(at(f.server, 7)), 2, 1); err != nil {
					t.Error("client:", err)
				}
				if err := <-served; err != nil {
					t.Error("server:", err)
				}
				e := p.await("flow", 1)[0]
				if e.Up != total || e.Down != total || e.End != "closed" {
					t.Errorf("logged %+v", e)
				}
			})
		}
	}
}

const total = 64 << 20

// random returns the endless stream of a seed.
func random(seed byte) io.Reader { return rand.NewChaCha8([32]byte{seed}) }

// exchange sends the bytes of one seed and expects those of another.
func exchange(c net.Conn, send, receive byte) error {
	var sending sync.WaitGroup
	var serr error
	sending.Go(func() {
		if _, serr = io.CopyN(c, random(send), total); serr == nil {
			serr = c.(*net.TCPConn).CloseWrite()
		}
	})
	want, got := sha256.New(), sha256.New()
	_, _ = io.CopyN(want, random(receive), total)
	n, err := io.Copy(got, c)
	sending.Wait()
	switch {
	case err != nil:
		return err
	case serr != nil:
		return serr
	case n != total || !bytes.Equal(got.Sum(nil), want.Sum(nil)):
		return fmt.Errorf("received %d other bytes than the %d sent", n, total)
	}
	return nil
}

func TestUnrelatedTrafficNeverEntersTheDevice(t *testing.T) {
	t.Parallel()
	// With the rule for a name, lookups go through the device. Nobody looks up anything here.
	for name, rules := range map[string][]string{
		"rules for names":     {"--rule", "www.bank.example:443,8000=63999"},
		"rules for addresses": {"--rule", "203.0.113.2:443,8000=63999", "--rule", "[2001:db8:2::2]:443,8000=63999"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newNetwork(t)
			w.names()
			for _, port := range []string{":443", ":8000", ":8001"} {
				w.Server.Serve(port, lab.Echo)
			}
			w.pinproxy(rules...)
			for _, f := range families {
				for _, addr := range []string{at(f.server, 8001), at(f.elsewhere, 443), at(f.elsewhere, 8000)} {
					c := w.mustConnect(addr)
					echo(t, c, "hello")
					if err := c.Close(); err != nil {
						t.Error(err)
					}
				}
				for _, addr := range []string{at(f.server, 443), at(f.server, 8001)} {
					w.echoUDP(addr)
				}
				if name == "rules for addresses" {
					if _, err := w.Client.Resolver().LookupHost(soon(t), "www.bank.example"); err != nil {
						t.Error(err)
					}
				}
			}
			if rx, tx := w.Client.Counters("pin0"); rx != 0 || tx != 0 {
				t.Errorf("%d packets came out of the device, %d went in", tx, rx)
			}

			c := w.mustConnect(at(lab.Server4, 443)) // makes sure that the device counts at all
			echo(t, c, "hello")
			if _, tx := w.Client.Counters("pin0"); tx == 0 {
				t.Error("the device counts nothing at all")
			}
		})
	}
}

// A socket that is bound to an address bypasses pinproxy, unless --strict is given.
func TestStrictCapturesBoundSockets(t *testing.T) {
	each(t, func(w *network, f family) {
		server := w.Server.Serve(at(f.server, 7), lab.Echo)
		visit := func() netip.AddrPort {
			c, err := w.Client.DialFrom(soon(w.t), "tcp", at(f.client, 40000), at(f.server, 7))
			if err != nil {
				w.t.Fatal(err)
			}
			echo(w.t, c, "hello")
			_ = c.(*net.TCPConn).SetLinger(0) // the port is needed again
			_ = c.Close()
			seen := server.Seen()
			return seen[len(seen)-1]
		}
		rule := inRule(f.server) + ":7=63999"
		p := w.pinproxy("--rule", rule)
		if from := visit(); from != f.from(40000) {
			w.t.Errorf("without --strict the connection came from %v", from)
		}
		p.stop()
		w.pinproxy("--rule", rule, "--strict")
		if from := visit(); from != f.from(63999) {
			w.t.Errorf("with --strict the connection came from %v", from)
		}
	})
}

// echoUDP sends one datagram there and back.
func (w *network) echoUDP(addr string) {
	w.t.Helper()
	s, err := w.Server.ListenPacket("udp", addr)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := w.Client.Dial(soon(w.t), "udp", addr)
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("hello"))
	b := make([]byte, 10)
	n, from, err := s.ReadFrom(b)
	if err == nil {
		_, err = s.WriteTo(b[:n], from)
	}
	if err == nil {
		n, err = c.Read(b)
	}
	if string(b[:n]) != "hello" || err != nil {
		w.t.Errorf("UDP to %s: %q, %v", addr, b[:n], err)
	}
}

// Connections that are open when pinproxy starts, and those that are open when it ends.
func TestOpenConnectionSurvivesStartAndStop(t *testing.T) {
	t.Parallel()
	for _, f := range families {
		for _, rule := range []string{inRule(f.server) + ":7=63999", "*:*=63999", "www.bank.example:7=63999"} {
			t.Run(f.name+" "+rule, func(t *testing.T) {
				w := newNetwork(t)
				w.names()
				server := w.Server.Serve(at(f.server, 7), lab.Echo)
				open := w.mustConnect(at(f.server, 7))
				echo(t, open, "before")
				p := w.pinproxy("--rule", rule)
				echo(t, open, "during")
				pinned := w.mustConnect(at(f.server, 7))
				echo(t, pinned, "pinned")
				if seen := server.Seen(); len(seen) != 2 || seen[1] != f.from(63999) {
					t.Errorf("connections came from %v, want the second from %v", seen, f.from(63999))
				}
				if err := pinned.Close(); err != nil {
					t.Error(err)
				}
				echo(t, open, "still during")
				p.stop()
				echo(t, open, "after")
			})
		}
	}
}

// What an application asks for in its SYN beyond plain TCP is not passed on, but its connection is made, and pinned.
func TestMoreThanPlainTCP(t *testing.T) {
	fastOpen := func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { // the first write is in the SYN
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN_NO_COOKIE, 1),
			)
		})
		return errors.Join(cerr, err)
	}
	for name, d := range map[string]*net.Dialer{"Multipath TCP": {Timeout: patience}, "Fast Open": {Timeout: patience, Control: fastOpen}} {
		d.SetMultipathTCP(name == "Multipath TCP")
		t.Run(name, func(t *testing.T) {
			each(t, func(w *network, f family) {
				server := w.Server.Serve(at(f.server, 7), lab.Echo)
				w.pinproxy("--rule", inRule(f.server)+":7=63999")
				var c net.Conn
				if err := w.Client.Do(func() (err error) { c, err = d.Dial("tcp", at(f.server, 7)); return err }); err != nil {
					w.t.Fatal(err)
				}
				defer c.Close()
				echo(w.t, c, "hello")
				for _, from := range server.Seen() {
					if from.Port() != 63999 {
						w.t.Errorf("a connection came from %v", from)
					}
				}
			})
		})
	}
}
