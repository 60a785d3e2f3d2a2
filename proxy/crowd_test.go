package proxy

import (
	"fmt"
	"net/netip"
	"testing"
)

// A host that sends from many addresses of its network takes no more places than one that has a single address.
func TestCrowdOfOneNetwork(t *testing.T) {
	for _, test := range []struct {
		source string // of the nth flow
		want   int
	}{
		{"192.0.2.1", 4},
		{"192.0.2.%d", 10},
		{"2001:db8::1", 4},
		{"2001:db8::%d", 4},
		{"2001:db8:0:%d::1", 10},
	} {
		c := newCrowd(100, 4)
		var in []netip.Addr
		for i := range 10 {
			text := test.source
			if _, err := netip.ParseAddr(text); err != nil {
				text = fmt.Sprintf(text, i+1)
			}
			if src := netip.MustParseAddr(text); c.enter(nil, src) {
				in = append(in, src)
			}
		}
		if len(in) != test.want {
			t.Errorf("%d flows from %s are let in, want %d", len(in), test.source, test.want)
		}
		for _, src := range in {
			c.leave(nil, src)
		}
		if len(c.sources)+len(c.rules) != 0 {
			t.Errorf("all have left, and %v stay", c.sources)
		}
	}
}
