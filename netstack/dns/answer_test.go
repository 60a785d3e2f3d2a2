package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/net/dns/dnsmessage"
)

var byAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestAnswers(t *testing.T) {
	const (
		a     = dnsmessage.TypeA
		aaaa  = dnsmessage.TypeAAAA
		svc   = dnsmessage.TypeHTTPS
		h     = "bank.example."
		one   = "203.0.113.1"
		two   = "203.0.113.2"
		six   = "2001:db8::1"
		other = "198.51.100.9"
	)
	type rrs = []dnsmessage.Resource
	long := rrs{rec("n20.", 60, one)}
	loop := rrs{}
	for i := range 20 {
		long = append(long, cname(fmt.Sprintf("n%d.", i), 60, fmt.Sprintf("n%d.", i+1)))
		loop = append(loop, cname(fmt.Sprintf("n%d.", i), 60, fmt.Sprintf("n%d.", (i+1)%5)))
	}
	var fifty []string
	var many rrs // each of fifty twice
	for i := range 100 {
		addr := fmt.Sprint("203.0.113.", i%50)
		if many = append(many, rec(h, 60, addr)); i < 50 {
			fifty = append(fifty, addr)
		}
	}
	for _, tt := range []struct {
		name  string
		host  string
		typ   dnsmessage.Type
		rrs   rrs
		extra rrs
		edit  func(*dnsmessage.Message)
		want  string
		as    string // "" = bank.example
		ttl   time.Duration
		leads string // to names without addresses
	}{
		{name: "A", host: h, typ: a, rrs: rrs{rec(h, 60, one), rec(h, 30, two)}, want: one + " " + two, ttl: 30 * time.Second},
		{name: "AAAA", host: h, typ: aaaa, rrs: rrs{rec(h, 60, six)}, want: six, ttl: time.Minute},
		{name: "mapped AAAA is IPv4", host: h, typ: aaaa, rrs: rrs{rec(h, 60, "::ffff:203.0.113.1")}, want: one, ttl: time.Minute},
		{name: "EDNS", host: h, typ: a, rrs: rrs{rec(h, 60, one)}, extra: rrs{opt()}, want: one, ttl: time.Minute},
		{name: "0x20", host: "bAnK.eXaMpLe.", typ: a, rrs: rrs{rec("BaNk.example.", 60, one)}, want: one, ttl: time.Minute},
		{name: "no answer", host: h, typ: a},
		{name: "another owner", host: h, typ: a, rrs: rrs{rec("x.example.", 60, other)}},
		{name: "duplicates", host: h, typ: a, rrs: rrs{rec(h, 60, one), rec(h, 60, one)}, want: one, ttl: time.Minute},
		{name: "many duplicates", host: h, typ: a, rrs: many, want: strings.Join(fifty, " "), ttl: time.Minute},
		{name: "not usable", host: h, typ: a, rrs: rrs{
			rec(h, 1, "0.0.0.0"), rec(h, 1, "127.0.0.1"), rec(h, 1, "224.0.0.1"),
			rec(h, 1, "255.255.255.255"), rec(h, 1, "::"), rec(h, 1, "::1"), rec(h, 1, "ff02::1"), rec(h, 1, "fe80::1"),
		}},
		{name: "TTL above 2^31", host: h, typ: a, rrs: rrs{rec(h, 1<<31, one)}, want: one},

		{name: "chain", host: h, typ: a, rrs: rrs{cname(h, 60, "a."), cname("a.", 5, "b."), rec("b.", 60, one)}, want: one, ttl: 5 * time.Second},
		{name: "chain backwards", host: h, typ: a, rrs: rrs{rec("b.", 60, one), cname("a.", 60, "b."), cname(h, 7, "a.")}, want: one, ttl: 7 * time.Second},
		{name: "chain in between", host: h, typ: a, rrs: rrs{cname("a.", 60, "b."), rec("b.", 9, one), cname(h, 60, "a."), rec("b.", 60, two)}, want: one + " " + two, ttl: 9 * time.Second},
		{name: "chain with strangers", host: h, typ: a, rrs: rrs{cname("x.", 1, "b."), cname(h, 60, "b."), rec("y.", 1, other), rec("b.", 60, one)}, want: one, ttl: time.Minute},
		{name: "chain and case", host: h, typ: a, rrs: rrs{cname(h, 60, "A.Example."), rec("a.eXample.", 60, one)}, want: one, ttl: time.Minute},
		{name: "chain without end", host: h, typ: a, rrs: rrs{cname(h, 60, "A."), cname("a.", 9, "b.")}, leads: "a b", ttl: 9 * time.Second},
		{name: "loop on itself", host: h, typ: a, rrs: rrs{cname(h, 60, h), rec(h, 60, one)}, want: one, ttl: time.Minute},
		{name: "loop", host: "n0.", typ: a, rrs: loop, as: "n0", leads: "n1 n2 n3 n4", ttl: time.Minute},
		{name: "too long", host: "n0.", typ: a, rrs: long, as: "n0", leads: "n1 n2 n3 n4 n5 n6 n7 n8 n9 n10 n11 n12 n13 n14 n15", ttl: time.Minute},

		{name: "HTTPS hints", host: h, typ: svc, rrs: rrs{https(h, 60, 1, ".", one+" "+six), https(h, 60, 2, ".", two)}, want: one + " " + six + " " + two, ttl: time.Minute},
		{name: "HTTPS over CNAME", host: h, typ: svc, rrs: rrs{cname(h, 8, "a."), https("a.", 60, 1, ".", one)}, want: one, ttl: 8 * time.Second, leads: "a"},
		{name: "HTTPS alias has no hints", host: h, typ: svc, rrs: rrs{https(h, 60, 0, "cdn.", other)}, leads: "cdn", ttl: time.Minute},
		{name: "HTTPS alias, additional", host: h, typ: svc, rrs: rrs{https(h, 60, 0, "cdn.", "")}, extra: rrs{rec("x.", 1, other), rec("cdn.", 9, one), opt()}, want: one, ttl: 9 * time.Second, leads: "cdn"},
		{name: "HTTPS target", host: h, typ: svc, rrs: rrs{https(h, 60, 1, "cdn.", two)}, extra: rrs{rec("cdn.", 60, six)}, want: two + " " + six, ttl: time.Minute, leads: "cdn"},
		{name: "HTTPS backwards", host: h, typ: svc, rrs: rrs{https("b.", 60, 1, "c.", one), cname(h, 9, "b.")}, extra: rrs{rec("c.", 60, two)}, want: one + " " + two, ttl: 9 * time.Second, leads: "b c"},
		{name: "HTTPS on another port", host: "_8443._https.bank.example.", typ: svc, rrs: rrs{https("_8443._https.bank.example.", 60, 1, "bank.example.", one)}, want: one, ttl: time.Minute},
		{name: "HTTPS of another", host: h, typ: svc, rrs: rrs{https("x.", 60, 1, ".", other)}},
		{name: "additional only for services", host: h, typ: a, rrs: rrs{cname(h, 60, "cdn.")}, extra: rrs{rec("cdn.", 60, other)}, leads: "cdn", ttl: time.Minute},
		{name: "ANY", host: h, typ: dnsmessage.TypeALL, rrs: rrs{rec(h, 60, one), rec(h, 60, six), https(h, 60, 1, ".", two)}, want: one + " " + six + " " + two, ttl: time.Minute},
		{name: "hints of odd lengths", host: h, typ: svc, rrs: rrs{oddHints(h)}, want: one, ttl: time.Minute},

		{name: "name error", host: h, typ: a, rrs: rrs{rec(h, 60, other)}, edit: func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeNameError }},
		{name: "record of class CH", host: h, typ: a, rrs: rrs{rec(h, 60, other)}, edit: func(m *dnsmessage.Message) { m.Answers[0].Header.Class = dnsmessage.ClassCHAOS }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var m dnsmessage.Message
			if err := m.Unpack(answerTo(query(1, tt.host, tt.typ), tt.rrs...)); err != nil {
				t.Fatal(err)
			}
			m.Additionals = tt.extra
			if tt.edit != nil {
				tt.edit(&m)
			}
			want := answer{Name: tt.as, Type: tt.typ, Class: dnsmessage.ClassINET, TTL: tt.ttl, Addrs: addrs(tt.want), Targets: strings.Fields(tt.leads)}
			if want.Name == "" {
				want.Name = "bank.example"
			}
			got, ok := parseAnswer(pack(m))
			if d := cmp.Diff(want, got, byAddr, cmpopts.EquateEmpty()); !ok || d != "" {
				t.Errorf("ok = %v; want, got:\n%s", ok, d)
			}
		})
	}
}

func oddHints(owner string) dnsmessage.Resource {
	r := dnsmessage.SVCBResource{Priority: 1, Target: name(".")}
	r.SetParam(dnsmessage.SVCParamIPv4Hint, []byte{203, 0, 113, 1, 9})
	r.SetParam(dnsmessage.SVCParamIPv6Hint, []byte{1, 2, 3, 4})
	return dnsmessage.Resource{Header: header(owner, 60), Body: &dnsmessage.HTTPSResource{SVCBResource: r}}
}

func TestAnswerRefuses(t *testing.T) {
	q := query(1, "bank.example.", dnsmessage.TypeA)
	good := answerTo(q, rec("bank.example.", 60, "203.0.113.1"))
	edit := func(f func(b []byte)) []byte {
		b := slices.Clone(good)
		f(b)
		return b
	}
	for name, msg := range map[string][]byte{
		"nothing":         nil,
		"short":           good[:11],
		"header only":     good[:12],
		"half a question": good[:20],
		"query":           q,
		"opcode":          edit(func(b []byte) { b[2] |= 4 << 3 }),
		"no question":     edit(func(b []byte) { b[5] = 0 }),
		"two questions":   edit(func(b []byte) { b[5] = 2 }),
		"class CH":        edit(func(b []byte) { b[len(q)-1] = 3 }),
		"junk":            []byte("GET / HTTP/1.1\r\nHost: bank.example\r\n\r\n"),
	} {
		if a, ok := parseAnswer(msg); ok {
			t.Errorf("%s: got %+v", name, a)
		}
	}
}

// A truncated or damaged answer tells what comes before.
func TestAnswerDamaged(t *testing.T) {
	const h = "bank.example."
	q := query(1, h, dnsmessage.TypeA)
	first := answerTo(q, rec(h, 60, "203.0.113.1"))
	both := answerTo(q, rec(h, 60, "203.0.113.1"), rec(h, 60, "203.0.113.2"))
	for n := len(first); n < len(both); n++ {
		a, ok := parseAnswer(both[:n])
		if !ok || !slices.Equal(a.Addrs, addrs("203.0.113.1")) {
			t.Fatalf("first %d bytes: %+v, %v", n, a, ok)
		}
	}
	bad := answerTo(q, https(h, 60, 1, ".", "203.0.113.7"), rec(h, 60, "203.0.113.1"))
	i := len(q) + 2 + 10 + 2 + 1 // name, header, priority, target: the first parameter's key
	bad[i] = 0xff                // larger than the next one's
	if a, ok := parseAnswer(bad); !ok || !slices.Equal(a.Addrs, addrs("203.0.113.1")) {
		t.Errorf("after a bad HTTPS record: %+v, %v", a, ok)
	}
	wrongLength := answerTo(q, rec(h, 60, "203.0.113.1"), rec(h, 60, "203.0.113.2"))
	wrongLength[len(first)-5] = 5 // RDLENGTH of the first
	if a, ok := parseAnswer(wrongLength); !ok || len(a.Addrs) != 0 {
		t.Errorf("A record of 5 bytes: %+v, %v", a, ok)
	}
}

func TestWanted(t *testing.T) {
	all := &observer{}
	for typ, want := range map[dnsmessage.Type]bool{
		dnsmessage.TypeA: true, dnsmessage.TypeAAAA: true, dnsmessage.TypeHTTPS: true, dnsmessage.TypeSVCB: true,
		dnsmessage.TypeALL: true, dnsmessage.TypeMX: false, dnsmessage.TypeTXT: false, dnsmessage.TypeCNAME: false,
	} {
		if got := (question{"x", typ, dnsmessage.ClassINET}).wanted(all); got != want {
			t.Errorf("%v: %v", typ, got)
		}
	}
	if (question{"x", dnsmessage.TypeA, dnsmessage.ClassCHAOS}).wanted(all) {
		t.Error("class CH is wanted")
	}
}

func TestServfail(t *testing.T) {
	const h = "bAnk.example."
	q := query(0xbeef, h, dnsmessage.TypeAAAA)
	for _, edns := range []bool{false, true} {
		var m dnsmessage.Message
		if err := m.Unpack(answerTo(q, rec(h, 60, "2001:db8::1"))); err != nil {
			t.Fatal(err)
		}
		if edns {
			m.Additionals = []dnsmessage.Resource{opt()}
		}
		m.Authoritative, m.Truncated = true, true
		var got dnsmessage.Message
		if err := got.Unpack(servfail(pack(m), unrouted)); err != nil {
			t.Fatal(err)
		}
		want := dnsmessage.Header{ID: 0xbeef, Response: true, RecursionDesired: true, RecursionAvailable: true, RCode: dnsmessage.RCodeServerFailure}
		if d := cmp.Diff(want, got.Header); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff(m.Questions, got.Questions); d != "" {
			t.Error(d)
		}
		if len(got.Answers) != 0 || (len(got.Additionals) == 1) != edns {
			t.Errorf("edns %v: %+v", edns, got)
		}
		if edns && !got.Additionals[0].Header.DNSSECAllowed() {
			t.Error("DO bit is lost")
		}
	}
	if got := rcode(t, servfail(make([]byte, 12), unrouted)); got != dnsmessage.RCodeServerFailure {
		t.Errorf("without a question: %v", got)
	}
}

func TestAtMost(t *testing.T) {
	q := query(1, bank, dnsmessage.TypeA)
	var list []dnsmessage.Resource
	for i := range 100 {
		list = append(list, rec(bank, 60, fmt.Sprintf("203.0.113.%d", i)))
	}
	full := answerTo(q, list...)
	lies := answerTo(q, list[0])
	lies[6] = 0xff
	failed := answerTo(q, list...)
	failed[3] |= byte(dnsmessage.RCodeNameError)
	for _, c := range []struct {
		what       string
		msg        []byte
		least, not int
	}{
		{"nothing", answerTo(q), 0, 1},
		{"one", answerTo(q, list[0]), 1, 2},
		{"a hundred", full, 100, 101},
		{"a hundred, cut off", full[:len(full)/2], 50, 55},
		{"one that says it is many", lies, 1, 5},
		{"an error", failed, 0, 1},
	} {
		if n := atMost(c.msg); n < c.least || n >= c.not {
			t.Errorf("%s: %d", c.what, n)
		}
	}
}

func BenchmarkAnswers(b *testing.B) {
	const h = "www.bank.example."
	q := query(1, h, dnsmessage.TypeA)
	for name, msg := range map[string][]byte{
		"1A":       answerTo(q, rec(h, 60, "203.0.113.1")),
		"cname+4A": answerTo(q, cname(h, 60, "cdn.example."), rec("cdn.example.", 60, "203.0.113.1"), rec("cdn.example.", 60, "203.0.113.2"), rec("cdn.example.", 60, "203.0.113.3"), rec("cdn.example.", 60, "203.0.113.4")),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if a, ok := parseAnswer(msg); !ok || len(a.Addrs) == 0 {
					b.Fatal(a)
				}
			}
		})
	}
	b.Run("unwanted query", func(b *testing.B) {
		obs := &observer{wants: func(string) bool { return false }}
		b.ReportAllocs()
		for b.Loop() {
			if _, _, q, ok := parseQuestion(q, false); !ok || q.wanted(obs) {
				b.Fatal(q)
			}
		}
	})
}
