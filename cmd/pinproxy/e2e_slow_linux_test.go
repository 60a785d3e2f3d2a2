package main

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"pinproxy/netstack/lab"
)

// Floods of programs that do not take what they are sent.

// slow is how long they don't.
func slow() time.Duration { return time.Duration(much(5000, 300)) * time.Millisecond }

// crowd makes n programs connect to the flooded port at once, do something and reset the connection.
func (w *network) crowd(n int, do func(c *net.TCPConn)) {
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			c, err := w.connect(at(lab.Server4, 9))
			if err != nil {
				w.t.Error(err)
				return
			}
			defer c.Close()
			do(c)
			_ = c.SetLinger(0)
		})
	}
	all.Wait()
}

// Many programs that do not read as fast as they are sent to.
func TestFloodOfSlowReaders(t *testing.T) {
	w := newNetwork(t)
	w.Server.Serve(":9", lab.Source(1<<40))
	b := w.watched("--rule", lab.Server4+":9=20000-29999")
	b.during(func() {
		w.crowd(much(1000, 10), func(c *net.TCPConn) {
			_ = c.SetReadBuffer(4096)
			if _, err := io.ReadFull(c, make([]byte, 64<<10)); err != nil {
				t.Error(err)
			}
			time.Sleep(slow()) // it does not read
		})
	}, nil, noneTo(9))
}

// Many programs that send at full speed to a server that does not read.
func TestFloodOfSlowUpstreams(t *testing.T) {
	w := newNetwork(t)
	over := make(chan struct{})
	w.Server.Serve(":9", func(c net.Conn) {
		_ = c.(*net.TCPConn).SetReadBuffer(4096)
		<-over
	})
	b := w.watched("--rule", lab.Server4+":9=20000-29999")
	data := make([]byte, 16<<20) // one for all: the flood's own memory should not be what the bystander waits for
	b.during(func() {
		defer close(over)
		w.crowd(much(1000, 10), func(c *net.TCPConn) {
			_ = c.SetWriteDeadline(time.Now().Add(slow()))
			_, _ = c.Write(data) // this does not end
		})
	}, nil, noneTo(9))
}
