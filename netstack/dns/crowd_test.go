package dns

import (
	"bytes"
	"container/list"
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// len is the number of flows.
func (c *crowd) len() (n int) {
	for _, src := range c.sources {
		if src != nil {
			n += src.open
		}
	}
	return n
}

func (r *Relay) share(d *datagram) *share {
	_, _, q, _ := parseQuestion(d.payload, false)
	return r.busy.share(Asker{d.src.Addr(), d.dst}, q.name)
}

// unlike makes a query that does not happen to hash into the same share.
func unlike(r *Relay, s *share, make func(i byte) *datagram) *datagram {
	for i := byte(1); ; i++ {
		if d := make(i); r.share(d) != s {
			return d
		}
	}
}

// A flood of unanswered queries gets the remaining places, and costs next to nothing beyond them. Other
// queries, even from the same address, get a place at once and keep it.
func TestRelayFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const flows = 64
		var p pipeDialer
		r := NewRelay(p.dial, &observer{}, nil)
		r.most = flows
		stop := serve(t, r)
		defer stop()
		dials := func() int {
			time.Sleep(100 * time.Millisecond)
			p.mu.Lock()
			defer p.mu.Unlock()
			return len(p.peers)
		}
		flood := func(n int) {
			for range n {
				r.Handle(newQuery(resolverAddr, query(1, "silent.bank.example.", dnsmessage.TypeA)))
			}
		}
		flood(flows)
		before := dials()
		if before != flows {
			t.Fatalf("%d of %d have a socket", before, flows)
		}
		flood(1000)
		if got := dials() - before; got != 1 {
			t.Errorf("of 1000 in an instant %d took a place, want 1", got)
		}
		if got := r.Stats().Dropped; got != 999 {
			t.Errorf("%d dropped, want 999", got)
		}

		flooded := r.share(newQuery(resolverAddr, query(1, "silent.bank.example.", dnsmessage.TypeA)))
		others := map[string]*datagram{
			"zone": unlike(r, flooded, func(i byte) *datagram {
				return newQuery(resolverAddr, query(1, fmt.Sprintf("www.x%d.example.", i), dnsmessage.TypeA))
			}),
			"source": unlike(r, flooded, func(i byte) *datagram {
				d := newQuery(resolverAddr, query(2, "silent.bank.example.", dnsmessage.TypeA))
				d.src = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 0, i}), 1000)
				return d
			}),
		}
		socket := make(map[string]net.Conn)
		for what, d := range others {
			before = dials()
			flood(1000)
			r.Handle(d)
			flood(1000)
			if got := dials() - before; got != 2 {
				t.Fatalf("another %s: %d dials, want 2: one of the flood, and the other's", what, got)
			}
			for i := before; i < before+2; i++ {
				buf := make([]byte, 512)
				if n, _ := p.peer(i).Read(buf); bytes.Equal(buf[:n], d.payload) {
					socket[what] = p.peer(i)
				}
			}
		}
		for range 10 {
			flood(1000)
			time.Sleep(100 * time.Millisecond)
		}
		for what, d := range others {
			socket[what].Write(answerTo(d.payload))
			select {
			case <-d.replies:
			case <-time.After(time.Second):
				t.Errorf("another %s has no answer", what)
			}
		}
		if r.len() > flows {
			t.Errorf("%d flows, want %d at most", r.len(), flows)
		}
	})
}

// Only a few sockets are opened at a time, so that a flood leaves processor time for others, but every query
// gets one. A query about something else does not wait behind a flood.
func TestRelayDialsFewAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 1000
		var mu sync.Mutex
		var now, most, all, otherAfter int
		var p pipeDialer
		var other netip.AddrPort
		r := NewRelay(func(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
			mu.Lock()
			now++
			all++
			most = max(most, now)
			if dst == other {
				otherAfter = all
			}
			mu.Unlock()
			time.Sleep(time.Microsecond)
			mu.Lock()
			now--
			mu.Unlock()
			return p.dial(ctx, network, dst)
		}, &observer{}, nil)
		stop := serve(t, r)
		defer stop()
		q := query(1, "bank.example.", dnsmessage.TypeA)
		last := unlike(r, r.share(newQuery(resolverAddr, q)), func(i byte) *datagram {
			return newQuery(netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 0, i}), 53), q)
		})
		other = last.dst
		for range n {
			r.Handle(newQuery(resolverAddr, q))
		}
		r.Handle(last)
		time.Sleep(2 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if most > maxDialing || all != n+1 {
			t.Errorf("%d dials, %d at a time; want %d, %d at a time", all, most, n+1, maxDialing)
		}
		// The query is taken next once the dials under way have ended. They end at once, and the goroutine that
		// took it may call the dialer after the others have called it for the flows they took in the meantime.
		if otherAfter > 2*maxDialing {
			t.Errorf("the other question was the %dth that got a socket", otherAfter)
		}
	})
}

func TestCrowd(t *testing.T) {
	c := newCrowd()
	addr := netip.MustParseAddr
	a := c.share(Asker{addr("192.0.2.1"), resolverAddr}, "a.bank.example")
	for _, x := range []struct {
		what string
		s    *share
	}{
		{"another name of the zone", c.share(Asker{addr("192.0.2.1"), resolverAddr}, "a.b.c.bank.example")},
		{"the zone itself", c.share(Asker{addr("192.0.2.1"), resolverAddr}, "bank.example")},
	} {
		if x.s != a {
			t.Errorf("%s has a share of its own", x.what)
		}
	}
	if c.share(Asker{addr("2001:db8::1"), resolverAddr}, "x") != c.share(Asker{addr("2001:db8::2"), resolverAddr}, "x") {
		t.Error("addresses of one network have shares of their own")
	}
	var elems []*list.Element
	for range 3 {
		elems = append(elems, a.add(&flow{}))
	}
	other := &source{}
	for i := range c.sources {
		if c.sources[i] == nil {
			c.sources[i] = other
			break
		}
	}
	b := &other.shares[5]
	b.source = other
	b.add(&flow{})
	if c.largest(b) != a || c.largest(a) != a {
		t.Error("the share of three is not the largest beside one of one")
	}
	a.remove(elems[0])
	a.remove(elems[0]) // no longer there
	a.remove(elems[1])
	if c.largest(b) != b || c.largest(a) != a {
		t.Error("of two equal ones, one is larger")
	}
	if n := c.len(); n != 2 {
		t.Errorf("%d flows, want 2", n)
	}
}
