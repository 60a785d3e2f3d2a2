package proxy

import (
	"net/netip"
	"sync"
	"time"

	"pinproxy/rules"
)

// How many flows may wait for an answer at a time, per rule and per source, which is an IPv4 address or an IPv6 /64
// network. Flows beyond that are dropped. netstack has room for 32,768 in all. Neither a rule whose upstream is silent
// nor a host that keeps opening connections can take it all from the others.
const (
	maxPerRule   = 8192
	maxPerSource = 16384
)

// crowd counts the flows that have not been answered yet.
type crowd struct {
	perRule, perSource int

	mu      sync.Mutex
	rules   map[*rules.Rule]int
	sources map[netip.Addr]int // IPv6: by /64 network, in which a host can have any number of addresses
	said    time.Time          // when the log last mentioned one too many
}

func newCrowd(perRule, perSource int) *crowd {
	return &crowd{perRule: perRule, perSource: perSource, rules: make(map[*rules.Rule]int), sources: make(map[netip.Addr]int)}
}

// enter counts a flow until leave is called. It reports false if there are too many.
func (c *crowd) enter(rule *rules.Rule, src netip.Addr) bool {
	src = network(src)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rules[rule] >= c.perRule || c.sources[src] >= c.perSource {
		return false
	}
	c.rules[rule]++
	c.sources[src]++
	return true
}

func (c *crowd) leave(rule *rules.Rule, src netip.Addr) {
	src = network(src)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rules[rule]--; c.rules[rule] == 0 {
		delete(c.rules, rule)
	}
	if c.sources[src]--; c.sources[src] == 0 {
		delete(c.sources, src)
	}
}

func network(src netip.Addr) netip.Addr {
	if src.Is6() {
		return netip.PrefixFrom(src.WithZone(""), 64).Masked().Addr()
	}
	return src
}

// mention reports whether the log may mention one flow too many, which it does once a second.
func (c *crowd) mention() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.said) < time.Second {
		return false
	}
	c.said = time.Now()
	return true
}
