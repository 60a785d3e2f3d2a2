package rules

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func mustSet(t testing.TB, texts ...string) *Set {
	t.Helper()
	s, err := NewSet(mustParse(t, texts...))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMatch(t *testing.T) {
	s := mustSet(t,
		"*:443=1",
		"*:*=2",
		"*.example:443=3",
		"*.b.example:443=4",
		"a.b.example:443=5",
		"a.b.example:22=6",
		"a.b.example:400-500=7",
		"a.b.example:1-1000,2000=8",
		"192.0.2.0/24:443=9",
		"192.0.2.128/25:443,80=10",
		"192.0.2.200:22=11",
		"[2001:db8::/32]:443=12",
		"[2001:db8::1]:443=13",
		"0.0.0.0/0:8443=14",
		"[::/0]:8443=15",
	)
	tests := []struct {
		name string
		dst  string
		want string // pin of the winner
	}{
		// Hosts.
		{"a.b.example", "203.0.113.1:443", "5"},
		{"A.B.Example.", "203.0.113.1:443", "5"},
		{"c.b.example", "203.0.113.1:443", "4"},
		{"d.c.b.example", "203.0.113.1:443", "4"},
		{"b.example", "203.0.113.1:443", "3"},
		{"x.a.b.example", "203.0.113.1:443", "4"},
		{"xb.example", "203.0.113.1:443", "3"},
		{"example", "203.0.113.1:443", "1"},
		{"other", "203.0.113.1:443", "1"},
		{"", "203.0.113.1:443", "1"},
		{"", "192.0.2.1:443", "9"},
		{"", "192.0.2.128:443", "10"},
		{"", "192.0.2.200:443", "10"},
		{"", "192.0.2.200:22", "11"},
		{"", "[2001:db8::1]:443", "13"},
		{"", "[2001:db8::2]:443", "12"},
		{"", "[2001:db9::1]:443", "1"},
		{"", "[2001:db8::1%eth0]:443", "13"},
		{"", "[::ffff:192.0.2.200]:22", "11"},
		{"a.b.example", "192.0.2.200:443", "5"}, // a name wins over a prefix
		{"example", "192.0.2.200:443", "10"},

		// Ports.
		{"a.b.example", "203.0.113.1:22", "6"},
		{"a.b.example", "203.0.113.1:400", "7"},
		{"a.b.example", "203.0.113.1:442", "7"},
		{"a.b.example", "203.0.113.1:444", "7"},
		{"a.b.example", "203.0.113.1:500", "7"},
		{"a.b.example", "203.0.113.1:399", "8"},
		{"a.b.example", "203.0.113.1:501", "8"},
		{"a.b.example", "203.0.113.1:1", "8"},
		{"a.b.example", "203.0.113.1:2000", "8"},
		{"a.b.example", "203.0.113.1:2001", "2"}, // the next host that has a rule for the port
		{"", "192.0.2.200:80", "10"},
		{"", "192.0.2.1:80", "2"},
		{"", "192.0.2.1:8443", "14"},
		{"", "[2001:db8::1]:8443", "15"},
		{"", "192.0.2.1:65535", "2"},
		{"", "192.0.2.1:0", ""}, // no port
	}
	for _, tt := range tests {
		t.Run(tt.name+" "+tt.dst, func(t *testing.T) {
			got := ""
			if r := s.Match(tt.name, netip.MustParseAddrPort(tt.dst)); r != nil {
				got = r.Pin().String()
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	if r := s.Match("", netip.AddrPort{}); r != nil {
		t.Errorf("no destination matches %v", r)
	}
}

func TestSetLists(t *testing.T) {
	s := mustSet(t,
		"b.example:443=63999",
		"*:22=1022 busy=any",
		"*.example:443,8443=63000-63010",
		"192.0.2.0/24:443=63005-63020",
		"b.example:22=1",
		"[::/0]:22=2",
		"a.example:*=63999",
		"*.b.example:443=3",
	)
	if diff := cmp.Diff([]string{"443", "22", "443,8443", "*"}, texts(s.PortSets())); diff != "" {
		t.Errorf("PortSets (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"0.0.0.0/0 22", "::/0 22", "192.0.2.0/24 443"}, captureTexts(s, s.Static())); diff != "" {
		t.Errorf("Static (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"b.example", "a.example"}, s.Names()); diff != "" {
		t.Errorf("Names (-want +got):\n%s", diff)
	}
	if want := "1-3,1022,63000-63020,63999"; s.PinPorts().String() != want {
		t.Errorf("PinPorts %s, want %s", s.PinPorts(), want)
	}
	if !s.HasNames() {
		t.Error("HasNames is false")
	}
	if len(s.Rules()) != 8 || s.Rules()[1].String() != "*:22=1022 busy=any" {
		t.Errorf("Rules %v", s.Rules())
	}
	for name, want := range map[string][]int{
		"b.example":    {0, 1, 2},
		"B.Example.":   {0, 1, 2},
		"x.b.example":  {0, 2},
		"a.example":    {2, 3},
		"c.example":    {2},
		"example":      nil,
		"other":        nil,
		"":             nil,
		"notb.example": {2},
	} {
		if diff := cmp.Diff(want, s.NameSets(name)); diff != "" {
			t.Errorf("NameSets(%q) (-want +got):\n%s", name, diff)
		}
	}
}

func TestEmptySet(t *testing.T) {
	s, err := NewSet(nil)
	if err != nil {
		t.Fatal(err)
	}
	if r := s.Match("a.example", netip.MustParseAddrPort("192.0.2.1:443")); r != nil {
		t.Errorf("Match = %v", r)
	}
	if s.HasNames() || len(s.Static()) > 0 || len(s.PortSets()) > 0 || s.PinPorts().Len() > 0 {
		t.Error("an empty set lists something")
	}
	if mustSet(t, "*:443=1", "192.0.2.1:443=2").HasNames() {
		t.Error("HasNames without names")
	}
}

func TestConflict(t *testing.T) {
	tests := []struct {
		rules []string
		want  string // of the error; "" when there is none
	}{
		{[]string{"a:443=1", "a:80=2", "a:*=3", "a:443,80=4", "b:443=5", "*.a:443=6", "*:443=7"}, ""},
		{[]string{"a:1-10=1", "a:11-20=2"}, ""},
		{[]string{"192.0.2.0/24:443=1", "192.0.2.0/25:443=2", "[2001:db8::/32]:443=3"}, ""},
		{
			[]string{"a:443=1", "b:443=1", "A.:443=2 busy=any"},
			`the rules "a:443=1" (test:1) and "a:443=2 busy=any" (test:3) are equally specific for port 443; give one of them fewer ports`,
		},
		{
			[]string{"a:443=1", "a:443=1"},
			`the rule "a:443=1" (test:1) is given again as "a:443=1" (test:2)`,
		},
		{
			[]string{"a:10,20,30=2", "a:5,20-21=1"},
			`the rules "a:10,20,30=2" (test:1) and "a:5,20-21=1" (test:2) are equally specific for port 20; give one of them fewer ports`,
		},
		{ // a conflict even where a narrower rule wins
			[]string{"a:443=3", "a:443-444=1", "a:442-443=2"},
			`the rules "a:443-444=1" (test:2) and "a:442-443=2" (test:3) are equally specific for port 443; give one of them fewer ports`,
		},
		{
			[]string{"*:*=1", "*:*=2"},
			`the rules "*:*=1" (test:1) and "*:*=2" (test:2) are equally specific for port 1; give one of them fewer ports`,
		},
		{
			[]string{"[2001:db8::/32]:65535=1", "[2001:0db8::/32]:65535=2"},
			`the rules "[2001:db8::/32]:65535=1" (test:1) and "[2001:db8::/32]:65535=2" (test:2) are equally specific for port 65535; give one of them fewer ports`,
		},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.rules, " + "), func(t *testing.T) {
			rules, err := ParseFile("test", strings.NewReader(strings.Join(tt.rules, "\n")))
			if err != nil {
				t.Fatal(err)
			}
			_, err = NewSet(rules)
			if tt.want == "" {
				if err != nil {
					t.Errorf("got %v, want none", err)
				}
				return
			}
			var conflict *ConflictError
			if !errors.As(err, &conflict) {
				t.Fatalf("got %v, want a *ConflictError", err)
			}
			if err.Error() != tt.want {
				t.Errorf("got  %v\nwant %v", err, tt.want)
			}
		})
	}
}

// naiveMatch is Match as the design describes it, going through all rules one by one.
func naiveMatch(rules []*Rule, name string, dst netip.AddrPort) *Rule {
	addr := dst.Addr().Unmap()
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	// specificity orders hosts: exact name, longest wildcard, longest prefix, "*"; -1 for no match.
	specificity := func(r *Rule) int {
		host, _, _ := strings.Cut(r.String(), "=")
		host = host[:strings.LastIndex(host, ":")]
		switch {
		case host == "*":
			return 0
		case strings.HasPrefix(host, "*."):
			if strings.HasSuffix(name, host[1:]) && len(name) > len(host)-1 {
				return 1000 + len(host)
			}
		case r.Host().Prefix().IsValid():
			if r.Host().Prefix().Contains(addr) {
				return 1 + r.Host().Prefix().Bits()
			}
		case host == name:
			return 10000
		}
		return -1
	}
	var best *Rule
	for _, r := range rules {
		if specificity(r) < 0 || !r.Ports().Contains(dst.Port()) {
			continue
		}
		if best == nil || specificity(r) > specificity(best) ||
			specificity(r) == specificity(best) && r.Ports().Len() < best.Ports().Len() {
			best = r
		}
	}
	return best
}

// naiveConflict reports whether any two rules tie.
func naiveConflict(rules []*Rule) bool {
	for i, r := range rules {
		if naiveTie(r, rules[:i]) {
			return true
		}
	}
	return false
}

// naiveTie reports whether a rule ties with one of others.
func naiveTie(a *Rule, others []*Rule) bool {
	for _, b := range others {
		if a.Host() != b.Host() || a.Ports().Len() != b.Ports().Len() {
			continue
		}
		for _, ra := range a.Ports().Ranges() {
			for _, rb := range b.Ports().Ranges() {
				if ra.First <= rb.Last && rb.First <= ra.Last {
					return true
				}
			}
		}
	}
	return false
}

// choices are made by bytes, one each, so that a fuzzer that changes a byte changes one choice.
type choices []byte

// of returns a number below n, which is at most 256.
func (c *choices) of(n int) int {
	if len(*c) == 0 {
		return 0
	}
	b := (*c)[0]
	*c = (*c)[1:]
	return int(b) % n
}

// rule makes rules that often overlap: few names, few prefixes, few ports.
func (c *choices) rule() string {
	label := func() string { return string("abc"[c.of(3)]) }
	var host string
	switch c.of(10) {
	case 0:
		host = "*"
	case 1:
		host = label()
	case 2:
		host = label() + "." + label()
	case 3:
		host = "*." + label()
	case 4:
		host = "*." + label() + "." + label()
	case 5, 6:
		host = netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(c.of(256))}), 22+c.of(11)).Masked().String()
	case 7:
		host = "[" + netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(c.of(256))}), 110+c.of(19)).Masked().String() + "]"
	case 8:
		host = "0.0.0.0/0"
	case 9:
		host = "[::/0]"
	}
	ports := "*"
	if shape := c.of(8); shape > 1 {
		first := 1 + c.of(10)
		ports = fmt.Sprintf("%d-%d", first, first+c.of(5))
		if shape > 4 {
			ports += fmt.Sprintf(",%d", 17+c.of(3))
		}
	}
	return fmt.Sprintf("%s:%s=%d", host, ports, 1+c.of(256))
}

// destination makes destinations that the rules often match.
func (c *choices) destination() (name string, dst netip.AddrPort) {
	name = []string{"", "a", "a.", "B", "a.b", "b.A", "c.b.a", "a.a.b.c.", "x.c", "aa.b"}[c.of(10)]
	addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(c.of(256))})
	switch c.of(4) {
	case 0:
		addr = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: addr.As4()[3]})
	case 1:
		addr = netip.AddrFrom16(addr.As16()) // mapped
	}
	return name, netip.AddrPortFrom(addr, uint16(c.of(22)))
}

// FuzzMatch compares NewSet and Match with their naive twins.
func FuzzMatch(f *testing.F) {
	for seed := range uint64(300) {
		f.Add(randomBytes(seed, 8*(1+int(seed)%60)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// The cost of the naive twins grows with the product of both. A few rules are enough for any relation
		// between them.
		const most = 40
		var rules []*Rule
		type question struct {
			name string
			dst  netip.AddrPort
		}
		var questions []question
		for c := choices(b); len(c) > 0; {
			if c.of(2) == 0 && len(rules) < most {
				rules = append(rules, mustParse(t, c.rule())...)
			} else if name, dst := c.destination(); len(questions) < most {
				questions = append(questions, question{name, dst})
			}
		}
		s, err := NewSet(rules)
		if (err != nil) != naiveConflict(rules) {
			t.Fatalf("NewSet: %v, but there is a conflict: %v, in %v", err, naiveConflict(rules), rules)
		}
		var conflict *ConflictError
		if errors.As(err, &conflict) {
			if !naiveConflict([]*Rule{conflict.First, conflict.Second}) ||
				slices.Index(rules, conflict.First) > slices.Index(rules, conflict.Second) ||
				!conflict.First.Ports().Contains(conflict.Port) || !conflict.Second.Ports().Contains(conflict.Port) {
				t.Fatalf("not a conflict: %v", err)
			}
			// Go on with the rules that remain when each conflicting rule is left out.
			var kept []*Rule
			for _, r := range rules {
				if !naiveTie(r, kept) {
					kept = append(kept, r)
				}
			}
			rules = kept
			if s, err = NewSet(rules); err != nil {
				t.Fatal(err)
			}
		}
		for _, q := range questions {
			if got, want := s.Match(q.name, q.dst), naiveMatch(rules, q.name, q.dst); got != want {
				t.Fatalf("Match(%q, %v) = %v, want %v, of %v", q.name, q.dst, got, want, rules)
			}
		}
	})
}

// TestManyRulesOnOneHost checks that the port compiler does not go through pairs of rules.
func TestManyRulesOnOneHost(t *testing.T) {
	var rules []*Rule
	for port := 1; port <= 10_000; port++ {
		rules = append(rules, mustParse(t, fmt.Sprintf("a.example:%d=63999", port))...)
		rules = append(rules, mustParse(t, fmt.Sprintf("a.example:%d-65535=63999", port))...)
	}
	s, err := NewSet(rules)
	if err != nil {
		t.Fatal(err)
	}
	if r := s.Match("a.example", netip.MustParseAddrPort("192.0.2.1:10000")); r != rules[2*9_999] {
		t.Errorf("port 10000 is %v's", r)
	}
	if r := s.Match("a.example", netip.MustParseAddrPort("192.0.2.1:10001")); r != rules[2*9_999+1] {
		t.Errorf("port 10001 is %v's", r)
	}
}

// texts returns what the values print as.
func texts[T fmt.Stringer](values []T) []string {
	var texts []string
	for _, v := range values {
		texts = append(texts, v.String())
	}
	return texts
}

// captureTexts returns captures as "prefix ports".
func captureTexts(s *Set, captures []Capture) []string {
	var texts []string
	for _, c := range captures {
		texts = append(texts, c.Dst.String()+" "+s.PortSets()[c.Set].String())
	}
	return texts
}

// manyRules returns n rules of one kind.
func manyRules(t testing.TB, kind string, n int) []*Rule {
	rules := make([]string, n)
	for i := range rules {
		var host string
		switch kind {
		case "name":
			host = fmt.Sprintf("host%d.bank.example", i)
		case "wildcard":
			host = fmt.Sprintf("*.zone%d.bank.example", i)
		case "prefix4":
			host = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24).String()
		case "prefix6":
			host = "[" + netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, byte(i >> 8), byte(i)}), 48).String() + "]"
		case "port":
			rules[i] = fmt.Sprintf("host.bank.example:%d=63999", i+1)
			continue
		}
		rules[i] = host + ":443=63999"
	}
	return mustParse(t, rules...)
}

func BenchmarkMatch(b *testing.B) {
	queries := map[string]func(i int) (string, netip.AddrPort){
		"name": func(i int) (string, netip.AddrPort) {
			return fmt.Sprintf("host%d.bank.example", i), netip.MustParseAddrPort("192.0.2.1:443")
		},
		"wildcard": func(i int) (string, netip.AddrPort) {
			return fmt.Sprintf("www.zone%d.bank.example", i), netip.MustParseAddrPort("192.0.2.1:443")
		},
		"prefix4": func(i int) (string, netip.AddrPort) {
			return "", netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), 443)
		},
		"prefix6": func(i int) (string, netip.AddrPort) {
			return "", netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, byte(i >> 8), byte(i), 15: 1}), 443)
		},
		"port": func(i int) (string, netip.AddrPort) {
			return "host.bank.example", netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i+1))
		},
	}
	for _, kind := range []string{"name", "wildcard", "prefix4", "prefix6", "port"} {
		for _, n := range []int{1, 10_000} {
			b.Run(fmt.Sprintf("%s/rules=%d", kind, n), func(b *testing.B) {
				s, err := NewSet(manyRules(b, kind, n))
				if err != nil {
					b.Fatal(err)
				}
				// The few connections of a machine, the same whatever the number of rules.
				const few = 64
				var names [few]string
				var dsts [few]netip.AddrPort
				for i := range few {
					names[i], dsts[i] = queries[kind](i * 7919 % n)
				}
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					if s.Match(names[i%few], dsts[i%few]) == nil {
						b.Fatal("no rule")
					}
					i++
				}
			})
		}
	}
}

func BenchmarkNewSet(b *testing.B) {
	for _, kind := range []string{"name", "wildcard", "prefix4", "port"} {
		for _, n := range []int{100, 10_000} {
			b.Run(fmt.Sprintf("%s/rules=%d", kind, n), func(b *testing.B) {
				rules := manyRules(b, kind, n)
				for b.Loop() {
					if _, err := NewSet(rules); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/rule")
			})
		}
	}
}
