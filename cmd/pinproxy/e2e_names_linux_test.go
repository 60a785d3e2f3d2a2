package main

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"pinproxy/netstack/lab"
)

// Connections by name, to addresses that nobody knew before the answer.

// ask looks up addresses of one family ("ip4", "ip6") for name, as a program on the client does.
func (w *network) ask(network, name string) []netip.Addr {
	w.t.Helper()
	found, err := w.Client.Resolver().LookupNetIP(soon(w.t), network, name)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := range found {
		found[i] = found[i].Unmap()
	}
	return found
}

// The name server never gives the same address twice in a row, and gives each for one second only.
func TestEveryAnswerHasOtherAddresses(t *testing.T) {
	t.Parallel()
	for _, rule := range []string{"turn.bank.example:443=63999", "*.bank.example:443=63999"} {
		t.Run(rule, func(t *testing.T) {
			w := newNetwork(t)
			var count atomic.Int32
			w.answer(func(q lab.Query) lab.Answer {
				n := count.Add(1) % 120
				return lab.Addrs(q, time.Second, fmt.Sprintf("192.0.2.%d", n+1), fmt.Sprintf("2001:db8:cafe::%x", n+1))
			})
			server := w.Server.Serve(":443", lab.Echo)
			w.pinproxy("--rule", rule)
			for i := range 200 {
				addr := w.ask([]string{"ip4", "ip6"}[i%2], "turn.bank.example")[0]
				c := w.mustConnect(netip.AddrPortFrom(addr, 443).String())
				_ = c.CloseWrite()
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			}
			seen := server.Seen()
			if stray := slices.IndexFunc(seen, func(a netip.AddrPort) bool { return a.Port() != 63999 }); len(seen) != 200 || stray >= 0 {
				t.Errorf("%d connections came, want 200; number %d was the first that did not come from the pin", len(seen), stray)
			}
		})
	}
}

// A rule is for the name that was asked for, not for the name that this is an alias of.
func TestNameIsAnAlias(t *testing.T) {
	each(t, func(w *network, f family) {
		w.answer(lab.Zone(`
			pay.bank.example  1 CNAME edge.cdn.example
			edge.cdn.example  1 CNAME node.cdn.example
			node.cdn.example  1 A     192.0.2.7
			node.cdn.example  1 AAAA  2001:db8:cafe::7
		`))
		server := w.Server.Serve(":443", lab.Echo)
		p := w.pinproxy("--rule", "*.bank.example:443=63999")
		addr := w.ask("ip"+f.name[3:], "pay.bank.example")[0]
		c := w.mustConnect(netip.AddrPortFrom(addr, 443).String())
		echo(w.t, c, "hello")
		_ = c.Close()
		if seen := server.Seen(); seen[0] != f.from(63999) {
			w.t.Errorf("connection came from %v", seen)
		}
		if e := p.await("flow", 1)[0]; e.Name != "pay.bank.example" {
			w.t.Errorf("logged %+v", e)
		}
	})
}

// The answer does not fit into a datagram, and the application asks again over TCP.
func TestAnswerIsTruncated(t *testing.T) {
	each(t, func(w *network, f family) {
		names := w.answer(func(q lab.Query) lab.Answer {
			a := lab.Addrs(q, time.Minute, "192.0.2.8", "2001:db8:cafe::8")
			a.Truncate = true
			return a
		})
		server := w.Server.Serve(":443", lab.Echo)
		w.pinproxy("--rule", "*.bank.example:443=63999")
		addr := w.ask("ip"+f.name[3:], "big.bank.example")[0]
		echo(w.t, w.mustConnect(netip.AddrPortFrom(addr, 443).String()), "hello")
		if seen := server.Seen(); seen[0] != f.from(63999) {
			w.t.Errorf("connection came from %v", seen)
		}
		over := make(map[string]bool)
		for _, q := range names.Queries() {
			over[q.Network] = true
			if q.Name != "big.bank.example" || q.Type != map[string]dnsmessage.Type{"IPv4": dnsmessage.TypeA, "IPv6": dnsmessage.TypeAAAA}[f.name] {
				w.t.Errorf("somebody asked %+v", q)
			}
		}
		if !over["udp"] || !over["tcp"] {
			w.t.Errorf("asked over %v, want UDP and TCP", over)
		}
	})
}
