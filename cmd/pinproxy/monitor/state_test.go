package monitor

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"testing"
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
