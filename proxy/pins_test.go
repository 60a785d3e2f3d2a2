package proxy

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestPin(t *testing.T) {
	s, port := listen(t, "127.0.0.1:0"), freePorts(t, 2)
	h := newHarness(t, Config{}, fmt.Sprintf("*:*=%d-%d cooldown=1m", port, port+1))
	pin := h.cfg.Names.Decide(s.addr).Rule.Pin()
	f, up := connected(t, h, s)
	info := h.Pin(pin, s.addr)
	if len(info.Held) != 1 || info.Held[0].Port != port || info.Held[0].Flow != 1 || time.Since(info.Held[0].Since) > time.Minute || !slices.Equal(info.Next, []uint16{port + 1}) {
		t.Errorf("while a flow has one: %+v", info)
	}
	_ = up.Close()
	wantEnd(t, f.app, nil)
	_ = f.app.Close()
	f.ended(t)
	info = h.Pin(pin, s.addr)
	if info.Held != nil || len(info.Resting) != 1 || info.Resting[0].Port != port || time.Until(info.Resting[0].Until) < 50*time.Second {
		t.Errorf("while it rests: %+v", info)
	}
}
