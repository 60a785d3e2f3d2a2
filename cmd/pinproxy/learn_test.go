package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pinproxy/netstack/host"
	"pinproxy/rules"
)

// slowRouter captures like *host.Host, and takes its time.
type slowRouter map[host.Capture]bool

func (r slowRouter) Add(_ context.Context, list []host.Capture) error {
	for _, c := range list {
		r[c] = true
	}
	return nil
}

func (r slowRouter) Remove(ctx context.Context, list []host.Capture) error {
	for part := range slices.Chunk(list, 1000) {
		if err := ctx.Err(); err != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
		for _, c := range part {
			delete(r, c)
		}
	}
	return nil
}

// However many addresses expire at once, and however long that takes, none stays captured: no rule would be known for
// its connections, and they would fail.
func TestAllThatExpiresIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list, err := rules.ParseFile("test", strings.NewReader("*.bank.example:443=63999\n*.bank.example:80=63998\n"))
		if err != nil {
			t.Fatal(err)
		}
		set, err := rules.NewSet(list)
		if err != nil {
			t.Fatal(err)
		}
		routes := make(slowRouter)
		l := &learner{names: rules.NewNames(set, rules.Limits{}), routes: routes, log: slog.New(slog.DiscardHandler)}
		const names, each = 60, 500
		addr := netip.MustParseAddr("2001:db8::1")
		for i := range names {
			var addrs []netip.Addr
			for range each {
				addrs = append(addrs, addr)
				addr = addr.Next()
			}
			if err := l.Observe(fmt.Sprintf("n%d.bank.example", i), addrs, time.Second); err != nil {
				t.Fatal(err)
			}
		}
		if len(routes) != 2*names*each {
			t.Fatalf("%d captures, want %d", len(routes), 2*names*each)
		}
		time.Sleep(2 * rules.DefaultGrace)
		if err := l.sweep(t.Context()); err != nil {
			t.Error(err)
		}
		if len(routes) != 0 || l.names.Len() != 0 {
			t.Errorf("%d captures and %d addresses are left", len(routes), l.names.Len())
		}
	})
}
