package monitor

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Many rules with many ports are a table at once: the time for it grows with their number, not with its square.
func TestStatusOfManyRules(t *testing.T) {
	var s Status
	for i := range 100_000 {
		rule := fmt.Sprintf("h%06d.bank.example:443=63999", i)
		s.Rules = append(s.Rules, RuleState{RuleRef: RuleRef{Rule: rule}, Ports: 1, Free: 1})
		s.Ports = append(s.Ports, Port{Rule: rule, Port: 63999, State: PortFree})
	}
	done := make(chan string)
	go func() { done <- s.Text(0) }()
	select {
	case text := <-done:
		if n := strings.Count(text, "63999  free   -   -    h"); n != len(s.Ports) {
			t.Errorf("%d ports are listed, want %d", n, len(s.Ports))
		}
	case <-time.After(patience):
		t.Error("it takes too long")
	}
}
