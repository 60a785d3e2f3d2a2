package monitor

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// The page is one file that holds its style and its script. It gets the whole state once, and then each second what
// has changed. One look a second serves all viewers. Without viewers no looks are taken, and only the timeline goes
// on.
const (
	pageEvery   = time.Second
	pageViewers = 32
)

//go:embed page.html
var pageHTML []byte

// page serves the page and what it shows.
type page struct {
	m      *Monitor
	policy string // Content-Security-Policy

	mu      sync.Mutex
	times   timeline
	viewers int
	latest  *frame
}

// frame is what all viewers see at one moment.
type frame struct {
	state *pageState
	diff  []byte        // from the frame before, whose number is one less
	next  chan struct{} // closed when there is a next frame

	once sync.Once
	full []byte
}

func newPage(m *Monitor) *page {
	return &page{m: m, policy: contentPolicy(pageHTML)}
}

// contentPolicy allows only the page's own style and script, not even anything smuggled into the page.
func contentPolicy(html []byte) string {
	return fmt.Sprintf("default-src 'none'; style-src %s; script-src %s; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		hashOf(html, "style"), hashOf(html, "script"))
}

func hashOf(html []byte, element string) string {
	_, rest, _ := bytes.Cut(html, []byte("<"+element+">"))
	text, _, _ := bytes.Cut(rest, []byte("</"+element+">"))
	sum := sha256.Sum256(text)
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

func (p *page) serveIndex(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", p.policy)
	_, _ = w.Write(pageHTML)
}

// run records each second until ctx ends.
func (p *page) run(ctx context.Context) {
	tick := time.NewTicker(pageEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			p.step(ctx)
		}
	}
}

func (p *page) step(ctx context.Context) {
	p.mu.Lock()
	watched := p.viewers > 0
	p.times.step(p.m.Pins, p.m.Names.Set().Rules())
	p.mu.Unlock()
	if watched {
		p.show(ctx)
	}
}

// show makes the next frame.
func (p *page) show(ctx context.Context) {
	s := p.m.look(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	f := &frame{state: p.state(s), next: make(chan struct{})}
	if p.latest != nil {
		f.state.Seq = p.latest.state.Seq + 1
		f.diff = f.state.since(p.latest.state, &p.times)
		if f.diff == nil {
			f.state.Seq++ // nobody has the state that this change would be based on
		}
		close(p.latest.next)
	}
	p.latest = f
}

// enter counts a viewer. It returns false if there are too many.
func (p *page) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.viewers >= pageViewers {
		return false
	}
	p.viewers++
	return true
}

func (p *page) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.viewers--
}

func (p *page) watching() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.viewers
}

// current returns the frame to begin with.
func (p *page) current(ctx context.Context) *frame {
	p.mu.Lock()
	f := p.latest
	p.mu.Unlock()
	if f == nil || time.Since(f.state.at) > 2*pageEvery {
		p.show(ctx)
		p.mu.Lock()
		f = p.latest
		p.mu.Unlock()
	}
	return f
}

// serveEvents sends the state and then its changes, as server-sent events, until the viewer goes.
func (p *page) serveEvents(w http.ResponseWriter, r *http.Request) {
	if !p.enter() {
		w.Header().Set("Retry-After", "10")
		http.Error(w, fmt.Sprintf("%d others look at this page: there is no room for more", pageViewers), http.StatusServiceUnavailable)
		return
	}
	defer p.leave()
	w.Header().Set("Content-Type", "text/event-stream")
	if r.Method == http.MethodHead {
		return
	}
	out := http.NewResponseController(w)
	_ = out.SetReadDeadline(time.Time{}) // nothing more is read, and that is not a failure
	send := func(event string, data []byte) bool {
		_ = out.SetWriteDeadline(time.Now().Add(writeTime))
		if _, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", event, data); err != nil {
			return false
		}
		return out.Flush() == nil
	}
	f := p.current(r.Context())
	for ok := send("state", f.json()); ok; {
		select {
		case <-r.Context().Done():
			return
		case <-f.next:
		}
		p.mu.Lock()
		next := p.latest // a slow viewer has missed some
		p.mu.Unlock()
		if next.state.Seq == f.state.Seq+1 {
			ok = send("change", next.diff)
		} else {
			ok = send("state", next.json())
		}
		f = next
	}
}

// json returns the whole state as JSON, made once for all viewers who begin with it.
func (f *frame) json() []byte {
	f.once.Do(func() { f.full = mustJSON(f.state) })
	return f.full
}

// mustJSON is for values made of strings and numbers.
func mustJSON(what any) []byte {
	b, err := json.Marshal(what)
	if err != nil {
		panic(err)
	}
	return b
}
