package monitor

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"pinproxy/rules"
)

// A status is written in pieces, and reads as if it had been written at once.
func TestStatusIsWrittenInPieces(t *testing.T) {
	dst := netip.MustParseAddrPort("203.0.113.2:443")
	names := []Name{{Name: `"ports":[ "flows":[`, Addr: dst.Addr()}}
	for _, s := range []Status{
		{Ports: []Port{}, Flows: []Flow{}, Rules: []RuleState{}},
		{
			About:    About{Version: `1 "ports":[`},
			Rules:    []RuleState{{RuleRef: RuleRef{Rule: `"flows":[]`}, Ports: 3}},
			Ports:    []Port{{Port: 63998, Holders: []Holder{{State: PortFlow, Flow: 7}}}, {Port: 63999}},
			Flows:    []Flow{{ID: 7, Src: dst, Cause: "<&>"}, {ID: 8}, {ID: 9}},
			Failures: []Failure{{Cause: `"flows":[`}},
			Names:    names,
		},
	} {
		want, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		yields := 0
		if err := s.write(&got, func() { yields++ }); err != nil {
			t.Fatal(err)
		}
		if got.String() != string(want)+"\n" {
			t.Errorf("got  %s\nwant %s", got.String(), want)
		}
		if n := len(s.Ports) + len(s.Flows); yields != n {
			t.Errorf("others were let on %d times, want %d", yields, n)
		}
	}
}

// When a name's TTL ends is right for who asks, though the host was suspended since the start, or its clock set: JSON has no
// monotonic reading.
func TestNamesAfterSuspend(t *testing.T) {
	began := time.Now()
	wall := (*uint64)(unsafe.Pointer(&began)) // its first field, seconds from bit 30 on
	*wall -= 3600 << 30
	if slept := time.Since(began.Round(0)) - time.Since(began); slept.Round(time.Minute) != time.Hour {
		t.Fatalf("the clock of this test is %v ahead", slept)
	}
	r, err := rules.Parse("www.bank.example:443=63999")
	if err != nil {
		t.Fatal(err)
	}
	m := testMonitor(t, r)
	m.Names = rules.NewNames(m.Names.Set())
	if _, err := m.Names.Observe("www.bank.example", []netip.Addr{netip.MustParseAddr("203.0.113.2")}, time.Minute, true, began); err != nil {
		t.Fatal(err)
	}
	s := m.status()
	if len(s.Names) != 1 || time.Until(s.Names[0].Expires.Round(0)).Round(time.Minute) != time.Minute {
		t.Errorf("%+v", s.Names)
	}
}
