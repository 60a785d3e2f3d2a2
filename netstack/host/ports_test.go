package host

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPorts(t *testing.T) {
	for _, test := range []struct {
		text, printed string
		len           int
	}{
		{"\n", "", 0},
		{"443\n", "443", 1},
		{"8080,9148-9150\n", "8080,9148-9150", 4},
		{"7,5-6,1-3,2-4", "1-7", 7},
		{"63,64,127-128", "63-64,127-128", 4},
		{"0,65535", "0,65535", 2},
		{"0-65535", "0-65535", 65536},
	} {
		p, err := parsePorts(test.text)
		if err != nil {
			t.Fatal(err)
		}
		if p.String() != test.printed || p.len() != test.len || p.empty() != (test.len == 0) {
			t.Errorf("%q: got %q, %d", test.text, p, p.len())
		}
	}
	for _, bad := range []string{"x", "1-", "-1", "65536", "1-65536", "9-8", "1,,2", "1 2"} {
		if p, err := parsePorts(bad); err == nil {
			t.Errorf("%q: got %q", bad, p)
		}
	}
}

// A comparison with a naive twin. Printing and parsing are inverse.
func TestPortsSets(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		a, b := map[int]bool{}, map[int]bool{}
		var pa, pb []PortRange
		for range r.IntN(20) {
			pa = addRange(r, a, pa)
			pb = addRange(r, b, pb)
		}
		p, q := newPorts(pa), newPorts(pb)
		or, and, without := p.or(q), p.and(q), p.without(q)
		for port := range 1 << 16 {
			in := func(s ports) bool { return s[port/64]>>(port%64)&1 == 1 }
			if in(or) != (a[port] || b[port]) || in(and) != (a[port] && b[port]) || in(without) != (a[port] && !b[port]) {
				t.Fatalf("port %d of %q and %q", port, p, q)
			}
		}
		again, err := parsePorts(p.String())
		if err != nil || again != p {
			t.Fatalf("%q became %q (%v)", p, again, err)
		}
		if diff := cmp.Diff(p.ranges(), again.ranges()); diff != "" {
			t.Error(diff)
		}
	}
}

func addRange(r *rand.Rand, m map[int]bool, list []PortRange) []PortRange {
	first := r.IntN(1 << 16)
	last := min(first+r.IntN(200), 1<<16-1)
	for port := first; port <= last; port++ {
		m[port] = true
	}
	return append(list, PortRange{uint16(first), uint16(last)})
}
