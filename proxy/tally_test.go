package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pinproxy/proxy/lease"
	"pinproxy/rules"
)

// Flows are counted for their rule in every stage, and bytes while they move.
func TestRuleStats(t *testing.T) {
	h, s := pinnedServer(t)
	rule := h.Flows()
	if len(rule) != 0 {
		t.Fatal("there are flows")
	}
	set := h.cfg.Names.(*rules.Names)
	r := set.Decide(s.addr).Rule
	f, c := connected(t, h, s)
	if _, err := f.app.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the bytes are counted", func() bool { return h.RuleStats([]*rules.Rule{r})[0].Up == 5 })
	if uses := h.Uses(); len(uses) != 1 || uses[Use{r.String(), r.Pin().Ports().Ranges()[0].First}] != 1 {
		t.Errorf("%v", uses)
	}
	second := h.open(t, s.addr) // busy=fail
	second.answered(t, "permission denied")
	second.ended(t)
	want := RuleStats{Hits: 2, Failed: 1, Up: 5, Stages: [Open + 1]int{Open: 1}}
	if got := h.RuleStats([]*rules.Rule{r, nil}); got[0] != want || got[1] != (RuleStats{}) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := h.Totals(); got.Leases != 1 || got.Failed[KindBusy] != 1 || got.Up != 5 || got.Stages != want.Stages {
		t.Errorf("%+v", got)
	}
	_ = c.Close()
	_ = f.app.Close()
	f.ended(t)
	eventually(t, "the flow is gone", func() bool { return h.Stats().Live == 0 })
	want = RuleStats{Hits: 2, Ended: 1, Failed: 1, Up: 5}
	if got := h.RuleStats([]*rules.Rule{r}); got[0] != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := h.Totals(); got.Ended != 1 || got.Up != 5 || got.Leases != 0 {
		t.Errorf("%+v", got)
	}
	if served := h.Served(r); len(served) != 1 || served[r.Pin().Ports().Ranges()[0].First] != 1 {
		t.Errorf("%v", served)
	}
}

// Whatever looks at all flows lets others run at each of them, and keeps no flow from beginning or ending.
func TestLooksGiveWay(t *testing.T) {
	h, s := pinnedServer(t)
	f, c := connected(t, h, s)
	gave := 0
	h.cfg.GiveWay = func() {
		if gave++; !h.mu.TryLock() {
			t.Error("it holds the lock that every flow needs")
			return
		}
		h.mu.Unlock()
	}
	for name, look := range map[string]func(){
		"Flows":     func() { _ = h.Flows() },
		"RuleStats": func() { _ = h.RuleStats(nil) },
		"Totals":    func() { _ = h.Totals() },
		"Uses":      func() { _ = h.Uses() },
	} {
		gave = 0
		if look(); gave != 1 {
			t.Errorf("%s lets others run %d times while there is one flow", name, gave)
		}
	}
	_ = c.Close()
	_ = f.app.Close()
	f.ended(t)
}

// A rule that is read again keeps counting. A rule that is gone starts again at 0.
func TestTalliesOutliveTheirRules(t *testing.T) {
	var all tallies
	parse := func(text string) *rules.Rule {
		r, err := rules.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	kept, gone := parse("*:443=63999"), parse("*:80=63998")
	all.of(kept).hits.Add(7)
	all.of(gone).hits.Add(8)
	all.of(nil).hits.Add(9)
	again := parse("*:443=63999")
	all.retain([]*rules.Rule{again})
	for _, c := range []struct {
		rule *rules.Rule
		want uint64
	}{{again, 7}, {gone, 0}, {nil, 9}} {
		if got := all.of(c.rule).hits.Load(); got != c.want {
			t.Errorf("%v: %d, want %d", c.rule, got, c.want)
		}
	}
	n := 0
	all.byRule.Range(func(any, any) bool { n++; return true })
	if n != 3 { // again, gone and nil, which have just been asked for
		t.Errorf("%d rules are remembered", n)
	}
}

// Every kind has a word of its own, and every failure has a kind.
func TestKinds(t *testing.T) {
	call := func(name string, errno syscall.Errno) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError(name, errno)}
	}
	pin, dst := dst4, dst4
	for _, c := range []struct {
		err  error
		want Kind
	}{
		{call("connect", syscall.ECONNREFUSED), KindRefused},
		{call("connect", syscall.ECONNRESET), KindReset},
		{call("connect", syscall.EHOSTUNREACH), KindUnreachable},
		{explain(call("connect", syscall.ENETUNREACH), pin, dst), KindUnreachable},
		{&silenceError{err: context.DeadlineExceeded}, KindSilent},
		{&silenceError{err: context.Canceled, hint: "it is about the port"}, KindSilent},
		{&silenceError{err: context.Canceled}, KindGaveUp},
		{call("connect", syscall.ETIMEDOUT), KindSilent},
		{&pinError{err: &lease.BusyError{}}, KindBusy},
		{&pinError{err: fmt.Errorf("%w; %w", lease.ErrBusy, call("bind", syscall.EADDRINUSE))}, KindTaken},
		{&pinError{err: fmt.Errorf("%w; %w", lease.ErrBusy, call("connect", syscall.EADDRNOTAVAIL))}, KindTaken},
		{explain(call("bind", syscall.EACCES), pin, dst), KindSource},
		{explain(call("bind", syscall.EADDRNOTAVAIL), pin, dst), KindSource},
		{&pinError{err: errors.New("source address 192.0.2.1 is of the other family")}, KindSource},
		{explain(call("connect", syscall.EPERM), pin, dst), KindFirewall},
		{&pinError{err: errNoRule}, KindNoRule},
		{&pinError{err: errLoop}, KindLoop},
		{&pinError{err: errSelf}, KindLoop},
		{errCrowd, KindCrowd},
		{call("socket", syscall.EMFILE), KindFiles},
		{context.Canceled, KindGaveUp},
		{notAccepted(errors.New("answer 192.0.0.8:1: the application has given up"), false), KindGaveUp},
		{notAccepted(syscall.ETIMEDOUT, false), KindUnconfirmed},
		{notAccepted(syscall.ETIMEDOUT, true), KindUnconfirmed},
		{errors.New("what nobody has thought of"), KindOther},
	} {
		if got := kindOf(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
	var words []string
	for _, k := range Kinds() {
		if slices.Contains(words, k.String()) || k.String() == "" {
			t.Errorf("%d is %q", k, k)
		}
		words = append(words, k.String())
	}
}

// Programs that fail endlessly are logged ten times, then every ten seconds with the number of failures.
func TestRepeatedFailuresAreThrottled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, Config{Dialer: failing("connect", syscall.ECONNREFUSED)}, "198.51.100.7:443=1000")
		fails := func() {
			f := h.openWith(t, dst4, memory)
			f.answered(t, "connection refused")
			f.ended(t)
		}
		for range 100 {
			fails()
		}
		if n := len(h.log.with("flow failed")); n != throttleBurst {
			t.Errorf("%d lines of 100 failures", n)
		}
		time.Sleep(throttleEvery)
		fails()
		if list := h.log.with("flow failed"); len(list) != throttleBurst+1 || list[throttleBurst].Attrs["repeated"] != "90" {
			t.Errorf("%d lines, the last %v", len(list), list[len(list)-1].Attrs)
		}
		if h.Stats().Failed != 101 {
			t.Errorf("%+v", h.Stats())
		}
		for range 6 {
			for range 100 {
				fails()
				time.Sleep(throttleEvery / 100)
			}
		}
		if n := len(h.log.with("flow failed")); n != throttleBurst+1+5 {
			t.Errorf("%d lines after just under a minute more of them, want %d", n, throttleBurst+1+5)
		}
	})
}

// Other causes are still logged, and what is remembered is bounded.
func TestThrottleTellsCausesApart(t *testing.T) {
	var all throttle
	for i := range 2 * throttleCauses {
		if _, ok := all.due(repeatable{msg: "flow failed", dst: dst4, kind: Kind(i)}); !ok && i < int(kinds) {
			t.Errorf("kind %d is left out", i)
		}
		if _, ok := all.due(repeatable{msg: fmt.Sprint(i)}); !ok {
			t.Errorf("message %d is left out", i)
		}
		if len(all.causes) > throttleCauses {
			t.Fatalf("%d causes are remembered", len(all.causes))
		}
	}
}
