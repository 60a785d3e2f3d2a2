package main

import (
	"net"
	"strings"
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
			cerr := raw.Write(func(fd uintptr) bool {
				err = unix.Send(int(fd), []byte("!"), unix.MSG_OOB)
				return err != unix.EAGAIN
			})
			if err == nil {
				err = cerr
			}
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

// readMarked reads to the end.
func readMarked(t *testing.T, raw interface {
	Control(func(uintptr)) error
	Read(func(uintptr) bool) error
},
) string {
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
