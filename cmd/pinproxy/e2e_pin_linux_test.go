package main

import (
	"testing"
	"time"

	"pinproxy/netstack/lab"
)

// The main job: a plain program that names no source port gets through a firewall that wants one.
func TestFirewallLetsPlainClientIn(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, rule, url, from string }{
		{"exact name IPv4", "v4.bank.example:443=63999", "https://v4.bank.example/", "198.51.100.2:63999"},
		{"exact name IPv6", "v6.bank.example:443=63999", "https://v6.bank.example/", "[2001:db8:1::2]:63999"},
		{"wildcard IPv4", "*.bank.example:443=63999", "https://v4.bank.example/", "198.51.100.2:63999"},
		{"wildcard IPv6", "*.bank.example:443=63999", "https://v6.bank.example/", "[2001:db8:1::2]:63999"},
		{"prefix IPv4", "203.0.113.0/24:443=63999", "https://203.0.113.2/", "198.51.100.2:63999"},
		{"prefix IPv6", "[2001:db8:2::/48]:443=63999", "https://[2001:db8:2::2]/", "[2001:db8:1::2]:63999"},
		{"any destination", "*:443=63999", "https://v4.bank.example/", "198.51.100.2:63999"},
		{"any port", "v6.bank.example:*=63999", "https://v6.bank.example/", "[2001:db8:1::2]:63999"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newNetwork(t)
			w.names()
			w.letIn(test.rule, test.url, test.from)
		})
	}
}

// The client has two addresses of each family. The pin is the one that the kernel would not choose.
func TestFirewallLetsPlainClientInFromPinnedAddress(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, rule, url, from string }{
		{"IPv4", "v4.bank.example:443=198.51.100.3:63999", "https://v4.bank.example/", "198.51.100.3:63999"},
		{"IPv6", "v6.bank.example:443=[2001:db8:1::2]:63999", "https://v6.bank.example/", "[2001:db8:1::2]:63999"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newNetwork(t)
			w.names()
			w.Client.Addr("eth0", "198.51.100.3/24")
			w.Client.Addr("eth0", "2001:db8:1::3/64")
			w.letIn(test.rule, test.url, test.from)
		})
	}
}

// No IPv4 anywhere, not even for DNS.
func TestFirewallLetsPlainClientInOverIPv6Only(t *testing.T) {
	t.Parallel()
	needTUN(t)
	n := lab.ForTest(t)
	top := &lab.Topology{Client: n.Host("client"), Router: n.Host("router"), Server: n.Host("server")}
	top.Router.Forward()
	n.Link(top.Router, []string{lab.Near6 + "/64"}, top.Client, []string{lab.Client6 + "/64"})
	n.Link(top.Router, []string{lab.Far6 + "/64"}, top.Server, []string{lab.Server6 + "/64"})
	top.Client.Route("default", lab.Near6)
	top.Server.Route("default", lab.Far6)
	top.Server.DNS(lab.Zone(zone), at(lab.Server6, 53))
	w := &network{top, n, t, publicDir(t)}
	w.letIn("www.bank.example:443=63999", "https://www.bank.example/", "[2001:db8:1::2]:63999")
}

// letIn makes a plain client visit url: in vain without pinproxy, and from the given address with it.
func (w *network) letIn(rule, url, from string) {
	w.t.Helper()
	w.Server.HTTPS(":443", "www.bank.example", "v4.bank.example", "v6.bank.example", lab.Server4, lab.Server6)
	wall := w.Firewall(63999)
	short := 100 * time.Millisecond // enough to ask for the name, else twice as long
	poll(w.t, "a packet dropped at the firewall", func() bool {
		short *= 2
		if out, err := w.visit(short, url); err == nil {
			w.t.Fatalf("without pinproxy the client is let in: %s", out)
		}
		return wall.Dropped() > 0
	})
	w.pinproxy("--rule", rule)
	if out, err := w.visit(patience, url); out != "you came from "+from || err != nil {
		w.t.Errorf("client read %q, %v; want that it came from %s", out, err, from)
	}
}
