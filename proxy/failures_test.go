package proxy

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// The last failures can be listed, with their causes, and are counted.
func TestFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, Config{Dialer: failing("bind", syscall.EADDRNOTAVAIL)}, "198.51.100.7:443=192.0.2.10:1000")
		first := time.Now()
		for i := range 3 {
			time.Sleep(time.Duration(i) * time.Minute)
			f := h.openWith(t, dst4, memory)
			f.answered(t, "permission denied")
			f.ended(t)
		}
		list := h.Failures()
		if len(list) != 1 || list[0].Times != 3 || !list[0].First.Equal(first) || !list[0].Last.Equal(first.Add(3*time.Minute)) ||
			list[0].Rule != "198.51.100.7:443=192.0.2.10:1000" || list[0].Dst != dst4 ||
			!strings.HasPrefix(list[0].Cause, "source address 192.0.2.10 is not on this host") || !strings.Contains(list[0].Hint, "ip address add") {
			t.Errorf("%+v", list)
		}
	})
}

// A flow that gave up is remembered with what it waited for.
func TestFailureOfTheImpatient(t *testing.T) {
	h, s := pinnedServer(t)
	held, _ := connected(t, h, s)
	h.cfg.Names = newHarness(t, Config{}, strings.Replace(held.info(h).Rule, "busy=fail", "busy=wait:1m", 1)).cfg.Names
	f := h.open(t, s.addr)
	h.waiting(t, 1)
	f.giveUp()
	f.answered(t, "drop")
	f.ended(t)
	list := h.Failures()
	if len(list) != 1 || !strings.HasPrefix(list[0].Cause, errGaveUp.Error()+"; until then: lease ") || !strings.Contains(list[0].Cause, "by flow 1 from") || !strings.Contains(list[0].Hint, "busy=reclaim") {
		t.Errorf("%+v", list)
	}
}

// info returns what Flows says about f.
func (f *testFlow) info(h *harness) FlowInfo {
	for _, i := range h.Flows() {
		if i.Src == f.src {
			return i
		}
	}
	return FlowInfo{}
}

// Neither many destinations nor many rules make the memory grow. The oldest failure goes.
func TestFailuresAreBounded(t *testing.T) {
	var f failures
	begun := time.Now()
	dst := func(i int) netip.AddrPort { return netip.AddrPortFrom(dst4.Addr(), uint16(i)) }
	for i := range 1000 {
		f.add(Failure{Rule: "one", Dst: dst(i), Times: 1, Last: begun.Add(time.Duration(i))})
	}
	if list := f.byRule["one"]; len(list) != failuresPerRule || f.total != failuresPerRule || list[0].Dst != dst(1000-failuresPerRule) {
		t.Errorf("of one rule: %+v", list)
	}
	for i := range 2 * failuresInAll {
		f.add(Failure{Rule: fmt.Sprint(i), Dst: dst4, Times: 1, Last: begun.Add(time.Hour + time.Duration(i))})
	}
	n := 0
	for _, list := range f.byRule {
		n += len(list)
	}
	if n != failuresInAll || f.total != n || len(f.byRule) != n || f.byRule["one"] != nil || f.byRule[fmt.Sprint(2*failuresInAll-1)] == nil {
		t.Errorf("of all: %d, counted as %d, of %d rules", n, f.total, len(f.byRule))
	}
}
