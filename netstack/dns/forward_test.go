package dns

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// internet is what a Forwarder under test dials. It has a resolver function for each address, which returns the
// answer, or nil for none. An address without a resolver refuses.
type internet struct {
	resolvers map[string]func(query []byte) []byte

	mu    sync.Mutex
	asked []string // network, address and interface
	wg    sync.WaitGroup
}

func (n *internet) dial(_ context.Context, network string, link int, dst netip.AddrPort) (net.Conn, error) {
	n.mu.Lock()
	n.asked = append(n.asked, network+" "+dst.String()+map[int]string{0: "", 7: " over 7"}[link])
	n.mu.Unlock()
	answer := n.resolvers[dst.String()]
	if answer == nil {
		return nil, errors.New("connection refused")
	}
	ours, theirs := net.Pipe()
	n.wg.Go(func() {
		defer theirs.Close()
		buf := make([]byte, 1<<16)
		for {
			l, err := theirs.Read(buf)
			if err != nil {
				return
			}
			query := bytes.Clone(buf[:l])
			if network == "tcp" {
				query = query[frameLen:]
			}
			n.wg.Go(func() {
				switch msg := answer(query); {
				case msg == nil:
				case network == "tcp":
					theirs.Write(frame(msg))
				default:
					theirs.Write(msg)
				}
			})
		}
	})
	return ours, nil
}

func (n *internet) since(i int) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.asked[i:])
}

func up(addr string) Upstream { return Upstream{Addr: netip.MustParseAddrPort(addr)} }

// forward starts a Forwarder that asks the lists for every name.
func (n *internet) forward(t *testing.T, obs Observer, lists ...[]Upstream) *Forwarder {
	f := NewForwarder(n.dial, func(context.Context, string) ([][]Upstream, error) { return lists, nil }, obs, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		n.wg.Wait()
	})
	return f
}

var stand = netip.MustParseAddrPort("192.0.0.53:53")

// says answers with an address after a delay.
func says(addr string, after time.Duration) func([]byte) []byte {
	return func(query []byte) []byte {
		time.Sleep(after)
		return answerTo(query, rec("www.example.", 60, addr))
	}
}

// fails answers with a response code after a delay.
func fails(code dnsmessage.RCode, after time.Duration) func([]byte) []byte {
	return func(query []byte) []byte {
		time.Sleep(after)
		msg := answerTo(query)
		msg[3] |= byte(code)
		return msg
	}
}

func silent([]byte) []byte { return nil }

// Which upstreams a query goes to, when, and what the application gets.
func TestForward(t *testing.T) {
	type m = map[string]func([]byte) []byte
	a, b, c := "192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:5353"
	for _, test := range []struct {
		name      string
		resolvers m
		lists     [][]Upstream
		addr      string // in the answer
		code      dnsmessage.RCode
		after     time.Duration
		asked     []string
	}{
		{"one", m{a: says("203.0.113.1", 0)}, [][]Upstream{{up(a)}}, "203.0.113.1", 0, 0, []string{"udp " + a}},
		{"over an interface", m{a: says("203.0.113.1", 0)}, [][]Upstream{{{Addr: up(a).Addr, Link: 7}}}, "203.0.113.1", 0, 0, []string{"udp " + a + " over 7"}},
		{"slow", m{a: says("203.0.113.1", 4*time.Second)}, [][]Upstream{{up(a)}}, "203.0.113.1", 0, 4 * time.Second, []string{"udp " + a}},
		{"the first is silent", m{a: silent, b: says("203.0.113.2", 0)}, [][]Upstream{{up(a), up(b)}}, "203.0.113.2", 0, nextAfter, []string{"udp " + a, "udp " + b}},
		{"the first is late", m{a: says("203.0.113.1", 1500*time.Millisecond), b: silent}, [][]Upstream{{up(a), up(b)}}, "203.0.113.1", 0, 1500 * time.Millisecond, []string{"udp " + a, "udp " + b}},
		{"the first refuses", m{b: says("203.0.113.2", 0)}, [][]Upstream{{up(a), up(b)}}, "203.0.113.2", 0, 0, []string{"udp " + a, "udp " + b}},
		{"the first fails", m{a: fails(dnsmessage.RCodeServerFailure, 0), b: says("203.0.113.2", 0)}, [][]Upstream{{up(a), up(b)}}, "203.0.113.2", 0, 0, []string{"udp " + a, "udp " + b}},
		{"all fail", m{a: fails(dnsmessage.RCodeRefused, 0)}, [][]Upstream{{up(a), up(b)}}, "", dnsmessage.RCodeRefused, 0, []string{"udp " + a, "udp " + b}},
		{"no such name", m{a: fails(dnsmessage.RCodeNameError, 0), b: says("203.0.113.2", 0)}, [][]Upstream{{up(a), up(b)}}, "", dnsmessage.RCodeNameError, 0, []string{"udp " + a}},
		{"another network has the name", m{a: fails(dnsmessage.RCodeNameError, 0), c: says("203.0.113.3", time.Second/2)}, [][]Upstream{{up(a)}, {up(c)}}, "203.0.113.3", 0, time.Second / 2, []string{"udp " + a, "udp " + c}},
		{"no network has the name", m{a: fails(dnsmessage.RCodeNameError, 0), c: fails(dnsmessage.RCodeServerFailure, time.Second/2)}, [][]Upstream{{up(a)}, {up(c)}}, "", dnsmessage.RCodeNameError, time.Second / 2, []string{"udp " + a, "udp " + c}},
		{"one network does not have the name, another is silent", m{a: fails(dnsmessage.RCodeNameError, time.Second/2), b: silent}, [][]Upstream{{up(a)}, {up(b)}}, "", dnsmessage.RCodeNameError, time.Second/2 + askAgain, []string{"udp " + a, "udp " + b}},
		{"all refuse", nil, [][]Upstream{{up(a), up(b)}}, "", dnsmessage.RCodeServerFailure, 0, []string{"udp " + a, "udp " + b}},
		{"nobody is known", nil, [][]Upstream{nil}, "", dnsmessage.RCodeServerFailure, 0, []string{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &internet{resolvers: test.resolvers}
				f := n.forward(t, &observer{}, test.lists...)
				q := newQuery(stand, query(7, "www.example.", dnsmessage.TypeA))
				start := time.Now()
				f.Handle(q)
				msg := <-q.replies
				if took := time.Since(start); took != test.after {
					t.Errorf("answered after %v, want %v", took, test.after)
				}
				got, ok := parseAnswer(msg)
				if code := rcode(t, msg); !ok || code != test.code || msg[0] != 0 || msg[1] != 7 {
					t.Errorf("answered %v %v, want code %v", code, got, test.code)
				}
				if want := addrs(test.addr); !slices.Equal(got.Addrs, want) {
					t.Errorf("answered %v, want %v", got.Addrs, want)
				}
				asked := n.since(0)
				slices.Sort(asked)
				if !slices.Equal(asked, test.asked) {
					t.Errorf("asked %q, want %q", asked, test.asked)
				}
			})
		})
	}
}

// A silent upstream is asked last for a while.
func TestForwardRemembersSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := "192.0.2.1:53", "192.0.2.2:53"
		n := &internet{resolvers: map[string]func([]byte) []byte{a: silent, b: says("203.0.113.2", 0)}}
		f := n.forward(t, &observer{}, []Upstream{up(a), up(b)})
		ask := func() []string {
			before := len(n.since(0))
			q := newQuery(stand, query(7, "www.example.", dnsmessage.TypeA))
			f.Handle(q)
			<-q.replies
			return n.since(before)
		}
		if got := ask(); len(got) != 2 {
			t.Errorf("the first query asked %q", got)
		}
		if got := ask(); !slices.Equal(got, []string{"udp " + b}) {
			t.Errorf("the second query asked %q", got)
		}
		time.Sleep(avoidSilent)
		if got := ask(); len(got) != 2 || got[0] != "udp "+a {
			t.Errorf("a query %v later asked %q", avoidSilent, got)
		}
	})
}

// A datagram is sent again. When all attempts are exhausted there is no response, as with a lost server.
func TestForwardAllSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		n := &internet{resolvers: map[string]func([]byte) []byte{"192.0.2.1:53": func([]byte) []byte { asked.Add(1); return nil }}}
		f := n.forward(t, &observer{}, []Upstream{up("192.0.2.1:53")})
		q := newQuery(stand, query(7, "www.example.", dnsmessage.TypeA))
		f.Handle(q)
		start := time.Now()
		f.Drain(t.Context())
		if took := time.Since(start); took != forwardWait {
			t.Errorf("given up after %v", took)
		}
		none(t, q.replies)
		none(t, q.unreachable)
		if got := asked.Load(); got != 2 {
			t.Errorf("the resolver got %d datagrams, want 2", got)
		}
	})
}

// Guessed and late answers are rejected, and nothing is learned from them.
func TestForwardStrangeAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &internet{resolvers: map[string]func([]byte) []byte{
			"192.0.2.1:53": func(q []byte) []byte {
				other := bytes.Clone(q)
				other[1]++
				return answerTo(other, rec("www.example.", 60, "203.0.113.66"))
			},
			"192.0.2.2:53": func([]byte) []byte {
				return answerTo(query(7, "evil.example.", dnsmessage.TypeA), rec("evil.example.", 60, "203.0.113.66"))
			},
			"192.0.2.3:53": says("203.0.113.3", 0),
		}}
		obs := &observer{}
		f := n.forward(t, obs, []Upstream{up("192.0.2.1:53"), up("192.0.2.2:53"), up("192.0.2.3:53")})
		q := newQuery(stand, query(7, "www.example.", dnsmessage.TypeA))
		f.Handle(q)
		if got, _ := parseAnswer(<-q.replies); !slices.Equal(got.Addrs, addrs("203.0.113.3")) {
			t.Errorf("answered %v", got)
		}
		if seen := obs.all(); len(seen) != 1 || seen[0].Name != "www.example" {
			t.Errorf("learned %v", seen)
		}
	})
}

// The answer is returned only once the routes are set. Without routes there is no answer.
func TestForwardObserves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &internet{resolvers: map[string]func([]byte) []byte{"192.0.2.1:53": says("203.0.113.1", 0)}}
		var routes error
		obs := &observer{
			wants:   func(name string) bool { return name == "www.example" },
			observe: func(observed) error { time.Sleep(time.Second); return routes },
		}
		f := n.forward(t, obs, []Upstream{up("192.0.2.1:53")})
		for _, routes = range []error{nil, errNoRoute} {
			q := newQuery(stand, query(7, "www.example.", dnsmessage.TypeA))
			start := time.Now()
			f.Handle(q)
			msg := <-q.replies
			if took := time.Since(start); took != time.Second {
				t.Errorf("answered after %v, not when the routes stood", took)
			}
			if code := rcode(t, msg); (code == dnsmessage.RCodeSuccess) != (routes == nil) {
				t.Errorf("answered %v although the routes say %v", code, routes)
			}
		}
		q := newQuery(stand, query(7, "other.example.", dnsmessage.TypeA))
		f.Handle(q)
		<-q.replies
		if seen := obs.all(); len(seen) != 2 {
			t.Errorf("learned %v", seen)
		}
	})
}

// However many queries wait for the servers of some zones, those about another one are asked.
func TestForwardBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &internet{resolvers: map[string]func([]byte) []byte{"192.0.2.1:53": func(q []byte) []byte {
			if bytes.Contains(q, []byte("slow")) {
				time.Sleep(time.Second / 2)
			}
			return says("203.0.113.1", 0)(q)
		}}}
		f := n.forward(t, &observer{}, []Upstream{up("192.0.2.1:53")})
		slow := newQuery(stand, nil)
		slow.replies = make(chan []byte, 2*maxForwarded)
		for zone := range 20 {
			for range maxForwarded {
				f.Handle(slow.again(query(7, fmt.Sprintf("slow.zone%d.", zone), dnsmessage.TypeA)))
			}
			synctest.Wait()
			name := "www.bank.test"
			for i := 0; f.asking.share(name).Len() > 0; i++ { // not in a slow zone's share by chance
				name = fmt.Sprintf("www.bank%d.test", i)
			}
			q := newQuery(stand, query(7, name+".", dnsmessage.TypeA))
			f.Handle(q)
			synctest.Wait()
			if len(q.replies) != 1 {
				t.Fatalf("no answer while %d zones are slow", zone+1)
			}
		}
		f.Handle(slow.again([]byte("no DNS")))
		f.Drain(t.Context())
		// The last one about another zone has taken a place, and others' shares may have been as large as its own.
		if got := len(slow.replies); got > maxForwarded || got < maxForwarded-10 {
			t.Errorf("%d answers of slow zones", got)
		}
		for i := range f.asking.shares {
			if n := f.asking.shares[i].Len(); n != 0 || f.asking.taken != 0 {
				t.Fatalf("%d places of a share are taken, and %d in all", n, f.asking.taken)
			}
		}
	})
}

// Queries over TCP are asked over TCP, in parallel.
func TestForwardStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &internet{resolvers: map[string]func([]byte) []byte{"192.0.2.1:53": func(q []byte) []byte {
			if q[1] == 1 {
				time.Sleep(time.Second)
			}
			return answerTo(q, rec("www.example.", 60, "203.0.113.1"))
		}}}
		obs := &observer{}
		f := n.forward(t, obs, []Upstream{up("192.0.2.1:53")})
		ours, theirs := net.Pipe()
		ended := make(chan bool)
		go func() {
			f.Stream(t.Context(), theirs)
			close(ended)
		}()
		for id := uint16(1); id <= 2; id++ {
			if err := writeFrame(ours, query(id, "www.example.", dnsmessage.TypeA)); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		for _, id := range []byte{2, 1} {
			msg, err := readFrame(ours)
			if err != nil || msg[1] != id {
				t.Fatalf("answer %x, %v, want that to query %d", msg, err, id)
			}
		}
		if got := n.since(0); !slices.Equal(got, []string{"tcp 192.0.2.1:53", "tcp 192.0.2.1:53"}) || len(obs.all()) != 2 {
			t.Errorf("asked %q, learned %v", got, obs.all())
		}
		if _, err := readFrame(ours); err == nil {
			t.Error("another answer came")
		}
		if took := time.Since(start); took != streamIdle {
			t.Errorf("the connection ended %v after the last query", took)
		}
		<-ended
	})
}

func TestForwardStreamEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &internet{resolvers: map[string]func([]byte) []byte{"192.0.2.1:53": silent}}
		f := n.forward(t, &observer{}, []Upstream{up("192.0.2.1:53")})
		ours, theirs := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan bool)
		go func() {
			f.Stream(ctx, theirs)
			close(ended)
		}()
		cancel()
		<-ended
		if _, err := ours.Read(make([]byte, 1)); err == nil {
			t.Error("the connection is still open")
		}
	})
}

// A client that asks and does not read is given up, and takes no place from others.
func TestForwardStreamIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &internet{resolvers: map[string]func([]byte) []byte{"192.0.2.1:53": says("203.0.113.1", 0)}}
		f := n.forward(t, &observer{}, []Upstream{up("192.0.2.1:53")})
		ours, theirs := net.Pipe()
		ended := make(chan bool)
		go func() {
			f.Stream(t.Context(), theirs)
			close(ended)
		}()
		if err := writeFrame(ours, query(1, "www.example.", dnsmessage.TypeA)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * streamIdle)
		synctest.Wait()
		f.mu.Lock()
		if f.asking.taken != 0 {
			t.Errorf("%d queries are still in progress", f.asking.taken)
		}
		f.mu.Unlock()
		select {
		case <-ended:
		default:
			t.Error("the connection has not ended")
		}
		ours.Close()
		<-ended
	})
}

// An upstream with TLS is asked over TLS only, and only if its certificate matches.
func TestForwardTLS(t *testing.T) {
	leaks(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		DNSNames: []string{"dns.example"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer l.Close()
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if q, err := readFrame(c); err == nil {
				writeFrame(c, answerTo(q, rec("www.example.", 60, "203.0.113.1")))
			}
			c.Close()
		}
	})
	at := l.Addr().(*net.TCPAddr).AddrPort()
	for name, want := range map[string]dnsmessage.RCode{"dns.example": dnsmessage.RCodeSuccess, "": dnsmessage.RCodeSuccess, "other.example": dnsmessage.RCodeServerFailure} {
		choose := func(context.Context, string) ([][]Upstream, error) {
			return [][]Upstream{{{Addr: at, TLS: true, Name: name}}}, nil
		}
		dial := func(ctx context.Context, network string, _ int, dst netip.AddrPort) (net.Conn, error) {
			return directly(ctx, network, dst)
		}
		f := NewForwarder(dial, choose, &observer{}, nil)
		f.roots = x509.NewCertPool()
		f.roots.AddCert(cert)
		q := newQuery(stand, query(7, "www.example.", dnsmessage.TypeA))
		f.Handle(q)
		if got := rcode(t, receive(t, q.replies)); got != want {
			t.Errorf("certificate for %q: answered %v, want %v", name, got, want)
		}
		f.Drain(t.Context())
	}
}
