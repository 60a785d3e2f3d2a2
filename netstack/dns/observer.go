package dns

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Observer is told what names were resolved to. Its methods are called concurrently.
type Observer interface {
	// Wants reports whether the addresses of name (lower case, no final dot) matter to some rule. It is called for
	// every query, on the packet path, so it must be fast.
	Wants(name string) bool

	// Admit is asked before an answer is read that asker gets, and that may have so many addresses. If it returns an
	// error, the answer is withheld as if Observe had, and nothing more is said of it. It must be fast.
	Admit(asker Asker, addrs int) error

	// Alias says that name is an alias of target, whose addresses may be asked for separately. They are name's as well.
	Alias(name, target string, ttl time.Duration)

	// Observe returns nil once connections made to addrs for name are captured, that is, once the routes are
	// set. The answer is held back until then, and replaced by SERVFAIL on an error. Observe must return in
	// bounded time; nothing cancels it. addrs is not empty and belongs to the callee.
	Observe(asker Asker, name string, addrs []netip.Addr, ttl time.Duration) error
}

// Asker is the host that asked, and the resolver that it asked; the zero value for what is of no such host.
type Asker struct {
	Host     netip.Addr
	Resolver netip.AddrPort
}

// learner decides what the application gets in place of an answer.
type learner struct {
	obs Observer
	log *throttle
}

// release returns msg after the observer has learned from it, or SERVFAIL. p and q come from parseQuestion(msg,
// true).
func (l *learner) release(asker Asker, p dnsmessage.Parser, q question, msg []byte) []byte {
	if err := l.obs.Admit(asker, atMost(msg)); err != nil {
		return l.withhold(q.host(), msg, err)
	}
	a := collect(p, q, msg)
	for _, target := range a.Targets {
		l.obs.Alias(a.Name, target, a.TTL)
	}
	if len(a.Addrs) == 0 {
		return msg
	}
	if err := l.obs.Observe(asker, a.Name, a.Addrs, a.TTL); err != nil {
		return l.withhold(a.Name, msg, err)
	}
	return msg
}

func (l *learner) withhold(name string, msg []byte, why error) []byte {
	l.log.warn("withhold DNS answer", why, "name", name)
	return servfail(msg, unrouted)
}

// atMost returns how many addresses collect finds in msg at most, by its header alone. HTTPS records can bring along
// more, which shows when they are read.
func atMost(msg []byte) int {
	const shortest = 16 // bytes of an A record whose name is compressed
	if dnsmessage.RCode(msg[3]&0x0f) != dnsmessage.RCodeSuccess {
		return 0
	}
	return min(int(binary.BigEndian.Uint16(msg[6:])), (len(msg)-headerLen)/shortest)
}
