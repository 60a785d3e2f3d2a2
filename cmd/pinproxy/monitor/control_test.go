package monitor

import (
	"bufio"
	"context"
	"io"
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

	"pinproxy/rules"
)

// serveControl serves a control socket without a network behind it, and returns its path.
func serveControl(t *testing.T) string {
	t.Helper()
	r, err := rules.ParseAt("partners.rules", 3, "www.bank.example:443=63999")
	if err != nil {
		t.Fatal(err)
	}
	m := testMonitor(t, r)
	path := filepath.Join(t.TempDir(), "pinproxy.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- m.Serve(ctx, l) }() // ends with ctx
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
		poll(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
	})
	return path
}

func TestControl(t *testing.T) {
	path := serveControl(t)
	var about About
	if err := ask(t.Context(), path, "/about", nil, &about); err != nil {
		t.Fatal(err)
	}
	if about.PID != os.Getpid() || about.Link != "lo" || len(about.Rules) != 1 || about.Rules[0] != (RuleRef{"www.bank.example:443=63999", "partners.rules", 3}) {
		t.Errorf("%+v", about)
	}
	var s Status
	if err := ask(t.Context(), path, "/status", nil, &s); err != nil || len(s.Names) != 1 || s.PID != about.PID || s.Flows == nil || s.Failures == nil {
		t.Errorf("%+v, %v", s, err)
	}
	dst := netip.MustParseAddrPort("203.0.113.2:443")
	for _, test := range []struct {
		dst              netip.AddrPort
		name, rule, want string
		next             uint16
		instead          *Instead
	}{
		{dst, "", "", "www.bank.example:443=63999", 63999, nil},
		{dst, "www.bank.example", "", "www.bank.example:443=63999", 63999, nil},
		{dst, "other.example", "", "", 0, &Instead{"www.bank.example:443=63999", "www.bank.example"}},
		{netip.MustParseAddrPort("203.0.113.3:443"), "www.bank.example", "", "www.bank.example:443=63999", 63999, &Instead{}},
		{netip.MustParseAddrPort("203.0.113.3:443"), "", "*:443=7000-7001", "", 7000, nil},
	} {
		var d Destination
		err := ask(t.Context(), path, "/destination", url.Values{"dst": {test.dst.String()}, "name": {test.name}, "rule": {test.rule}}, &d)
		if err != nil || d.Rule != test.want || (d.Pin == nil) != (test.next == 0) || d.Pin != nil && d.Pin.Next[0] != test.next || !reflect.DeepEqual(d.Instead, test.instead) {
			t.Errorf("%+v: %+v, %v", test, d, err)
		}
	}
}

// Requests that no real client would make are answered, too.
func TestControlRefuses(t *testing.T) {
	path := serveControl(t)
	for resource, want := range map[string]string{
		"/nowhere":     "404",
		"/destination": "400 Bad Request: dst: ",
	} {
		if err := ask(t.Context(), path, resource, nil, &struct{}{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", resource, err, want)
		}
	}
	err := ask(t.Context(), path, "/destination", url.Values{"dst": {"203.0.113.2:443"}, "rule": {"nonsense"}}, &struct{}{})
	if err == nil || !strings.Contains(err.Error(), `rule "nonsense", column 9`) {
		t.Error(err)
	}
	for request, want := range map[string]int{
		"POST /about HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n":                    http.StatusMethodNotAllowed,
		"GET /about HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<16) + "\r\n\r\n": http.StatusRequestHeaderFieldsTooLarge,
		"nonsense\r\n\r\n": http.StatusBadRequest,
		"GET /about HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\nConnection: close\r\n\r\n": http.StatusOK,
	} {
		c, err := net.Dial("unix", path)
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
	m, _, _ := newTestSite(t, "www.bank.example:443=63999")
	const boundary = "form"
	form := "--" + boundary + "\r\nContent-Disposition: form-data; name=\"dst\"; filename=\"x\"\r\n\r\n" + strings.Repeat("x", 1<<20) + "\r\n--" + boundary + "--\r\n"
	for _, resource := range []string{"/about", "/status", "/destination?dst=203.0.113.2:443"} {
		body := strings.NewReader(form)
		r := httptest.NewRequest(http.MethodGet, resource, body)
		r.Header.Set("Content-Type", "multipart/form-data; boundary="+boundary)
		answer := httptest.NewRecorder()
		m.control().ServeHTTP(answer, r)
		if answer.Code != http.StatusOK || body.Len() != len(form) {
			t.Errorf("%s: %d, and %d bytes of the body were read", resource, answer.Code, len(form)-body.Len())
		}
	}
}

// Clients that connect and say nothing, or read nothing, hold up others for at most two seconds.
func TestControlOutlastsTheSlow(t *testing.T) {
	path := serveControl(t)
	for n := range controlConns {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if n%2 == 0 {
			_, _ = io.WriteString(c, "GET /status HTTP/1.1\r\nHost: x\r\n") // and no more
		}
	}
	begun := time.Now()
	if err := ask(t.Context(), path, "/about", nil, &About{}); err != nil {
		t.Errorf("after %v: %v", time.Since(begun), err)
	}
	if took := time.Since(begun); took > 4*controlRead {
		t.Errorf("it took %v", took)
	}
}
