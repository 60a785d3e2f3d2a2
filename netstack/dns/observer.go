package dns

import (
	"net/netip"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Observer is told what names were resolved to. Its methods are called concurrently.
type Observer interface {
	// Wants reports whether the addresses of name (lower case, no final dot) matter to some rule. It is called for
	// every query, on the packet path, so it must be fast.
	Wants(name string) bool

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
	a := collect(p, q, msg)
	for _, target := range a.Targets {
		l.obs.Alias(a.Name, target, a.TTL)
	}
	if len(a.Addrs) == 0 {
		return msg
	}
	err := l.obs.Observe(asker, a.Name, a.Addrs, a.TTL)
	if err == nil {
		return msg
	}
	l.log.warn("withhold DNS answer", err, "name", a.Name)
	return servfail(msg, unrouted)
}
