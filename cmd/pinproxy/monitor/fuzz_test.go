package monitor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// request reads a request as net/http does.
func request(input []byte) *http.Request {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(input)))
	if err != nil || r.Host == "" && r.ProtoAtLeast(1, 1) {
		return nil // net/http answers such input itself
	}
	r.RemoteAddr = "127.0.0.1:40000"
	return r
}

// handle returns the answer. Nothing may take long to answer.
func handle(t *testing.T, h http.Handler, r *http.Request) *http.Response {
	ctx, cancel := context.WithCancel(t.Context())
	if r.URL.Path == "/events" {
		cancel() // after the first event
	}
	defer cancel()
	w := httptest.NewRecorder()
	began := time.Now()
	h.ServeHTTP(w, r.WithContext(ctx))
	if took := time.Since(began); took > patience {
		t.Errorf("%s %s took %v", r.Method, r.URL, took)
	}
	return w.Result()
}

// FuzzHTTP sends requests to everything that --http serves. Whatever they are, a request under another name is not
// served, nothing is served to somebody else's page, and a request can only read.
func FuzzHTTP(f *testing.F) {
	_, _, h := newTestSite(f, "www.bank.example:443=63999", "*:80=63998")
	for _, input := range []string{
		"GET / HTTP/1.1\r\nHost: localhost:8080\r\n\r\n",
		"GET /events HTTP/1.1\r\nHost: [::1]\r\nLast-Event-ID: 7\r\n\r\n",
		"HEAD /healthz HTTP/1.0\r\n\r\n",
		"GET /metrics HTTP/1.1\r\nHost: gate.bank.example\r\nAccept: application/openmetrics-text;version=1.0.0\r\nAccept-Encoding: gzip\r\n\r\n",
		"GET http://rebound.example/metrics?name[]=go_goroutines HTTP/1.1\r\nHost: localhost\r\nOrigin: http://rebound.example\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1.\r\nAccess-Control-Request-Method: PUT\r\n\r\n",
		"POST //events/../%2e%2e/ HTTP/1.1\r\nHost: a:b:c\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"CONNECT 203.0.113.2:443 HTTP/1.1\r\nHost: 203.0.113.2:443\r\n\r\n",
	} {
		f.Add([]byte(input))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		r := request(input)
		if r == nil {
			return
		}
		asked, ours := r.Method, ourName(r.Host, "gate.bank.example")
		answer := handle(t, h, r)
		reads := asked == http.MethodGet || asked == http.MethodHead
		switch code := answer.StatusCode; {
		case !ours && code != http.StatusMisdirectedRequest:
			t.Errorf("%q: %d to another's name", input, code)
		case ours && !reads && code != http.StatusMethodNotAllowed:
			t.Errorf("%q: %d to %s", input, code, asked)
		case ours && reads && !slices.Contains([]int{200, 301, 307, 308, 400, 404, 503}, code):
			t.Errorf("%q: %d", input, code)
		}
		if to := answer.Header.Get("Location"); to != "" && (!strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//")) {
			t.Errorf("%q: sent away to %q", input, to)
		}
		for name, want := range map[string]string{"Access-Control-Allow-Origin": "", "Set-Cookie": "", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"} {
			if got := answer.Header.Get(name); got != want {
				t.Errorf("%q: %s: %q", input, name, got)
			}
		}
		if policy := answer.Header.Get("Content-Security-Policy"); !strings.HasPrefix(policy, "default-src 'none'; ") || !strings.Contains(policy, "frame-ancestors 'none'") {
			t.Errorf("%q: policy %q", input, policy)
		}
	})
}

// FuzzControl sends requests to the control socket, and arbitrary words to its question about a destination. An
// answer is either JSON about the address that was asked for, or an error.
func FuzzControl(f *testing.F) {
	m, _, _ := newTestSite(f, "www.bank.example:443=63999", "*:80=63990-63998 busy=fail", "[2001:db8::/32]:*=1024-65535")
	h := m.control()
	for _, s := range [][2]string{
		{"GET /about HTTP/1.1\r\nHost: pinproxy\r\n\r\n", ""},
		{"GET /status HTTP/1.0\r\n\r\n", ""},
		{"POST /destination HTTP/1.1\r\nHost: pinproxy\r\nContent-Length: 5\r\n\r\ndst=x", ""},
		{"", "dst=203.0.113.2:443&name=www.bank.example"},
		{"", "dst=[2001:db8::1%25lo]:80&rule=*:1-65535=1-65535+busy=other-address,any"},
		{"", "dst=[::ffff:192.0.2.1]:0&name=WWW.Bank.Example.&rule=xn--bcher-kva.example:*=[2001:db8::9]:1,2,3+cooldown=1h"},
		{"", "dst=%00;name=%ff&rule=%0a"},
	} {
		f.Add([]byte(s[0]), s[1])
	}
	f.Fuzz(func(t *testing.T, input []byte, query string) {
		if r := request(input); r != nil {
			asked, answer := r.Method, handle(t, h, r)
			if answer.StatusCode == http.StatusOK && asked != http.MethodGet && asked != http.MethodHead {
				t.Errorf("%q: %d to %s", input, answer.StatusCode, asked)
			}
		}
		r := httptest.NewRequest(http.MethodGet, "/destination", nil)
		r.URL.RawQuery = query
		answer := handle(t, h, r)
		to, err := netip.ParseAddrPort(r.FormValue("dst"))
		if answer.StatusCode != http.StatusOK {
			if answer.StatusCode != http.StatusBadRequest || err == nil && r.FormValue("rule") == "" {
				t.Errorf("%q: %d", query, answer.StatusCode)
			}
			return
		}
		var d Destination
		if jerr := json.NewDecoder(answer.Body).Decode(&d); jerr != nil || err != nil {
			t.Fatalf("%q: %v, %v", query, jerr, err)
		}
		if d.Pin == nil && (d.Rule != "" || r.FormValue("rule") != "") || d.Pin != nil && len(d.Pin.Held)+d.Pin.Waiting > 0 {
			t.Errorf("%q to %v: %+v", query, to, d)
		}
	})
}
