package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

var (
	errNoName    = errors.New("the name does not exist or has no address")
	errTimeout   = errors.New("timeout: no answer from any resolver")
	errLocalOnly = errors.New("the name has no address outside this host")
)

// found is the result of resolving a name.
type found struct {
	addrs []netip.Addr
	ttl   time.Duration // valid if wire
	wire  bool          // false: from a file on this host, /etc/hosts
}

// lookup resolves name as any Go program on this host would: net.Resolver handles nsswitch.conf, /etc/hosts,
// resolv.conf and its reloads, EDNS, and TCP after truncation. A name with a dot is taken as fully qualified. A
// name without a dot means whatever /etc/hosts or the search list make of it. The sockets come from dial. Their
// answers are read for the TTL, which net.Resolver doesn't report.
//
// If only the addresses of one family are found, and it is not known that there are none of the other, the error says
// why, beside what was found.
func lookup(ctx context.Context, dial Dialer, name string) (found, error) {
	if !strings.Contains(name, ".") {
		// Both families at once: with the search list, each alone might be found in another domain.
		return lookupFamily(ctx, dial, "ip", name)
	}
	// Together, net.Resolver would not report that one family failed, and its silence would use up the time of both.
	name += "."
	var v4, v6 found
	var err4, err6 error
	var wg sync.WaitGroup
	wg.Go(func() { v4, err4 = lookupFamily(ctx, dial, "ip4", name) })
	wg.Go(func() { v6, err6 = lookupFamily(ctx, dial, "ip6", name) })
	wg.Wait()
	switch {
	case err4 == nil && err6 == nil:
		both := found{addrs: slices.Concat(v4.addrs, v6.addrs), ttl: v4.ttl, wire: v4.wire}
		if v6.wire && (!v4.wire || v6.ttl < v4.ttl) {
			both.ttl, both.wire = v6.ttl, true
		}
		return both, nil
	case err4 == nil && noAddress(err6):
		return v4, nil
	case err4 == nil:
		return v4, fmt.Errorf("its IPv6 addresses: %w", err6)
	case err6 == nil && noAddress(err4):
		return v6, nil
	case err6 == nil:
		return v6, fmt.Errorf("its IPv4 addresses: %w", err4)
	case err4 == errNoName:
		return found{}, err6
	}
	return found{}, err4
}

// noAddress reports whether err means that there are no addresses, as opposed to that they are not known.
func noAddress(err error) bool { return err == errNoName || err == errLocalOnly }

// lookupFamily is lookup for the addresses of a network ("ip", "ip4" or "ip6").
func lookupFamily(ctx context.Context, dial Dialer, network, name string) (found, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &wire{ctx: ctx, dial: dial}
	// A separate Resolver: two lookups of one name on the same Resolver would share sockets.
	res := net.Resolver{PreferGo: true, Dial: w.Dial}
	addrs, err := res.LookupNetIP(ctx, network, name)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		return found{}, cause(err, w.errno)
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return !usable(a) })
	if len(addrs) == 0 {
		return found{}, errLocalOnly
	}
	return found{addrs: addrs, ttl: w.ttl, wire: w.seen}, nil
}

// cause returns the part of err that stays the same while the problem lasts; net's own text contains ports.
// errno is what the last socket reported.
func cause(err error, errno syscall.Errno) error {
	var d *net.DNSError
	var other *net.AddrError
	switch {
	case errors.As(err, &other): // all addresses in /etc/hosts are of the other family
		return errNoName
	case !errors.As(err, &d):
		return err
	case d.IsNotFound:
		return errNoName
	case errno != 0:
		return errno
	case d.IsTimeout:
		return errTimeout
	}
	return errors.New(d.Err)
}

// wire watches the sockets of one lookup.
type wire struct {
	ctx  context.Context // the lookup's; the one Dial gets is detached from it
	dial Dialer

	mu    sync.Mutex
	ttl   time.Duration // the lowest TTL of the answers with addresses
	seen  bool
	errno syscall.Errno
}

// Dial is for net.Resolver, which checks whether the connection is a net.PacketConn to learn how messages are
// framed.
func (w *wire) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if err := w.ctx.Err(); err != nil {
		return nil, err
	}
	dst, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	c, err := w.dial(ctx, network, dst)
	if err != nil {
		w.failed(err)
		return nil, err
	}
	// net.Resolver notices a cancel only between two messages.
	stop := context.AfterFunc(w.ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	conn := &wireConn{Conn: c, wire: w, stop: stop}
	if network == "udp" {
		return &wireUDP{wireConn: conn}, nil
	}
	return newStream(Asker{}, conn, learner{obs: w, log: newThrottle(nil)}), nil
}

func (w *wire) failed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	errors.As(err, &w.errno)
}

// Wants, Admit, Alias and Observe make wire the Observer of a TCP stream.
func (w *wire) Wants(string) bool { return true }

// Admit admits all.
func (w *wire) Admit(Asker, int) error { return nil }

// Alias does nothing.
func (w *wire) Alias(string, string, time.Duration) {}

func (w *wire) Observe(_ Asker, _ string, _ []netip.Addr, ttl time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.seen || ttl < w.ttl {
		w.ttl, w.seen = ttl, true
	}
	return nil
}

// wireConn is a socket of a lookup.
type wireConn struct {
	net.Conn
	wire *wire
	stop func() bool // stops the watch on the lookup's context
}

func (c *wireConn) SetDeadline(t time.Time) error {
	err := c.Conn.SetDeadline(t)
	if c.wire.ctx.Err() != nil { // canceled between Dial and here
		return c.Conn.SetDeadline(time.Unix(1, 0))
	}
	return err
}

func (c *wireConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.wire.failed(err)
	}
	return n, err
}

func (c *wireConn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// wireUDP reads whole messages.
type wireUDP struct {
	*wireConn
	id uint16
	q  question
}

func (c *wireUDP) Write(b []byte) (int, error) {
	if _, id, q, ok := parseQuestion(b, false); ok {
		c.id, c.q = id, q
	}
	return c.Conn.Write(b)
}

func (c *wireUDP) Read(b []byte) (int, error) {
	n, err := c.wireConn.Read(b)
	if p, id, q, ok := parseQuestion(b[:n], true); ok && id == c.id && q == c.q && q.class == dnsmessage.ClassINET {
		if a := collect(p, q, b[:n]); len(a.Addrs) > 0 {
			c.wire.Observe(Asker{}, a.Name, a.Addrs, a.TTL)
		}
	}
	return n, err
}

// ReadFrom and WriteTo make it a net.PacketConn.
func (c *wireUDP) ReadFrom(b []byte) (int, net.Addr, error) {
	n, err := c.Read(b)
	return n, c.RemoteAddr(), err
}

func (c *wireUDP) WriteTo(b []byte, _ net.Addr) (int, error) { return c.Write(b) }
