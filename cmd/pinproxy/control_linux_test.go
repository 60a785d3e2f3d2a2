package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/rules"
)

// serveControl serves a control socket without a network behind it.
func serveControl(t *testing.T) *instance {
	t.Helper()
	r, err := rules.ParseAt("partners.rules", 3, "www.bank.example:443=63999")
	if err != nil {
		t.Fatal(err)
	}
	c := testControl(t, r)
	path := filepath.Join(t.TempDir(), "pinproxy.sock")
	l, remove, err := listenControl(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- c.serve(ctx, l) }() // ends with ctx
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-served:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("it does not end")
		}
		if err := remove(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Error("the socket is still there", err)
		}
		poll(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
	})
	return &instance{path: path}
}

func TestControl(t *testing.T) {
	i := serveControl(t)
	var about aboutJSON
	if err := i.ask(t.Context(), "/about", nil, &about); err != nil {
		t.Fatal(err)
	}
	if about.PID != os.Getpid() || about.Link != "lo" || len(about.Rules) != 1 || about.Rules[0] != (ruleJSON{"www.bank.example:443=63999", "partners.rules", 3}) {
		t.Errorf("%+v", about)
	}
	if set, err := rulesOf(about); err != nil || set.Rules()[0].String() != about.Rules[0].Rule {
		t.Error(err)
	}
	var s statusJSON
	if err := i.ask(t.Context(), "/status", nil, &s); err != nil || len(s.Names) != 1 || s.PID != about.PID || s.Flows == nil || s.Failures == nil {
		t.Errorf("%+v, %v", s, err)
	}
	dst := netip.MustParseAddrPort("203.0.113.2:443")
	for _, test := range []struct {
		dst              netip.AddrPort
		name, rule, want string
		next             uint16
		instead          *insteadJSON
	}{
		{dst, "", "", "www.bank.example:443=63999", 63999, nil},
		{dst, "www.bank.example", "", "www.bank.example:443=63999", 63999, nil},
		{dst, "other.example", "", "", 0, &insteadJSON{"www.bank.example:443=63999", "www.bank.example"}},
		{netip.MustParseAddrPort("203.0.113.3:443"), "www.bank.example", "", "www.bank.example:443=63999", 63999, &insteadJSON{}},
		{netip.MustParseAddrPort("203.0.113.3:443"), "", "*:443=7000-7001", "", 7000, nil},
	} {
		d, err := i.destination(t.Context(), test.dst, test.name, test.rule)
		if err != nil || d.Rule != test.want || (d.Pin == nil) != (test.next == 0) || d.Pin != nil && d.Pin.Next[0] != test.next || !reflect.DeepEqual(d.Instead, test.instead) {
			t.Errorf("%+v: %+v, %v", test, d, err)
		}
	}
}

// Requests that no real client would make are answered, too.
func TestControlRefuses(t *testing.T) {
	i := serveControl(t)
	for resource, want := range map[string]string{
		"/nowhere":     "404",
		"/destination": "400 Bad Request: dst: ",
	} {
		if err := i.ask(t.Context(), resource, nil, &struct{}{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", resource, err, want)
		}
	}
	err := i.ask(t.Context(), "/destination", url.Values{"dst": {"203.0.113.2:443"}, "rule": {"nonsense"}}, &struct{}{})
	if err == nil || !strings.Contains(err.Error(), `rule "nonsense", column 9`) {
		t.Error(err)
	}
	for request, want := range map[string]int{
		"POST /about HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n":                    http.StatusMethodNotAllowed,
		"GET /about HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<16) + "\r\n\r\n": http.StatusRequestHeaderFieldsTooLarge,
		"nonsense\r\n\r\n": http.StatusBadRequest,
		"GET /about HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\nConnection: close\r\n\r\n": http.StatusOK,
	} {
		c, err := net.Dial("unix", i.path)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(c, request) // the server may hang up before the request ends
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || r.StatusCode != want {
			t.Errorf("%.40q: %+v, %v, want %d", request, r, err, want)
		}
		_ = c.Close()
	}
}

// A request's body is not read: a form's files would be kept in memory and on disk.
func TestControlReadsNoBody(t *testing.T) {
	_, _, c := newTestSite(t, "www.bank.example:443=63999")
	const boundary = "form"
	form := "--" + boundary + "\r\nContent-Disposition: form-data; name=\"dst\"; filename=\"x\"\r\n\r\n" + strings.Repeat("x", 1<<20) + "\r\n--" + boundary + "--\r\n"
	for _, resource := range []string{"/about", "/status", "/destination?dst=203.0.113.2:443"} {
		body := strings.NewReader(form)
		r := httptest.NewRequest(http.MethodGet, resource, body)
		r.Header.Set("Content-Type", "multipart/form-data; boundary="+boundary)
		answer := httptest.NewRecorder()
		c.handler().ServeHTTP(answer, r)
		if answer.Code != http.StatusOK || body.Len() != len(form) {
			t.Errorf("%s: %d, and %d bytes of the body were read", resource, answer.Code, len(form)-body.Len())
		}
	}
}

// Clients that connect and say nothing, or read nothing, hold up others for at most two seconds.
func TestControlOutlastsTheSlow(t *testing.T) {
	i := serveControl(t)
	for n := range controlConns {
		c, err := net.Dial("unix", i.path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if n%2 == 0 {
			_, _ = io.WriteString(c, "GET /status HTTP/1.1\r\nHost: x\r\n") // and no more
		}
	}
	begun := time.Now()
	if err := i.ask(t.Context(), "/about", nil, &aboutJSON{}); err != nil {
		t.Errorf("after %v: %v", time.Since(begun), err)
	}
	if took := time.Since(begun); took > 4*controlRead {
		t.Errorf("it took %v", took)
	}
}

func TestControlSocketFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pinproxy.sock")
	listen := func() (net.Listener, func() error) {
		t.Helper()
		l, remove, err := listenControl(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		return l, remove
	}
	refused := func(want string) {
		t.Helper()
		before, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := listenControl(t.Context(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
			t.Error("what was there is not there any more", err)
		}
	}
	l, remove := listen()
	if info, err := os.Lstat(path); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	refused("another process listens there")
	_ = l.Close() // as if killed: the file stays
	second, removeSecond := listen()
	if err := remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error("the first has removed the second's socket")
	}
	_ = second.Close()
	for range 2 {
		if err := removeSecond(); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("a file that is no socket")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", path); err != nil {
		t.Fatal(err)
	}
	refused("a file that is no socket")
}

// Everything else works without a control socket.
func TestControlSocketIsNotNeeded(t *testing.T) {
	w := newNetwork(t)
	p := w.pinproxy("--rule", "203.0.113.2:443=63999", "--socket", "/nowhere/at/all.sock")
	if e := p.await("no control socket: check and status can't ask this pinproxy", 1)[0]; e.Level != "WARN" || e.Err != "listen on /nowhere/at/all.sock: no such file or directory" {
		t.Errorf("%+v", e)
	}
	out, _, err := w.Client.Run(w.command("check", "203.0.113.2:443"))
	if exitStatus(err) != exitFailed || !strings.Contains(out, "but can't be asked by which rule: ask it: it has no control socket") {
		t.Errorf("%v\n%s", err, out)
	}
}

// check and status find the socket wherever it is, and --socket finds it as well. It goes with the process.
func TestControlSocketElsewhere(t *testing.T) {
	w := newNetwork(t)
	dir := publicDir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	cmd := w.command("--log-format=json", "--rule", "203.0.113.2:443=63999", "--socket", "s")
	cmd.Dir = dir
	p := w.startCommand(cmd)
	p.expect(`"msg":"ready"`)
	for _, args := range [][]string{{"status"}, {"status", "--socket", path}, {"check", "203.0.113.2:443"}} {
		cmd := program("pinproxy", args...) // without our RUNTIME_DIRECTORY
		if _, _, err := w.Client.Run(cmd); err != nil {
			t.Errorf("%q: %v", args, err)
		}
	}
	if _, _, err := w.Client.Run(w.command("status", "--socket", "/nowhere")); exitStatus(err) != exitFailed || !strings.Contains(err.Error(), "ask /nowhere: no such file or directory") || !strings.Contains(err.Error(), "say by --socket") {
		t.Error(err)
	}
	p.stop()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the socket is still there", err)
	}
}

// To say by --socket where it is does not help who has deleted it.
func TestControlSocketIsDeleted(t *testing.T) {
	w := newNetwork(t)
	dir := publicDir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	p := w.pinproxy("--rule", "203.0.113.2:443=63999", "--socket", path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("hint: if the socket was deleted, a restart of pid %d makes it again", p.Pid())
	if _, _, err := w.Client.Run(w.command("status")); exitStatus(err) != exitFailed || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}

// check does not mix what a pinproxy of another network namespace knows with what the kernel says of this one. status
// has it all from the other.
func TestControlSocketOfAnotherNamespace(t *testing.T) {
	w := newNetwork(t)
	p := w.pinproxy("--rule", "203.0.113.2:443=63999")
	sockets, err := filepath.Glob(filepath.Join(w.run, "pinproxy*.sock"))
	if err != nil || len(sockets) != 1 {
		t.Fatalf("%v, %v", sockets, err)
	}
	if out, _, err := w.Server.Run(w.command("status", "--socket", sockets[0])); err != nil || !strings.Contains(out, "203.0.113.2:443=63999") {
		t.Errorf("status: %v\n%s", err, out)
	}
	out, _, err := w.Server.Run(w.command("check", "--socket", sockets[0], "198.51.100.2:443"))
	want := fmt.Sprintf("pid %d, is in another network namespace", p.Pid())
	if exitStatus(err) != exitFailed || out != "" || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "nsenter") {
		t.Errorf("check: %v\n%s", err, out)
	}
	if out, _, err := w.Client.Run(w.command("check", "--socket", sockets[0], "203.0.113.2:443")); err != nil {
		t.Errorf("check in its own: %v\n%s", err, out)
	}
}

// A pinproxy that is stopped is still there, and what the kernel says of connections is still true.
func TestCheckOfStoppedPinproxy(t *testing.T) {
	w := newNetwork(t)
	p := w.pinproxy("--rule", "203.0.113.2:443=63999")
	if err := p.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	out, _, err := w.Client.Run(w.command("check", "203.0.113.2:443"))
	_, _, serr := w.Client.Run(w.command("status"))
	if err := p.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("pid %d, but can't ask for its control socket: it does not answer", p.Pid())
	if exitStatus(serr) != exitFailed || !strings.Contains(serr.Error(), want) {
		t.Errorf("status: %v", serr)
	}
	if exitStatus(err) != exitFailed || !strings.Contains(out, want) || !strings.Contains(out, "captured  yes, into pin0") {
		t.Errorf("%v\n%s", err, out)
	}
}
