package netstack_test

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"pinproxy/netstack"
	"pinproxy/netstack/netstacktest"
)

// The application's kernel decides, once it has said that the application waits. Until then, and if it can't tell, the
// SYNs do.
func TestTheKernelSaysWhoGaveUp(t *testing.T) {
	t.Parallel()
	from := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netstacktest.Addr4, port) }
	patient, missed, unknown := from(4000), from(4001), from(4002)
	var waits atomic.Bool
	waits.Store(true)
	var asked [3]atomic.Int32
	ended := make(chan netip.AddrPort, 3)
	client, _ := start(t, netstack.Config{Waits: func(src, dst netip.AddrPort) (bool, bool) {
		if dst != server4 {
			t.Errorf("asked about a connection to %s", dst)
		}
		asked[src.Port()-patient.Port()].Add(1)
		return src == patient && waits.Load(), src != unknown
	}}, func(ctx context.Context, f *netstack.Flow) {
		<-ctx.Done()
		ended <- f.Src()
	})
	for _, src := range []netip.AddrPort{patient, missed, unknown} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		_, _ = client.Dial(ctx, src, server4) // one SYN, and no more
		cancel()
	}
	next := func() netip.AddrPort {
		select {
		case src := <-ended:
			return src
		case <-time.After(20 * time.Second):
			t.Fatal("in vain waited for an application that gave up")
		}
		return netip.AddrPort{}
	}
	for range 2 {
		if src := next(); src == patient {
			t.Error("one that waits, as its kernel says, was given up")
		}
	}
	seen := asked[0].Load()
	eventually(t, "two more questions", func() bool { return asked[0].Load() >= seen+2 })
	waits.Store(false)
	if src := next(); src != patient {
		t.Errorf("%s was given up, want %s", src, patient)
	}
	for i, src := range []netip.AddrPort{missed, unknown} {
		if n := asked[1+i].Load(); n != 1 {
			t.Errorf("asked %d times about %s, which can't be told", n, src)
		}
	}
}
