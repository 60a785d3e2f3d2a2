package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"pinproxy/netstack/lab"
)

var screenshots = flag.String("screenshots", "", "a directory for what the page looks like")

// The page as people see it: in a real browser, dark and light, with no flows, with ten, and with a thousand.
func TestPage(t *testing.T) {
	w := newNetwork(t)
	w.names()
	w.Server.Serve(":443", lab.Echo)
	w.Server.Serve(":8443", lab.Echo)
	args := []string{
		"--http", ":8080", "--rule", "www.bank.example:443=63990-63997", "--rule", "203.0.113.2:8443=62000 busy=wait:10m",
		"--rule", "192.0.2.0/25:443=20000-21999", "--rule", "192.0.2.80:9=192.0.2.9:61000", "--rule", "*.other.example:22=1022",
	}
	p := w.pinproxy(args...)
	b := startBrowser(t, w.Client)
	b.open("http://127.0.0.1:8080/")
	b.await(`document.body && document.body.dataset.seq > 0`)
	b.look("0")
	if text := b.eval("document.body.innerText").(string); !strings.Contains(text, "www.bank.example:443=63990-63997") || !strings.Contains(text, "capturing") || !strings.Contains(text, "None so far.") {
		t.Errorf("without a flow the page reads\n%s", text)
	}

	// Users choose the names of programs.
	evil := filepath.Join(t.TempDir(), "<b id=x>")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(exe, evil); err != nil {
		t.Fatal(err)
	}
	occupy := program("occupy", "listen", "1022")
	occupy.Path = evil
	occupied, err := w.Client.Start(occupy)
	if err != nil {
		t.Fatal(err)
	}
	if err := occupied.Expect(soon(t), "occupied"); err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		echo(t, w.mustConnect("203.0.113.2:443"), strings.Repeat("hello", 1000*i+1))
	}
	echo(t, w.mustConnect("203.0.113.2:8443"), "hello")
	ctx, cancel := context.WithCancel(context.Background())
	var waiting sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		waiting.Wait()
	})
	for range 3 {
		waiting.Go(func() {
			if c, err := w.Client.Dial(ctx, "tcp", "203.0.113.2:8443"); err == nil {
				_ = c.Close()
			}
		})
	}
	if c, err := w.connect("192.0.2.80:9"); err == nil {
		t.Errorf("connected from %s", c.LocalAddr())
	}
	b.await(`flows.size === 10 && document.querySelectorAll("#flows tbody tr").length === 10 && document.querySelectorAll("#waiting .why").length === 1 && document.querySelectorAll("#waiting li").length === 3`)
	b.await(`document.querySelector("#failures").innerText.includes("source address 192.0.2.9 is not on this host")`)
	b.await(`document.querySelector("#pins").innerText.includes("<b id=x> (pid ")`)
	if n := b.eval(`document.querySelectorAll("#x").length`); n != 0.0 {
		t.Error("a program's name has become a part of the page")
	}
	for _, want := range []string{"www.bank.example", "198.51.100.2:62000", "every source port is busy: 62000 held", "busy=reclaim"} {
		if text := b.eval("document.body.innerText").(string); !strings.Contains(text, want) {
			t.Errorf("with ten flows %q is missing:\n%s", want, text)
		}
	}
	b.look("10")
	b.scheme("light", 390) // a phone
	b.await(`document.documentElement.scrollWidth <= 390`)
	b.eval(`var labels = () => [...document.querySelectorAll("#pins .axis div span")].map(e => e.getBoundingClientRect()).filter(r => r.width > 0)`)
	b.await(`labels().length > 1 && labels().every((r, i, all) => i === 0 || r.left > all[i-1].right + 3)`) // so that they can be told apart

	for i := range 990 {
		echo(t, w.mustConnect(fmt.Sprintf("192.0.2.%d:443", 1+i%100)), "hello")
	}
	b.await(`flows.size === 1000 && document.querySelector("#flows").innerText.includes("of 1000")`)
	b.look("1000")
	if n := b.eval(`document.getElementsByTagName("*").length`).(float64); n > 3000 {
		t.Errorf("a thousand flows make %v elements", n)
	}
	b.eval(`filter.value = "192.0.2.77"; filter.oninput()`)
	b.await(`[...document.querySelectorAll("#flows tbody tr")].every(tr => tr.innerText.includes("192.0.2.77")) && document.querySelectorAll("#flows tbody tr").length > 1`)
	b.eval(`filter.value = ""; filter.oninput(); document.querySelector("#flows .pager button:last-child").click()`)
	b.await(`document.querySelector("#flows .pager").innerText.startsWith("51–100 of 1000")`)
	b.eval(`var at = state.seq`)
	b.await(`state.seq > at + 1`)

	// Its metrics do not need what it gave up as root.
	b.eval(`var metrics; fetch("metrics").then(answer => answer.text()).then(text => metrics = text)`)
	b.await(`metrics !== undefined`)
	for _, want := range []string{
		"process_open_fds ", "pinproxy_capturing 1", "pinproxy_reserved_ports 2011", `pinproxy_flows{stage="open"} 997`,
		`pinproxy_rule_flows{rule="203.0.113.2:8443=62000 busy=wait:10m",stage="waiting"} 3`, `pinproxy_flows_failed_total{cause="source"} 1`,
	} {
		if text := b.eval("metrics").(string); !strings.Contains(text, "\n"+want) {
			t.Errorf("%q is not among the metrics:\n%s", want, text)
		}
	}
	if failed := b.failed(); len(failed) > 0 {
		t.Errorf("the page's script: %q", failed)
	}

	// When pinproxy ends, the page says so, and goes on by itself with the next one.
	cancel()
	waiting.Wait()
	p.stop()
	b.await(`document.body.className === "stale" && document.querySelector("#health").innerText.startsWith("not connected")`)
	w.pinproxy(args...)
	b.await(`document.body.className === "" && state.pid !== ` + fmt.Sprint(p.Pid()) + ` && flows.size === 0 && document.querySelector("#health").innerText === "capturing"`)
}

// look takes screenshots of a situation. They must show something, and differ.
func (b *browser) look(name string) {
	b.t.Helper()
	seen := make(map[string][]byte)
	for _, scheme := range []string{"light", "dark"} {
		b.scheme(scheme, 1280)
		b.eval(`new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))`)
		picture := b.screenshot()
		seen[scheme] = picture
		if *screenshots != "" {
			if err := os.WriteFile(filepath.Join(*screenshots, "page-"+name+"-"+scheme+".png"), picture, 0o644); err != nil {
				b.t.Fatal(err)
			}
		}
		img, err := png.Decode(bytes.NewReader(picture))
		if err != nil {
			b.t.Fatal(err)
		}
		if r, _, _, _ := img.At(2, 2).RGBA(); (r < 0x8000) != (scheme == "dark") {
			b.t.Errorf("%s is as light as %#x", scheme, r)
		}
	}
	if bytes.Equal(seen["light"], seen["dark"]) {
		b.t.Error("dark is light")
	}
}
