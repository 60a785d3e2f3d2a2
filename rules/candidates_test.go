package rules

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestCandidates expects all rules that match, the winner first, whatever order they were given in.
func TestCandidates(t *testing.T) {
	s := mustSet(t,
		"*:*=1",
		"0.0.0.0/0:443=2",
		"*:443=3",
		"*.example:443=4",
		"*.b.example:1-1000=5",
		"a.b.example:*=6",
		"192.0.2.0/24:443=7",
		"a.b.example:443,80=8",
		"192.0.2.0/24:22=9",
		"[2001:db8::/32]:443=10",
	)
	for _, test := range []struct {
		name, dst string
		pins      []string
	}{
		{"A.b.example.", "192.0.2.1:443", []string{"8", "6", "5", "4", "7", "2", "3", "1"}},
		{"a.b.example", "192.0.2.1:22", []string{"6", "5", "9", "1"}},
		{"other", "[2001:db8::1]:443", []string{"10", "3", "1"}},
		{"", "192.0.2.1:443", []string{"7", "2", "3", "1"}},
		{"", "203.0.113.1:80", []string{"1"}},
	} {
		dst := netip.MustParseAddrPort(test.dst)
		list := s.Candidates(test.name, dst)
		var pins []string
		for _, r := range list {
			pins = append(pins, r.Pin().String())
		}
		if diff := cmp.Diff(test.pins, pins); diff != "" {
			t.Errorf("%s at %s (-want +got):\n%s", test.name, test.dst, diff)
		}
		if list[0] != s.Match(test.name, dst) {
			t.Errorf("%s at %s: the first is not the one that wins", test.name, test.dst)
		}
	}
	if list := mustSet(t, "192.0.2.0/24:443=7").Candidates("a", netip.MustParseAddrPort("192.0.2.1:80")); list != nil {
		t.Errorf("port without a rule: %v", list)
	}
}
