package resolved

import (
	"bufio"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"pinproxy/netstack/dns"
)

// fakeBus is a D-Bus on which only resolved answers. answer returns what a call is answered with.
func fakeBus(t *testing.T, answer func(path dbus.ObjectPath, method string, args []any) []any) bus {
	t.Helper()
	ours, theirs := net.Pipe()
	go serveBus(theirs, answer)
	conn, err := dbus.NewConn(ours)
	if err == nil {
		t.Cleanup(func() { _ = conn.Close() })
		err = conn.Auth([]dbus.Auth{dbus.AuthExternal("0")})
	}
	if err != nil {
		t.Fatal(err)
	}
	return bus{conn, ":1.1"}
}

func serveBus(c net.Conn, answer func(dbus.ObjectPath, string, []any) []any) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		switch {
		case err != nil:
			return
		case strings.HasPrefix(line, "BEGIN"):
		case strings.Contains(line, "EXTERNAL"):
			_, _ = c.Write([]byte("OK 0123456789abcdef\r\n"))
			continue
		default:
			_, _ = c.Write([]byte("REJECTED EXTERNAL\r\n"))
			continue
		}
		break
	}
	for {
		call, err := dbus.DecodeMessage(r)
		if err != nil {
			return
		}
		path, _ := call.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
		method, _ := call.Headers[dbus.FieldMember].Value().(string)
		body := answer(path, method, call.Body)
		reply := dbus.Message{Type: dbus.TypeMethodReply, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldReplySerial: dbus.MakeVariant(call.Serial()),
			dbus.FieldSender:      dbus.MakeVariant(":1.1"),
			dbus.FieldSignature:   dbus.MakeVariant(dbus.SignatureOf(body...)),
		}}
		if reply.EncodeTo(c, binary.LittleEndian) != nil {
			return
		}
	}
}

// old is what a resolved of version 245 reports: one interface with one server. Later versions also report DNSEx.
// Properties that matter to nobody here are left out.
func old(path dbus.ObjectPath, method string, _ []any) []any {
	type entry struct {
		Link   int32
		Family int32
		Bytes  []byte
	}
	switch {
	case method == "GetLink":
		return []any{dbus.ObjectPath(managerPath + "/link/_32")}
	case path == managerPath:
		return []any{map[string]dbus.Variant{
			"DNS":    dbus.MakeVariant([]entry{{2, familyIPv4, []byte{198, 51, 100, 1}}}),
			"DNSSEC": dbus.MakeVariant(modeNo),
		}}
	}
	return []any{map[string]dbus.Variant{
		"ScopesMask":   dbus.MakeVariant(uint64(scopeDNS)),
		"DefaultRoute": dbus.MakeVariant(true),
		"DNSSEC":       dbus.MakeVariant(modeNo),
	}}
}

func TestOldResolved(t *testing.T) {
	b := fakeBus(t, old)
	all, fallback, err := b.read(t.Context(), 7, netip.MustParseAddr("192.0.0.53"))
	if err != nil || fallback {
		t.Fatal(fallback, err)
	}
	want := [][]dns.Upstream{{{Addr: netip.MustParseAddrPort("198.51.100.1:53"), Link: 2}}}
	if diff := cmp.Diff(want, upstreams(all, "www.bank.example", nil), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// Our own link, of which resolved knows nothing yet.
	v, err := b.link(t.Context(), 7)
	if err != nil || (settings{server: netip.MustParseAddr("192.0.0.53"), domains: []string{"bank.example"}}).stand(v) {
		t.Errorf("the link's settings stand: %v, %v", v, err)
	}
}

// Before version 240 there is no DefaultRoute, and every interface is one.
func TestResolvedWithoutDefaultRoute(t *testing.T) {
	b := fakeBus(t, func(path dbus.ObjectPath, method string, args []any) []any {
		body := old(path, method, args)
		if v, ok := body[0].(map[string]dbus.Variant); ok {
			delete(v, "DefaultRoute")
		}
		return body
	})
	all, _, err := b.read(t.Context(), 7, netip.MustParseAddr("192.0.0.53"))
	if err != nil {
		t.Fatal(err)
	}
	if got := upstreams(all, "www.bank.example", nil); len(got) != 1 {
		t.Errorf("asks %v", got)
	}
}

// However many queries come at once, resolved's servers are read once for all of them. A machine that pauses for as
// long as a read may take makes it a few times.
func TestQueriesShareARead(t *testing.T) {
	const queries = 200
	var reads atomic.Int32
	var began sync.WaitGroup
	began.Add(queries)
	r := New(Config{Index: 7, Server: netip.MustParseAddr("192.0.0.53")})
	r.bus = fakeBus(t, func(path dbus.ObjectPath, method string, args []any) []any {
		if path == managerPath && method == "GetAll" {
			reads.Add(1)
			began.Wait()
		}
		return old(path, method, args)
	})
	known := scope{link: 2, servers: srv("198.51.100.1"), defaultRoute: true}
	r.all = []scope{known} // read a while ago
	var all sync.WaitGroup
	for range queries {
		all.Go(func() {
			began.Done()
			if got, err := r.Upstreams(t.Context(), "www.bank.example"); len(got) != 1 || err != nil {
				t.Errorf("asks %v, %v", got, err)
			}
		})
	}
	all.Wait()
	if n := reads.Load(); n < 1 || n > queries/10 {
		t.Errorf("%d queries: %d reads", queries, n)
	}
}

// resolved hangs in the middle of a registration. The end does not wait for that, and takes back what was sent.
func TestWithdrawWhileResolvedHangs(t *testing.T) {
	hangs, looked := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	var domains [][]any // of each SetLinkDomains
	r := New(Config{Index: 7, Server: netip.MustParseAddr("192.0.0.53"), Domains: []string{"bank.example"}})
	r.bus = fakeBus(t, func(path dbus.ObjectPath, method string, args []any) []any {
		switch {
		case method == "GetConnectionUnixProcessID":
			return []any{uint32(os.Getpid())}
		case method == "SetLinkDomains":
			mu.Lock()
			domains = append(domains, args)
			first := len(domains) == 1
			mu.Unlock()
			if first {
				close(hangs)
				<-looked
			}
			return nil
		case strings.HasPrefix(method, "Set"):
			return nil
		}
		return old(path, method, args)
	})
	go func() {
		r.look(t.Context())
		close(looked)
	}()
	<-hangs
	began := time.Now()
	if err := r.Withdraw(t.Context()); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > callWait/2 {
		t.Errorf("took %v", took)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(domains) != 2 || !reflect.DeepEqual(domains[1], []any{int32(7), [][]any{}}) {
		t.Errorf("domains: %v", domains)
	}
}

// resolved is slow while queries come: the servers that it named before are asked, not those alone of which it has told
// in time.
func TestServersOfASlowResolved(t *testing.T) {
	done := make(chan struct{})
	defer close(done)
	r := New(Config{Index: 7, Server: netip.MustParseAddr("192.0.0.53")})
	r.bus = fakeBus(t, func(path dbus.ObjectPath, method string, args []any) []any {
		if method == "GetLink" {
			<-done
		}
		return old(path, method, args)
	})
	r.all = []scope{{link: 2, servers: srv("198.51.100.1"), defaultRoute: true}} // read a while ago
	if got, err := r.Upstreams(t.Context(), "www.bank.example"); len(got) != 1 || err != nil {
		t.Errorf("asks %v, %v", got, err)
	}
}

// resolved waits for polkit, which the first question starts, longer than we wait for resolved. It is told again soon.
func TestRegistrationWaitsForPolkit(t *testing.T) {
	late := make(chan struct{})
	var asked atomic.Int32
	r := New(Config{Index: 7, Server: netip.MustParseAddr("192.0.0.53"), Domains: []string{"bank.example"}})
	r.bus = fakeBus(t, func(path dbus.ObjectPath, method string, args []any) []any {
		switch {
		case method == "GetConnectionUnixProcessID":
			return []any{uint32(os.Getpid())}
		case strings.HasPrefix(method, "Set"):
			if asked.Add(1) == 1 {
				<-late
			}
			return nil
		}
		return old(path, method, args)
	})
	if again := r.look(t.Context()); again == 0 || again >= lookEvery {
		t.Errorf("looks again after %v", again)
	}
	close(late)
	if again := r.look(t.Context()); again != 0 || len(r.known) != 1 {
		t.Errorf("looks again after %v, registered for %v", again, r.known)
	}
}
