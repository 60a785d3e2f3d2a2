package main

import (
	"net"
	"sync"
	"testing"
	"time"

	"pinproxy/netstack/lab"
)

// Many programs that send at full speed to a server that does not read.
func TestFloodOfSlowUpstreams(t *testing.T) {
	w := newNetwork(t)
	over := make(chan struct{})
	w.Server.Serve(":9", func(c net.Conn) {
		_ = c.(*net.TCPConn).SetReadBuffer(4096)
		<-over
	})
	b := w.watched("--rule", lab.Server4+":9=20000-29999")
	n := much(1000, 10)
	b.during(func() {
		var all sync.WaitGroup
		for range n {
			all.Go(func() {
				c, err := w.connect(at(lab.Server4, 9))
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				_ = c.SetWriteDeadline(time.Now().Add(time.Duration(much(5000, 300)) * time.Millisecond))
				_, _ = c.Write(make([]byte, 16<<20)) // it does not end
				_ = c.SetLinger(0)
			})
		}
		all.Wait()
		close(over)
	}, nil, noneTo(9))
}
