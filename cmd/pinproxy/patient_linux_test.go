package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// When nobody reads the log, lines are lost after a moment, and the next reader is told.
func TestLogThatNobodyReads(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	read := func() string {
		n, err := unix.IoctlGetInt(int(r.Fd()), unix.TIOCINQ)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, journal := range []bool{false, true} {
		log := newLogFor(w, options{}, journal)
		line := strings.Repeat("x", 1000)
		start := time.Now()
		for range 1000 { // a pipe takes 64 KiB
			log.Info(line)
		}
		if took := time.Since(start); took > 10*logPatience {
			t.Errorf("journal %v: a thousand lines took %v", journal, took)
		}
		seen := strings.Count(read(), line)
		log.Info("and on")
		log.Info("and on")
		told := strings.SplitAfter(read(), "\n")
		if seen < 10 || seen > 100 || len(told) != 4 || !strings.HasSuffix(told[0], fmt.Sprintf(" lost=%d\n", 1000-seen)) || strings.HasPrefix(told[0], "<4>") != journal ||
			!strings.Contains(told[1], "and on") || !strings.Contains(told[2], "and on") {
			t.Errorf("journal %v: %d lines, then %q", journal, seen, told)
		}
	}
}

// Connections and the end do not wait for whoever does not read the log.
func TestStopsWhileNobodyReadsTheLog(t *testing.T) {
	w := newNetwork(t)
	w.Server.Serve(":7", lab.Echo)
	r, stderr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer stderr.Close()
	cmd := w.command("--rule", "*:7=50000-50999", "--log-level", "debug")
	cmd.Stderr = stderr
	p := w.startCommand(cmd)
	read := bufio.NewReader(r)
	for line := ""; !strings.Contains(line, "msg=ready"); {
		if line, err = read.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	for range 500 { // 200 bytes of log for each, at least
		c, err := w.connect(at(lab.Server4, 7))
		if err != nil {
			t.Fatal(err)
		}
		echo(t, c, "hello")
		c.Close()
	}
	p.stop()
	stderr.Close()
	rest, _ := io.ReadAll(read)
	if n := strings.Count(string(rest), "msg=flow "); n < 10 || n > 490 {
		t.Errorf("%d lines of flows", n)
	}
}
