package dns

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// askAgain is when a datagram counts as lost. It is later than most resolvers' own lookups take, and earlier
// than the client loses patience.
const askAgain = 2 * time.Second

// Upstream is a resolver that a [Forwarder] asks.
type Upstream struct {
	Addr netip.AddrPort
	Link int    // index of the interface to ask over; 0: according to the routes
	TLS  bool   // over TLS (RFC 7858) only
	Name string // required in its certificate; empty: its address
}

func (u Upstream) String() string {
	if u.TLS {
		return u.Addr.String() + " over TLS"
	}
	return u.Addr.String()
}

// LinkDialer is a [Dialer] that is also given the interface to send over, 0 for any.
type LinkDialer func(ctx context.Context, network string, link int, dst netip.AddrPort) (net.Conn, error)

// request is a query being sent to upstreams.
type request struct {
	network string // "udp" or "tcp", as received
	msg     []byte
	id      uint16
	q       question
}

// requestOf reports false if msg is not a query.
func requestOf(network string, msg []byte) (request, bool) {
	_, id, q, ok := parseQuestion(msg, false)
	return request{network: network, msg: msg, id: id, q: q}, ok
}

// reply is the result from one upstream, or from all of them.
type reply struct {
	msg []byte
	err error // the reason if msg is nil
}

func (r reply) rcode() dnsmessage.RCode { return dnsmessage.RCode(r.msg[3] & 0x0f) }

// settles reports whether r is an answer, even if the answer is that there is no such name. Otherwise another
// server of the same network may know better.
func (r reply) settles() bool {
	return r.err == nil && (r.rcode() == dnsmessage.RCodeSuccess || r.rcode() == dnsmessage.RCodeNameError)
}

// better reports whether r tells the application more than old does.
func (r reply) better(old reply) bool {
	switch {
	case r.err != nil:
		return old.err == nil && old.msg == nil
	case old.msg == nil:
		return true
	}
	return r.settles() && !old.settles()
}

// exchange asks one upstream until it answers or ctx ends.
func (f *Forwarder) exchange(ctx context.Context, up Upstream, r request) ([]byte, error) {
	network := r.network
	if up.TLS {
		network = "tcp"
	}
	conn, err := f.dial(ctx, network, up.Link, up.Addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// A deadline interrupts a Read in progress; a context does not.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if network == "udp" {
		return exchangeDatagrams(conn, r)
	}
	if up.TLS {
		name := up.Name
		if name == "" {
			name = up.Addr.Addr().WithZone("").String()
		}
		secure := tls.Client(conn, &tls.Config{ServerName: name, RootCAs: f.roots, ClientSessionCache: f.sessions, MinVersion: tls.VersionTLS12})
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		return exchangeFrames(secure, r)
	}
	return exchangeFrames(conn, r)
}

func exchangeDatagrams(conn net.Conn, r request) ([]byte, error) {
	if _, err := conn.Write(r.msg); err != nil {
		return nil, err
	}
	again := time.AfterFunc(askAgain, func() { conn.Write(r.msg) })
	defer again.Stop()
	buf := buffers.Get().(*[maxMessage]byte)
	defer buffers.Put(buf)
	for {
		n, err := conn.Read(buf[:])
		if err != nil {
			return nil, err
		}
		if r.answeredBy(buf[:n]) { // anything else is a late answer or a spoofing attempt
			return append([]byte(nil), buf[:n]...), nil
		}
	}
}

func exchangeFrames(conn io.ReadWriter, r request) ([]byte, error) {
	if err := writeFrame(conn, r.msg); err != nil {
		return nil, err
	}
	msg, err := readFrame(conn)
	if err != nil {
		return nil, err
	}
	if !r.answeredBy(msg) {
		return nil, errors.New("the answer is to another question")
	}
	return msg, nil
}

func (r request) answeredBy(msg []byte) bool {
	_, id, q, ok := parseQuestion(msg, true)
	return ok && id == r.id && q == r.q
}

func writeFrame(w io.Writer, msg []byte) error {
	if len(msg) > maxMessage {
		return fmt.Errorf("a message of %d bytes", len(msg))
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}

func readFrame(r io.Reader) ([]byte, error) {
	var size [frameLen]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, frameSize(size[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}
