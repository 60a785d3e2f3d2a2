package lab

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Query is a question received by a [DNS] server.
type Query struct {
	Name    string // in lower case, without the final dot
	Type    dnsmessage.Type
	Network string         // "udp" or "tcp"
	Src     netip.AddrPort // the asker
	Dst     netip.AddrPort // the server's address that was asked
	EDNS    bool           // it had an OPT record
	Size    int            // maximum size of an answer over UDP: 512, or the EDNS value
}

// Answer is what a [DNS] server replies.
type Answer struct {
	Records  []dnsmessage.Resource // see Zone and Addrs; a record without a name gets the query's
	RCode    dnsmessage.RCode
	Truncate bool          // over UDP: send only the TC bit. Automatic for answers that do not fit
	Drop     bool          // send no reply
	Delay    time.Duration // before the reply
	Raw      []byte        // sent instead of all the above, after the query's ID
}

// DNS is a name server on a host, running in this process. Its methods are safe for concurrent use.
type DNS struct {
	answer func(Query) Answer
	done   chan struct{} // closed by close
	wait   sync.WaitGroup

	mu      sync.Mutex
	queries []Query
}

// DNS serves DNS over UDP and TCP on each of addrs ("203.0.113.2:53"). Each must name an address, since a reply has
// to come from the address the query was sent to. answer is called on many goroutines at once. [Zone] makes such a
// function from static records.
func (h *Host) DNS(answer func(Query) Answer, addrs ...string) *DNS {
	h.net.helper()
	s := &DNS{answer: answer, done: make(chan struct{})}
	var sockets []net.PacketConn
	for _, addr := range addrs {
		c, err := h.ListenPacket("udp", addr)
		h.check("listen on "+addr, err)
		sockets = append(sockets, c)
		s.wait.Go(func() { s.serveUDP(c) })
		h.Serve(addr, s.serveTCP)
	}
	h.net.atClose(func() error {
		close(s.done)
		for _, c := range sockets {
			c.Close()
		}
		s.wait.Wait()
		return nil
	})
	return s
}

// Queries returns all queries received so far.
func (s *DNS) Queries() []Query {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.queries)
}

func (s *DNS) serveUDP(c net.PacketConn) {
	buf := make([]byte, 65535)
	for {
		n, src, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		msg := slices.Clone(buf[:n])
		q := Query{Network: "udp", Src: src.(*net.UDPAddr).AddrPort(), Dst: c.LocalAddr().(*net.UDPAddr).AddrPort()}
		s.wait.Go(func() {
			if reply := s.reply(q, msg); reply != nil {
				c.WriteTo(reply, src)
			}
		})
	}
}

func (s *DNS) serveTCP(c net.Conn) {
	for {
		var length uint16
		if binary.Read(c, binary.BigEndian, &length) != nil {
			return
		}
		msg := make([]byte, length)
		if _, err := io.ReadFull(c, msg); err != nil {
			return
		}
		q := Query{Network: "tcp", Src: remote(c), Dst: c.LocalAddr().(*net.TCPAddr).AddrPort()}
		reply := s.reply(q, msg)
		if reply == nil {
			return
		}
		c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...))
	}
}

// reply returns the answer to msg, nil for none, after the delay that the answer asks for.
func (s *DNS) reply(q Query, msg []byte) []byte {
	var in dnsmessage.Message
	if in.Unpack(msg) != nil || in.Response || len(in.Questions) != 1 {
		return nil
	}
	question := in.Questions[0]
	q.Name, q.Type, q.Size = canonical(question.Name.String()), question.Type, 512
	for _, r := range in.Additionals {
		if r.Header.Type == dnsmessage.TypeOPT {
			q.EDNS, q.Size = true, max(512, int(r.Header.Class))
		}
	}
	s.mu.Lock()
	s.queries = append(s.queries, q)
	s.mu.Unlock()

	a := s.answer(q)
	select {
	case <-time.After(a.Delay):
	case <-s.done:
		return nil
	}
	switch {
	case a.Drop:
		return nil
	case a.Raw != nil:
		return append(binary.BigEndian.AppendUint16(nil, in.ID), a.Raw...)
	}
	out := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: in.ID, Response: true, RCode: a.RCode,
			RecursionDesired: in.RecursionDesired, RecursionAvailable: in.RecursionDesired,
			Authoritative: !in.RecursionDesired, // other resolvers ask like this
		},
		Questions: in.Questions,
	}
	for _, r := range a.Records {
		if r.Header.Name.Length == 0 {
			r.Header.Name = question.Name
		}
		r.Header.Class = dnsmessage.ClassINET
		out.Answers = append(out.Answers, r)
	}
	if q.EDNS {
		opt := dnsmessage.Resource{Body: &dnsmessage.OPTResource{}}
		opt.Header.SetEDNS0(1232, dnsmessage.RCodeSuccess, false)
		out.Additionals = append(out.Additionals, opt)
	}
	packed, err := out.Pack()
	if err != nil || q.Network == "udp" && (a.Truncate || len(packed) > q.Size) {
		out.Truncated, out.Answers = true, nil
		packed, _ = out.Pack()
	}
	return packed
}
