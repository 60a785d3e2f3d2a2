package rules

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPortSet(t *testing.T) {
	tests := []struct {
		name   string
		ranges []PortRange
		want   []PortRange
		text   string
		ports  int
	}{
		{"empty", nil, nil, "", 0},
		{"one", []PortRange{{443, 443}}, []PortRange{{443, 443}}, "443", 1},
		{"sorted", []PortRange{{8000, 8010}, {443, 443}}, []PortRange{{443, 443}, {8000, 8010}}, "443,8000-8010", 12},
		{"touching", []PortRange{{3, 4}, {1, 2}, {5, 5}}, []PortRange{{1, 5}}, "1-5", 5},
		{"overlapping", []PortRange{{1, 10}, {2, 3}, {5, 20}}, []PortRange{{1, 20}}, "1-20", 20},
		{"not touching", []PortRange{{1, 2}, {4, 5}}, []PortRange{{1, 2}, {4, 5}}, "1-2,4-5", 4},
		{"port 0", []PortRange{{0, 2}}, []PortRange{{1, 2}}, "1-2", 2},
		{"only port 0", []PortRange{{0, 0}}, nil, "", 0},
		{"backwards", []PortRange{{5, 4}, {7, 7}}, []PortRange{{7, 7}}, "7", 1},
		{"all", []PortRange{{1, 65535}}, []PortRange{{1, 65535}}, "*", 65535},
		{"all in two", []PortRange{{65535, 65535}, {1, 65534}}, []PortRange{{1, 65535}}, "*", 65535},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := NewPortSet(tt.ranges...)
			if diff := cmp.Diff(tt.want, s.Ranges()); diff != "" && len(tt.want)+len(s.Ranges()) > 0 {
				t.Errorf("ranges (-want +got):\n%s", diff)
			}
			if s.String() != tt.text || s.Len() != tt.ports || s.All() != (tt.ports == 65535) {
				t.Errorf("got %q, %d ports, all: %v; want %q, %d ports", s, s.Len(), s.All(), tt.text, tt.ports)
			}
			for port := 0; port <= maxPort; port++ {
				want := false
				for _, r := range tt.want {
					want = want || r.First <= uint16(port) && uint16(port) <= r.Last
				}
				if s.Contains(uint16(port)) != want {
					t.Fatalf("Contains(%d) = %v", port, !want)
				}
			}
		})
	}
}

func TestPortSetLenIn(t *testing.T) {
	s := NewPortSet(PortRange{10, 19}, PortRange{30, 30})
	for _, c := range []struct {
		ranges []PortRange
		want   int
	}{
		{nil, 0},
		{[]PortRange{{1, 9}, {20, 29}, {31, 65535}}, 0},
		{[]PortRange{{19, 30}}, 2},
		{[]PortRange{{12, 13}, {15, 15}}, 3},
		{[]PortRange{{1, 65535}}, 11},
	} {
		if got := s.LenIn(c.ranges...); got != c.want {
			t.Errorf("%v: %d, want %d", c.ranges, got, c.want)
		}
	}
}

func TestPortSetIsTheOwnersAlone(t *testing.T) {
	given := []PortRange{{1, 2}, {4, 5}}
	s := NewPortSet(given...)
	given[0] = PortRange{7, 8}
	s.Ranges()[0] = PortRange{7, 8}
	if s.String() != "1-2,4-5" || s.Contains(7) {
		t.Errorf("the set changed to %v", s.Ranges())
	}
}
