package main

import (
	"bufio"
	"io"
	"log/slog"
	"os"
	"strconv"
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
		all := read()
		if seen := strings.Count(all, line); seen < 10 || seen > 100 {
			t.Errorf("journal %v: %d lines in a full pipe", journal, seen)
		}
		logged := 1000
		for end := time.Now().Add(patience); !strings.Contains(all, " lost=") && time.Now().Before(end); logged++ {
			log.Info("and on")
			time.Sleep(time.Millisecond) // the write under way ends
			all += read()
		}
		lost, seen := 0, 0
		for text := range strings.Lines(all) {
			if _, n, ok := strings.Cut(text, " lost="); ok {
				if strings.HasPrefix(text, "<4>") != journal {
					t.Errorf("journal %v: %q", journal, text)
				}
				fewer, err := strconv.Atoi(strings.TrimSpace(n))
				if err != nil {
					t.Error(err)
				}
				lost += fewer
			} else {
				seen++
			}
		}
		if lost == 0 || lost+seen != logged {
			t.Errorf("journal %v: of %d lines %d were written, and %d lost", journal, logged, seen, lost)
		}
	}
}

// The kernel says that a terminal has room, and then lets a write wait. A reader that takes a little from time to time
// holds nothing up either.
func TestLogOnATerminalThatNobodyReads(t *testing.T) {
	w := newNetwork(t)
	ptmx, tty := w.pty(user{name: "root"})
	defer tty.Close()
	log := newLogFor(tty, options{logLevel: slog.LevelError}, false)
	fill := func() {
		t.Helper()
		start := time.Now()
		for range 500 {
			log.Error(strings.Repeat("x", 150))
		}
		if took := time.Since(start); took > 5*logPatience {
			t.Errorf("500 lines took %v", took)
		}
	}
	fill()
	r := bufio.NewReader(ptmx)
	for range 3 { // it goes on after each
		if _, err := r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		fill()
	}
	told := make(chan string)
	go func() { // ends with ptmx
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if strings.Contains(line, " lost=") {
				told <- line
				return
			}
		}
	}()
	for end := time.After(patience); ; {
		select {
		case <-told:
			return
		case <-end:
			t.Fatal("nothing is said of the lines that were lost")
		case <-time.After(10 * time.Millisecond):
			log.Error("and on")
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
