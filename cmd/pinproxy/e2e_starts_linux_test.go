package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// However often pinproxy starts and stops, it releases whatever it takes.

var starts = flag.Int("starts", 10, "how often TestStartAndStop starts and stops")

// again starts and stops pinproxy a number of times in one process, and then says what the process has left. It
// keeps its privileges, because they can be given away only once.
//
//	again N ARGS
func again() {
	times, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	o, err := parseArgs(os.Args[2:], (&handover{}).text)
	if err != nil {
		panic(err)
	}
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP) // makes the goroutine that receives signals, once
	least := math.MaxInt
	for range times {
		stop, cancel := context.WithCancel(context.Background())
		out := &readyWriter{ready: cancel}
		if err := serve(stop, context.Background(), o, &handover{}, out); err != nil {
			fmt.Printf("ended with %v: %s\n", err, out.text.String())
			os.Exit(1)
		}
		least = settled(least)
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			panic(err)
		}
		fmt.Println(least, len(fds))
	}
}

// settled returns the number of goroutines once those that only have to return are gone. If there are more than
// before, it gives them some time to do so, and otherwise very little.
func settled(before int) int {
	least := runtime.NumGoroutine()
	for looks, end := 0, time.Now().Add(patience/3); looks < 50 || least > before && time.Now().Before(end); looks++ {
		time.Sleep(time.Millisecond)
		least = min(least, runtime.NumGoroutine())
	}
	return least
}

// readyWriter calls ready when pinproxy says that it is.
type readyWriter struct {
	ready func()
	text  strings.Builder
}

func (w *readyWriter) Write(b []byte) (int, error) {
	w.text.Write(b) // slog writes one line at a time
	if strings.Contains(string(b), "ready") {
		w.ready()
	}
	return len(b), nil
}

// In one process: no goroutine and no descriptor is left over, and the host is what it was.
func TestStartAndStopInProcess(t *testing.T) {
	w := newNetwork(t)
	w.names()
	before := w.Client.Snapshot()
	cmd := program("again", append([]string{strconv.Itoa(*starts)}, everything...)...)
	cmd.Env = append(cmd.Env, "RUNTIME_DIRECTORY="+w.run)
	out, said, err := w.Client.Run(cmd)
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, said)
	}
	counts := lines(out)
	if len(counts) != *starts {
		t.Fatalf("%d counts, want %d", len(counts), *starts)
	}
	// The first start makes what the process keeps: the descriptors of the poller.
	first, last := counts[min(1, len(counts)-1)], counts[len(counts)-1]
	var early, late struct{ goroutines, descriptors int }
	_, err1 := fmt.Sscan(first, &early.goroutines, &early.descriptors)
	_, err2 := fmt.Sscan(last, &late.goroutines, &late.descriptors)
	if err1 != nil || err2 != nil || late.goroutines > early.goroutines || late.descriptors > early.descriptors {
		t.Errorf("goroutines and descriptors after start 2: %s, at the end: %s", first, last)
	}
	t.Logf("goroutines and descriptors at the end: %s", counts[len(counts)-1])
	if after := w.Client.Snapshot(); after != before {
		t.Errorf("the host was\n%s\nand is\n%s", before, after)
	}
}

// Of several that start at once one gets ahead, and the others say so. A device of the same name is not what they
// complain of.
func TestStartAtOnce(t *testing.T) {
	needRoot(t)
	w := newNetwork(t)
	var all []*running
	for range 3 {
		all = append(all, w.startPinproxy("--rule", "203.0.113.2:7=63999"))
	}
	ready := 0
	for _, p := range all {
		poll(t, "it to be ready, or to have ended", func() bool {
			select {
			case <-p.Done():
				return true
			default:
				return strings.Contains(p.Stderr(), `"msg":"ready"`)
			}
		})
		switch said := p.Stderr(); {
		case strings.Contains(said, `"msg":"ready"`):
			ready++
		case !strings.Contains(said, "another pinproxy is running in this network namespace: pid "):
			t.Errorf("one of the others said: %s", said)
		}
	}
	if ready != 1 {
		t.Errorf("%d are ready, want 1", ready)
	}
}

// As a new process each time, used in between.
func TestStartAndStop(t *testing.T) {
	w := newNetwork(t)
	w.names()
	server := w.Server.Serve(":443", lab.Echo)
	for range *starts {
		p := w.pinproxy(everything...)
		c := w.mustConnect(at(lab.Server4, 443))
		echo(t, c, "hello")
		_ = c.Close()
		p.stop() // and checks that the host is what it was
	}
	for _, from := range server.Seen() {
		if from.Port() != 63999 {
			t.Errorf("a connection came from %v", from)
		}
	}
}
