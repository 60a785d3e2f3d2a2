package main

import (
	"context"
	"flag"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pinproxy/netstack/lab"
)

var kills = flag.Int("kills", 8, "how often TestKilledAtAnyMoment kills")

// pinproxy is killed at any moment, while it starts, serves and is used. Other traffic of the machine goes on
// working, and the next start or cleanup restores the machine.
func TestKilledAtAnyMoment(t *testing.T) {
	const (
		latest = 120 * time.Millisecond // after the start; on a quiet machine pinproxy is ready after some 30 ms
		atOnce = 3 * time.Second        // a lost SYN is sent again after 1 s
	)
	w := newNetwork(t)
	w.names()
	pinned := w.Server.Serve(":443", lab.Echo)
	w.Server.Serve(":10", lab.Echo)
	before := w.Client.Snapshot()
	open := w.mustConnect(at(lab.Server4, 10))
	random := rand.New(rand.NewPCG(1, 1))
	var slowest time.Duration
	for i := range *kills {
		p := w.startPinproxy(everything...)
		ctx, cancel := context.WithCancel(t.Context())
		load := w.load(ctx)
		time.Sleep(time.Duration(random.Int64N(int64(latest)))) // any moment is right
		p.kill()

		start := time.Now()
		_ = open.SetDeadline(start.Add(patience))
		echo(t, open, "still open")
		for _, f := range families {
			c := w.mustConnect(at(f.server, 10))
			echo(t, c, "other traffic")
			_ = c.Close()
			w.ask("ip"+f.name[3:], "www.bank.example")
		}
		if took := time.Since(start); took > atOnce {
			t.Errorf("kill %d: other traffic took %v", i, took)
		} else {
			slowest = max(slowest, took)
		}
		cancel()
		load.Wait()
		if i%4 == 0 {
			if _, said, err := w.Client.Run(w.command("cleanup")); err != nil {
				t.Fatalf("kill %d: cleanup: %v, %s", i, err, said)
			}
			if diff := cmp.Diff(lines(before), lines(w.Client.Snapshot())); diff != "" {
				t.Fatalf("kill %d: cleanup left the host changed (-before +after):\n%s", i, diff)
			}
		}
	}
	t.Logf("killed %d times; other traffic worked within %v", *kills, slowest)
	p := w.pinproxy(everything...)
	p.before = before
	c := w.mustConnect(at(lab.Server4, 443))
	echo(t, c, "hello")
	_ = c.Close()
	if seen := pinned.Seen(); seen[len(seen)-1].Port() != 63999 && seen[len(seen)-1].Port() < 63000 {
		t.Errorf("the last connection came from %v", seen[len(seen)-1])
	}
	p.stop()
}

// load uses the rules of everything until ctx ends, and ignores failures.
func (w *network) load(ctx context.Context) *sync.WaitGroup {
	var all sync.WaitGroup
	for i := range 4 {
		f := families[i%2]
		all.Go(func() {
			for ctx.Err() == nil {
				try, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
				_, _ = w.Client.Resolver().LookupNetIP(try, "ip"+f.name[3:], "three.bank.example")
				if c, err := w.Client.Dial(try, "tcp", at(f.server, 443)); err == nil {
					_ = c.SetDeadline(time.Now().Add(100 * time.Millisecond))
					_, _ = io.WriteString(c, "hello")
					_, _ = c.Read(make([]byte, 5))
					_ = c.Close()
				}
				cancel()
			}
		})
	}
	return &all
}
