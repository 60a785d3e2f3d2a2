package netstack_test

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"pinproxy/netstack"
	"pinproxy/netstack/netstacktest"
)

// echoTypes are the ICMP types of request and reply.
var echoTypes = map[string][2]byte{"ipv4": {8, 0}, "ipv6": {128, 129}}

// request writes an echo request with size bytes of data.
func request(t *testing.T, client *netstacktest.Client, name string, dst netip.Addr, size int) (message []byte, read func() []byte) {
	t.Helper()
	conn, err := client.DialPing(dst)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	message = append(make([]byte, 8), bytes.Repeat([]byte{'x'}, size)...)
	message[0], message[7] = echoTypes[name][0], 9
	if _, err := conn.Write(message); err != nil {
		t.Fatal(err)
	}
	return message, func() []byte {
		b := make([]byte, 65536)
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return b[:n]
	}
}

func TestEchoRequestIsHandedOn(t *testing.T) {
	for name, dst := range both {
		t.Run(name, func(t *testing.T) {
			echoes := make(chan *netstack.Echo, 1)
			client, _ := start(t, netstack.Config{Echoes: func(e *netstack.Echo) { echoes <- e }}, echo)
			for _, size := range []int{0, 56, 4000} {
				message, read := request(t, client, name, dst.Addr(), size)
				e := <-echoes
				if e.Dst() != netip.AddrPortFrom(dst.Addr(), 0) || e.Src().Port() == 0 || len(e.Payload()) != len(message) || e.TTL() != 64 {
					t.Errorf("%v to %v, %d bytes, TTL %d", e.Src(), e.Dst(), len(e.Payload()), e.TTL())
				}
				if whole := size < 1000; e.DontFragment() != whole {
					t.Errorf("%d bytes: DontFragment = %v, want %v", size, e.DontFragment(), whole)
				}
				reply := bytes.Clone(e.Payload())
				e.Release()
				if err := e.Reply(reply); err == nil {
					t.Error("a request went for a reply")
				}
				reply[0], reply[4], reply[5] = echoTypes[name][1], 0, 0 // with another socket's identifier
				if err := e.Reply(reply); err != nil {
					t.Error(err)
				}
				// gVisor's own answer would have come first.
				if got := read(); got[0] != reply[0] || !bytes.Equal(got[6:], message[6:]) {
					t.Errorf("%d bytes there, %d back", len(message), len(got))
				}
			}
		})
	}
}

// No host answers here, and netstack must not answer in its place.
func TestEchoRequestForNobody(t *testing.T) {
	for name, dst := range both {
		t.Run(name, func(t *testing.T) {
			client, _ := start(t, netstack.Config{}, echo)
			request(t, client, name, dst.Addr(), 56)
			eventually(t, "the client is told that it is prohibited", func() bool { return client.Unreachables() == 1 })
		})
	}
}

// Only errors are passed on, and a sender address of the other family is ignored.
func TestICMPPassesErrorsOnly(t *testing.T) {
	echoes := make(chan *netstack.Echo, 1)
	client, _ := start(t, netstack.Config{Echoes: func(e *netstack.Echo) { echoes <- e }}, echo)
	for name, dst := range both {
		request(t, client, name, dst.Addr(), 1)
		e, before := <-echoes, client.Unreachables()
		for typ := range 256 {
			e.ICMP(netstack.ICMPError{Type: uint8(typ), From: both["ipv6"].Addr(), About: []byte("short")})
		}
		eventually(t, "destination unreachable is told", func() bool { return client.Unreachables() > before })
		if n := client.Unreachables() - before; n != 1 {
			t.Errorf("%s: %d messages, want 1", name, n)
		}
	}
}
