package monitor

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pinproxy/netstack"
	"pinproxy/netstack/dns"
	"pinproxy/proxy"
	"pinproxy/proxy/sockdiag"
	"pinproxy/rules"
)

// testMonitor returns a Monitor of rules, without a network behind it.
func testMonitor(t testing.TB, list ...*rules.Rule) *Monitor {
	t.Helper()
	set, err := rules.NewSet(list)
	if err != nil {
		t.Fatal(err)
	}
	names := rules.NewNames(set)
	if _, err := names.Observe("www.bank.example", []netip.Addr{netip.MustParseAddr("203.0.113.2")}, time.Minute, true, time.Now()); err != nil {
		t.Fatal(err)
	}
	dialer, log := proxy.Sockets{Owners: sockdiag.Owners}, slog.New(slog.DiscardHandler)
	return New(Config{
		Link: "lo", Began: time.Now(), Names: names, Dialer: dialer, Log: log,
		Pins:     proxy.New(proxy.Config{Names: names, Dialer: dialer, Log: log}),
		Stack:    func() netstack.Stats { return netstack.Stats{Flows: 5} },
		DNS:      func() dns.Stats { return dns.Stats{Queries: 6} },
		Withheld: func() uint64 { return 7 },
		Yield:    func() {},
	})
}

// testSite is everything that --http serves, without a network behind it.
type testSite struct {
	url string
	m   *Monitor
}

// newTestSite returns a Monitor of rules, the page, and the handler for everything that --http serves.
func newTestSite(t testing.TB, texts ...string) (*Monitor, *page, http.Handler) {
	t.Helper()
	var list []*rules.Rule
	for _, text := range texts {
		r, err := rules.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	m := testMonitor(t, list...)
	p := newPage(m)
	return m, p, site("gate.bank.example", m, p)
}

func serveTestSite(t *testing.T, texts ...string) *testSite {
	t.Helper()
	m, _, _ := newTestSite(t, texts...)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { // ends with ctx
		defer close(ended)
		m.ServeSite(ctx, l, "gate.bank.example")
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Error("it does not end")
		}
	})
	return &testSite{url: "http://" + l.Addr().String(), m: m}
}

// get sends a request under any name, by any method.
func (s *testSite) get(t *testing.T, method, path, host string) (status int, body string, header http.Header) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, s.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if host != "" {
		r.Host = host
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(b), answer.Header
}

// Who may ask for what, and under which name: somebody else's page must not read ours.
func TestSiteGuards(t *testing.T) {
	s := serveTestSite(t, "www.bank.example:443=63999")
	for _, c := range []struct {
		method, path, host string
		want               int
	}{
		{"GET", "/", "", 200},
		{"HEAD", "/", "", 200},
		{"HEAD", "/events", "", 200},
		{"GET", "/", "localhost:8080", 200},
		{"GET", "/", "[::1]:8080", 200},
		{"GET", "/metrics", "198.51.100.2", 200},
		{"GET", "/metrics", "Gate.Bank.Example.:9090", 200},
		{"GET", "/", "rebound.example:8080", 421},
		{"GET", "/events", "rebound.example", 421},
		{"GET", "/metrics", "localhost.rebound.example", 421},
		{"GET", "/healthz", "127.0.0.1.rebound.example", 421},
		{"POST", "/", "", 405},
		{"DELETE", "/metrics", "", 405},
		{"OPTIONS", "/events", "", 405},
		{"GET", "/nowhere", "", 404},
		{"GET", "/index.html", "", 404},
	} {
		status, body, header := s.get(t, c.method, c.path, c.host)
		if status != c.want || strings.Contains(body, "bank") && status >= 400 {
			t.Errorf("%+v: %d %q", c, status, body)
		}
		if header.Get("Access-Control-Allow-Origin") != "" || header.Get("X-Content-Type-Options") != "nosniff" || header.Get("Cache-Control") != "no-store" ||
			!strings.Contains(header.Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("%+v: %v", c, header)
		}
	}
	// The page contains everything that it needs for display, and its policy lets nothing else in.
	_, body, header := s.get(t, "GET", "/", "")
	if policy := header.Get("Content-Security-Policy"); strings.Contains(policy, "unsafe") || strings.Count(policy, "'sha256-") != 2 {
		t.Error(policy)
	}
	if found := regexp.MustCompile(`(?i)https?://|\ssrc=|\son[a-z]+="|style="|innerHTML|insertAdjacentHTML|document\.write`).FindAllString(body, -1); found != nil {
		t.Errorf("the page has %q", found)
	}
}

// 200 while connections are captured, otherwise 503 and the reason.
func TestHealth(t *testing.T) {
	s := serveTestSite(t, "www.bank.example:443=63999")
	for _, c := range []struct {
		state  int32
		status int
		want   string
	}{
		{healthStarting, 503, "starting"}, {healthCapturing, 200, "ok: capturing into lo, rules: 1"}, {healthEnding, 503, "ending"},
	} {
		s.m.health.Store(c.state)
		if status, body, _ := s.get(t, "GET", "/healthz", ""); status != c.status || !strings.HasPrefix(body, c.want) {
			t.Errorf("%d %q, want %+v", status, body, c)
		}
	}
	s.m.Capturing()
	s.m.Link = "no-such-device"
	if status, body, _ := s.get(t, "GET", "/healthz", ""); status != 503 || body != "the device no-such-device is gone\n" {
		t.Errorf("%d %q", status, body)
	}
}

const manual = "../../../docs/pinproxy.8"

var metricName = regexp.MustCompile(`\b(?:pinproxy|go|process)_[a-z_]+`)

// Every metric is documented, and everything named by the manual, the dashboard and the alerts exists.
func TestMetricsAreDocumented(t *testing.T) {
	s := serveTestSite(t, "www.bank.example:443=63999")
	for _, r := range s.m.Names.Set().Rules() { // a rule that was hit has more metrics
		hit(t, s.m.Pins, r)
	}
	_, body, _ := s.get(t, "GET", "/metrics", "")
	var there []string
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(body, -1) {
		there = append(there, m[1])
	}
	if !slices.Contains(there, "go_goroutines") || !slices.Contains(there, "process_open_fds") || len(there) < 40 {
		t.Errorf("there is only %q", there)
	}
	man, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	documented := metricName.FindAllString(string(man), -1)
	for _, name := range there {
		if strings.HasPrefix(name, "pinproxy_") && !slices.Contains(documented, name) && name != "pinproxy_reserved_ports" {
			t.Errorf("%s is not in the manual", name)
		}
	}
	there = append(there, "pinproxy_reserved_ports") // only on Linux, and only if we may read it
	for _, file := range []string{manual, "../../../packaging/grafana/pinproxy.json", "../../../packaging/prometheus/pinproxy.rules.yml"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found := metricName.FindAllString(string(text), -1)
		if len(found) < 10 {
			t.Errorf("%s names %q alone", file, found)
		}
		for _, name := range found {
			if !slices.Contains(there, name) {
				t.Errorf("%s names %s, which there is not", file, name)
			}
		}
	}
	for _, line := range []string{`pinproxy_flows_total 5`, `pinproxy_dns_queries_total 6`, `pinproxy_dns_answers_withheld_total 7`, `pinproxy_rule_flows_total{rule="www.bank.example:443=63999"} 1`} {
		if !strings.Contains(body, "\n"+line+"\n") {
			t.Errorf("%q is missing", line)
		}
	}
	for _, kind := range proxy.Kinds() {
		if !strings.Contains(body, fmt.Sprintf("pinproxy_flows_failed_total{cause=%q} ", kind)) {
			t.Errorf("failures of kind %s are not told", kind)
		}
	}
}

// hit makes a flow of the rule fail: nobody answers it.
func hit(t *testing.T, pins *proxy.Proxy, r *rules.Rule) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	pins.Handle(ctx, deadFlow{})
	if n := pins.RuleStats([]*rules.Rule{r})[0].Hits; n != 1 {
		t.Fatalf("%s was hit %d times", r, n)
	}
}

// The dashboard is JSON, with a title, a kind and a query for each panel.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../../../packaging/grafana/pinproxy.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Title, UID string
		Panels     []struct {
			ID          int
			Title, Type string
			Targets     []struct{ Expr string }
			GridPos     struct{ H, W, X, Y int }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	ids := make(map[int]bool)
	for _, p := range d.Panels {
		if p.Title == "" || p.Type == "" || ids[p.ID] || p.GridPos.W == 0 || p.GridPos.X+p.GridPos.W > 24 || len(p.Targets) == 0 {
			t.Errorf("%+v", p)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			if !metricName.MatchString(target.Expr) || strings.Count(target.Expr, "(") != strings.Count(target.Expr, ")") {
				t.Errorf("%s: %q", p.Title, target.Expr)
			}
		}
	}
	if d.Title == "" || d.UID == "" || len(d.Panels) < 8 {
		t.Errorf("%q, %q, %d panels", d.Title, d.UID, len(d.Panels))
	}
}

// Each alert says when it fires, how bad it is, and what to do.
func TestAlerts(t *testing.T) {
	text, err := os.ReadFile("../../../packaging/prometheus/pinproxy.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	alerts := strings.Split(string(text), "      - alert: ")[1:]
	for _, a := range alerts {
		for _, field := range []string{"        expr: ", "        for: ", "          severity: ", "          summary: ", "          description: "} {
			if strings.Count(a, "\n"+field) != 1 {
				t.Errorf("%q: not one %q", strings.SplitN(a, "\n", 2)[0], field)
			}
		}
	}
	if len(alerts) < 5 || strings.Contains(string(text), "\t") {
		t.Errorf("%d alerts", len(alerts))
	}
}

// events reads a stream of events.
type events struct {
	body io.ReadCloser
	r    *bufio.Reader
}

func (s *testSite) events(t *testing.T) (*events, int) {
	t.Helper()
	answer, err := http.Get(s.url + "/events")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = answer.Body.Close() })
	return &events{answer.Body, bufio.NewReader(answer.Body)}, answer.StatusCode
}

func (e *events) next(t *testing.T) (name string, data map[string]any) {
	t.Helper()
	var lines [3]string
	for i := range lines {
		line, err := e.r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		lines[i] = strings.TrimSuffix(line, "\n")
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(lines[1], "data: ")), &data); err != nil || lines[2] != "" {
		t.Fatalf("%q: %v", lines, err)
	}
	return strings.TrimPrefix(lines[0], "event: "), data
}

// The stream starts with everything, then has what has changed, with numbers that go up by one. There are no more
// viewers than there is room for.
func TestEvents(t *testing.T) {
	s := serveTestSite(t, "www.bank.example:443=63999", "*:80=63998")
	e, _ := s.events(t)
	name, state := e.next(t)
	if rows, ok := state["rules"].([]any); name != "state" || !ok || len(rows) != 2 || state["flows"] == nil || state["names"] == nil {
		t.Fatalf("%s %v", name, state)
	}
	for seq := state["seq"].(float64) + 1; ; seq++ {
		name, change := e.next(t)
		if name != "change" || change["seq"] != seq || change["names"] != nil || change["flows"] != nil {
			t.Fatalf("%s %v, want %v", name, change, seq)
		}
		if seq > state["seq"].(float64)+2 {
			break
		}
	}
	var all []*events
	for len(all) < pageViewers-1 {
		more, status := s.events(t)
		if status != http.StatusOK {
			t.Fatalf("viewer %d: %d", len(all), status)
		}
		more.next(t)
		all = append(all, more)
	}
	if _, status := s.events(t); status != http.StatusServiceUnavailable {
		t.Errorf("one too many: %d", status)
	}
	for _, viewer := range all {
		_ = viewer.body.Close()
	}
	poll(t, "viewers to be gone", func() bool {
		_, body, _ := s.get(t, "GET", "/metrics", "")
		return strings.Contains(body, "\npinproxy_page_viewers 1\n")
	})
	if _, status := s.events(t); status != http.StatusOK {
		t.Errorf("after others have gone: %d", status)
	}
}

// deadFlow is a flow whose program has gone.
type deadFlow struct{}

func (deadFlow) Number() uint64      { return 1 }
func (deadFlow) Src() netip.AddrPort { return netip.MustParseAddrPort("192.0.0.8:40000") }

func (deadFlow) Dst() netip.AddrPort                     { return netip.MustParseAddrPort("203.0.113.2:443") }
func (deadFlow) Signed() bool                            { return false }
func (deadFlow) AcceptFunc(then func(proxy.Conn, error)) { then(nil, net.ErrClosed) }
func (deadFlow) Reject(syscall.Errno)                    {}
func (deadFlow) Drop()                                   {}
func (deadFlow) Detach()                                 {}
func (deadFlow) Go(work func())                          { go work() }
func (deadFlow) Done()                                   {}
func (deadFlow) Turn()                                   {}
