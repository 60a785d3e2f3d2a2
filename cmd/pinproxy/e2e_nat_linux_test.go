package main

import (
	"context"
	"io"
	"strings"
	"testing"

	"pinproxy/netstack/host"
	"pinproxy/netstack/lab"
)

// This host's NAT gives what leaves another source port. The socket has its pin, and only the server would know. The log
// and check say so, also where a firewall then lets nothing in. The exception that the hint gives helps.
func TestNATThatChangesThePin(t *testing.T) {
	const warning = "this host's NAT changes the flow's source"
	each(t, func(w *network, f family) {
		w.Client.Scramble("eth0", 0)
		server := w.Server.Serve(at(f.server, 7), lab.Echo)
		p := w.pinproxy("--rule", inRule(f.server)+":7-8=63999", "--dial-timeout=2s")
		c := w.mustConnect(at(f.server, 7))
		echo(w.t, c, "hello")
		_ = c.CloseWrite()
		_, _ = io.Copy(io.Discard, c)
		_ = c.Close()
		seen := server.Seen()[0]
		if line := p.await(warning, 1)[0]; line.Leaves != seen.String() || seen.Port() == 63999 || !strings.Contains(line.Hint, "meta mark 0x70 accept") {
			w.t.Errorf("the server saw %v, the log says %+v", seen, line)
		}
		p.await("flow", 1)
		said, _, err := w.Client.Run(w.command("check", "--connect", at(f.server, 7)))
		for _, want := range []string{
			"connected no: this host's NAT changes the source: a connection from port 63999 leaves from " + server.Seen()[1].String(),
			"meta mark 0x70 accept",
			"pinned    no: this host's NAT",
			"By its rule, but then this host's NAT chooses another.",
		} {
			if exitStatus(err) != exitFailed || !strings.Contains(said, want) {
				w.t.Errorf("check: %v, no %q in\n%s", err, want, said)
			}
		}
		w.Firewall(63999)
		ctx, cancel := context.WithCancel(w.t.Context())
		done := make(chan error)
		go func() {
			_, err := w.Client.DialFrom(ctx, "tcp", "", at(f.server, 8))
			done <- err
		}()
		p.await(warning, 2)
		cancel()
		if <-done == nil {
			w.t.Error("the firewall let another port in")
		}
	})
}

func TestNATThatSparesTheMark(t *testing.T) {
	each(t, func(w *network, f family) {
		w.Client.Scramble("eth0", host.Mark)
		server := w.Server.Serve(at(f.server, 7), lab.Echo)
		w.pinproxy("--rule", inRule(f.server)+":7=63999")
		said, _, err := w.Client.Run(w.command("check", "--connect", at(f.server, 7)))
		seen := server.Seen()
		if err != nil || len(seen) == 0 || seen[0] != f.from(63999) {
			w.t.Errorf("%v; the server saw %v\n%s", err, seen, said)
		}
	})
}
