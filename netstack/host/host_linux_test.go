package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// bench is the usual network, with a server that echoes:
//
//	pin0 ─ client ──────── router ──────── server :443 :80 :53
//	       198.51.100.2                    203.0.113.2
//	       2001:db8:1::2                   2001:db8:2::2
//
// Nothing answers on pin0 except the test.
type bench struct {
	*lab.Topology
	net  *lab.Net
	t    *testing.T
	tun  *tun
	host *Host
	undo func(context.Context) error
	logs *logs
}

var (
	server4 = netip.MustParseAddr(lab.Server4)
	server6 = netip.MustParseAddr(lab.Server6)
	servers = []netip.Addr{server4, server6}
)

func newBench(t *testing.T) *bench {
	n := lab.ForTest(t)
	b := &bench{Topology: n.Topology(), net: n, t: t, logs: &logs{}}
	for _, port := range []string{":443", ":80", ":53"} {
		l, err := b.Server.Listen("tcp", port)
		if err != nil {
			t.Fatal(err)
		}
		go echo(l) // until the network is closed
	}
	return b
}

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			io.Copy(c, c)
			c.Close()
		}()
	}
}

// web captures both of the server's addresses, port 443.
func web() Config {
	return Config{
		PortSets: [][]PortRange{{{443, 443}}},
		Captures: []Capture{capture(lab.Server4+"/32", 0), capture(lab.Server6+"/128", 0)},
	}
}

// apply opens the device and applies c on the client.
func (b *bench) apply(c Config) {
	b.t.Helper()
	b.tun = openTUN(b.t, b.Client)
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(b.logs, nil))
	}
	var err error
	if b.host, err = New(c); err != nil {
		b.t.Fatal(err)
	}
	err = b.Client.Do(func() error {
		b.undo, err = b.host.Apply(b.t.Context())
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { b.undo(context.Background()) })
}

// run runs the repairs, with a regular check that often, until the test ends or stop is called.
func (b *bench) run(every time.Duration) (result <-chan error, stop func()) {
	b.host.every = every
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- b.host.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Error("run:", err)
		}
	})
	return done, stop
}

type dialer struct {
	local string // "198.51.100.2:0", ":7777"
	mark  int
	dev   string
}

// dial connects the client to port of a.
func (b *bench) dial(ctx context.Context, d dialer, network string, a netip.Addr, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	dial := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		c.Control(func(fd uintptr) {
			if d.mark != 0 {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, d.mark)
			}
			if d.dev != "" {
				err = errors.Join(err, unix.BindToDevice(int(fd), d.dev))
			}
			err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		})
		return err
	}}
	if d.local != "" {
		local, err := net.ResolveTCPAddr("tcp", d.local)
		if err != nil {
			return nil, err
		}
		dial.LocalAddr = local
	}
	var c net.Conn
	err := b.Client.Do(func() (err error) {
		c, err = dial.DialContext(ctx, network, netip.AddrPortFrom(a, port).String())
		return err
	})
	return c, err
}

// captured checks that a connection enters the device with the device's address as its source, and that the
// answer to it arrives.
func (b *bench) captured(d dialer, a netip.Addr, port uint16) packet {
	b.t.Helper()
	result := make(chan error, 1)
	go func() {
		c, err := b.dial(b.t.Context(), d, "tcp", a, port)
		if err == nil {
			c.Close()
		}
		result <- err
	}()
	p, err := b.tun.read(20 * time.Millisecond)
	for len(result) == 0 && errors.Is(err, os.ErrDeadlineExceeded) { // if it bypassed the device it would connect, or give up
		p, err = b.tun.read(20 * time.Millisecond)
	}
	if err != nil {
		b.t.Errorf("%v to %v:%d: not captured: connect gave %v", d, a, port, <-result)
		return nil
	}
	b.tun.refuse(p)
	if p.dst() != netip.AddrPortFrom(a, port) || p.proto() != protoTCP {
		b.t.Errorf("%v to %v:%d: captured %v", d, a, port, p)
	}
	if err := <-result; !errors.Is(err, unix.ECONNREFUSED) {
		b.t.Errorf("%v to %v:%d: connect gave %v, and not the reset", d, a, port, err)
	}
	return p
}

func (b *bench) capturedFromTUN(d dialer, a netip.Addr, port uint16) {
	b.t.Helper()
	want := Addr4
	if a.Is6() {
		want = Addr6
	}
	if p := b.captured(d, a, port); p != nil && p.src().Addr() != want {
		b.t.Errorf("%v to %v:%d: captured with the source %v", d, a, port, p.src())
	}
}

// direct checks that a connection reaches the server, and returns it.
func (b *bench) direct(d dialer, a netip.Addr, port uint16) net.Conn {
	b.t.Helper()
	c, err := b.dial(b.t.Context(), d, "tcp", a, port)
	if err != nil {
		b.t.Errorf("%v to %v:%d: not direct: %v", d, a, port, err)
		b.drain()
		return nil
	}
	b.t.Cleanup(func() { c.Close() })
	b.works(c)
	return c
}

func (b *bench) drain() {
	if b.tun != nil {
		b.tun.drain()
	}
}

// works sends a byte back and forth.
func (b *bench) works(c net.Conn) {
	b.t.Helper()
	if c == nil {
		return
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		b.t.Errorf("%v → %v: %v", c.LocalAddr(), c.RemoteAddr(), err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		b.t.Errorf("%v → %v: %v", c.LocalAddr(), c.RemoteAddr(), err)
	}
	if b.tun != nil {
		b.tun.empty(fmt.Sprintf("%v → %v", c.LocalAddr(), c.RemoteAddr()))
	}
}

// snapshot returns the host's state as lines of text.
func (b *bench) snapshot() []string {
	b.t.Helper()
	return strings.Split(b.Client.Snapshot(), "\n")
}

func (b *bench) same(what string, before []string) {
	b.t.Helper()
	if diff := cmp.Diff(before, b.snapshot()); diff != "" {
		b.t.Errorf("%s (-before +after):\n%s", what, diff)
	}
}

// logs collects log lines.
type logs struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// patience is for what takes 10 ms on an idle machine. A regular check, which comes by itself, is later.
const patience = 30 * time.Second

// soon waits until ok.
func (b *bench) soon(what string, ok func() bool) {
	b.t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			b.t.Errorf("%s: not within %v; log:\n%s", what, patience, b.logs)
			return
		}
		time.Sleep(5 * time.Millisecond) // polls the kernel's state, as nothing reports its changes
	}
}
