package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
	"pinproxy/rules"
)

var update = flag.Bool("update", false, "write what pinproxy says now into the transcripts of testdata/script")

// What a user types and reads.
func TestTranscripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: *update,
		Setup: func(e *testscript.Env) error {
			e.Setenv("RUNTIME_DIRECTORY", e.WorkDir)
			return nil
		},
	})
}

// Rules that can't be parsed, and where the caret is.
var malformed = []struct {
	rule   string
	column int
}{
	{"", 1},
	{"google.co.uk", 13},
	{"google.co.uk:443", 17},
	{"google.co.uk=63999", 13},
	{"google.co.uk:443=", 18},
	{"google.co.uk:443:63999", 17},
	{"google.co.uk:443->63999", 17},
	{"google.co.uk:443 63999", 17},
	{"google.co.uk:443 = 63999", 17},
	{":443=63999", 1},
	{"=63999", 1},
	{"busy=wait", 1},
	{"'google.co.uk:443=63999'", 1},
	{"https://google.co.uk:443=63999", 1},
	{"*google.co.uk:443=63999", 1},
	{"*.*.co.uk:443=63999", 3},
	{".co.uk:443=63999", 1},
	{"google..uk:443=63999", 8},
	{"goo$gle.co.uk:443=63999", 4},
	{"user@google.co.uk:443=63999", 5},
	{"-a.example:443=63999", 1},
	{"bücher$.example:443=63999", 1},
	{"google.co.uk/24:443=63999", 1},
	{"10.0.0.256:443=63999", 1},
	{"10.0.1:443=63999", 1},
	{"10.20.1.1/16:443=63999", 1},
	{"10.20.0.0/33:443=63999", 11},
	{"10.0.0.0/255.0.0.0:443=63999", 10},
	{"0.0.0.0:443=63999", 1},
	{"224.0.0.1:443=63999", 1},
	{"2001:db8::1:443=63999", 1},
	{"[2001:db8::1:22=1022", 1},
	{"[2001:db8::]/32:22=1022", 13},
	{"[2001:db8::1/129]:22=1022", 14},
	{"[fe80::1%eth0]:22=1022", 9},
	{"[google.co.uk]:443=63999", 2},
	{"google.co.uk:0=63999", 14},
	{"google.co.uk:65536=63999", 14},
	{"google.co.uk:https=63999", 14},
	{"google.co.uk:8010-8000=63999", 14},
	{"google.co.uk:443,,80=63999", 18},
	{"google.co.uk:443,443=63999", 18},
	{"google.co.uk:*,443=63999", 14},
	{"google.co.uk:443=0", 18},
	{"google.co.uk:443=70000", 18},
	{"google.co.uk:443=63999x", 18},
	{"google.co.uk:443=*", 18},
	{"google.co.uk:443=63999,", 24},
	{"google.co.uk:443=:63999", 18},
	{"google.co.uk:443=192.0.2.1", 27},
	{"google.co.uk:443=63999 fast", 24},
	{"google.co.uk:443=63999 busy", 28},
	{"google.co.uk:443=63999 busy=", 29},
	{"google.co.uk:443=63999 busy=never", 29},
	{"google.co.uk:443=63999 busy=wait:", 34},
	{"google.co.uk:443=63999 busy=wait:10", 34},
	{"google.co.uk:443=63999 busy=any:10s", 33},
	{"google.co.uk:443=63999 cooldown=", 33},
	{"google.co.uk:443=63999 cooldown=-1s", 33},
	{"google.co.uk:443=63999 cooldown=1s cooldown=2s", 36},
}

// None of them changes anything on the host. A hint is a command that works.
func TestMalformedRules(t *testing.T) {
	t.Parallel()
	client := lab.ForTest(t).Topology().Client
	before := client.Snapshot()
	for _, test := range malformed {
		var out, said bytes.Buffer
		status := exitFailed
		if err := client.Do(func() error {
			status = run(func() (stop, now context.Context) { return t.Context(), t.Context() }, []string{"--rule", "good.example:443=1", "--rule", test.rule}, &out, &said)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if status != exitUsage || out.Len() > 0 {
			t.Errorf("%q: status %d, printed %q", test.rule, status, out.String())
		}
		text := lines(said.String())
		want := []string{"    " + test.rule, fmt.Sprintf("    %*s", test.column, "^")}
		if !strings.HasPrefix(text[0], "pinproxy: error: rule ") || len(text) < 3 {
			t.Errorf("%q: said\n%s", test.rule, &said)
			continue
		}
		if diff := cmp.Diff(want, text[1:3]); diff != "" {
			t.Errorf("%q: the caret is elsewhere (-want +got):\n%s", test.rule, diff)
		}
		for _, more := range text[3:] {
			hint, ok := strings.CutPrefix(more, "pinproxy: hint: pinproxy --rule '")
			if _, err := rules.Parse(strings.TrimSuffix(hint, "'")); !ok || err != nil {
				t.Errorf("%q: hint %q: %v", test.rule, more, err)
			}
		}
	}
	if diff := cmp.Diff(lines(before), lines(client.Snapshot())); diff != "" {
		t.Errorf("the host is changed (-before +after):\n%s", diff)
	}
}

// 1 and 2 are a command's own, as grep's and diff's are: a failure of ours before it looks like no end of it.
func TestFailureBeforeCommand(t *testing.T) {
	for _, test := range []struct {
		args   []string
		status int
	}{
		{[]string{"--rule", "google.co.uk:443", "--", "true"}, exitNotRun},
		{[]string{"--rule", "google.co.uk:443=63999", "--rule", "google.co.uk:443=63998", "--", "true"}, exitNotRun},
		{[]string{"--rules", "/no/such/file", "--", "true"}, exitNotRun},
		{[]string{"--nope", "--", "true"}, exitNotRun},
		{[]string{"--", "true"}, exitNotRun},
		{[]string{"--rule", "google.co.uk:443=63999", "--strict", "--", "true"}, exitNotRun},
		{[]string{"--rule", "google.co.uk:443=63999", "--"}, exitNotRun},
		{[]string{"--rule", "google.co.uk:443=63999", "--", "/no/such/program"}, exitUnknown},
		{[]string{"cleanup", "--", "true"}, exitUsage},
		{[]string{"--nope"}, exitUsage},
	} {
		var out, said bytes.Buffer
		status := run(func() (stop, now context.Context) { return t.Context(), t.Context() }, test.args, &out, &said)
		if status != test.status || out.Len() > 0 || !strings.HasPrefix(said.String(), "pinproxy: error: ") {
			t.Errorf("%q: status %d, want %d; printed %q, said %q", test.args, status, test.status, &out, &said)
		}
	}
}

// After a mistake on the command line a service manager must not try again: the unit has RestartPreventExitStatus=2.
func TestNamesOfNobodyAreUsageErrors(t *testing.T) {
	for _, flag := range []string{"--user", "--socket-group"} {
		var out, said bytes.Buffer
		args := []string{"--rule", "google.co.uk:443=63999", flag, "no-such-name", "--dry-run"}
		status := run(func() (stop, now context.Context) { return t.Context(), t.Context() }, args, &out, &said)
		if status != exitUsage || out.Len() > 0 {
			t.Errorf("%s: status %d, printed %q, said %q", flag, status, &out, &said)
		}
	}
}

// Without privileges pinproxy says what it lacks and does nothing.
func TestNotPermitted(t *testing.T) {
	w := newNetwork(t)
	before := w.Client.Snapshot()
	for _, args := range [][]string{{"--rule", "*:443=63999"}, {"--rule", "*:443=63999", "--offload", "off"}} {
		cmd := w.command(args...)
		// Root of a user namespace that has no power over the client's network.
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: 0, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: 0, Size: 1}},
		}
		_, said, err := w.Client.Run(cmd)
		if exitStatus(err) != exitFailed || !strings.Contains(said, "operation not permitted") || !strings.Contains(said, "pinproxy: hint: ") {
			t.Errorf("%q ended with %v and said\n%s", args, err, said)
		}
	}
	if diff := cmp.Diff(lines(before), lines(w.Client.Snapshot())); diff != "" {
		t.Errorf("the host is changed (-before +after):\n%s", diff)
	}
}
