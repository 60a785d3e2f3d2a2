package dns

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// naive is Answers for a message that unpacks completely, written without regard to cost or bounds.
func naive(m dnsmessage.Message) map[netip.Addr]bool {
	if m.RCode != dnsmessage.RCodeSuccess {
		return nil
	}
	q := m.Questions[0]
	records := m.Answers
	if q.Type == dnsmessage.TypeHTTPS || q.Type == dnsmessage.TypeSVCB {
		records = append(records, m.Additionals...)
	}
	lower := func(n dnsmessage.Name) string { return canonical(&n) }
	reached := map[string]bool{lower(q.Name): true}
	found := make(map[netip.Addr]bool)
	add := func(a netip.Addr) {
		if a = a.Unmap(); usable(a) {
			found[a] = true
		}
	}
	for range len(records) + 1 {
		for _, r := range records {
			if !reached[lower(r.Header.Name)] || r.Header.Class != dnsmessage.ClassINET {
				continue
			}
			var svc *dnsmessage.SVCBResource
			switch b := r.Body.(type) {
			case *dnsmessage.AResource:
				add(netip.AddrFrom4(b.A))
			case *dnsmessage.AAAAResource:
				add(netip.AddrFrom16(b.AAAA))
			case *dnsmessage.CNAMEResource:
				reached[lower(b.CNAME)] = true
			case *dnsmessage.HTTPSResource:
				svc = &b.SVCBResource
			case *dnsmessage.SVCBResource:
				svc = b
			}
			if svc == nil {
				continue
			}
			if svc.Target.String() != "." {
				reached[lower(svc.Target)] = true
			}
			if svc.Priority == 0 {
				continue
			}
			v4, _ := svc.GetParam(dnsmessage.SVCParamIPv4Hint)
			for ; len(v4) >= 4; v4 = v4[4:] {
				add(netip.AddrFrom4([4]byte(v4)))
			}
			v6, _ := svc.GetParam(dnsmessage.SVCParamIPv6Hint)
			for ; len(v6) >= 16; v6 = v6[16:] {
				add(netip.AddrFrom16([16]byte(v6)))
			}
		}
	}
	return found
}

func FuzzAnswers(f *testing.F) {
	const h = "www.bank.example."
	q := query(1, h, dnsmessage.TypeA)
	f.Add(answerTo(q, rec(h, 60, "203.0.113.1"), rec(h, 60, "2001:db8::1")))
	f.Add(answerTo(q, rec("b.", 60, "203.0.113.1"), cname("a.", 60, "b."), cname(h, 5, "a."), rec("c.", 1, "192.0.2.1")))
	f.Add(answerTo(q, cname(h, 60, "b."), cname("b.", 60, h)))
	sq := query(1, h, dnsmessage.TypeHTTPS)
	f.Add(answerTo(sq, https(h, 60, 1, ".", "203.0.113.1 2001:db8::1"), https(h, 60, 0, "cdn.", ""), rec("cdn.", 1, "203.0.113.2")))
	f.Add(q)
	f.Fuzz(func(t *testing.T, msg []byte) {
		before := slices.Clone(msg)
		a, ok := parseAnswer(msg)
		if !bytes.Equal(before, msg) {
			t.Fatal("the message was changed")
		}
		if !ok {
			return
		}
		if a.Name != strings.ToLower(a.Name) && strings.ContainsFunc(a.Name, func(r rune) bool { return 'A' <= r && r <= 'Z' }) {
			t.Fatalf("name %q", a.Name)
		}
		if a.TTL < 0 || a.TTL > (1<<31-1)*time.Second {
			t.Fatalf("TTL %v", a.TTL)
		}
		for i, x := range a.Addrs {
			if !usable(x) || x.Is4In6() || slices.Contains(a.Addrs[:i], x) {
				t.Fatalf("address %v in %v", x, a.Addrs)
			}
		}
		var fail dnsmessage.Message
		if err := fail.Unpack(servfail(msg, unrouted)); err != nil || fail.RCode != dnsmessage.RCodeServerFailure {
			t.Fatalf("servfail: %v %v", fail.Header, err)
		}
		var m dnsmessage.Message
		if m.Unpack(msg) != nil || len(m.Questions) != 1 {
			return
		}
		for _, r := range append(m.Answers, m.Additionals...) { // odd lengths, which Unpack accepts
			switch r.Body.(type) {
			case *dnsmessage.AResource:
				if r.Header.Length != 4 {
					return
				}
			case *dnsmessage.AAAAResource:
				if r.Header.Length != 16 {
					return
				}
			}
		}
		want := naive(m)
		for _, x := range a.Addrs {
			if !want[x] {
				t.Fatalf("%v is not of the chain: %v", x, want)
			}
		}
		if names := len(m.Answers) + len(m.Additionals) + 1; names <= maxChain && len(want) != len(a.Addrs) {
			t.Fatalf("got %v, want %v", a.Addrs, want)
		}
	})
}

// script is a connection that reads from in, in chunks, and records what is written.
type script struct {
	net.Conn
	in      []byte
	chunks  []byte // lengths, repeated; 0 is an expired deadline
	at      int
	short   bool // every other write fails after a part
	writes  int
	written []byte
}

var errDeadline = &net.OpError{Op: "read", Err: errTimeoutForTest{}}

type errTimeoutForTest struct{}

func (errTimeoutForTest) Error() string        { return "deadline" }
func (errTimeoutForTest) Is(target error) bool { return target == os.ErrDeadlineExceeded }

func (s *script) Read(b []byte) (int, error) {
	if len(s.in) == 0 {
		return 0, io.EOF
	}
	n := len(s.in)
	if len(s.chunks) > 0 {
		n = int(s.chunks[s.at%len(s.chunks)])
		if s.at++; n == 0 {
			if s.at > len(s.chunks) {
				n = 1
			} else {
				return 0, errDeadline
			}
		}
	}
	n = copy(b, s.in[:min(n, len(s.in))])
	s.in = s.in[n:]
	if len(s.in) == 0 {
		return n, io.EOF
	}
	return n, nil
}

func (s *script) Write(b []byte) (int, error) {
	s.writes++
	if s.short && s.writes%2 == 0 {
		s.written = append(s.written, b[:len(b)/2]...)
		return len(b) / 2, errDeadline
	}
	s.written = append(s.written, b...)
	return len(b), nil
}

func (s *script) CloseWrite() error   { return nil }
func (s *script) SetLinger(int) error { return nil }

// Whatever the bytes and however they are split, they pass unchanged while the observer agrees. They pass at
// once if nobody wants anything.
func FuzzTap(f *testing.F) {
	const h = "bank.example."
	q1, q2 := query(1, h, dnsmessage.TypeA), query(2, h, dnsmessage.TypeAAAA)
	a1, a2 := answerTo(q1, rec(h, 60, "203.0.113.1")), answerTo(q2, rec(h, 60, "2001:db8::1"))
	f.Add(frame(q1, q2), frame(a2, a1), []byte{1}, true)
	f.Add(frame(q1, q2), frame(a2, a1), []byte{7, 0, 40}, true)
	f.Add(frame(q1), frame(q2, a1, a1), []byte{255}, true)
	f.Add(frame(q1), frame(a1)[:20], []byte{3, 0}, true)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), []byte("HTTP/1.1 200 OK\r\n\r\n"), []byte{5}, true)
	f.Add([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), []byte("SSH-2.0-OpenSSH\r\n"), []byte{}, false)
	f.Fuzz(func(t *testing.T, out, in, chunks []byte, want bool) {
		c := &script{in: slices.Clone(in), chunks: chunks, short: len(chunks)%2 == 1}
		obs := &observer{wants: func(string) bool { return want }}
		tap := NewTapper(obs, nil).Tap(Asker{}, c)
		var got []byte
		read := func() error {
			buf := make([]byte, 1+len(chunks)*3)
			before := len(c.in)
			n, err := tap.Read(buf)
			got = append(got, buf[:n]...)
			if n == 0 && err == nil {
				t.Fatal("read nothing")
			}
			if !want && before-len(c.in) != n {
				t.Fatalf("held %d of %d bytes", before-len(c.in)-n, before-len(c.in))
			}
			return err
		}
		for i, rest := 0, out; len(rest) > 0; i++ {
			n := len(rest)
			if len(chunks) > 0 {
				n = min(n, 1+int(chunks[i%len(chunks)]))
			}
			n, err := tap.Write(rest[:n])
			if err != nil && !errors.Is(err, errDeadline) {
				if errors.Is(err, errManyAskedTCP) {
					return
				}
				t.Fatal(err)
			}
			rest = rest[n:]
			if i%3 == 2 {
				read()
			}
		}
		for i := 0; ; i++ {
			err := read()
			if err == io.EOF {
				break
			}
			if err != nil && !errors.Is(err, errDeadline) {
				t.Fatal(err)
			}
			if i > 2*len(in)+len(chunks)+1000 {
				t.Fatal("no end")
			}
		}
		if !bytes.Equal(got, in) {
			t.Fatalf("read\n%x\nwant\n%x", got, in)
		}
		if !bytes.Equal(c.written, out) {
			t.Fatalf("written\n%x\nwant\n%x", c.written, out)
		}
	})
}
