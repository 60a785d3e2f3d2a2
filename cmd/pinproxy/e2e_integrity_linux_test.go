package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pinproxy/netstack/lab"
)

// Every byte and every ending is as over a direct connection.

var talkBytes = flag.Int64("talk-bytes", 64<<20, "how much TestTalks carries each way, direct and pinned")

// converse has talks until total bytes were heard, atATime talks at once, over connections to the addresses in turn.
// It returns the errors of the first few that went wrong.
func (w *network) converse(ts *talks, atATime int, total int64, addrs ...string) (wrong []error) {
	var (
		all   sync.WaitGroup
		seeds atomic.Uint64
		mu    sync.Mutex
	)
	for range atATime {
		all.Go(func() {
			for ts.bytes.Load() < total {
				seed := seeds.Add(1)
				err := w.talk(ts, seed, addrs[seed%uint64(len(addrs))])
				if err == nil {
					continue
				}
				mu.Lock()
				wrong = append(wrong, err)
				enough := len(wrong) > 5
				mu.Unlock()
				if enough {
					return
				}
			}
		})
	}
	all.Wait()
	return wrong
}

func (w *network) talk(ts *talks, seed uint64, addr string) error {
	ctx, cancel := context.WithTimeout(context.Background(), talkPatience)
	defer cancel()
	c, err := w.Client.Dial(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	return ts.one(seed, c.(*net.TCPConn))
}

// 200 talks at a time with random sizes and pauses, half-closes, and resets at random places.
func TestTalks(t *testing.T) {
	w := newNetworkAlone(t)
	for _, way := range []struct {
		name string
		port int
		args []string // pinproxy's arguments, if it runs
	}{
		{"direct", 8, nil},
		{"pinned", 7, []string{"--rule", "*:7=20000-20999"}},
		{"pinned, without offload", 7, []string{"--rule", "*:7=20000-20999", "--offload=off"}},
	} {
		ts := newTalks(4 << 20)
		server := w.Server.Serve(fmt.Sprint(":", way.port), ts.serve)
		var p *running
		if way.args != nil {
			p = w.pinproxy(way.args...)
		}
		start := time.Now()
		for _, err := range w.converse(ts, 200, *talkBytes, at(lab.Server4, way.port), at(lab.Server6, way.port)) {
			t.Errorf("%s: %v", way.name, err)
		}
		t.Logf("%s: %d talks, %d MiB in %v", way.name, ts.count.Load(), ts.bytes.Load()>>20, time.Since(start).Round(time.Second))
		for _, from := range server.Seen() {
			if pinned := from.Port() >= 20000 && from.Port() <= 20999; pinned != (p != nil) {
				t.Fatalf("%s: a connection came from %v", way.name, from)
			}
		}
		server.Close()
		if p != nil {
			p.stop()
		}
	}
}

// The path to the upstream loses, duplicates and reorders packets. Nobody repeats a lost reset, so none is sent.
func TestTalksOverARoughPath(t *testing.T) {
	w := newNetwork(t)
	rough := w.Router.Rough(lab.Roughness{Loss: 0.01, Duplication: 0.01, Reordering: 0.02, Seed: 1})
	ts := newTalks(256 << 10)
	ts.orderly = true
	server := w.Server.Serve(":7", ts.serve)
	w.pinproxy("--rule", "*:7=20000-20999")
	for _, err := range w.converse(ts, 50, 8<<20, at(lab.Server4, 7), at(lab.Server6, 7)) {
		t.Error(err)
	}
	passed, mistreated := rough.Counts()
	t.Logf("%d talks, %d MiB, %d packets passed, %d mistreated", ts.count.Load(), ts.bytes.Load()>>20, passed, mistreated)
	if mistreated == 0 {
		t.Error("the path was smooth")
	}
	for _, from := range server.Seen() {
		if from.Port() < 20000 || from.Port() > 20999 {
			t.Fatalf("a connection came from %v", from)
		}
	}
}
