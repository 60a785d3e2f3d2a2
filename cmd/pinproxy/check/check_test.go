package check

import (
	"errors"
	"strings"
	"testing"
)

// Where queries are captured, a firewall of this host that lets pass only what it knows is named; else nobody can tell
// whose refusal it is.
func TestLookupForbidden(t *testing.T) {
	eperm := errors.New("write udp 192.0.0.8:51557->203.0.113.53:53: write: operation not permitted")
	for _, test := range []struct {
		err  error
		link string
		says bool
	}{
		{eperm, "pin0", true},
		{eperm, "", false},
		{errors.New("no such host"), "pin0", false},
	} {
		got := forbidden(test.err, test.link).Error()
		if !strings.HasPrefix(got, test.err.Error()) || strings.HasSuffix(got, ": a firewall of this host has to let pass what leaves by pin0") != test.says {
			t.Errorf("%v on %q: %s", test.err, test.link, got)
		}
	}
}

// The kernel gives no number for a process of another PID namespace.
func TestWhoIsInAnotherPIDNamespace(t *testing.T) {
	r := Report{Pinproxy: &Pinproxy{Error: "ask /run/x: no such file or directory"}}
	if got := r.who(); got != "in another PID namespace, but can't ask /run/x: no such file or directory" {
		t.Error(got)
	}
}
