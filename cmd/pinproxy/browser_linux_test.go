package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pinproxy/netstack/lab"
)

// browserPatience is the longest time a browser may take for anything: it starts a dozen processes.
const browserPatience = 90 * time.Second

// browser is a headless Chromium on a host, with one tab. It is controlled through two pipes
// (--remote-debugging-pipe, the DevTools protocol).
type browser struct {
	t    *testing.T
	send *os.File

	mu      sync.Mutex
	last    int
	answers map[int]chan devtools
	gone    chan struct{}
	session string
	errors  []string
}

type devtools struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

func startBrowser(t *testing.T, on *lab.Host) *browser {
	t.Helper()
	chromium := need(t, "chromium")
	dir, err := os.MkdirTemp("", "pinproxy-browser")
	if err != nil {
		t.Fatal(err)
	}
	theirs, send, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	receive, back, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
		"--user-data-dir="+filepath.Join(dir, "profile"), "about:blank")
	cmd.Env = append(environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_CACHE_HOME="+dir)
	cmd.ExtraFiles = []*os.File{theirs, back}
	p, err := on.Start(cmd)
	_, _ = theirs.Close(), back.Close()
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t, send: send, answers: make(map[int]chan devtools), gone: make(chan struct{})}
	go b.read(receive) // ends with the browser
	t.Cleanup(func() {
		_ = b.write(0, "Browser.close", nil)
		select {
		case <-p.Done():
		case <-time.After(patience):
			_ = p.Signal(os.Kill)
			<-p.Done()
		}
		<-b.gone
		_, _ = send.Close(), receive.Close()
		for end := time.Now().Add(patience); os.RemoveAll(dir) != nil && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			// A process of the browser is still writing.
		}
		if t.Failed() {
			t.Logf("the browser said:\n%s", p.Stderr())
		}
	})
	target := b.call("Target.createTarget", map[string]any{"url": "about:blank"})
	attached := b.call("Target.attachToTarget", map[string]any{"targetId": target["targetId"], "flatten": true})
	b.session = attached["sessionId"].(string)
	for _, domain := range []string{"Page.enable", "Runtime.enable", "Log.enable"} {
		b.call(domain, nil)
	}
	return b
}

func (b *browser) read(from *os.File) {
	defer close(b.gone)
	r := bufio.NewReader(from)
	for {
		text, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var m devtools
		if json.Unmarshal(text[:len(text)-1], &m) != nil {
			continue
		}
		b.mu.Lock()
		switch {
		case b.answers[m.ID] != nil:
			b.answers[m.ID] <- m
			delete(b.answers, m.ID)
		case m.Method == "Runtime.exceptionThrown", m.Method == "Log.entryAdded" && strings.Contains(string(m.Params), `"level":"error"`):
			b.errors = append(b.errors, string(m.Params))
		}
		b.mu.Unlock()
	}
}

func (b *browser) write(id int, method string, params any) error {
	m := map[string]any{"id": id, "method": method}
	if params != nil {
		m["params"] = params
	}
	if b.session != "" && id != 0 {
		m["sessionId"] = b.session
	}
	text, err := json.Marshal(m)
	if err == nil {
		_, err = b.send.Write(append(text, 0))
	}
	return err
}

// open goes to a page.
func (b *browser) open(url string) {
	b.t.Helper()
	if failed := b.call("Page.navigate", map[string]any{"url": url})["errorText"]; failed != nil {
		b.t.Fatalf("%s: %v", url, failed)
	}
}

// failed returns the errors of the page's script, and what it was refused.
func (b *browser) failed() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.errors)
}

// call has the browser do something.
func (b *browser) call(method string, params any) map[string]any {
	b.t.Helper()
	answer := make(chan devtools, 1)
	b.mu.Lock()
	b.last++
	id := b.last
	b.answers[id] = answer
	b.mu.Unlock()
	if err := b.write(id, method, params); err != nil {
		b.t.Fatal(err)
	}
	select {
	case m := <-answer:
		if m.Error != nil {
			b.t.Fatalf("%s: %s", method, m.Error.Message)
		}
		result := make(map[string]any)
		_ = json.Unmarshal(m.Result, &result)
		return result
	case <-b.gone:
		b.t.Fatalf("%s: the browser is gone", method)
	case <-time.After(browserPatience):
		b.t.Fatalf("%s: no answer in %v", method, browserPatience)
	}
	return nil
}

// eval returns the value of an expression on the page.
func (b *browser) eval(expression string) any {
	b.t.Helper()
	answer := b.call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true})
	if answer["exceptionDetails"] != nil {
		b.t.Fatalf("%s: %v", expression, answer["exceptionDetails"])
	}
	return answer["result"].(map[string]any)["value"]
}

// await waits until the expression is true.
func (b *browser) await(expression string) {
	b.t.Helper()
	for end := time.Now().Add(browserPatience); b.eval(expression) != true; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("in vain waited %v for %s; the page reads\n%s", browserPatience, expression, b.eval("document.body.innerText"))
		}
	}
}

// scheme makes the browser show the page dark or light, and this wide.
func (b *browser) scheme(name string, width int) {
	b.t.Helper()
	b.call("Emulation.setEmulatedMedia", map[string]any{"features": []any{map[string]any{"name": "prefers-color-scheme", "value": name}}})
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false})
}

// screenshot returns an image of the whole page, as PNG.
func (b *browser) screenshot() []byte {
	b.t.Helper()
	answer := b.call("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true})
	png, err := base64.StdEncoding.DecodeString(fmt.Sprint(answer["data"]))
	if err != nil || len(png) < 1000 {
		b.t.Fatalf("a screenshot of %d bytes: %v", len(png), err)
	}
	return png
}
