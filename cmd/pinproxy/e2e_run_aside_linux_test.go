package main

import (
	"io"
	"net/netip"
	"strings"
	"testing"

	"pinproxy/netstack/lab"
)

// A command leaves from its own pin though the host's pinproxy has a rule for the same destination. What the command
// has no rule for, the host's rule pins.
func TestRunBesideHost(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		own, hosts := w.Server.Serve(":7", lab.Echo), w.Server.Serve(":8", lab.Echo)
		w.pinproxy("--rule", "*:7-8=61000")
		for _, f := range families {
			w.runs(w.by(u, "--rule", "*:7=63999", "--", "reach", at(f.server, 7)+",hello"), "hello\n")
			w.runs(w.by(u, "--rule", "*:7=63999", "--", "reach", at(f.server, 8)+",hello"), "hello\n")
			w.runs(w.by(u, "--rule", "*:7=62000", "--", "pinproxy", "--rule", "*:7=62001", "--", "reach", at(f.server, 7)+",hello"), "hello\n")
		}
		for i, from := range own.Seen() {
			if want := []uint16{63999, 62000}[i%2]; from.Port() != want {
				w.t.Errorf("a connection to port 7 came from %v, want port %d", from, want)
			}
		}
		for _, from := range hosts.Seen() {
			if from.Port() != 61000 {
				w.t.Errorf("a connection to port 8 came from %v, want the host's pin", from)
			}
		}
	})
}

// There is no way past --strict, so the command's connection does not leave at all.
func TestRunBesideStrictHost(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		server := w.Server.Serve(":7", lab.Echo)
		w.pinproxy("--rule", "*:7=61000", "--strict")
		r := w.result(w.by(u, "--rule", "*:7=63999", "--", "reach", at(lab.Server4, 7)+",hello"))
		if r.out != "no route to host\n" || !strings.Contains(r.said, "the pinproxy for this host captures it, by --strict") {
			w.t.Errorf("%+v", r)
		}
		if seen := server.Seen(); len(seen) > 0 {
			w.t.Errorf("a connection came from %v", seen)
		}
	})
}

// The pinproxy for the host starts while the command runs.
func TestRunBeforeHost(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		server := w.Server.Serve(":7", lab.Echo)
		wait, goOn := io.Pipe()
		reach := "reach " + at(lab.Server4, 7) + ",hello"
		cmd := w.by(u, "--rule", "*:7=63999", "--", "sh", "-c", reach+"; cat; "+reach)
		cmd.Stdin = wait
		ended := make(chan result)
		go func() { ended <- w.result(cmd) }()
		poll(w.t, "the command has connected", func() bool { return len(server.Seen()) == 1 })
		w.pinproxy("--rule", "*:7=61000")
		_ = goOn.Close()
		if r := <-ended; r.out != "hello\nhello\n" {
			w.t.Errorf("%+v", r)
		}
		seen := server.Seen()
		for _, from := range []netip.AddrPort{seen[0], seen[len(seen)-1]} {
			if from.Port() != 63999 {
				w.t.Errorf("connections came from %v, the first and the last not both from the command's pin", seen)
			}
		}
	})
}
