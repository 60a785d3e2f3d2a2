package rules

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// mustParse returns the rules of texts.
func mustParse(t testing.TB, texts ...string) []*Rule {
	t.Helper()
	rules := make([]*Rule, len(texts))
	for i, text := range texts {
		var err error
		if rules[i], err = Parse(text); err != nil {
			t.Fatal(err)
		}
	}
	return rules
}

func TestParse(t *testing.T) {
	wait := []Busy{{Wait, 30 * time.Second}}
	tests := []struct {
		rule     string
		host     Host
		ports    []PortRange
		addr     string // of the pin
		pin      []PortRange
		busy     []Busy
		cooldown time.Duration
	}{
		{
			rule: "google.co.uk:443=63999",
			host: Host{name: "google.co.uk"}, ports: []PortRange{{443, 443}}, pin: []PortRange{{63999, 63999}}, busy: wait,
		},
		{
			rule: "*.bank.example:443,8443=63990-63999 busy=wait:10s",
			host: Host{name: "bank.example", wildcard: true}, ports: []PortRange{{443, 443}, {8443, 8443}},
			pin: []PortRange{{63990, 63999}}, busy: []Busy{{Wait, 10 * time.Second}},
		},
		{
			rule: "[2001:db8::/32]:22=1022",
			host: Host{prefix: netip.MustParsePrefix("2001:db8::/32")}, ports: []PortRange{{22, 22}},
			pin: []PortRange{{1022, 1022}}, busy: wait,
		},
		{
			rule: "10.20.0.0/16:*=192.0.2.10:20000-20999 busy=other-address,any",
			host: Host{prefix: netip.MustParsePrefix("10.20.0.0/16")}, ports: []PortRange{{1, 65535}},
			addr: "192.0.2.10", pin: []PortRange{{20000, 20999}}, busy: []Busy{{OtherAddress, 0}, {Any, 0}},
		},
		{
			rule: "*:443=[2001:db8::1]:5,4,3 busy=reclaim,wait:1m,fail cooldown=1h30m",
			host: Host{}, ports: []PortRange{{443, 443}}, addr: "2001:db8::1", pin: []PortRange{{3, 5}},
			busy:     []Busy{{Reclaim, 5 * time.Second}, {Wait, time.Minute}, {Fail, 0}},
			cooldown: 90 * time.Minute,
		},
		{
			rule: "127.0.0.1:443=127.0.0.2:63999", // loopback is allowed for tests
			host: Host{prefix: netip.MustParsePrefix("127.0.0.1/32")}, ports: []PortRange{{443, 443}},
			addr: "127.0.0.2", pin: []PortRange{{63999, 63999}}, busy: wait,
		},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			r, err := Parse(tt.rule)
			if err != nil {
				t.Fatal(err)
			}
			var addr netip.Addr
			if tt.addr != "" {
				addr = netip.MustParseAddr(tt.addr)
			}
			if r.Host() != tt.host {
				t.Errorf("host %v, want %v", r.Host(), tt.host)
			}
			if diff := cmp.Diff(tt.ports, r.Ports().Ranges()); diff != "" {
				t.Errorf("ports (-want +got):\n%s", diff)
			}
			if r.Pin().Addr() != addr {
				t.Errorf("pin address %v, want %v", r.Pin().Addr(), addr)
			}
			if diff := cmp.Diff(tt.pin, r.Pin().Ports().Ranges()); diff != "" {
				t.Errorf("pin (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.busy, r.Busy()); diff != "" {
				t.Errorf("busy (-want +got):\n%s", diff)
			}
			if r.Cooldown() != tt.cooldown {
				t.Errorf("cooldown %v, want %v", r.Cooldown(), tt.cooldown)
			}
		})
	}
}

// TestCanonical holds rules that may be written in several ways, with the one way in which they are printed.
func TestCanonical(t *testing.T) {
	tests := []struct{ rule, want string }{
		// Blanks.
		{" \ta.example:443=1\t ", "a.example:443=1"},
		{"a.example:443=1 \t  busy=any    cooldown=1s", "a.example:443=1 busy=any cooldown=1s"},

		// Names.
		{"WWW.Example.:443=1", "www.example:443=1"},
		{"*.WWW.Example.:443=1", "*.www.example:443=1"},
		{"localhost:443=1", "localhost:443=1"},
		{"_sip._tcp.example:443=1", "_sip._tcp.example:443=1"},
		{"r3---sn-apo3qvuoxuxbt-j5pe.example:443=1", "r3---sn-apo3qvuoxuxbt-j5pe.example:443=1"},
		{"1password.example:443=1", "1password.example:443=1"},
		{strings.Repeat("a", 63) + ".example:443=1", strings.Repeat("a", 63) + ".example:443=1"},
		{"any:443=1", "any:443=1"},
		{"fail:443=1", "fail:443=1"},

		// Addresses.
		{"192.0.2.1/32:443=1", "192.0.2.1:443=1"},
		{"0.0.0.0/0:443=1", "0.0.0.0/0:443=1"},
		{"[2001:DB8:0:0::1/128]:443=1", "[2001:db8::1]:443=1"},
		{"[::/0]:443=1", "[::/0]:443=1"},
		{"[fe80::/10]:443=1", "[fe80::/10]:443=1"},
		{"a:443=[2001:DB8::0:1]:1", "a:443=[2001:db8::1]:1"},

		// Ports.
		{"a:1-65535=1", "a:*=1"},
		{"a:1-100,101-65535=1-65535", "a:*=1-65535"},
		{"a:443,80,444=5,1-3,4", "a:80,443-444=1-5"},
		{"a:65535=65535", "a:65535=65535"},
		{"a:80-80=1", "a:80=1"},

		// Options.
		{"a:443=1 busy=wait", "a:443=1"},
		{"a:443=1 busy=wait:30s", "a:443=1"},
		{"a:443=1 busy=wait:0.5m cooldown=0s", "a:443=1"},
		{"a:443=1 busy=wait:30s,any", "a:443=1 busy=wait,any"},
		{"a:443=1 busy=reclaim:5s", "a:443=1 busy=reclaim"},
		{"a:443=1 busy=wait:1ms,reclaim:24h", "a:443=1 busy=wait:1ms,reclaim:24h"},
		{"a:443=1 busy=wait:60m", "a:443=1 busy=wait:1h"},
		{"a:443=1 busy=wait:3540s", "a:443=1 busy=wait:59m"},
		{"a:443=1 busy=wait:90s", "a:443=1 busy=wait:1m30s"},
		{"a:443=1 busy=wait:1500ms", "a:443=1 busy=wait:1.5s"},
		{"a:443=1 cooldown=2h15s", "a:443=1 cooldown=2h0m15s"},
		{"a:443=1 cooldown=0", "a:443=1"},
		{"a:443=1 cooldown=100ms busy=fail", "a:443=1 busy=fail cooldown=100ms"},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			r, err := Parse(tt.rule)
			if err != nil {
				t.Fatal(err)
			}
			if r.String() != tt.want {
				t.Errorf("printed %q, want %q", r, tt.want)
			}
			again, err := Parse(r.String())
			if err != nil {
				t.Fatalf("the printed rule does not parse: %v", err)
			}
			if diff := diffRules(r, again); diff != "" {
				t.Errorf("the printed rule parses to another one (-first +second):\n%s", diff)
			}
		})
	}
}

// diffRules compares everything that rules hold except where they were written.
func diffRules(a, b *Rule) string {
	type fields struct {
		Host     Host
		Ports    PortSet
		Pin      Pin
		Busy     []Busy
		Cooldown time.Duration
		Text     string
	}
	of := func(r *Rule) fields { return fields{r.host, r.ports, r.pin, r.busy, r.cooldown, r.text} }
	return cmp.Diff(of(a), of(b), cmp.Comparer(func(a, b Host) bool { return a == b }))
}

func TestParseAt(t *testing.T) {
	r, err := ParseAt("rules.conf", 3, "a:443=1")
	if err != nil {
		t.Fatal(err)
	}
	if source, line := r.Source(); source != "rules.conf" || line != 3 {
		t.Errorf("Source() = %q, %d", source, line)
	}
	for _, tt := range []struct {
		source string
		line   int
		want   string
	}{
		{"rules.conf", 3, "rules.conf:3:3: port 0 does not exist"},
		{"--rule", 0, `--rule "a:0=1", column 3: port 0 does not exist`},
		{"", 0, `rule "a:0=1", column 3: port 0 does not exist`},
	} {
		_, err := ParseAt(tt.source, tt.line, "a:0=1")
		if err == nil || err.Error() != tt.want {
			t.Errorf("ParseAt(%q, %d): %v, want %s", tt.source, tt.line, err, tt.want)
		}
	}
}

func TestCaret(t *testing.T) {
	tests := []struct{ rule, want string }{
		{"google.com:70000=63999", "" +
			"google.com:70000=63999\n" +
			"           ^"},
		{"a:443=", "" + // one past the end
			"a:443=\n" +
			"      ^"},
		{"", "\n^"},
		{`bü"cher:443=1`, "" +
			"bü\"cher:443=1\n" +
			"  ^"},
		{"bu\u0308'cher:443=1", "" + // a combining diaeresis takes no cell
			"bu\u0308'cher:443=1\n" +
			"  ^"},
		{"例え'.example:443=1", "" + // two characters, four cells
			"例え'.example:443=1\n" +
			"    ^"},
		{"\ta:443=1\tbusy=no", "" +
			"        a:443=1 busy=no\n" +
			"                     ^"},
		{"a:443=1\x1b[31m", "" + // nothing that a terminal acts on
			"a:443=1\ufffd[31m\n" +
			"       ^"},
		{"a:443=1\nb:443=1", "" +
			"a:443=1\ufffdb:443=1\n" +
			"       ^"},
		{strings.Repeat("a", 500) + "\"" + strings.Repeat("b", 201), "" + // only what is around the spot
			"…" + strings.Repeat("a", 200) + "\"" + strings.Repeat("b", 199) + "…\n" +
			strings.Repeat(" ", 201) + "^"},
		{"a:443=1\xffb", "" +
			"a:443=1\ufffdb\n" +
			"       ^"},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			_, err := Parse(tt.rule)
			var syntax *SyntaxError
			if !errors.As(err, &syntax) {
				t.Fatalf("got %v, want a *SyntaxError", err)
			}
			if got := syntax.Caret(); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestNameLength(t *testing.T) {
	label := strings.Repeat("a", 61) + "."
	longest := strings.Repeat(label, 4) + "bbbbb" // 253 characters
	if _, err := Parse(longest + ".:443=1"); err != nil {
		t.Errorf("a name of %d characters: %v", len(longest), err)
	}
	_, err := Parse(longest + "b:443=1")
	if err == nil || !strings.HasSuffix(err.Error(), "a name has at most 253 characters, this one 254") {
		t.Errorf("a name of 254 characters: %v", err)
	}
}

func TestParseFile(t *testing.T) {
	const file = "\ufeff# pins of the bank\r\n" +
		"\r\n" +
		"  a.example:443=1   # the main one\r\n" +
		"\t\n" +
		"#b.example:443=2\n" +
		"c.example:443=3 busy=any"
	got, err := ParseFile("rules.conf", strings.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, r := range got {
		lines = append(lines, r.where())
	}
	want := []string{`"a.example:443=1" (rules.conf:3)`, `"c.example:443=3 busy=any" (rules.conf:6)`}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestParseFileErrors(t *testing.T) {
	_, err := ParseFile("rules.conf", strings.NewReader("a:443=1\n\n  b:0=1 # zero\n"))
	var syntax *SyntaxError
	if !errors.As(err, &syntax) {
		t.Fatalf("got %v, want a *SyntaxError", err)
	}
	want := &SyntaxError{Text: "  b:0=1 ", Column: 5, Msg: "port 0 does not exist", Source: "rules.conf", Line: 3}
	if diff := cmp.Diff(want, syntax); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	broken := errors.New("broken")
	_, err = ParseFile("rules.conf", &failingReader{broken})
	if !errors.Is(err, broken) {
		t.Errorf("got %v, want the reader's error", err)
	}
}

type failingReader struct{ err error }

func (r *failingReader) Read([]byte) (int, error) { return 0, r.err }

func FuzzParse(f *testing.F) {
	for _, tt := range malformed {
		f.Add(tt.rule)
	}
	for _, rule := range []string{
		"google.co.uk:443=63999",
		"*.bank.example:443,8443=63990-63999 busy=wait:10s",
		"[2001:db8::/32]:22=1022",
		"10.20.0.0/16:*=192.0.2.10:20000-20999 busy=other-address,any",
		"*:*=[2001:db8::1]:1-65535 busy=reclaim:1.5s,fail cooldown=1h",
		"bücher.example:443=1",
		"xn--bcher-kva.example:443=1",
	} {
		f.Add(rule)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := Parse(text)
		if err != nil {
			syntax := err.(*SyntaxError)
			if n := len([]rune(text)); syntax.Column < 1 || syntax.Column > n+1 {
				t.Errorf("column %d of %d", syntax.Column, n)
			}
			if syntax.Msg == "" || strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("the error is not one line: %q", err)
			}
			if lines := strings.Split(syntax.Caret(), "\n"); len(lines) != 2 || strings.TrimLeft(lines[1], " ") != "^" {
				t.Errorf("the caret is not two lines: %q", lines)
			}
			if syntax.Hint != "" {
				if _, err := Parse(syntax.Hint); err != nil {
					t.Errorf("the hint does not parse: %v", err)
				}
			}
			return
		}
		again, err := Parse(r.String())
		if err != nil {
			t.Fatalf("%q was printed as %q: %v", text, r, err)
		}
		if diff := diffRules(r, again); diff != "" {
			t.Errorf("%q was printed as %q, which is another rule (-first +second):\n%s", text, r, diff)
		}
		if _, err := NewSet([]*Rule{r}); err != nil {
			t.Errorf("one rule makes no set: %v", err)
		}
		if r.ports.Len() == 0 || r.pin.ports.Len() == 0 || len(r.busy) == 0 {
			t.Errorf("%q parses to a rule without ports, pin or way", text)
		}
	})
}
