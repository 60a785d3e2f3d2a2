package check

import (
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/netstack/host"
	"pinproxy/proxy/sockdiag"
	"pinproxy/rules"
)

// bank is a captured destination with a rule whose pin is 63998 and 63999, both of them free.
func bank(t *testing.T) situation {
	t.Helper()
	r, err := rules.Parse("203.0.113.2:443=63998-63999 busy=wait:10s,any")
	if err != nil {
		t.Fatal(err)
	}
	return situation{
		dst: netip.MustParseAddrPort("203.0.113.2:443"), rule: r, running: true, pid: 812, theirs: r.String(),
		way:   host.Way{Ours: true, Link: "pin0", Source: host.Addr4},
		ports: []portState{port(63998), port(63999)},
	}
}

func port(p uint16) portState {
	return portState{
		local: netip.AddrPortFrom(netip.IPv4Unspecified(), p), mayEnd: true,
		way: host.Way{Link: "eth0", Source: netip.MustParseAddr("198.51.100.2")},
	}
}

// socket returns a socket of the process pid; 0 stands for a socket that no process has any more.
func socket(state sockdiag.State, local, remote string, pid int) socketState {
	s := socketState{Socket: sockdiag.Socket{State: state, Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote), UID: 1000}}
	if pid != 0 {
		s.owner = sockdiag.Process{PID: pid, Name: "nginx"}
	}
	s.ours, s.same = pid == 812, s.Remote.String() == "203.0.113.2:443"
	return s
}

func errno(call string, e syscall.Errno) error { return os.NewSyscallError(call, e) }

func TestVerdict(t *testing.T) {
	const local, dst, other = "198.51.100.2:63998", "203.0.113.2:443", "203.0.113.9:443"
	for _, test := range []struct {
		name    string
		is      func(s *situation)
		pinned  bool
		port    uint16
		cause   string // part of it
		chosen  string
		taken   string // for the first port, if that is not the cause
		hintHas string
		away    bool
	}{
		{name: "free", is: func(*situation) {}, pinned: true, port: 63998, chosen: "port 63998 of 198.51.100.2, of the pin's 2 the least recently used"},
		{name: "held by a flow", is: func(s *situation) {
			s.ports[0].held = &monitor.Held{Port: 63998, Flow: 7, Src: "192.0.0.8:40000"}
			s.ports[0].sockets = []socketState{socket(sockdiag.Established, local, dst, 812)}
		}, pinned: true, port: 63999, taken: "port 63998 is held by flow 7 from 192.0.0.8:40000", chosen: "port 63999"},
		{name: "listener, and a flow that waits for its end", is: func(s *situation) {
			s.ports = s.ports[:1]
			s.ports[0].held = &monitor.Held{Port: 63998, Flow: 7, Src: "192.0.0.8:40000"}
			s.ports[0].bindErr = errno("bind", syscall.EADDRINUSE)
			s.ports[0].sockets = []socketState{socket(sockdiag.Listen, "0.0.0.0:63998", "0.0.0.0:0", 99)}
		}, cause: "port 63998 is taken by nginx (pid 99), which listens on 0.0.0.0:63998", chosen: "it waits", hintHas: "pid 99"},
		{name: "listener, and a flow that tries again soon", is: func(s *situation) {
			s.ports = s.ports[:1]
			s.ports[0].resting = time.Second
			s.ports[0].bindErr = errno("bind", syscall.EADDRINUSE)
			s.ports[0].sockets = []socketState{socket(sockdiag.Listen, "0.0.0.0:63998", "0.0.0.0:0", 99)}
		}, cause: "port 63998 is taken by nginx (pid 99), which listens on 0.0.0.0:63998", chosen: "it waits", hintHas: "pid 99"},
		{name: "all held", is: func(s *situation) {
			for i := range s.ports {
				s.ports[i].held = &monitor.Held{Flow: 7, Src: "192.0.0.8:40000"}
			}
		}, cause: "none of the first 2 of the pin's 2 ports is free; port 63998 is held by flow 7", chosen: "it waits for one, 10s at most, then it leaves from any port", hintHas: "busy=reclaim"},
		{name: "resting", is: func(s *situation) {
			s.ports = s.ports[:1]
			s.ports[0].resting = 1500 * time.Millisecond
		}, cause: "port 63998 rests for 2s more", chosen: "it waits for one"},
		{name: "privileged", is: func(s *situation) {
			s.ports = s.ports[:1]
			s.ports[0].privileged, s.ports[0].bindErr = true, errno("bind", syscall.EACCES)
		}, cause: "source port 63998 is privileged", chosen: "cannot be used: the connection fails", hintHas: "CAP_NET_BIND_SERVICE"},
		{name: "privileged for us alone", is: func(s *situation) {
			s.ports[0].bindErr = errno("bind", syscall.EACCES)
		}, pinned: true, port: 63998, chosen: "port 63998"},
		{name: "address not here", is: func(s *situation) {
			s.ports = s.ports[:1]
			s.ports[0].bindErr = errno("bind", syscall.EADDRNOTAVAIL)
		}, cause: "is not on this host", chosen: "cannot be used", hintHas: "ip address add"},
		{name: "address of the other family", is: func(s *situation) {
			r, err := rules.Parse("*:443=[2001:db8:1::2]:63998")
			if err != nil {
				panic(err)
			}
			s.rule = r
			s.theirs, s.ports = s.rule.String(), s.ports[:1]
			s.ports[0].bindErr, s.ports[0].wayErr = errno("bind", syscall.EADDRNOTAVAIL), syscall.EINVAL
		}, cause: "source address 2001:db8:1::2 is of the other family", chosen: "cannot be used", hintHas: "the name's IPv6 addresses"},
		{name: "listener", is: func(s *situation) {
			s.ports = s.ports[:1]
			s.ports[0].bindErr = errno("bind", syscall.EADDRINUSE)
			s.ports[0].sockets = []socketState{
				socket(sockdiag.Established, local, other, 812),
				socket(sockdiag.Established, local, other, 99),
				socket(sockdiag.Listen, "0.0.0.0:63998", "0.0.0.0:0", 99),
			}
		}, cause: "port 63998 is taken by nginx (pid 99), which listens on 0.0.0.0:63998", chosen: "it waits", hintHas: "pid 99"},
		{name: "listeners of both families", is: func(s *situation) {
			s.ports = s.ports[:1]
			s.ports[0].bindErr = errno("bind", syscall.EADDRINUSE)
			only6 := socket(sockdiag.Listen, "[::]:63998", "[::]:0", 98)
			only6.V6Only = true
			s.ports[0].sockets = []socketState{only6, socket(sockdiag.Listen, "0.0.0.0:63998", "0.0.0.0:0", 99)}
			if why := only6.why(s.ports[0]); why != "harmless: it is of the other family" {
				t.Error(why)
			}
		}, cause: "port 63998 is taken by nginx (pid 99), which listens on 0.0.0.0:63998", chosen: "it waits", hintHas: "pid 99"},
		{name: "a listener for both families", is: func(s *situation) {
			s.ports = s.ports[:1]
			s.ports[0].bindErr = errno("bind", syscall.EADDRINUSE)
			s.ports[0].sockets = []socketState{socket(sockdiag.Listen, "[::]:63998", "[::]:0", 99)}
		}, cause: "port 63998 is taken by nginx (pid 99), which listens on [::]:63998", chosen: "it waits", hintHas: "pid 99"},
		{name: "a command's pinproxy", is: func(s *situation) {
			s.ports = s.ports[:1]
			other := socket(sockdiag.Established, local, dst, 99)
			other.owner.Name = "pinproxy"
			s.ports[0].sockets = []socketState{other}
		}, cause: "port 63998 is taken by pinproxy (pid 99), which is connected", chosen: "it waits", hintHas: "a range of source ports in the rule"},
		{name: "listener on another address", is: func(s *situation) {
			s.ports[0].sockets = []socketState{socket(sockdiag.Listen, "127.0.0.1:63998", "0.0.0.0:0", 99)}
		}, pinned: true, port: 63998, chosen: "port 63998"},
		{name: "another program, another destination", is: func(s *situation) {
			s.ports = s.ports[:1]
			s.ports[0].bindErr = errno("bind", syscall.EADDRINUSE)
			s.ports[0].sockets = []socketState{socket(sockdiag.Established, local, other, 99)}
		}, cause: "which is connected from " + local + " to " + other, chosen: "it waits"},
		{name: "another program that shares", is: func(s *situation) {
			s.ports[0].sockets = []socketState{socket(sockdiag.Established, local, other, 99)}
		}, pinned: true, port: 63998, chosen: "port 63998"},
		{name: "another program, the very destination", is: func(s *situation) {
			s.ports[0].sockets = []socketState{socket(sockdiag.Established, local, dst, 99)}
		}, pinned: true, port: 63999, taken: "port 63998 is taken by nginx", chosen: "port 63999"},
		{name: "a program that can't be seen", is: func(s *situation) {
			s.ports = s.ports[:1]
			s.ports[0].sockets = []socketState{socket(sockdiag.Established, local, dst, 0)}
		}, cause: "by a program of user 1000, which is connected", chosen: "it waits", hintHas: "sudo ss -tanp sport = :63998"},
		{name: "TIME_WAIT that can be ended", is: func(s *situation) {
			s.ports[0].sockets = []socketState{socket(sockdiag.TimeWait, local, dst, 0)}
		}, pinned: true, port: 63998, chosen: "port 63998"},
		{name: "TIME_WAIT of a program without SO_REUSEADDR", is: func(s *situation) {
			s.ports[0].bindErr = errno("bind", syscall.EADDRINUSE)
			s.ports[0].sockets = []socketState{socket(sockdiag.TimeWait, local, other, 0)}
		}, pinned: true, port: 63998, chosen: "port 63998"},
		{name: "TIME_WAIT that can't", is: func(s *situation) {
			s.ports = s.ports[:1]
			s.ports[0].mayEnd = false
			s.ports[0].sockets = []socketState{socket(sockdiag.TimeWait, local, dst, 0)}
			s.ports[0].sockets[0].Left = 41500 * time.Millisecond
		}, cause: "is in TIME_WAIT for 42s more; connect gets past it if the destination speaks TCP timestamps", chosen: "it waits"},
		{name: "TIME_WAIT that lasts, to the destination", is: func(s *situation) {
			s.ports = s.ports[:1]
			s.ports[0].sockets = []socketState{socket(sockdiag.TimeWait, local, dst, 0)}
			s.ports[0].sockets[0].Left, s.ports[0].sockets[0].lasts = 41500*time.Millisecond, true
		}, cause: "for 42s more; connect gets past it if the destination speaks TCP timestamps, or pinproxy made that connection", chosen: "it waits"},
		{name: "TIME_WAIT that lasts, of a connection of the running pinproxy's", is: func(s *situation) {
			s.ports = s.ports[:1]
			s.ports[0].used = true
			s.ports[0].sockets = []socketState{socket(sockdiag.TimeWait, local, dst, 0), socket(sockdiag.TimeWait, local, other, 0)}
			for i := range s.ports[0].sockets {
				s.ports[0].sockets[i].Left, s.ports[0].sockets[i].lasts = 41500*time.Millisecond, true
			}
		}, pinned: true, port: 63998, chosen: "port 63998"},
		{name: "TIME_WAIT that a connection got past", is: func(s *situation) {
			s.ports = s.ports[:1]
			s.ports[0].sockets = []socketState{socket(sockdiag.TimeWait, local, dst, 0)}
			s.ports[0].sockets[0].Left, s.ports[0].sockets[0].lasts = 41500*time.Millisecond, true
			s.learn(&Connection{OK: true})
		}, pinned: true, port: 63998, chosen: "port 63998"},
		{name: "TIME_WAIT that a connection did not get past", is: func(s *situation) {
			s.ports = s.ports[:1]
			s.ports[0].sockets = []socketState{socket(sockdiag.TimeWait, local, dst, 0)}
			s.ports[0].sockets[0].Left, s.ports[0].sockets[0].lasts = 41500*time.Millisecond, true
			s.learn(&Connection{Cause: "for 42s more"})
		}, cause: "for 42s more; connect gets past it", chosen: "it waits"},
		{name: "TIME_WAIT that lasts, in the way of all", is: func(s *situation) {
			s.ports = s.ports[:1]
			s.ports[0].bindErr = errno("bind", syscall.EADDRINUSE)
			s.ports[0].sockets = []socketState{socket(sockdiag.TimeWait, local, other, 0)}
			s.ports[0].sockets[0].Left, s.ports[0].sockets[0].lasts = 41500*time.Millisecond, true
		}, cause: "is in TIME_WAIT for 42s more, which can't be cut short on this kernel, unless pinproxy made that connection", chosen: "it waits"},
		{name: "bind fails for nothing that can be seen", is: func(s *situation) {
			s.ports = s.ports[:1]
			s.ports[0].bindErr = errno("bind", syscall.EADDRINUSE)
		}, cause: "bind: address already in use", chosen: "cannot be used"},
		{name: "itself", is: func(s *situation) {
			s.way, s.ports = host.Way{Local: true}, s.ports[:1]
			s.dst = netip.MustParseAddrPort("198.51.100.2:63998")
		}, cause: "source and destination are the same address and port", chosen: "By the kernel: any port of ip_local_port_range (32768-60999)"},
		{name: "this host", is: func(s *situation) { s.way = host.Way{Local: true} }, port: 63998, cause: "203.0.113.2 is this host itself", chosen: "By the kernel"},
		{name: "no route", is: func(s *situation) {
			s.wayErr = syscall.ENETUNREACH
		}, cause: "this host has no route to 203.0.113.2: network is unreachable", chosen: "Not at all", away: true},
		{name: "no route but into the device", is: func(s *situation) {
			s.pastErr = syscall.EHOSTUNREACH
			for i := range s.ports {
				s.ports[i].wayErr = syscall.EHOSTUNREACH
			}
		}, cause: "this host has no route to 203.0.113.2: no route to host", chosen: "Not at all", away: true},
		{name: "no route from the port", is: func(s *situation) {
			s.ports[0].wayErr = syscall.EHOSTUNREACH
		}, cause: "no way to 203.0.113.2 from source port 63998: no route to host", chosen: "the pin cannot be used", hintHas: "ip route get 203.0.113.2 mark 0x70 ipproto tcp sport 63998 dport 443"},
		{name: "no route from the only port that is free", is: func(s *situation) {
			s.ports[0].held = &monitor.Held{Port: 63998, Flow: 7, Src: "192.0.0.8:40000"}
			s.ports[1].wayErr = syscall.EACCES
		}, cause: "no way to 203.0.113.2 from source port 63999: permission denied", chosen: "the pin cannot be used"},
		{name: "no route from the pin's address", is: func(s *situation) {
			r, err := rules.Parse("203.0.113.2:443=198.51.100.2:63998")
			if err != nil {
				panic(err)
			}
			s.rule, s.theirs, s.ports = r, r.String(), s.ports[:1]
			s.ports[0].wayErr = syscall.ENETUNREACH
		}, cause: "from source port 63998 of 198.51.100.2: network is unreachable", chosen: "the pin cannot be used", hintHas: "ip route get 203.0.113.2 from 198.51.100.2 mark"},
		{name: "a route from the pin only", is: func(s *situation) { s.pastErr = syscall.ENETUNREACH }, pinned: true, port: 63998, chosen: "port 63998 of 198.51.100.2"},
		{name: "another address for the second port", is: func(s *situation) {
			s.ports[0].held = &monitor.Held{Port: 63998, Flow: 7, Src: "192.0.0.8:40000"}
			s.ports[1].way.Source = netip.MustParseAddr("198.51.100.3")
		}, pinned: true, port: 63999, chosen: "port 63999 of 198.51.100.3"},
		{name: "not running", is: func(s *situation) { s.running, s.way.Ours = false, false }, port: 63998, cause: "no pinproxy is running", chosen: "By the kernel", hintHas: "sudo pinproxy --rule '203.0.113.2:443="},
		{name: "no rule known", is: func(s *situation) { s.running, s.rule, s.way.Ours = false, nil, false }, cause: "no rule was given", chosen: "By the kernel"},
		{name: "no rule for it", is: func(s *situation) { s.rule, s.theirs, s.way.Ours = nil, "", false }, cause: "no rule is for this destination", chosen: "By the kernel"},
		{name: "no given rule for it", is: func(s *situation) { s.rule, s.given = nil, true }, cause: "none of the rules that were given", chosen: "By the running pinproxy's rule"},
		{name: "its rule is gone since a moment", is: func(s *situation) {
			s.name, s.rule, s.theirs, s.way.Ours = "www.bank.example", nil, "", false
			s.instead = &monitor.Instead{Rule: "www.bank.example:443=1", Name: "www.bank.example"}
		}, cause: "no rule is for this destination", chosen: "By the kernel"},
		{name: "not in theirs", is: func(s *situation) { s.theirs, s.way.Ours = "", false }, port: 63998, cause: "the running pinproxy has no rule", chosen: "By the kernel"},
		{name: "another of theirs", is: func(s *situation) { s.theirs = "*:443=1" }, port: 63998, cause: "goes by another rule, *:443=1", chosen: "By the running pinproxy's rule *:443=1"},
		{name: "theirs has the same pin", is: func(s *situation) { s.theirs = "*:443=63998-63999" }, pinned: true, port: 63998, chosen: "port 63998"},
		{name: "its name was not seen", is: func(s *situation) {
			s.name, s.instead, s.way.Ours = "file.bank.example", &monitor.Instead{}, false
		}, port: 63998, cause: "no DNS answer that says that 203.0.113.2 is an address of file.bank.example", chosen: "By the kernel", hintHas: "a rule for the address"},
		{name: "its name was not seen, and another rule is for all", is: func(s *situation) {
			s.name, s.instead = "file.bank.example", &monitor.Instead{Rule: "*:443=1"}
		}, port: 63998, cause: "file.bank.example, and goes by the rule *:443=1", chosen: "By the running pinproxy's rule *:443=1"},
		{name: "another name has the address, too", is: func(s *situation) {
			s.name, s.rule, s.theirs, s.instead = "other.example", nil, "", &monitor.Instead{Rule: "www.bank.example:443=1", Name: "www.bank.example"}
		}, cause: "takes 203.0.113.2 for an address of www.bank.example, and goes by the rule www.bank.example:443=1", chosen: "By the running pinproxy's rule www.bank.example:443=1", hintHas: "the same pin"},
		{name: "not captured", is: func(s *situation) { s.way.Ours = false }, port: 63998, cause: "does not capture it", chosen: "By the kernel"},
		{name: "another program's rules first", is: func(s *situation) { s.way.Ours, s.ahead.Priorities = false, "3999" }, port: 63998, cause: "does not capture it: policy rules of other programs are asked before pinproxy's: 3999", chosen: "By the kernel"},
		{name: "does not answer", is: func(s *situation) {
			s.askErr, s.theirs = &monitor.AskError{Path: "/run/x", Again: "check …", Err: syscall.EACCES}, ""
		}, port: 63998, cause: "can't be asked by which rule: ask /run/x: permission denied", chosen: "this user may not ask", hintHas: "sudo pinproxy check"},
		{name: "its socket was deleted", is: func(s *situation) {
			s.askErr, s.theirs = &monitor.AskError{Path: "/run/x", PID: 812, Again: "check …", Err: syscall.ENOENT}, ""
		}, port: 63998, cause: "ask /run/x: no such file or directory", chosen: "but can't be asked by which", hintHas: "a restart of pid 812 makes it again; if that is in a container, sudo nsenter -t 812 -m pinproxy check"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := bank(t)
			test.is(&s)
			v := judge(s)
			if v.pinned != test.pinned || v.port != test.port || !strings.Contains(v.cause, test.cause) || v.pinned != (v.cause == "") || !strings.Contains(v.hint, test.hintHas) {
				t.Errorf("%+v, want pinned %v, port %d, cause %q, hint %q", v, test.pinned, test.port, test.cause, test.hintHas)
			}
			if s.away() != test.away {
				t.Errorf("passed over: %v", s.away())
			}
			if v.pinned && !v.free {
				t.Error("it leaves from a pin that can't be had")
			}
			if test.taken != "" && !strings.HasPrefix(s.obstacle(s.ports[0]).cause, test.taken) {
				t.Errorf("the first port: %+v", s.obstacle(s.ports[0]))
			}
			if got := s.chosen(v, host.Facts{LocalPorts: host.PortRange{First: 32768, Last: 60999}}); !strings.Contains(got, test.chosen) {
				t.Errorf("chosen: %q, want %q", got, test.chosen)
			}
		})
	}
}

// The exit status is about the addresses that can be reached, since programs go on to the next one.
func TestConclusion(t *testing.T) {
	yes, no := Address{Pinned: true, Chosen: "yes"}, Address{Chosen: "no"}
	away := Address{away: true, Chosen: "away"}
	refused := yes
	refused.Connect = &Connection{}
	for _, test := range []struct {
		addrs  []Address
		pinned bool
		chosen string
	}{
		{[]Address{yes}, true, "yes"},
		{[]Address{yes, no}, false, "yes"},
		{[]Address{away, yes}, true, "yes"},
		{[]Address{away}, false, "away"},
		{[]Address{refused}, false, "yes"},
		{nil, false, "Not at all: the name has no address, so no program gets as far as connecting."},
	} {
		r := Report{Addresses: test.addrs}
		if r.conclude(); r.Pinned != test.pinned || r.Chosen != test.chosen || r.Addresses == nil {
			t.Errorf("%+v: pinned %v, chosen %q", test.addrs, r.Pinned, r.Chosen)
		}
	}
}

func TestWhyLost(t *testing.T) {
	for _, test := range []struct{ winner, loser, want string }{
		{"a.b.example:443=1", "a.b.example:443,80=1", "it is for more ports: 2, not 1"},
		{"a.b.example:443=1", "*.b.example:443=1", "an exact name is more specific than a wildcard"},
		{"*.b.example:443=1", "*.example:443=1", "*.b.example is the longer wildcard"},
		{"*.b.example:443=1", "203.0.113.2:443=1", "a name is more specific than addresses"},
		{"203.0.113.2:443=1", "203.0.113.0/24:443=1", "203.0.113.2/32 is the longer prefix"},
		{"0.0.0.0/0:443=1", "*:443=1", "* is the least specific host"},
	} {
		var list []*rules.Rule
		for _, text := range []string{test.winner, test.loser} {
			r, err := rules.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, r)
		}
		if got := whyLost(list[0], list[1]); got != test.want {
			t.Errorf("%s before %s: %q, want %q", test.winner, test.loser, got, test.want)
		}
	}
}

// What a program calls itself, and what a rogue control socket says, does nothing to the terminal.
func TestNothingReachesTheTerminal(t *testing.T) {
	const evil = "\x1b]0;evil\a\x1b[31m\u009b31m"
	held := Port{Port: 63999, Cause: "port 63999 is taken by " + evil, Hint: evil, Sockets: []Socket{{text: evil, Why: evil}}}
	r := Report{
		Target: "203.0.113.2:443", Error: evil, Pinproxy: &Pinproxy{Link: evil}, Chosen: evil,
		Addresses: []Address{{
			Address: "203.0.113.2", Cause: evil, Hint: evil, Name: evil, Rule: &monitor.RuleRef{Rule: evil, Source: evil},
			Pin: &Pin{Ports: []Port{held}}, Connect: &Connection{Cause: evil, Hint: evil + "other"},
		}},
	}
	text := r.Text()
	if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && unicode.IsControl(r) }); i >= 0 {
		t.Errorf("it prints %q", text[max(0, i-20):])
	}
}
