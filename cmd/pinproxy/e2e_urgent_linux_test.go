package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// An urgent byte (MSG_OOB) is urgent at the other end too, and in its place. FTP, telnet, rlogin and Oracle's clients
// use it.
func TestUrgentData(t *testing.T) {
	long := strings.Repeat("long ", 1<<18) // in the kernel's largest packets
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			w := newNetwork(t)
			got := w.urgentServer(f, "before")
			w.pinproxy("--rule", inRule(f.server)+":7=63999")
			urgently(t, w.mustConnect(at(f.server, 7)), "before", got)
		})
		t.Run(f.name+" among much", func(t *testing.T) {
			w := newNetwork(t)
			got := w.urgentServer(f, long)
			w.pinproxy("--rule", inRule(f.server)+":7=63999")
			urgently(t, w.mustConnect(at(f.server, 7)), long, got)
		})
		t.Run(f.name+" without offloads", func(t *testing.T) {
			w := newNetwork(t)
			got := w.urgentServer(f, "before")
			w.pinproxy("--rule", inRule(f.server)+":7=63999", "--offload=off")
			urgently(t, w.mustConnect(at(f.server, 7)), "before", got)
		})
		t.Run(f.name+" behind a gateway", func(t *testing.T) {
			l := newLAN(t, 1500)
			got := l.urgentServer(f, "before")
			l.pins("--rule", inRule(f.server)+":7=63999")
			urgently(t, l.mustConnect(at(f.server, 7)), "before", got)
		})
	}
}

// Urgent data is to each end what it is over a direct connection.
func TestUrgentDataAsDirect(t *testing.T) {
	each(t, func(w *network, f family) {
		port := 1000
		talk := func(d dialogue, down bool) string {
			port++
			heard := make(chan string, 1)
			w.Server.Serve(at(f.server, port), func(c net.Conn) {
				if down {
					d.say(w.urgent(c))
					<-heard // it hangs up
				} else {
					heard <- d.hear(w.urgent(c))
				}
			})
			c := w.urgent(w.mustConnect(at(f.server, port)))
			defer c.Close()
			if down {
				defer close(heard)
				return d.hear(c)
			}
			d.say(c)
			return <-heard
		}
		type key struct {
			name string
			down bool
		}
		direct := make(map[key]string)
		for _, d := range dialogues {
			direct[key{d.name, false}], direct[key{d.name, true}] = talk(d, false), talk(d, true)
		}
		w.pinproxy("--rule", inRule(f.server)+":*=63990-63999")
		for _, d := range dialogues {
			for _, down := range []bool{false, true} {
				if got, want := talk(d, down), direct[key{d.name, down}]; got != want || !strings.Contains(got, d.proof) {
					w.t.Errorf("%s, down %v: %q; over a direct connection %q", d.name, down, got, want)
				}
			}
		}
	})
}

// dialogue is what one end sends, and how the other one receives it.
type dialogue struct {
	name  string
	say   func(c urgentConn)
	hear  func(c urgentConn) string
	proof string // is in what was heard
}

var dialogues = []dialogue{
	{"one by one", func(c urgentConn) {
		for i := range 20 {
			c.urge(fmt.Sprint(i % 10))
			_, _ = c.Read(make([]byte, 1))
		}
		_ = c.CloseWrite()
	}, func(c urgentConn) (heard string) {
		for range 20 {
			if !c.urgentAhead() {
				return heard + " and no more"
			}
			heard += c.takeUrgent()
			_, _ = c.Write([]byte("k"))
		}
		return heard
	}, "89"},
	{"alone", func(c urgentConn) { c.urge("!"); _ = c.CloseWrite() }, urgentConn.rest, "<!>"},
	{"the last of some", func(c urgentConn) { c.urge("ab!"); _ = c.CloseWrite() }, urgentConn.rest, "ab<!>"},
	{"behind the end of the other direction", func(c urgentConn) {
		_, _ = c.Read(make([]byte, 1))
		c.urge("ab!")
		_ = c.CloseWrite()
	}, func(c urgentConn) string { _ = c.CloseWrite(); return c.rest() }, "ab<!>"},
	{"out of line", func(c urgentConn) { c.urge("ab!"); _, _ = c.Write([]byte("cd")); _ = c.CloseWrite() }, func(c urgentConn) string {
		heard := fmt.Sprint(c.urgentAhead(), c.takeUrgent())
		b, err := io.ReadAll(c)
		return heard + string(b) + errorText(err)
	}, "true!abcd"},
	{"out of line, not taken", func(c urgentConn) { c.urge("ab!"); _, _ = c.Write([]byte("cd")); _ = c.CloseWrite() }, func(c urgentConn) string {
		heard := fmt.Sprint(c.urgentAhead())
		b, err := io.ReadAll(c)
		return heard + string(b) + errorText(err)
	}, "trueabcd"},
	{"ahead of what does not fit into the window", func(c urgentConn) {
		_, _ = c.Write(make([]byte, 100_000))
		c.urge("!")
		_ = c.CloseWrite()
	}, func(c urgentConn) string {
		heard := fmt.Sprint(c.urgentAhead())
		_, _ = io.ReadFull(c, make([]byte, 100_000))
		return heard + c.rest()
	}, "true<!>"},
}

// urgentConn is an end of a connection.
type urgentConn struct {
	*net.TCPConn
	raw syscall.RawConn
	t   *testing.T
}

func (w *network) urgent(c net.Conn) urgentConn {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		w.t.Error(err)
	}
	return urgentConn{c.(*net.TCPConn), raw, w.t}
}

func (c urgentConn) urge(text string) {
	if err := sendUrgent(c.raw, text); err != nil {
		c.t.Error(err)
	}
}

func (c urgentConn) rest() string { return readMarked(c.t, c.raw) }

// urgentAhead waits until the urgent byte has come.
func (c urgentConn) urgentAhead() (ahead bool) {
	_ = c.raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}
		_, err := unix.Poll(p, int(patience.Milliseconds()))
		for err == unix.EINTR {
			_, err = unix.Poll(p, int(patience.Milliseconds()))
		}
		ahead = p[0].Revents&unix.POLLPRI != 0
	})
	return ahead
}

// takeUrgent takes the urgent byte out of line.
func (c urgentConn) takeUrgent() string {
	b := make([]byte, 1)
	var err error
	_ = c.raw.Control(func(fd uintptr) { _, _, err = unix.Recvfrom(int(fd), b, unix.MSG_OOB) })
	return string(b) + errorText(err)
}

// urgentServer talks urgently to who connects, and returns where what it has received will be.
func (w *network) urgentServer(f family, before string) <-chan string {
	received := make(chan string, 1)
	w.Server.Serve(at(f.server, 7), func(c net.Conn) { received <- talkUrgently(w.t, c, before) })
	return received
}

// urgently talks to an urgentServer through c, and compares what both ends have received.
func urgently(t *testing.T, c net.Conn, before string, server <-chan string) {
	t.Helper()
	want := before + "<!> after"
	app := talkUrgently(t, c, before)
	for who, got := range map[string]string{"application": app, "server": <-server} {
		if got != want {
			t.Errorf("the %s received %d bytes, %q at the end; want %d, %q", who, len(got), tail(got), len(want), tail(want))
		}
	}
}

func tail(s string) string { return s[max(0, len(s)-20):] }

// talkUrgently writes an urgent byte between others, ends its direction, and returns what it reads until the other one
// ends. Urgent bytes are in angle brackets.
func talkUrgently(t *testing.T, c net.Conn, before string) string {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Error(err)
		return ""
	}
	written := make(chan error, 1)
	go func() {
		_, err := c.Write([]byte(before))
		if err == nil {
			err = sendUrgent(raw, "!")
		}
		if err == nil {
			_, err = c.Write([]byte(" after"))
		}
		if err == nil {
			err = c.(*net.TCPConn).CloseWrite()
		}
		written <- err
	}()
	got := readMarked(t, raw)
	if err := <-written; err != nil {
		t.Error(err)
	}
	return got
}

// sendUrgent makes the last byte urgent.
func sendUrgent(raw syscall.RawConn, text string) (err error) {
	cerr := raw.Write(func(fd uintptr) bool {
		err = unix.Send(int(fd), []byte(text), unix.MSG_OOB)
		return err != unix.EAGAIN
	})
	return errors.Join(err, cerr)
}

// readMarked reads to the end.
func readMarked(t *testing.T, raw syscall.RawConn) string {
	const siocatmark = 0x8905
	var got strings.Builder
	b := make([]byte, 64<<10)
	err := raw.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1); err != nil {
			t.Error(err)
		}
	})
	for n := 1; n > 0 && err == nil; {
		n = 0
		var rerr error
		err = raw.Read(func(fd uintptr) bool {
			if _, _, rerr = unix.Recvfrom(int(fd), b[:1], unix.MSG_PEEK); rerr == unix.EAGAIN {
				return false
			}
			atMark, _ := unix.IoctlGetInt(int(fd), siocatmark)
			if rerr == nil && atMark != 0 {
				n, _, rerr = unix.Recvfrom(int(fd), b[:1], 0)
				got.WriteString("<" + string(b[:n]) + ">")
			} else if rerr == nil {
				n, _, rerr = unix.Recvfrom(int(fd), b, 0) // ends before a mark
				got.Write(b[:n])
			}
			return true
		})
		if err == nil {
			err = rerr
		}
	}
	if err != nil {
		t.Error(err)
	}
	return got.String()
}
