package proxy

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

// fillAndReset writes until the other end takes no more, then resets.
func fillAndReset(t *testing.T, c Conn) {
	t.Helper()
	_ = c.SetWriteDeadline(time.Now().Add(lookEvery))
	for chunk := make([]byte, 1<<20); ; {
		if _, err := c.Write(chunk); err != nil {
			break
		}
	}
	_ = c.SetLinger(0)
	_ = c.Close()
}

// The application's reset is passed on even though the upstream takes nothing and so nobody reads.
func TestApplicationResetsWhileUpstreamIsStuck(t *testing.T) {
	leaks(t)
	h, s := pinnedServer(t)
	f, up := connected(t, h, s)
	fillAndReset(t, f.app)
	endsAs(t, h, f, "reset by application")
	wantEnd(t, up, syscall.ECONNRESET)
}

// An upstream that resets frees its port for others, even though the application still has to take what the upstream
// sent.
func TestUpstreamResetsWhileApplicationIsStuck(t *testing.T) {
	leaks(t)
	s := listen(t, "127.0.0.1:0")
	h := newHarness(t, Config{}, fmt.Sprintf("*:*=%d busy=wait", freePort(t)))
	f, up := connected(t, h, s)
	fillAndReset(t, up)
	connected(t, h, s)
	got := wantEnd(t, f.app, syscall.ECONNRESET)
	endsAs(t, h, f, "reset by upstream")
	if down := h.log.with("flow")[0].Attrs["down"]; down != fmt.Sprint(len(got)) {
		t.Errorf("the application got %d bytes of %s", len(got), down)
	}
}

// The same after our own FIN, when the kernel does not tell a reset from an end in order: either frees the port.
func TestUpstreamResetsBehindOurFIN(t *testing.T) {
	leaks(t)
	s := listen(t, "127.0.0.1:0")
	h := newHarness(t, Config{}, fmt.Sprintf("*:*=%d busy=wait:10s", freePort(t)))
	f, up := connected(t, h, s)
	_ = f.app.CloseWrite()
	wantEnd(t, up, nil)
	fillAndReset(t, up)
	connected(t, h, s)
}
