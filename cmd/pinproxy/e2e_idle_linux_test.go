package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/netstack/lab"
)

// idlers is a program with many connections that say a byte and then nothing: idlers address:port count. It writes
// "open" when all have been answered. At the end of its standard input each connection says another byte. It writes
// "alive" when all of these have been answered too.
//
// As idlers address:port it is their server, using only as much memory as that many connections need.
func idlers() {
	yieldAlways()
	var err error
	if len(os.Args) == 3 {
		var n int
		if n, err = strconv.Atoi(os.Args[2]); err == nil {
			err = idle(os.Args[1], n)
		}
	} else {
		err = serveIdlers(os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func idle(addr string, n int) error {
	conns := make([]net.Conn, n)
	// each calls f for all connections, a few at a time.
	each := func(f func(i int) error) error {
		const workers = 8
		failed := make([]error, workers)
		var all sync.WaitGroup
		for k := range workers {
			all.Go(func() {
				for i := k; i < n && failed[k] == nil; i += workers {
					failed[k] = f(i)
				}
			})
		}
		all.Wait()
		return errors.Join(failed...)
	}
	say := func(i int) error {
		b := []byte{byte(i)}
		_ = conns[i].SetDeadline(time.Now().Add(patience))
		if _, err := conns[i].Write(b); err != nil {
			return err
		}
		if _, err := io.ReadFull(conns[i], b); err != nil {
			return err
		} else if b[0] != byte(i) {
			return fmt.Errorf("connection %d heard another's byte", i)
		}
		return nil
	}
	err := each(func(i int) (err error) {
		if conns[i], err = net.DialTimeout("tcp", addr, patience); err == nil {
			err = say(i)
		}
		return err
	})
	if err != nil {
		return err
	}
	fmt.Println("open")
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := each(say); err != nil {
		return err
	}
	fmt.Println("alive")
	return nil // the kernel closes them
}

// serveIdlers echoes bytes, and reports a connection that does not come from its pin.
func serveIdlers(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		from := c.RemoteAddr().(*net.TCPAddr).Port
		if from < 20000 || from > 29999 {
			fmt.Printf("a connection came from %d\n", from)
		}
		go func() { // ends with its connection
			defer c.Close()
			b := make([]byte, 1)
			for {
				if _, err := c.Read(b); err != nil {
					return
				}
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}()
	}
}

// descriptors returns how many descriptors a program of ours may have: want, if the limit can be raised to that.
func descriptors(t *testing.T, want int) int {
	t.Helper()
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		t.Fatal(err)
	}
	more := unix.Rlimit{Cur: max(now.Max, uint64(want)), Max: max(now.Max, uint64(want))}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &more) == nil {
		return want
	}
	return int(min(now.Max, uint64(want))) // raising the hard limit takes a privilege
}

// idleCrowd is many idlers, to some destinations.
type idleCrowd struct {
	t       *testing.T
	client  *lab.Host
	each    int // connections per destination
	servers map[string]*lab.Process
	clients []*lab.Process
	ends    []io.Closer // of the clients' standard input
}

func (w *network) idleCrowd(port, each, dests int) *idleCrowd {
	w.t.Helper()
	c := &idleCrowd{t: w.t, client: w.Client, each: each, servers: make(map[string]*lab.Process)}
	for i := range dests {
		addr := fmt.Sprintf("192.0.2.%d:%d", i+1, port)
		server, err := w.Server.Start(otherHosts("idlers", addr))
		if err != nil {
			w.t.Fatal(err)
		}
		if err := server.Expect(soon(w.t), "listening"); err != nil {
			w.t.Fatal(err)
		}
		c.servers[addr] = server
	}
	return c
}

// open returns when all connections are open and each has been answered.
func (c *idleCrowd) open() {
	for addr := range c.servers {
		cmd := otherHosts("idlers", addr, fmt.Sprint(c.each))
		r, end, err := os.Pipe()
		if err != nil {
			c.t.Error(err)
			return
		}
		cmd.Stdin = r
		client, err := c.client.Start(cmd)
		_ = r.Close()
		if err != nil {
			c.t.Error(err)
			return
		}
		c.clients, c.ends = append(c.clients, client), append(c.ends, end)
	}
	c.expect("open")
}

// end waits until all connections have been answered once more, and ends them.
func (c *idleCrowd) end() {
	for _, end := range c.ends {
		_ = end.Close()
	}
	c.expect("alive")
	for _, client := range c.clients {
		if err := client.Wait(); err != nil {
			c.t.Error(err)
		}
	}
}

func (c *idleCrowd) expect(text string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*patience)
	defer cancel()
	for _, client := range c.clients {
		if err := client.Expect(ctx, text); err != nil {
			c.t.Error(err)
		}
	}
}

// Many connections that say nothing, such as those of a pool. Each costs memory and a descriptor. Then all speak at
// once, and their programs end.
func TestFloodOfIdle(t *testing.T) {
	const dests, others = 2, 100 // others: what pinproxy needs besides
	n := much(20_000, 200)
	if most := descriptors(t, n+others) - others; most < n {
		t.Logf("the limit of descriptors leaves %d connections instead of %d", most, n)
		n = most
	}
	n -= n % dests
	w := newNetwork(t)
	b := w.watched("--rule", "192.0.2.0/25:9=20000-29999 busy=fail")
	pinned, direct := w.idleCrowd(9, n/dests, dests), w.idleCrowd(uncaptured, n/dests, dests)
	b.during(pinned.open, direct.open, func(now monitor.Status) bool {
		return len(now.Flows) >= n && now.Process.Goroutines < n // a flow that sleeps has no goroutine
	})
	t.Logf("%d idle flows are open, with %.0f MiB; the bystander's last median was beside them", n, b.measure().RSS)
	b.during(func() { // an operator looks at them, again and again
		for range much(20, 2) {
			if _, ok := w.statusNow(); !ok {
				t.Error("status does not answer")
			}
		}
	}, nil, func(monitor.Status) bool { return true })
	b.during(pinned.end, direct.end, noneTo(9))
	for addr, server := range pinned.servers {
		if out := server.Stdout(); out != "listening\n" {
			t.Errorf("the server at %s says: %.200s", addr, out)
		}
	}
}
