package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"pinproxy/cmd/pinproxy/monitor"
	"pinproxy/netstack/lab"
)

// DNS questions that nobody answers.
func TestFloodOfQuestions(t *testing.T) {
	w := newNetwork(t)
	answer := func(q lab.Query) lab.Answer {
		if strings.HasPrefix(q.Name, "silent") {
			return lab.Answer{Drop: true}
		}
		return lab.Zone(zone)(q)
	}
	w.answer(answer)
	w.Server.DNS(answer, at(lab.Server4, uncaptured))
	b := w.watched("--rule", "*.bank.example:8443=63000-63099")
	n := much(50_000, 200)
	b.during(w.floods("ask", lab.Server4, 53, n), w.floods("ask", lab.Server4, uncaptured, n), func(monitor.Status) bool {
		found, err := w.Client.Resolver().LookupNetIP(soon(t), "ip4", "www.bank.example")
		return err == nil && len(found) == 1
	})
}

func askSilent(to string) error {
	c, err := net.Dial("udp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = io.WriteString(c, "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06silent\x04bank\x07example\x00\x00\x01\x00\x01")
	return err
}

// thousand answers n1.bank.example and the like with a thousand addresses each.
func thousand(q lab.Query) (a lab.Answer) {
	var n int
	if _, err := fmt.Sscanf(q.Name, "n%d.", &n); err != nil || q.Type != dnsmessage.TypeAAAA {
		return a
	}
	var addrs []string
	for i := range 1000 {
		addrs = append(addrs, fmt.Sprintf("2001:db8:beef:%x::%x", n, i+1))
	}
	return lab.Addrs(q, time.Hour, addrs...)
}

// packed makes the answers of thousand for the first names beforehand: making them would take more of the processors
// than all else in a flood.
func packed(names int) func(lab.Query) lab.Answer {
	raw := make(map[string][]byte, names)
	for n := range names {
		q := lab.Query{Name: fmt.Sprintf("n%d.bank.example", n+1), Type: dnsmessage.TypeAAAA}
		name := dnsmessage.MustNewName(q.Name + ".")
		m := dnsmessage.Message{
			Header:    dnsmessage.Header{Response: true, RecursionDesired: true, RecursionAvailable: true},
			Questions: []dnsmessage.Question{{Name: name, Type: q.Type, Class: dnsmessage.ClassINET}},
			Answers:   thousand(q).Records,
		}
		for i := range m.Answers {
			m.Answers[i].Header.Name, m.Answers[i].Header.Class = name, dnsmessage.ClassINET
		}
		msg, err := m.Pack()
		if err != nil {
			panic(err)
		}
		raw[q.Name] = msg[2:] // without the ID
	}
	return func(q lab.Query) lab.Answer {
		if q.Type != dnsmessage.TypeAAAA || q.Network == "udp" {
			return lab.Answer{Truncate: true}
		}
		return lab.Answer{Raw: raw[q.Name]}
	}
}

// Large answers, many at a time, from a resolver of the asker's own: an answer from another one does not wait for all.
func TestFloodOfAnswers(t *testing.T) {
	w := newNetwork(t)
	w.answer(lab.Zone(zone))
	names := much(1000, 20)
	w.Server.DNS(packed(names), at(ownResolver, 53))
	pinned := w.Server.Serve(":8443", lab.Echo)
	b := w.watched("--rule", "*.bank.example:8443=63000-63999")
	flood := w.floods("look", ownResolver, 53, names)
	b.during(func() {
		over := make(chan struct{})
		go func() { // ends with flood
			defer close(over)
			flood()
		}()
		var took []time.Duration
		for running := true; running; {
			start := time.Now()
			found, err := w.Client.Resolver().LookupNetIP(soon(t), "ip4", "www.bank.example")
			if err != nil || len(found) != 1 {
				t.Errorf("%v, %v", found, err)
				return
			}
			took = append(took, time.Since(start))
			c, err := w.connect(at(found[0].String(), 8443))
			if err != nil {
				t.Error(err)
				return
			}
			echo(t, c, "hello")
			_ = c.Close()
			select {
			case <-over:
				running = false
			case <-time.After(5 * time.Millisecond):
			}
		}
		slices.Sort(took)
		t.Logf("%d other lookups took %v, %v at most", len(took), took[len(took)/2], took[len(took)-1])
		if limit := 50 * time.Millisecond; *floods && took[len(took)/2] > limit {
			t.Errorf("other lookups took %v, want %v at most", took[len(took)/2], limit)
		}
	}, nil, noneTo(8443))
	for _, from := range pinned.Seen() {
		if from.Port() < 63000 || from.Port() > 63999 {
			t.Errorf("a connection came from %v", from)
		}
	}
}

// lookUpMany looks up one name after another, of those that thousand knows. It may fail, because there are too many.
func lookUpMany(resolver string) error {
	r := &net.Resolver{PreferGo: true, Dial: func(_ context.Context, network, _ string) (net.Conn, error) {
		return net.DialTimeout(network, resolver, patience)
	}}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, _ = r.LookupNetIP(ctx, "ip6", fmt.Sprintf("n%d.bank.example", lookups.Add(1)))
	return nil
}

var lookups atomic.Uint32

const ownResolver = "192.0.2.53" // one of the server's addresses

// Answers with a thousand addresses, for more names and addresses than are kept. The newest are pinned, and the
// number of routes is bounded.
func TestFloodOfAddresses(t *testing.T) {
	const each = 1000
	w := newNetwork(t)
	w.ServerOwns("2001:db8:beef::/48")
	w.answer(thousand)
	pinned := w.Server.Serve(":8443", lab.Echo)
	b := w.watched("--rule", "*.bank.example:8443=63000-63999")
	names := much(250, 3)
	b.during(func() {
		for i := range names {
			found, err := w.Client.Resolver().LookupNetIP(soon(t), "ip6", fmt.Sprintf("n%d.bank.example", i))
			if err != nil || len(found) != each {
				t.Errorf("name %d has %d addresses, %v", i, len(found), err)
				return
			}
			c, err := w.connect(at(found[i%each].String(), 8443))
			if err != nil {
				t.Error(err)
				return
			}
			echo(t, c, "hello")
			_ = c.Close()
		}
	}, nil, noneTo(8443))
	for _, from := range pinned.Seen() {
		if from.Port() < 63000 || from.Port() > 63999 {
			t.Errorf("a connection came from %v", from)
		}
	}
	routes := strings.Count(w.Client.Snapshot(), "2001:db8:beef:")
	t.Logf("%d names with %d addresses each: %d routes, %.0f MiB", names, each, routes, b.measure().RSS)
	if bound := 200_000; routes > bound {
		t.Errorf("%d routes, want %d at most", routes, bound)
	}
}
