package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/netstack/lab"
)

// SIGHUP while all kinds of things go on.

// rulesFile is a file of rules that a pinproxy reads.
type rulesFile struct {
	t    *testing.T
	path string
	n    int // how often it was reread
}

func newRulesFile(t *testing.T, rules ...string) *rulesFile {
	f := &rulesFile{t: t, path: filepath.Join(t.TempDir(), "pinproxy.rules")}
	f.write(rules...)
	return f
}

// write replaces the whole file.
func (f *rulesFile) write(rules ...string) {
	f.t.Helper()
	err := os.WriteFile(f.path+".new", []byte(strings.Join(rules, "\n")+"\n"), 0o644)
	if err == nil {
		err = os.Rename(f.path+".new", f.path)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// reread makes p follow new rules, and returns when it does.
func (f *rulesFile) reread(p *running, rules ...string) {
	f.t.Helper()
	f.write(rules...)
	_ = p.Signal(unix.SIGHUP)
	f.n++
	p.await("rules reread", f.n)
}

// refused makes p try to follow new rules, and returns p's objection.
func (f *rulesFile) refused(p *running, rules ...string) entry {
	f.t.Helper()
	n := len(p.entries("rules not reread, the former ones stay"))
	f.write(rules...)
	_ = p.Signal(unix.SIGHUP)
	return p.await("rules not reread, the former ones stay", n+1)[n]
}

// from returns the address from which the server sees a new connection to addr.
func (w *network) from(server *lab.Server, addr string) netip.AddrPort {
	w.t.Helper()
	before := len(server.Seen())
	c := w.mustConnect(addr)
	echo(w.t, c, "hello")
	_ = c.CloseWrite()
	_, _ = io.Copy(io.Discard, c)
	_ = c.Close()
	seen := server.Seen()
	if len(seen) != before+1 {
		w.t.Fatalf("%d connections came instead of one", len(seen)-before)
	}
	return seen[before]
}

// The rules change twenty times under a thousand flows, half of them of a rule that goes and comes, and under a
// program that connects through a kept rule without a pause. The firewall passes only the pins, so it would drop and
// count a packet that left from anywhere else.
func TestReloadUnderLoad(t *testing.T) {
	const flows = 500 // of each rule
	w := newNetwork(t)
	w.names()
	server := w.Server.Serve(":7", lab.Echo)
	w.Server.Serve(":8", lab.Echo)
	web := w.Server.Serve(":443", lab.Echo)
	firewall := w.Router.Firewall(lab.Filter{Ports: []lab.PortRange{{First: 63999, Last: 63999}, {First: 20000, Last: 20999}, {First: 21000, Last: 21999}}})
	full := []string{
		"# what stays",
		"www.bank.example:443=63999",
		"203.0.113.0/24:7=20000-20999",
		"# what goes and comes",
		"203.0.113.2:8=21000-21999 busy=fail",
		"*.example:8443=22000",
	}
	other := []string{
		"10.0.0.0/8:1-65535=22000-22010",
		"www.bank.example:443=63999 # as before",
		"three.bank.example:80,8000-65535=22011",
		"203.0.113.0/24:7=20000-20999",
		"[2001:db8:cafe::/48]:22=22012",
	}
	file := newRulesFile(t, full...)
	p := w.pinproxy("--rules", file.path)

	var open []net.Conn
	for i := range 2 * flows {
		c := w.mustConnect(at(lab.Server4, 7+i%2))
		echo(t, c, "begun")
		open = append(open, c)
	}

	ctx, cancel := context.WithCancel(t.Context())
	var connected atomic.Int64
	prober := make(chan error, 1)
	go func() { // runs until ctx ends or a connection fails
		for ctx.Err() == nil {
			if err := w.probe(); err != nil {
				prober <- fmt.Errorf("connection %d: %w", connected.Load()+1, err)
				return
			}
			connected.Add(1)
		}
		prober <- nil
	}()
	for i := range 20 {
		file.reread(p, [][]string{other, full}[i%2]...)
		before := connected.Load()
		p.poll("the prober to connect", func() bool { return connected.Load() > before || len(prober) > 0 })
	}
	cancel()
	if err := <-prober; err != nil {
		t.Error(err)
	}
	t.Logf("%d connections through the kept rule", connected.Load())

	for i, c := range open {
		_ = c.SetDeadline(time.Now().Add(patience))
		echo(t, c, fmt.Sprintf("flow %d goes on", i))
		if t.Failed() {
			break
		}
	}
	if n := firewall.Dropped(); n > 0 {
		t.Errorf("%d packets came from elsewhere than a pin", n)
	}
	for _, from := range web.Seen() {
		if from.Port() != 63999 {
			t.Errorf("a connection came from %v", from)
		}
	}
	if n := len(server.Seen()); n != flows {
		t.Errorf("%d flows of the kept rule, want %d", n, flows)
	}

	// The host is in the state that a start with these rules gives it, whichever they are.
	file.reread(p, other...)
	reread := w.Client.Snapshot()
	for _, c := range open {
		_ = c.Close()
	}
	p.stop()
	w.pinproxy("--rules", file.path)
	if diff := cmp.Diff(numberless(w.Client.Snapshot()), numberless(reread)); diff != "" {
		t.Errorf("the host (-fresh +reread):\n%s", diff)
	}
}

// probe makes one connection by the kept rule and carries it to its end.
func (w *network) probe() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := w.Client.Dial(ctx, "tcp", at(lab.Server4, 443))
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "x"); err != nil {
		return err
	}
	_ = c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(c); string(b) != "x" || err != nil {
		return fmt.Errorf("got %q, %w", b, err)
	}
	return nil
}

var (
	captureRule = regexp.MustCompile(`iif lo ipproto \d+ (?:dport (\S+) )?lookup (\d+)`)
	anyTable    = regexp.MustCompile(`\b(table|lookup) (4\d{4})\b`)
	anyPriority = regexp.MustCompile(`priority 4[0-9]{3} `)
)

// numberless returns a snapshot with ports in place of table numbers, and without priorities, since these depend on
// what was there before.
func numberless(snapshot string) []string {
	ports := make(map[string]string)
	for _, m := range captureRule.FindAllStringSubmatch(snapshot, -1) {
		if ports[m[2]] == "" {
			ports[m[2]] = m[1]
		}
	}
	snapshot = anyTable.ReplaceAllStringFunc(snapshot, func(s string) string {
		m := anyTable.FindStringSubmatch(s)
		if p, captures := ports[m[2]]; captures {
			return m[1] + " of ports " + p
		}
		return s
	})
	list := lines(anyPriority.ReplaceAllString(snapshot, ""))
	slices.Sort(list)
	return list
}

// Whatever is wrong with a file, everything stays as it was, and the place is named.
func TestReloadOfBadRules(t *testing.T) {
	w := newNetwork(t)
	web := w.Server.Serve(":443", lab.Echo)
	file := newRulesFile(t, "203.0.113.2:443=63999")
	other := newRulesFile(t, "192.0.2.0/24:443=63998")
	p := w.pinproxy("--rules", file.path, "--rules", other.path, "--rule", "203.0.113.2:80=63000")
	before := w.Client.Snapshot()
	for _, test := range []struct {
		rules     []string
		err, hint string
	}{
		{[]string{"# good", "203.0.113.2:443=64000", "203.0.113.3:443 = 64001"}, file.path + ":3:16: a blank may stand only before an option", "203.0.113.3:443=64001"},
		{[]string{"203.0.113.2:443=64000", "203.0.113.2:443=64001"}, file.path + ":2", ""},
		{[]string{"203.0.113.2:443=64000 busy=never"}, file.path + `:1:28: there is no way "never"`, ""},
		{[]string{"203.0.113.2:80=64000"}, file.path + ":1", ""}, // ties with a rule of the command line
		{[]string{tooMany()}, "ranges of ports too many", ""},
	} {
		e := file.refused(p, test.rules...)
		if !strings.Contains(e.Err, test.err) || e.Hint != test.hint || e.Level != "ERROR" {
			t.Errorf("%q: logged %+v, want %q and %q", test.rules[0], e, test.err, test.hint)
		}
		if diff := cmp.Diff(lines(before), lines(w.Client.Snapshot())); diff != "" {
			t.Errorf("%q: the host changed (-before +after):\n%s", test.rules[0], diff)
		}
		if from := w.from(web, at(lab.Server4, 443)); from.Port() != 63999 {
			t.Errorf("%q: connection came from %v", test.rules[0], from)
		}
	}
	if err := os.Remove(other.path); err != nil {
		t.Fatal(err)
	}
	if e := file.refused(p, "203.0.113.2:443=64000"); e.Err != "read rules file "+other.path+": no such file or directory" {
		t.Errorf("a file is missing: logged %+v", e)
	}
	if from := w.from(web, at(lab.Server4, 443)); from.Port() != 63999 {
		t.Errorf("a file is missing: connection came from %v", from)
	}

	// Once all files are right again, they are followed. The rules of the command line stay.
	other.write("192.0.2.0/24:443=63997")
	file.reread(p, "203.0.113.2:443=64000")
	for addr, want := range map[string]uint16{at(lab.Server4, 443): 64000, at("192.0.2.9", 443): 63997} {
		if from := w.from(web, addr); from.Port() != want {
			t.Errorf("connection to %s came from %v, want %d", addr, from, want)
		}
	}
	out, _, err := w.Client.Run(w.command("status"))
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range []string{"203.0.113.2:80=63000", "203.0.113.2:443=64000", "192.0.2.0/24:443=63997"} {
		if !strings.Contains(out, rule) {
			t.Errorf("status does not show %s:\n%s", rule, out)
		}
	}
	if strings.Contains(out, "63999") {
		t.Errorf("status shows what is no rule any more:\n%s", out)
	}
	if out, _, err := w.Client.Run(w.command("check", "203.0.113.2:443")); err != nil || !strings.Contains(out, "64000") {
		t.Errorf("check says %v:\n%s", err, out)
	}

	// An emptied file is followed, too, but not in silence.
	file.reread(p)
	if e := p.entries("rules file " + file.path + " has no rule"); len(e) != 1 || e[0].Level != "WARN" {
		t.Errorf("of the empty file: logged %+v", e)
	}
}

// tooMany is a rule with more ranges of ports than the host's rule list has places.
func tooMany() string {
	var ports []string
	for p := 1; p < 2000; p += 2 {
		ports = append(ports, fmt.Sprint(p))
	}
	return "203.0.113.2:" + strings.Join(ports, ",") + "=64000"
}

// A flow keeps what it has and what it waits for. The next one gets the new rule.
func TestReloadChangesThePin(t *testing.T) {
	each(t, func(w *network, f family) {
		server := w.Server.Serve(at(f.server, 7), lab.Echo)
		file := newRulesFile(w.t, inRule(f.server)+":7=63999")
		p := w.pinproxy("--rules", file.path)
		held := w.mustConnect(at(f.server, 7))
		echo(w.t, held, "hello")
		waiting := make(chan error, 1)
		go func() {
			c, err := w.connect(at(f.server, 7))
			if err == nil {
				_, err = io.WriteString(c, "at last")
			}
			if err == nil {
				_, err = io.ReadFull(c, make([]byte, len("at last")))
			}
			waiting <- err
		}()
		p.poll("a flow to wait", func() bool { return strings.Contains(w.status(), `"stage":"waiting"`) })
		file.reread(p, inRule(f.server)+":7=64000")
		if from := w.from(server, at(f.server, 7)); from != f.from(64000) {
			w.t.Errorf("connection came from %v", from)
		}
		echo(w.t, held, "still there")
		file.reread(p, inRule(f.elsewhere)+":7=64001") // not captured any more
		if from := w.from(server, at(f.server, 7)); from.Port() == 63999 || from.Port() == 64000 {
			w.t.Errorf("without a rule a connection came from %v", from)
		}
		echo(w.t, held, "still there")
		select {
		case err := <-waiting:
			w.t.Errorf("who waited for the pin did not wait for it: %v", err)
		default:
		}
		_ = held.Close()
		if err := <-waiting; err != nil {
			w.t.Error(err)
		}
		seen := server.Seen()
		if last := seen[len(seen)-1]; last != f.from(63999) {
			w.t.Errorf("who waited for the old pin came from %v", last)
		}
	})
}

// A flow has its port whatever has become of its rule's text, and status says so.
func TestReloadChangesAnOption(t *testing.T) {
	w := newNetwork(t)
	w.Server.Serve(":7", lab.Echo)
	file := newRulesFile(t, "203.0.113.2:7=63999")
	p := w.pinproxy("--rules", file.path)
	echo(t, w.mustConnect(at(lab.Server4, 7)), "hello")
	file.reread(p, "203.0.113.2:7=63999 busy=fail")
	s, ok := w.statusNow()
	if !ok || len(s.Ports) != 1 || s.Ports[0].State != monitor.PortFlow || s.Rules[0].Free != 0 {
		t.Errorf("status says of the port %+v, of the rule %+v", s.Ports, s.Rules)
	}
}

// Hosts behind a gateway have no address that tells their open connections from others. The connections go on all
// the same, and their policy rules go with the last of them.
func TestReloadBehindAGateway(t *testing.T) {
	eachLAN(t, func(l *lan, f family) {
		server := l.Server.Serve(":7", lab.Echo)
		kept := l.Server.Serve(":8", lab.Echo)
		file := newRulesFile(l.t, inRule(f.server)+":7=62000-62009", inRule(f.server)+":8=63999")
		p := l.pins("--rules", file.path)
		lingering := func() int { return strings.Count(l.Client.Snapshot(), "priority 4399") }
		var open []net.Conn
		for range 5 {
			c := l.mustConnect(at(f.server, 7))
			echo(l.t, c, "hello")
			open = append(open, c)
		}
		other := l.mustConnect(at(f.server, 8))
		echo(l.t, other, "hello")
		file.reread(p, inRule(f.server)+":8=63999")
		if n := lingering(); n != len(open) {
			l.t.Errorf("%d rules for %d flows", n, len(open))
		}
		c := l.mustConnect(at(f.server, 7)) // bypasses pinproxy, which does not hide its address
		echo(l.t, c, "unpinned")
		for i := range 3 {
			for _, c := range append(open, other) {
				echo(l.t, c, fmt.Sprintf("round %d %s", i, strings.Repeat("x", 20_000)))
			}
			file.reread(p, inRule(f.server)+fmt.Sprintf(":8=63999 cooldown=%ds", i), inRule(f.server)+":9=62000")
		}
		if seen := server.Seen(); len(seen) != 6 || seen[5] != netip.MustParseAddrPort(c.LocalAddr().String()) {
			l.t.Errorf("connections came from %v", seen)
		}
		if seen := kept.Seen(); len(seen) != 1 {
			l.t.Errorf("connections of the kept rule came from %v", seen)
		}
		for _, c := range open {
			_ = c.Close()
		}
		p.poll("the rules of these flows to go", func() bool { return lingering() <= 1 })
		echo(l.t, other, "still there") // the text of its rule has changed
		_ = other.Close()
		p.poll("the last one to go", func() bool { return lingering() == 0 })
	})
}

// A masqueraded host's packets can't be told from others' of that host: its address is hidden only within the device.
func TestReloadBehindAGatewayThatMasquerades(t *testing.T) {
	eachLAN(t, func(l *lan, f family) {
		l.Client.Masquerade("pin0")
		server := l.Server.Serve(":7", lab.Echo)
		file := newRulesFile(l.t, inRule(f.server)+":7=63999", inRule(f.server)+":8=63999")
		p := l.pins("--rules", file.path)
		c := l.mustConnect(at(f.server, 7))
		echo(l.t, c, "hello")
		file.refused(p, tooMany())
		echo(l.t, c, "still there") // its rule is not gone
		file.reread(p, inRule(f.server)+":8=63999")
		if e := p.await("flow", 1)[0]; e.End != "its rule is gone" {
			l.t.Errorf("logged %+v", e)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			l.t.Errorf("%v, want a reset", err)
		}
		if n := strings.Count(l.Client.Snapshot(), "priority 4399"); n > 0 {
			l.t.Errorf("%d policy rules for it", n)
		}
		if n := len(server.Seen()); n != 1 {
			l.t.Errorf("the server saw %d connections", n)
		}
	})
}

// There is room for so many of them. The others, those that have been idle longest, are reset.
func TestReloadBehindAGatewayWithManyFlows(t *testing.T) {
	l := newLAN(t, 1500)
	server := l.Server.Serve(":7", lab.Echo)
	file := newRulesFile(t, "203.0.113.2:7=62000-62999", "203.0.113.2:8=63999")
	p := l.pins("--rules", file.path)
	const over = 4
	var open []net.Conn
	for range over + lingerMost {
		c := l.mustConnect(at(lab.Server4, 7))
		echo(t, c, "hello")
		open = append(open, c)
	}
	lingering := func() int { return strings.Count(l.Client.Snapshot(), "priority 4399") }
	file.reread(p, "203.0.113.2:7=62000-62999 busy=fail", "203.0.113.2:8=63999")
	if n := lingering(); n > 0 {
		t.Errorf("%d flows linger although they are captured", n)
	}
	file.reread(p, "203.0.113.2:8=63999")
	if n := lingering(); n != lingerMost {
		t.Errorf("%d flows linger", n)
	}
	for i, c := range open {
		if i >= over {
			echo(t, c, "still there")
		} else if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("flow %d: %v, want a reset", i, err)
		}
	}
	if n := len(server.Seen()); n != len(open) {
		t.Errorf("the server saw %d connections, want %d", n, len(open))
	}
	l.Server.Serve(":8", lab.Echo)
	echo(t, l.mustConnect(at(lab.Server4, 8)), "hello") // one more that rules without its own would not capture
	file.refused(p, tooMany())
	echo(t, open[over], "still there, though idle longest")
	p.kill()
	if _, _, err := l.Client.Run(l.command("cleanup")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(lines(p.before), lines(l.Client.Snapshot())); diff != "" {
		t.Errorf("cleanup left the host changed (-before +after):\n%s", diff)
	}
}

// status is what the control socket says.
func (w *network) status() string {
	w.t.Helper()
	out, _, err := w.Client.Run(w.command("status", "--json"))
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.ReplaceAll(strings.ReplaceAll(out, "\n", ""), ": ", ":")
}

// What is known of a name survives while there is a rule for it, even if nobody can be asked any more. Names in new
// rules are learned.
func TestReloadOfNames(t *testing.T) {
	w := newNetwork(t)
	var silent atomic.Bool
	known := lab.Zone(zone)
	dns := w.answer(func(q lab.Query) lab.Answer {
		if silent.Load() {
			return lab.Answer{Drop: true}
		}
		return known(q)
	})
	web := w.Server.Serve(":443", lab.Echo)
	file := newRulesFile(t, "192.0.2.200:443=63990")
	p := w.pinproxy("--rules", file.path)
	w.ask("ip4", "www.bank.example")
	if n := len(dns.Queries()); n != 1 || w.from(web, at(lab.Server4, 443)).Port() == 63999 {
		t.Errorf("something is known of names without a rule; %d queries", n)
	}

	// An exact name is looked up before pinproxy says that it follows the new rules. A wildcard waits for an answer.
	file.reread(p, "www.bank.example:443=63999", "*.example:443=63998")
	if from := w.from(web, at(lab.Server4, 443)); from.Port() != 63999 {
		t.Errorf("connection to a new name came from %v", from)
	}
	w.ask("ip4", "other.example")
	if from := w.from(web, at("192.0.2.80", 443)); from.Port() != 63998 {
		t.Errorf("connection to a name below a new wildcard came from %v", from)
	}

	// Different rules for the same names, and nobody to ask.
	silent.Store(true)
	for i := range 4 {
		pin := uint16(64000 + 2*i)
		file.reread(p, fmt.Sprintf("www.bank.example:%d,443=%d", 9000+i, pin), fmt.Sprintf("*.example:443=%d", pin+1))
		if from := w.from(web, at(lab.Server4, 443)); from.Port() != pin {
			t.Errorf("connection to a kept name came from %v, want %d", from, pin)
		}
		if from := w.from(web, at("192.0.2.80", 443)); from.Port() != pin+1 {
			t.Errorf("connection to a kept name below a wildcard came from %v, want %d", from, pin+1)
		}
	}

	// Without names in the rules, DNS is left alone, and addresses are nothing special.
	file.reread(p, "192.0.2.200:443=63990")
	if from := w.from(web, at("192.0.2.80", 443)); from.Port() == 64007 {
		t.Errorf("connection to a former name came from %v", from)
	}
	if snapshot := w.Client.Snapshot(); strings.Contains(snapshot, "dport 53-53") || strings.Contains(snapshot, "192.0.2.80") {
		t.Errorf("left behind:\n%s", snapshot)
	}
}

// systemd's Type=notify-reload.
func TestReloadTellsTheServiceManager(t *testing.T) {
	w := newNetwork(t)
	path, manager := serviceManager(t)
	_ = manager.SetDeadline(time.Now().Add(2 * patience))
	told := func(pattern string) {
		t.Helper()
		b := make([]byte, 4000)
		n, err := manager.Read(b)
		if err != nil || !regexp.MustCompile("^"+pattern+"$").Match(b[:n]) {
			t.Fatalf("the manager was told %q, %v; want %s", b[:n], err, pattern)
		}
	}
	file := newRulesFile(t, "203.0.113.2:443=63999")
	cmd := w.command("--log-format=json", "--rules", file.path)
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+path)
	p := w.startCommand(cmd)
	told("READY=1")
	file.reread(p, "203.0.113.2:443=64000")
	told(`RELOADING=1\nMONOTONIC_USEC=[1-9]\d{3,}`)
	told(`READY=1\nSTATUS=`)
	file.refused(p, "nonsense")
	told(`RELOADING=1\nMONOTONIC_USEC=[1-9]\d{3,}`)
	told(`READY=1\nSTATUS=rules not reread: ` + regexp.QuoteMeta(file.path) + `:1:\d+: .*`)
}

// SIGHUP has another meaning when it comes from a terminal that is gone.
func TestTerminalHangsUp(t *testing.T) {
	w := newNetwork(t)
	ptmx, tty := w.pty(user{})
	defer tty.Close()
	cmd := w.command("--log-format=json", "--rule", "203.0.113.2:443=63999")
	on(tty, cmd)
	cmd.Stderr, cmd.Stdout = nil, nil
	p := w.startCommand(cmd)
	p.expect(`"msg":"ready"`)
	_ = p.Signal(unix.SIGHUP)
	if e := p.await("rules reread", 1)[0]; e.Level != "INFO" {
		t.Errorf("logged %+v", e)
	}
	_ = tty.Close()
	_ = ptmx.Close()
	p.expect(`"msg":"ending"`)
	p.gone()
}
