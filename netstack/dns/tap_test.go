package dns

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const bank = "bank.example."

func bankOnly(name string) bool { return name == "bank.example" }

// pipeConn is a net.Pipe as a Conn.
type pipeConn struct{ net.Conn }

func (pipeConn) CloseWrite() error   { return nil }
func (pipeConn) SetLinger(int) error { return nil }

// tapped returns the application's end and the resolver's end, in a synctest bubble. Data from the tap appears
// in read, byte by byte as it is released.
func tapped(t *testing.T, by *Tapper) (tap Conn, resolver net.Conn, read func() []byte) {
	a, resolver := net.Pipe()
	tap = by.Tap(Asker{}, pipeConn{a})
	var mu sync.Mutex
	var got []byte
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 100)
		for {
			n, err := tap.Read(buf)
			mu.Lock()
			got = append(got, buf[:n]...)
			mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	wg.Go(func() {
		io.Copy(io.Discard, resolver)
	})
	t.Cleanup(func() {
		tap.Close()
		resolver.Close()
		wg.Wait()
	})
	return tap, resolver, func() []byte {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		b := got
		got = nil
		return b
	}
}

func write(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	if n, err := c.Write(b); n != len(b) || err != nil {
		t.Fatal(n, err)
	}
}

func expect(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Fatalf("%s:\ngot  %x\nwant %x", what, got, want)
	}
}

// Pipelined queries, answered out of order: each answer to a wanted query is released after its Observe, the
// others at once.
func TestTapOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		entered, proceed := make(chan observed, 1), make(chan error)
		obs := &observer{wants: bankOnly, observe: func(o observed) error {
			entered <- o
			return <-proceed
		}}
		tap, resolver, read := tapped(t, NewTapper(obs, nil))
		q1, q2, q3 := query(1, bank, dnsmessage.TypeA), query(2, "x.example.", dnsmessage.TypeA), query(3, "BANK.example.", dnsmessage.TypeAAAA)
		a1, a2, a3 := answerTo(q1, rec(bank, 60, "203.0.113.1")), answerTo(q2, rec("x.example.", 60, "198.51.100.1")), answerTo(q3, rec(bank, 60, "2001:db8::1"))
		write(t, tap, frame(q1, q2, q3))

		write(t, resolver, frame(a2))
		expect(t, "unwanted", read(), frame(a2))

		f := frame(a3)
		for i := range f { // byte by byte
			write(t, resolver, f[i:i+1])
			expect(t, "held", read(), nil)
		}
		if o := receive(t, entered); o.Name != "bank.example" || o.Addrs[0] != addrs("2001:db8::1")[0] {
			t.Fatal(o)
		}
		expect(t, "while observing", read(), nil)
		proceed <- nil
		expect(t, "observed", read(), f)

		write(t, resolver, frame(a1)) // two at once, the second one known
		receive(t, entered)
		proceed <- nil
		expect(t, "observed", read(), frame(a1))

		write(t, resolver, frame(a1, a3)) // no longer awaited
		expect(t, "not asked", read(), frame(a1, a3))
	})
}

// What is logged once is logged once for all connections.
func TestTapObserveFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log safeBuffer
		obs := &observer{wants: bankOnly, observe: func(observed) error { return errNoRoute }}
		taps := NewTapper(obs, slog.New(slog.NewTextHandler(&log, nil)))
		for range 2 {
			tap, resolver, read := tapped(t, taps)
			q1, q2 := query(1, bank, dnsmessage.TypeA), query(2, bank, dnsmessage.TypeAAAA)
			a1, a2 := answerTo(q1, rec(bank, 60, "203.0.113.1")), answerTo(q2, rec(bank, 60, "2001:db8::1"))
			other := answerTo(query(9, "x.", dnsmessage.TypeTXT))
			write(t, tap, frame(q1, q2))
			write(t, resolver, frame(a1, other, a2, other))
			expect(t, "in the frames' places", read(), frame(servfail(a1, unrouted), other, servfail(a2, unrouted), other))
		}
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("logged:\n%s", log.String())
		}
	})
}

// An answer that the observer does not admit is withheld unread.
func TestTapNotAdmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log safeBuffer
		obs := &observer{wants: bankOnly, admit: func(addrs int) error {
			if addrs > 1 {
				return errTooMany
			}
			return nil
		}}
		tap, resolver, read := tapped(t, NewTapper(obs, slog.New(slog.NewTextHandler(&log, nil))))
		q := query(1, bank, dnsmessage.TypeA)
		alias := answerTo(q, cname(bank, 60, "cdn.example."), cname("cdn.example.", 60, "x.example."))
		many := answerTo(q, rec(bank, 60, "203.0.113.1"), rec(bank, 60, "203.0.113.2"))
		failed := slices.Clone(many)
		failed[3] |= byte(dnsmessage.RCodeNameError)
		for range 4 {
			write(t, tap, frame(q))
		}
		write(t, resolver, frame(alias, many, failed))
		expect(t, "too many", read(), frame(servfail(alias, unrouted), servfail(many, unrouted), failed))
		if len(obs.all()) > 0 || len(obs.aliases) > 0 {
			t.Errorf("observed %v, aliases %v", obs.all(), obs.aliases)
		}
		if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, errTooMany.Error()) || !strings.Contains(got, "name=bank.example") {
			t.Errorf("logged:\n%s", got)
		}
		one := answerTo(q, rec(bank, 60, "203.0.113.1"))
		write(t, resolver, frame(one))
		expect(t, "one", read(), frame(one))
		if len(obs.all()) != 1 {
			t.Errorf("observed %v", obs.all())
		}
	})
}

// Nothing is held of a stream in which no wanted query waits.
func TestTapNotDNS(t *testing.T) {
	hello := []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("r", 300))
	wanted := frame(query(1, bank, dnsmessage.TypeA))
	for name, s := range map[string]struct{ out, in []byte }{
		"HTTP":                 {[]byte("GET / HTTP/1.1\r\n\r\n"), []byte("HTTP/1.1 200 OK\r\n\r\n")},
		"TLS":                  {hello, hello},
		"SSH, banner first":    {nil, []byte("SSH-2.0-x\r\n")},
		"short lengths":        {[]byte{0, 3, 1, 2, 3}, []byte{0, 1, 2}},
		"DNS, then not":        {append(slices.Clone(wanted), 0, 3, 1, 2, 3), []byte("abcdefg")},
		"DNS asked, not heard": {wanted, []byte{0, 2, 1, 2}},
		"another ID":           {wanted, []byte{0xff, 0xff, 9, 9, 0x81}},
		"no response":          {wanted, []byte{0xff, 0xff, 0, 1, 0x01}},
		"half a length":        {nil, []byte{0xff}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tap, resolver, read := tapped(t, NewTapper(&observer{}, nil))
				if s.out != nil {
					write(t, tap, s.out)
				}
				write(t, resolver, s.in)
				expect(t, "at once", read(), s.in)
			})
		})
	}
}

func TestTapPartial(t *testing.T) {
	q := query(1, bank, dnsmessage.TypeA)
	f := frame(answerTo(q, rec(bank, 60, "203.0.113.1")))
	for n := range f {
		obs := &observer{}
		c := &script{in: f[:n]}
		tap := NewTapper(obs, nil).Tap(Asker{}, c)
		write(t, tap, frame(q))
		got, err := io.ReadAll(tap)
		if err != nil || !bytes.Equal(got, f[:n]) || len(obs.all()) != 0 {
			t.Fatalf("%d bytes: %x %v", n, got, err)
		}
	}
	// A deadline within a frame loses nothing.
	obs := &observer{}
	c := &script{in: slices.Clone(f), chunks: []byte{5, 0, 9, 0, 200}}
	tap := NewTapper(obs, nil).Tap(Asker{}, c)
	write(t, tap, frame(q))
	deadlines := 0
	var got []byte
	for buf := make([]byte, 10); ; {
		n, err := tap.Read(buf)
		got = append(got, buf[:n]...)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			deadlines++
		} else if err != nil {
			break
		}
	}
	if expect(t, "after deadlines", got, f); deadlines != 2 || len(obs.all()) != 1 {
		t.Errorf("%d deadlines, %v", deadlines, obs.all())
	}
}

// A Write that fails partway is continued, and the frames stay in sync.
func TestTapShortWrite(t *testing.T) {
	q1, q2 := query(1, "x.", dnsmessage.TypeA), query(2, bank, dnsmessage.TypeA)
	all := frame(q1, q2)
	obs := &observer{wants: bankOnly}
	c := &script{in: frame(answerTo(q2, rec(bank, 60, "203.0.113.1"))), short: true, writes: 1}
	tap := NewTapper(obs, nil).Tap(Asker{}, c)
	for rest := all; len(rest) > 0; {
		n, _ := tap.Write(rest)
		rest = rest[n:]
	}
	expect(t, "written", c.written, all)
	if _, err := io.ReadAll(tap); err != nil || len(obs.all()) != 1 {
		t.Error(err, obs.all())
	}
}

func TestTapBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &script{}
		tap := NewTapper(&observer{}, nil).Tap(Asker{}, c)
		for i := range uint16(maxAskedTCP) {
			write(t, tap, frame(query(i, bank, dnsmessage.TypeA)))
		}
		l := len(c.written)
		if _, err := tap.Write(frame(query(maxAskedTCP, bank, dnsmessage.TypeA))); !errors.Is(err, errManyAskedTCP) || len(c.written) != l {
			t.Errorf("one too many: %v", err)
		}
		tap = NewTapper(&observer{}, nil).Tap(Asker{}, c)
		for i := range uint16(2 * maxAskedTCP) {
			write(t, tap, frame(query(i, bank, dnsmessage.TypeA)))
			time.Sleep(2 * keepAskedTCP / maxAskedTCP)
		}
	})
}

// The largest possible message, over real sockets, with half-close and linger.
func TestTapTCP(t *testing.T) {
	leaks(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	q := query(1, bank, dnsmessage.TypeA)
	big := make([]byte, maxMessage)
	copy(big, answerTo(q, rec(bank, 60, "203.0.113.1")))
	var wg sync.WaitGroup
	wg.Go(func() {
		defer l.Close()
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		got, err := io.ReadAll(c) // until the half-close
		if !bytes.Equal(got, frame(q)) || err != nil {
			t.Error(got, err)
		}
		c.Write(frame(big, big))
	})
	defer wg.Wait()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	obs := &observer{}
	tap := NewTapper(obs, nil).Tap(Asker{}, c.(*net.TCPConn))
	defer tap.Close()
	write(t, tap, frame(q))
	if err := errors.Join(tap.CloseWrite(), tap.SetLinger(1)); err != nil {
		t.Error(err)
	}
	got, err := io.ReadAll(tap)
	if err != nil || !bytes.Equal(got, frame(big, big)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if o := obs.all(); len(o) != 1 || o[0].Addrs[0] != addrs("203.0.113.1")[0] {
		t.Error(o)
	}
}
