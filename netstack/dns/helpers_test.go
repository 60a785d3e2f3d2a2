package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const testWait = 30 * time.Second

// leaks fails the test if it ends with more goroutines than there are now.
func leaks(t *testing.T) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for end := time.Now().Add(testWait); ; runtime.Gosched() {
			if runtime.NumGoroutine() <= before {
				return
			}
			if time.Now().After(end) {
				buf := make([]byte, 1<<16)
				t.Errorf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
				return
			}
		}
	})
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(testWait):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func none[T any](t *testing.T, c <-chan T) {
	t.Helper()
	select {
	case v := <-c:
		t.Fatalf("got %v, want nothing", v)
	default:
	}
}

func name(s string) dnsmessage.Name { return dnsmessage.MustNewName(s) }

func addrs(s string) (a []netip.Addr) {
	for _, f := range strings.Fields(s) {
		a = append(a, netip.MustParseAddr(f))
	}
	return a
}

func header(owner string, ttl uint32) dnsmessage.ResourceHeader {
	return dnsmessage.ResourceHeader{Name: name(owner), Class: dnsmessage.ClassINET, TTL: ttl}
}

// rec makes an A or AAAA record.
func rec(owner string, ttl uint32, addr string) dnsmessage.Resource {
	a := netip.MustParseAddr(addr)
	if a.Is4() {
		return dnsmessage.Resource{Header: header(owner, ttl), Body: &dnsmessage.AResource{A: a.As4()}}
	}
	return dnsmessage.Resource{Header: header(owner, ttl), Body: &dnsmessage.AAAAResource{AAAA: a.As16()}}
}

func cname(owner string, ttl uint32, target string) dnsmessage.Resource {
	return dnsmessage.Resource{Header: header(owner, ttl), Body: &dnsmessage.CNAMEResource{CNAME: name(target)}}
}

func https(owner string, ttl uint32, priority uint16, target, hints string) dnsmessage.Resource {
	r := dnsmessage.SVCBResource{Priority: priority, Target: name(target)}
	r.SetParam(dnsmessage.SVCParamALPN, []byte("\x02h2"))
	var v4, v6 []byte
	for _, a := range addrs(hints) {
		if a.Is4() {
			v4 = append(v4, a.AsSlice()...)
		} else {
			v6 = append(v6, a.AsSlice()...)
		}
	}
	if v4 != nil {
		r.SetParam(dnsmessage.SVCParamIPv4Hint, v4)
	}
	if v6 != nil {
		r.SetParam(dnsmessage.SVCParamIPv6Hint, v6)
	}
	return dnsmessage.Resource{Header: header(owner, ttl), Body: &dnsmessage.HTTPSResource{SVCBResource: r}}
}

func opt() dnsmessage.Resource {
	h := dnsmessage.ResourceHeader{Name: name(".")}
	if err := h.SetEDNS0(1232, dnsmessage.RCodeSuccess, true); err != nil {
		panic(err)
	}
	return dnsmessage.Resource{Header: h, Body: &dnsmessage.OPTResource{}}
}

func query(id uint16, host string, typ dnsmessage.Type) []byte {
	return pack(dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: name(host), Type: typ, Class: dnsmessage.ClassINET}},
	})
}

// answerTo makes the response to query.
func answerTo(query []byte, answers ...dnsmessage.Resource) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		panic(err)
	}
	m.Response, m.RecursionAvailable = true, true
	m.Answers = answers
	return pack(m)
}

func pack(m dnsmessage.Message) []byte {
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

func frame(msgs ...[]byte) (b []byte) {
	for _, m := range msgs {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(m))), m...)
	}
	return b
}

func rcode(t *testing.T, msg []byte) dnsmessage.RCode {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(msg); err != nil {
		t.Fatalf("unpack %x: %v", msg, err)
	}
	return m.RCode
}

type observed struct {
	Name  string
	Addrs []netip.Addr
	TTL   time.Duration
}

// observer wants the names that wants matches, and returns what observe and admit return.
type observer struct {
	wants   func(name string) bool
	observe func(observed) error
	admit   func(addrs int) error

	mu      sync.Mutex
	seen    []observed
	aliases []string // name and target
}

func (o *observer) Alias(name, target string, _ time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.aliases = append(o.aliases, name+" "+target)
}

func (o *observer) Wants(name string) bool { return o.wants == nil || o.wants(name) }

func (o *observer) Admit(_ Asker, addrs int) error {
	if o.admit != nil {
		return o.admit(addrs)
	}
	return nil
}

func (o *observer) Observe(_ Asker, name string, addrs []netip.Addr, ttl time.Duration) error {
	ob := observed{name, addrs, ttl}
	o.mu.Lock()
	o.seen = append(o.seen, ob)
	o.mu.Unlock()
	if o.observe != nil {
		return o.observe(ob)
	}
	return nil
}

// refresh observes what a Resolver found.
func (o *observer) refresh(name string, addrs []netip.Addr, ttl time.Duration) error {
	return o.Observe(Asker{}, name, addrs, ttl)
}

func (o *observer) all() []observed {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.seen)
}

var errNoRoute = errors.New("no route to put")

func directly(ctx context.Context, network string, dst netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, dst.String())
}

// udpServer answers each datagram with what reply returns.
func udpServer(t testing.TB, ip string, reply func(query []byte) [][]byte) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 0)))
	if err != nil {
		t.Skipf("no UDP on %s: %v", ip, err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			for _, b := range reply(slices.Clone(buf[:n])) {
				if _, err := c.WriteToUDPAddrPort(b, from); err != nil {
					t.Error(err)
				}
			}
		}
	})
	t.Cleanup(func() {
		c.Close()
		wg.Wait()
	})
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// parseAnswer parses a DNS response. It reports false if msg is not the response to a single standard query of class
// IN.
func parseAnswer(msg []byte) (answer, bool) {
	p, _, q, ok := parseQuestion(msg, true)
	if !ok || q.class != dnsmessage.ClassINET {
		return answer{}, false
	}
	return collect(p, q, msg), true
}
