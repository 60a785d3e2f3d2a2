package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// Resolvers on this host that programs ask and that cache answers: which of their own queries we see, and what they
// hide. docs/pinproxy.8 has a table of this.

// resolver is one of these resolvers.
type resolver struct {
	name    string
	program string
	config  string
	args    []string
	direct  bool // pinproxy asks the name server itself, not this resolver
	unseen  bool // its sockets are bound, and not captured
	forget  func(h *household, p *lab.Process)
}

const dnsmasqConfig = `
keep-in-foreground
user=root
pid-file=
log-facility=-
no-resolv
no-hosts
bind-interfaces
listen-address=127.0.0.1
`

const unboundConfig = `
server:
  interface: 127.0.0.1
  do-daemonize: no
  username: ""
  chroot: ""
  directory: "/run"
  pidfile: ""
  use-syslog: no
  num-threads: 1
  so-rcvbuf: 0
  so-sndbuf: 0
  module-config: "iterator"
`

const unboundForwards = `
forward-zone:
  name: "."
  forward-addr: ` + lab.Server4 + `
`

const nscdConfig = `
server-user root
enable-cache passwd no
enable-cache group no
enable-cache services no
enable-cache netgroup no
enable-cache hosts yes
positive-time-to-live hosts 600
persistent hosts no
`

// hangup makes a program forget what it knows.
func hangup(_ *household, p *lab.Process) { _ = p.Signal(unix.SIGHUP) }

var resolvers = []resolver{
	{name: "dnsmasq", program: "dnsmasq", config: dnsmasqConfig + "server=" + lab.Server4 + "\n", args: []string{"--conf-file=/run/resolver.conf"}, forget: hangup},
	{name: "dnsmasq by device", program: "dnsmasq", config: dnsmasqConfig + "server=" + lab.Server4 + "@eth0\n", args: []string{"--conf-file=/run/resolver.conf"}, unseen: true},
	{name: "unbound", program: "unbound", config: unboundConfig + unboundForwards, args: []string{"-c", "/run/resolver.conf"}, forget: hangup},
	{name: "unbound by address", program: "unbound", config: unboundConfig + "  outgoing-interface: " + lab.Client4 + "\n" + unboundForwards, args: []string{"-c", "/run/resolver.conf"}, unseen: true},
	{name: "nscd", program: "nscd", config: nscdConfig, args: []string{"-F", "-f", "/run/resolver.conf"}, direct: true, forget: func(h *household, _ *lab.Process) {
		h.must(h.command(need(h.t, "nscd"), "-f", "/run/resolver.conf", "-i", "hosts"))
	}},
}

func TestResolversOfTheHost(t *testing.T) {
	for _, r := range resolvers {
		t.Run(r.name, func(t *testing.T) {
			path := need(t, r.program)
			h := newHome(t)
			h.longLived()
			server := h.Server.Serve(":443", lab.Echo)
			ask := "127.0.0.1"
			if r.direct {
				ask = lab.Server4
			}
			h.write("etc/resolv.conf", "nameserver "+ask+"\noptions timeout:5\n")
			h.write("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
			h.write("run/resolver.conf", r.config)
			h.write("run/nscd/.keep", "")
			daemon, err := h.Client.Start(h.command(path, r.args...))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("%s:\n%s", r.program, daemon.Stderr())
				}
			})
			h.awaitResolver(r)

			// pin returns the port from which a connection comes to the address that programs get for name, or 0 for
			// any port.
			pin := func(name string) uint16 {
				t.Helper()
				before := len(server.Seen())
				c := h.mustConnect(h.lookUp(name) + ":443")
				echo(t, c, "hello")
				_ = c.Close()
				if port := server.Seen()[before].Port(); port >= 63990 {
					return port
				}
				return 0
			}
			for _, name := range []string{"early.bank.example", "www.shop.example", "fixed.shop.example"} {
				if got := pin(name); got != 0 {
					t.Fatalf("without pinproxy, a connection to %s came from the pin %d", name, got)
				}
			}
			known := h.lookUp("early.bank.example")
			if again := h.lookUp("early.bank.example"); again != known {
				t.Fatalf("it has no cache: %s, then %s", known, again)
			}

			h.pinproxy("--rule", "*.bank.example:443=63999", "--rule", "www.shop.example:443=63998", "--rule", "fixed.shop.example:443=63997")
			for _, want := range []struct {
				name, why string
				port      uint16
			}{
				{"early.bank.example", "it is in the cache since before the start", 0},
				{"late.bank.example", "the resolver asks for it now", when(!r.unseen, 63999)},
				{"late.bank.example", "its address is known", when(!r.unseen, 63999)},
				{"www.shop.example", "pinproxy asks for it, whom programs ask", when(!r.direct, 63998)},
				{"fixed.shop.example", "whoever asks, the address is the same", 63997},
			} {
				if got := pin(want.name); got != want.port {
					t.Errorf("a connection to %s came from %d, want %d: %s", want.name, got, want.port, want.why)
				}
			}
			if r.forget == nil {
				return
			}
			r.forget(h, daemon)
			poll(t, "the resolver to forget", func() bool {
				now, _, err := h.Client.Run(h.getent("early.bank.example")) // it may be deaf in the meantime
				return err == nil && !strings.HasPrefix(now, known+" ")
			})
			if got := pin("early.bank.example"); got != 63999 {
				t.Errorf("asked for anew, a connection came from %d", got)
			}
		})
	}
}

func when(yes bool, port uint16) uint16 {
	if yes {
		return port
	}
	return 0
}

// longLived answers for every name with an address that it has never given before, valid for ten minutes. For one
// name the address is always the same.
func (w *network) longLived() *lab.DNS {
	var count atomic.Int32
	return w.answer(func(q lab.Query) lab.Answer {
		if q.Name == "fixed.shop.example" {
			return lab.Addrs(q, 10*time.Minute, "192.0.2.126", "2001:db8:cafe::ffff")
		}
		n := count.Add(1) % 120
		return lab.Addrs(q, 10*time.Minute, fmt.Sprintf("192.0.2.%d", n+1), fmt.Sprintf("2001:db8:cafe::%x", n+1))
	})
}

// lookUp returns the address that the C library returns for a name, inside.
func (h *household) lookUp(name string) string {
	h.t.Helper()
	addr, _, _ := strings.Cut(h.must(h.getent(name)), " ")
	return addr
}

func (h *household) getent(name string) *exec.Cmd {
	return h.command(need(h.t, "getent"), "ahostsv4", name)
}

// awaitResolver returns when r answers.
func (h *household) awaitResolver(r resolver) {
	h.t.Helper()
	first := h.getent
	if r.program == "nscd" { // without nscd, programs ask the name server
		first = func(string) *exec.Cmd { return h.command(need(h.t, "nscd"), "-f", "/run/resolver.conf", "-g") }
	}
	poll(h.t, r.program, func() bool {
		_, _, err := h.Client.Run(first("ready.example"))
		return err == nil
	})
}

// A resolver on this host asks others for what pinproxy asks it. That does not make a name the one that an application
// asked for last.
func TestResolverAsksForUs(t *testing.T) {
	path := need(t, "dnsmasq")
	h := newHome(t)
	names := h.answer(func(q lab.Query) lab.Answer { return lab.Addrs(q, 10*time.Minute, "192.0.2.126") })
	server := h.Server.Serve(":443", lab.Echo)
	h.write("etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:5\n")
	h.write("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
	h.write("run/resolver.conf", dnsmasqConfig+"server="+lab.Server4+"\n")
	if _, err := h.Client.Start(h.command(path, "--conf-file=/run/resolver.conf")); err != nil {
		t.Fatal(err)
	}
	h.awaitResolver(resolver{program: "dnsmasq"})
	file := filepath.Join(h.dir, "rules")
	h.write("rules", "*.bank.example:443=63999\n")
	p := h.pinproxy("--rules", file)
	addr := h.lookUp("www.bank.example") + ":443"
	h.write("rules", "*.bank.example:443=63999\nwww.shop.example:443=63998\n")
	_ = p.Signal(unix.SIGHUP)
	p.await("rules reread", 1)
	if !slices.ContainsFunc(names.Queries(), func(q lab.Query) bool { return q.Name == "www.shop.example" }) {
		t.Error("dnsmasq has not asked for www.shop.example")
	}
	c := h.mustConnect(addr)
	echo(t, c, "hello")
	_ = c.Close()
	cameFrom(t, server.Seen(), 1, 63999)
}

// A resolver that asks each zone's own servers learns from one of them that a name is an alias, and the addresses from
// another. A wildcard is for the alias only.
func TestResolverFollowsAnAlias(t *testing.T) {
	path := need(t, "unbound")
	h := newHome(t)
	all := lab.Zone(`
		www.bank.example   60 CNAME www.edge.example
		www.edge.example   60 CNAME node.cdn.example
		node.cdn.example   60 A     192.0.2.7
		ready.example      60 A     192.0.2.8
	`)
	names := h.answer(func(q lab.Query) lab.Answer {
		a := all(q)
		a.Records = a.Records[:min(1, len(a.Records))] // a zone's server knows no other zone
		return a
	})
	server := h.Server.Serve(":443", lab.Echo)
	config := unboundConfig
	for _, zone := range []string{"bank.example", "edge.example", "cdn.example", "ready.example"} {
		config += "stub-zone:\n  name: " + zone + "\n  stub-addr: " + lab.Server4 + "\n"
	}
	h.write("etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:5\n")
	h.write("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
	h.write("run/resolver.conf", config)
	if _, err := h.Client.Start(h.command(path, "-c", "/run/resolver.conf")); err != nil {
		t.Fatal(err)
	}
	h.awaitResolver(resolver{program: "unbound"})
	h.pinproxy("--rule", "*.bank.example:443=63999")
	c := h.mustConnect(h.lookUp("www.bank.example") + ":443")
	echo(t, c, "hello")
	_ = c.Close()
	cameFrom(t, server.Seen(), 1, 63999)
	for _, alias := range []string{"www.bank.example", "www.edge.example", "node.cdn.example"} {
		if !slices.ContainsFunc(names.Queries(), func(q lab.Query) bool { return q.Name == alias }) {
			t.Errorf("nobody asked for %s", alias)
		}
	}
}
