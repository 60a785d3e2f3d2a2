package host

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// stand returns what is in place after a fresh start with c, for the given families and learned captures.
func stand(t testing.TB, c Config, learned []Capture, families ...family) standing {
	t.Helper()
	c = c.withDefaults()
	now := standing{rules: make(map[family][]rule), routes: make(map[dest]bool)}
	for _, fam := range families {
		now.rules[fam] = nil
		for _, s := range planFamily(c, fam, Facts{IPv6: true}) {
			switch s := s.(type) {
			case rule:
				now.rules[fam] = append(now.rules[fam], s)
			case route:
				now.routes[dest{s.table, s.dst}] = true
			}
		}
	}
	for _, l := range learned {
		if !now.routes[destOf(l)] {
			now.routes[destOf(l)] = false
		}
	}
	return now
}

// changes are reloads whose lines are in testdata/NAME.change.
var changes = map[string]struct {
	before, after                Config
	learnedBefore, learnedBeside []Capture
}{
	// A port set appears at an unused number, another goes. The first is kept with everything in it.
	"sets": {
		before: Config{
			PortSets: [][]PortRange{{{443, 443}}, {{22, 22}}},
			Captures: []Capture{capture("203.0.113.0/24", 0), capture("192.0.2.0/24", 1)},
		},
		after: Config{
			PortSets: [][]PortRange{{{443, 443}}, {}, {{80, 80}, {8000, 8010}}},
			Captures: []Capture{capture("203.0.113.0/24", 0), capture("198.51.100.0/24", 0), capture("2001:db8::/32", 2)},
		},
	},
	// The first rule for a name: DNS is captured from now on. One learned address stays, another goes.
	"names": {
		before: Config{
			PortSets: [][]PortRange{{{443, 443}}},
			Captures: []Capture{capture("203.0.113.0/24", 0), capture("203.0.113.7/32", 0)},
		},
		after:         Config{PortSets: [][]PortRange{{{443, 443}}}, DNS: true},
		learnedBefore: []Capture{capture("192.0.2.1/32", 0), capture("192.0.2.2/32", 0)},
		learnedBeside: []Capture{capture("192.0.2.1/32", 0), capture("203.0.113.7/32", 0)},
	},
	// The last rule for a name goes.
	"no names": {
		before:        Config{PortSets: [][]PortRange{{{443, 443}}}, DNS: true},
		after:         Config{PortSets: [][]PortRange{{}, {{22, 22}}}, Captures: []Capture{capture("0.0.0.0/0", 1), capture("::/0", 1)}},
		learnedBefore: []Capture{capture("192.0.2.1/32", 0)},
	},
	// Other pins: the guards change before the captures. A port with a live flow is still let through.
	"strict": {
		before: Config{
			PortSets: [][]PortRange{{{443, 443}}}, Captures: []Capture{capture("0.0.0.0/0", 0)}, Strict: true,
			Reserve: []PortRange{{1022, 1022}, {64000, 64009}},
		},
		after: Config{
			PortSets: [][]PortRange{{{443, 443}}}, Captures: []Capture{capture("0.0.0.0/0", 0)}, Strict: true,
			Reserve: []PortRange{{1022, 1022}, {63000, 63000}}, Leased: []PortRange{{64003, 64003}},
		},
	},
	// Port 65535 needs one rule that lets the other ports through.
	"tails": {
		before: Config{PortSets: [][]PortRange{{{443, 443}}, {{8000, 65535}}}, Captures: []Capture{capture("203.0.113.0/24", 1)}},
		after: Config{
			PortSets: [][]PortRange{{{443, 443}}, {}, {{65535, 65535}}, {{1, 65535}}},
			Captures: []Capture{capture("203.0.113.0/24", 2), capture("192.0.2.0/24", 3)},
		},
	},
	"nothing": {
		before:        Config{PortSets: [][]PortRange{{{443, 443}}}, DNS: true, Reserve: []PortRange{{63999, 63999}}},
		after:         Config{PortSets: [][]PortRange{{{443, 443}}}, DNS: true, Reserve: []PortRange{{64000, 64000}}},
		learnedBefore: []Capture{capture("192.0.2.1/32", 0)},
		learnedBeside: []Capture{capture("192.0.2.1/32", 0)},
	},
}

func TestChange(t *testing.T) {
	for name, test := range changes {
		t.Run(name, func(t *testing.T) {
			c := test.after.withDefaults()
			ch, err := planChange(c, test.learnedBeside, stand(t, test.before, test.learnedBefore, v4, v6))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", name+".change")
			if *update {
				if err := os.WriteFile(path, []byte(ch.text(c)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(ch.text(c), "\n")); diff != "" {
				t.Errorf("change (-want +got):\n%s", diff)
			}
		})
	}
}

// A family that is not captured is still wanted, for when it appears.
func TestChangeWithoutIPv6(t *testing.T) {
	c := Config{PortSets: [][]PortRange{{{443, 443}}}, Captures: []Capture{capture("2001:db8::/32", 0)}}.withDefaults()
	ch, err := planChange(c, nil, stand(t, Config{}, nil, v4))
	if err != nil {
		t.Fatal(err)
	}
	if text := ch.text(c); strings.Contains(text, "-6") || !strings.Contains(text, "dport 443") {
		t.Errorf("got %s", text)
	}
	if _, wanted := ch.then.routes[destOf(c.Captures[0])]; !wanted {
		t.Error("the IPv6 route is not remembered")
	}
}

func TestChangeErrors(t *testing.T) {
	many := make([]PortRange, 500)
	for i := range many {
		many[i] = PortRange{uint16(4*i + 1), uint16(4*i + 1)}
	}
	others := make([]PortRange, 500)
	for i := range others {
		others[i] = PortRange{uint16(4*i + 3), uint16(4*i + 3)}
	}
	now := stand(t, Config{PortSets: [][]PortRange{many}}, nil, v4, v6)
	for _, test := range []struct {
		c       Config
		learned []Capture
		want    string
	}{
		{Config{PortSets: [][]PortRange{nil, others}}, nil, "110 ranges of ports too many for the host's rule list beside those of the rules before: start pinproxy anew"},
		{Config{PortSets: [][]PortRange{{{0, 80}}}}, nil, "port set 0: ports 0-80: not a range"},
		{Config{}, []Capture{capture("192.0.2.1/32", 0)}, "capture 192.0.2.1/32: no port set 0"},
	} {
		if _, err := planChange(test.c.withDefaults(), test.learned, now); err == nil || err.Error() != test.want {
			t.Errorf("got  %v\nwant %s", err, test.want)
		}
	}
}

// randomConfig chooses port sets and captures at random. Port sets that are used keep their previous numbers.
func randomConfig(rng *rand.Rand, strict bool) Config {
	ranges := []PortRange{{22, 22}, {80, 80}, {443, 444}, {8000, 65535}, {1, 65535}, {65535, 65535}}
	c := Config{Strict: strict, DNS: rng.IntN(2) == 0}
	for _, r := range ranges {
		set := []PortRange{r}
		if rng.IntN(2) == 0 {
			set = nil
		}
		c.PortSets = append(c.PortSets, set)
		for range rng.IntN(3) {
			if set != nil {
				prefix := fmt.Sprintf("192.0.2.%d/32", rng.IntN(3))
				if rng.IntN(2) == 0 {
					prefix = fmt.Sprintf("2001:db8::%d/128", rng.IntN(3))
				}
				c.Captures = append(c.Captures, capture(prefix, len(c.PortSets)-1))
			}
		}
	}
	for port := range uint16(5) {
		if rng.IntN(2) == 0 {
			c.Reserve = append(c.Reserve, PortRange{63000 + 2*port, 63000 + 2*port})
		}
	}
	return c.withDefaults()
}

// Whatever came before, a change leads to the same state as a start with the same configuration, except for the
// priorities. Nothing that is in both is touched.
func TestChangeLeadsToAFreshStart(t *testing.T) {
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 1))
		strict := seed%2 == 0
		c := randomConfig(rng, strict)
		now := stand(t, c, nil, v4, v6)
		for range 4 {
			var learned []Capture
			c = randomConfig(rng, strict)
			for i, set := range c.PortSets {
				if set != nil && rng.IntN(2) == 0 {
					learned = append(learned, Capture{netip.MustParsePrefix("192.0.2.1/32"), i})
				}
			}
			ch, err := planChange(c, learned, now)
			if err != nil {
				t.Fatal(err)
			}
			then := carriedOut(t, now, ch)
			fresh := stand(t, c, learned, v4, v6)
			if diff := cmp.Diff(fresh.text(false), then.text(false)); diff != "" {
				t.Fatalf("seed %d: what stands (-fresh +changed):\n%s", seed, diff)
			}
			if !maps.Equal(fresh.routes, ch.then.routes) {
				t.Fatalf("seed %d: routes are remembered otherwise than as they are", seed)
			}
			if diff := cmp.Diff(ch.then.text(true), then.text(true)); diff != "" {
				t.Fatalf("seed %d: what is remembered (-remembered +stands):\n%s", seed, diff)
			}
			now = ch.then
		}
	}
}

// carriedOut performs ch step by step, and checks each step.
func carriedOut(t *testing.T, now standing, ch change) standing {
	t.Helper()
	then := standing{rules: map[family][]rule{}, routes: maps.Clone(now.routes)}
	prefs, stood := map[string]bool{}, map[rule]bool{}
	for fam, list := range now.rules {
		then.rules[fam] = slices.Clone(list)
		for _, r := range list {
			prefs[fmt.Sprint(fam, r.pref)] = true
			stood[r.anywhere()] = true
		}
	}
	for _, d := range ch.addRoutes {
		if _, there := then.routes[d]; there {
			t.Fatalf("%v is added twice", d)
		}
		then.routes[d] = ch.then.routes[d]
	}
	for _, r := range ch.addRules {
		if stood[r.anywhere()] {
			t.Fatalf("%v stood already", r)
		}
		if key := fmt.Sprint(r.fam, r.pref); prefs[key] {
			t.Fatalf("%v: a second rule of this priority", r)
		} else {
			prefs[key] = true
		}
		then.rules[r.fam] = append(then.rules[r.fam], r)
	}
	for _, r := range ch.delRules {
		i := slices.Index(then.rules[r.fam], r)
		if i < 0 {
			t.Fatalf("%v is deleted and not there", r)
		}
		then.rules[r.fam] = slices.Delete(then.rules[r.fam], i, i+1)
	}
	for _, d := range ch.delRoutes {
		if _, there := then.routes[d]; !there {
			t.Fatalf("%v is deleted and not there", d)
		}
		delete(then.routes, d)
	}
	for d := range then.routes {
		then.routes[d] = ch.then.routes[d] // a route that stays may stay for another reason
	}
	for _, list := range then.rules {
		for _, r := range list {
			if first := prefGuard; r.action == skip && r.dport == (PortRange{}) && r.mark == 0 && (r.pref < first || r.pref >= prefStrict) {
				t.Fatalf("%v: not before the capture rules", r)
			}
			if split := r.dport == (PortRange{1, 65534}); split && r.pref != prefSplit {
				t.Fatalf("%v: not where it belongs", r)
			}
		}
	}
	return then
}

// text returns what is in place, sorted.
func (s standing) text(prefs bool) []string {
	var lines []string
	for _, list := range s.rules {
		for _, r := range list {
			if !prefs && r.pref != prefSplit {
				r = r.anywhere()
			}
			lines = append(lines, r.String())
		}
	}
	for d, forGood := range s.routes {
		lines = append(lines, fmt.Sprint(d, forGood))
	}
	slices.Sort(lines)
	return lines
}
