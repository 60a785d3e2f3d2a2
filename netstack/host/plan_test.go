package host

import (
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/*.plan anew")

func capture(prefix string, set int) Capture { return Capture{netip.MustParsePrefix(prefix), set} }

// plans are the configurations of testdata/NAME.plan, whose lines have been pasted into a shell.
var plans = map[string]struct {
	config Config
	facts  Facts
}{
	"v4": {
		Config{
			PortSets: [][]PortRange{{{443, 443}}},
			Captures: []Capture{capture("203.0.113.5/32", 0), capture("2001:db8::5/128", 0)},
		},
		Facts{LocalPorts: PortRange{32768, 60999}},
	},
	"v6": {
		Config{
			Link: "pin.7", MTU: 9000, QueueLen: 500,
			PortSets: [][]PortRange{{{443, 443}, {8000, 8010}}},
			Captures: []Capture{capture("198.51.100.0/24", 0), capture("2001:db8::/32", 0)},
		},
		Facts{IPv6: true, IPv6Off: true},
	},
	"strict": {
		Config{
			PortSets: [][]PortRange{{{1, 65535}}},
			Captures: []Capture{capture("0.0.0.0/0", 0), capture("::/0", 0), capture("0.0.0.0/0", 0)},
			Strict:   true,
			Reserve:  []PortRange{{63990, 63999}, {1022, 1022}},
			StateDir: "/run",
		},
		Facts{IPv6: true, LocalPorts: PortRange{32768, 60999}, Reserved: []PortRange{{1022, 1022}, {8080, 8081}}},
	},
	"dns": {
		Config{
			PortSets: [][]PortRange{{{443, 443}}},
			DNS:      true,
			Reserve:  []PortRange{{63999, 63999}},
			StateDir: "/run",
		},
		Facts{IPv6: true, LocalPorts: PortRange{32768, 60999}},
	},
	"sets": {
		Config{
			PortSets: [][]PortRange{{{22, 22}}, {{80, 80}, {443, 443}}, {{8000, 8010}, {8005, 8020}, {8021, 8021}}, {{1, 65535}}},
			Captures: []Capture{capture("192.0.2.0/24", 3), capture("198.51.100.7/32", 2), capture("203.0.113.0/25", 0)},
		},
		Facts{},
	},
	"gateway": {
		Config{
			PortSets: [][]PortRange{{{443, 443}}, {{8000, 65535}}},
			Captures: []Capture{capture("203.0.113.0/25", 0), capture("2001:db8::/32", 1)},
			DNS:      true,
			Gateways: []string{"lan0", "wg.0"},
		},
		Facts{IPv6: true, Gateways: []Gateway{{"lan0", 3, true, true, true, ""}, {"wg.0", 4, true, true, true, ""}}},
	},
	"tails": {
		Config{
			PortSets: [][]PortRange{{{8000, 65535}}, {{443, 443}, {65535, 65535}}},
			Captures: []Capture{capture("203.0.113.0/25", 0), capture("203.0.113.0/24", 1)},
			Strict:   true,
			Reserve:  []PortRange{{65000, 65535}, {65535, 65535}},
			StateDir: "/run",
		},
		Facts{LocalPorts: PortRange{32768, 60999}},
	},
}

func TestPlan(t *testing.T) {
	for name, p := range plans {
		t.Run(name, func(t *testing.T) {
			s, err := Plan(p.config, p.facts)
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Warnings) > 0 {
				t.Error("unexpected warnings:", s.Warnings)
			}
			path := filepath.Join("testdata", name+".plan")
			if *update {
				if err := os.WriteFile(path, []byte(s.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(s.String(), "\n")); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

// Open connections depend on this: whatever lets them through is in place before the first capture rule. And
// each rule has its own priority.
func TestPlanOrder(t *testing.T) {
	for name, p := range plans {
		s, err := Plan(p.config, p.facts)
		if err != nil {
			t.Fatal(err)
		}
		capturing := map[family]bool{}
		prefs := map[[2]int]bool{}
		for _, step := range s.List {
			r, ok := step.(rule)
			if !ok {
				continue
			}
			if capturing[r.fam] && !r.captures() {
				t.Errorf("%s: %v: after a capture rule", name, r)
			}
			capturing[r.fam] = capturing[r.fam] || r.captures()
			if key := [2]int{int(r.fam), r.pref}; prefs[key] {
				t.Errorf("%s: %v: second rule of this priority", name, r)
			} else {
				prefs[key] = true
			}
		}
	}
}

func TestPlanErrors(t *testing.T) {
	many := make([]PortRange, 990)
	for i := range many {
		many[i] = PortRange{uint16(2*i + 1), uint16(2*i + 1)}
	}
	ends := make([][]PortRange, 99)
	for i := range ends {
		ends[i] = []PortRange{{uint16(1000 + i), 65535}}
	}
	web := [][]PortRange{{{443, 443}}}
	for _, test := range []struct {
		c    Config
		want string
	}{
		{Config{PortSets: [][]PortRange{many[:891]}}, "1 ranges of ports too many for the host's rule list: join ranges, or use *"},
		{Config{PortSets: [][]PortRange{many[:890]}, DNS: true}, "2 ranges of ports too many for the host's rule list: join ranges, or use *"},
		{Config{Reserve: many[:398], Strict: true}, "1 ranges of ports too many for the host's rule list: join ranges, or use *"},
		{Config{PortSets: ends[:99]}, "1 ranges of ports too many for the host's rule list: join ranges, or use *"},
		{Config{PortSets: [][]PortRange{{}}, Captures: []Capture{capture("192.0.2.0/24", 0)}}, "capture 192.0.2.0/24: no port set 0"},
		{Config{PortSets: [][]PortRange{{{0, 80}}}}, "port set 0: ports 0-80: not a range"},
		{Config{Reserve: []PortRange{{9, 8}}}, "reserve: ports 9-8: not a range"},
		{Config{PortSets: web, Captures: []Capture{capture("192.0.2.0/24", 1)}}, "capture 192.0.2.0/24: no port set 1"},
		{Config{PortSets: web, Captures: []Capture{capture("192.0.2.1/24", 0)}}, "capture 192.0.2.1/24: bits set beyond the prefix length"},
		{Config{PortSets: web, Captures: []Capture{{}}}, "capture invalid Prefix: not a prefix"},
		{Config{Gateways: []string{"a b"}}, `gateway "a b": not a valid device name`},
		{Config{Gateways: []string{"pin0"}}, "gateway pin0: is the device into which connections are captured"},
		{Config{Gateways: []string{"lo"}}, "gateway lo: no host is behind it, and this host's connections are captured as it is"},
		{Config{Gateways: []string{"lan0", "lan0"}}, "gateway lan0: named twice"},
		{Config{PortSets: [][]PortRange{many[:350]}, Gateways: []string{"lan0"}}, "5 ranges of ports too many for the host's rule list: join ranges, or use *"},
		{Config{Link: "a/b"}, `device name "a/b": not a valid name`},
		{Config{MTU: 1279}, "mtu 1279: not between 1280 and 65535"},
	} {
		if _, err := Plan(test.c, Facts{}); err == nil || err.Error() != test.want {
			t.Errorf("got  %v\nwant %s", err, test.want)
		}
	}
	for _, c := range []Config{{PortSets: [][]PortRange{many[:890]}}, {PortSets: ends[:98]}, {Reserve: many[:397], Strict: true}} {
		if _, err := Plan(c, Facts{}); err != nil {
			t.Error("as many as fit:", err)
		}
	}
}

// A gateway that does not work yet causes a warning with the command that fixes it, and does not prevent the
// start.
func TestGatewayWarnings(t *testing.T) {
	for _, test := range []struct {
		name       string
		f          Facts
		what, hint string
	}{
		{"missing", Facts{Gateways: []Gateway{{Name: "wg0"}}}, "gateway wg0: there is no such device: what comes in through it is captured when it appears", "ip -br link"},
		{
			"no IPv4",
			Facts{IPv6: true, Gateways: []Gateway{{"lan0", 3, false, true, true, ""}}},
			"gateway lan0: this host does not forward IPv4: the kernel drops what the hosts behind it send", "sudo sysctl -w net.ipv4.ip_forward=1",
		},
		{
			"no IPv6",
			Facts{IPv6: true, Gateways: []Gateway{{"lan0", 3, true, false, true, ""}}},
			"gateway lan0: this host does not forward IPv6: the kernel drops what the hosts behind it send", "sudo sysctl -w net.ipv6.conf.all.forwarding=1",
		},
		{"no IPv6 anywhere", Facts{Gateways: []Gateway{{"lan0", 3, true, false, true, ""}}}, "", ""},
		{"no IPv6 behind it", Facts{IPv6: true, Gateways: []Gateway{{"lan0", 3, true, false, false, ""}}}, "", ""},
		{
			"in a VRF",
			Facts{Gateways: []Gateway{{"lan0", 3, true, true, true, "red"}}},
			"gateway lan0: it belongs to the VRF red, whose rule the kernel asks first: hosts behind it are not pinned", "sudo ip link set lan0 nomaster",
		},
		{"all is well", Facts{IPv6: true, Gateways: []Gateway{{"lan0", 3, true, true, true, ""}}}, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := Plan(Config{Gateways: []string{"lan0"}}, test.f)
			if err != nil {
				t.Fatal(err)
			}
			what, hint := "", ""
			for _, w := range s.Warnings {
				if demand, ok := errors.AsType[*DemandError](w); ok {
					what, hint = demand.What, demand.Hint
				}
			}
			if what != test.what || hint != test.hint {
				t.Errorf("warns %q, hint %q; want %q, %q", what, hint, test.what, test.hint)
			}
		})
	}
}

// A strict rp_filter is in the way of strict capturing alone.
func TestStrictWarnings(t *testing.T) {
	for _, test := range []struct {
		strict bool
		facts  Facts
		warns  int
	}{
		{true, Facts{StrictPath: true}, 0},
		{true, Facts{ReadOnly: true, PortsUnswapped: true}, 0},
		{true, Facts{StrictPath: true, ReadOnly: true}, 1},
		{true, Facts{StrictPath: true, PortsUnswapped: true}, 1},
		{true, Facts{StrictPath: true, ReadOnly: true, PortsUnswapped: true}, 2},
		{false, Facts{StrictPath: true, ReadOnly: true, PortsUnswapped: true}, 0},
	} {
		s, err := Plan(Config{Strict: test.strict}, test.facts)
		if err != nil || len(s.Warnings) != test.warns {
			t.Errorf("%+v: %v, warnings %v", test, err, s.Warnings)
		}
		if sets := strings.Contains(s.String(), "rp_filter=2"); sets != (test.strict && !test.facts.ReadOnly) {
			t.Errorf("%+v:\n%s", test, s)
		}
	}
}

func TestPortsToReserve(t *testing.T) {
	local := PortRange{32768, 60999} // 28232 ports
	for _, test := range []struct {
		name          string
		reserve, have []PortRange
		dir           string
		want, warning string
	}{
		{name: "none", dir: "/run"},
		{name: "one", reserve: []PortRange{{63999, 63999}}, dir: "/run", want: "63999"},
		{name: "there already", reserve: []PortRange{{5, 9}}, have: []PortRange{{1, 5}, {7, 7}}, dir: "/run", want: "6,8-9"},
		{name: "half", reserve: []PortRange{{32768, 32768 + 14115}}, dir: "/run", want: "32768-46883"},
		{
			name: "more than half", reserve: []PortRange{{32768, 32768 + 14116}}, dir: "/run",
			warning: "ports 32768-46884 are not reserved: the pins have 14117 of the 28232 in ip_local_port_range, too many to take; another program may be given one of them",
		},
		{
			name: "a wide one and others", reserve: []PortRange{{500, 500}, {33000, 33000}, {40000, 55000}, {59000, 62000}}, dir: "/run", want: "500,33000,59000-62000",
			warning: "ports 40000-55000 are not reserved: the pins have 17002 of the 28232 in ip_local_port_range, too many to take; another program may be given one of them",
		},
		{
			name: "a wide one beside another and over one", reserve: []PortRange{{33000, 33000}, {33001, 55000}, {40000, 40000}}, dir: "/run", want: "33000,40000",
			warning: "ports 33001-39999,40001-55000 are not reserved: the pins have 22001 of the 28232 in ip_local_port_range, too many to take; another program may be given one of them",
		},
		{name: "many elsewhere", reserve: []PortRange{{1, 32767}}, dir: "/run", want: "1-32767"},
		{name: "no state", reserve: []PortRange{{7, 7}}, warning: "ports 7 are not reserved: no directory for the state file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := portsToReserve(Config{Reserve: test.reserve, StateDir: test.dir}, Facts{LocalPorts: local, Reserved: test.have})
			if got.String() != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if (err == nil) != (test.warning == "") || err != nil && err.Error() != test.warning {
				t.Errorf("warning %v, want %q", err, test.warning)
			}
		})
	}
}
