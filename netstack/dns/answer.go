package dns

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	headerLen = 12 // RFC 1035, section 4.1.1
	maxChain  = 16 // names in a CNAME chain; resolvers give up earlier
)

// answer is what one DNS response says about the name that was asked for.
type answer struct {
	Name  string // the queried host: lower case, no final dot
	Type  dnsmessage.Type
	Class dnsmessage.Class
	Addrs []netip.Addr  // no duplicates, IPv4 never mapped; may be empty
	TTL   time.Duration // the lowest TTL between the name and the addresses or targets; 0 without either

	Targets []string // names that Name is an alias of, and whose addresses the application may ask for separately
}

// question is the only entry in a message's question section.
type question struct {
	name  string // lower case, no final dot
	typ   dnsmessage.Type
	class dnsmessage.Class
}

// parseQuestion parses the start of a query or a response. The returned parser is positioned at the answers. It
// reports false for anything but a standard query with one question, or a response to such a query.
func parseQuestion(msg []byte, response bool) (p dnsmessage.Parser, id uint16, q question, ok bool) {
	const (
		qr     = 0x80
		opcode = 0x78
	)
	if len(msg) < headerLen || msg[2]&qr != 0 != response || msg[2]&opcode != 0 || msg[4] != 0 || msg[5] != 1 {
		return p, 0, q, false
	}
	h, err := p.Start(msg)
	if err != nil {
		return p, 0, q, false
	}
	raw, err := p.Question()
	if err != nil {
		return p, 0, q, false
	}
	if err := p.SkipAllQuestions(); err != nil { // moves the parser to the next section
		return p, 0, q, false
	}
	return p, h.ID, question{name: canonical(&raw.Name), typ: raw.Type, class: raw.Class}, true
}

// wanted reports whether an answer to q could carry addresses that obs wants.
func (q question) wanted(obs Observer) bool {
	if q.class != dnsmessage.ClassINET {
		return false
	}
	switch q.typ {
	case dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeALL, dnsmessage.TypeHTTPS, dnsmessage.TypeSVCB:
		return obs.Wants(q.host())
	}
	return false
}

// host returns the name whose addresses are requested. Services are queried under labels of their own, as in
// _8443._https.host (RFC 9460, section 2.3).
func (q question) host() string {
	name := q.name
	if !q.service() {
		return name
	}
	for strings.HasPrefix(name, "_") {
		_, rest, ok := strings.Cut(name, ".")
		if !ok {
			break
		}
		name = rest
	}
	return name
}

func (q question) service() bool {
	return q.typ == dnsmessage.TypeHTTPS || q.typ == dnsmessage.TypeSVCB
}

// collect gathers the addresses that belong to q; the package comment says which do. p is positioned at the answers.
// From a damaged message it returns what precedes the damage.
func collect(p dnsmessage.Parser, q question, msg []byte) answer {
	a := answer{Name: q.host(), Type: q.typ, Class: q.class}
	if dnsmessage.RCode(msg[3]&0x0f) != dnsmessage.RCodeSuccess {
		return a
	}
	c := chain{names: append(make([]string, 0, 4), q.name)}
	c.records(p, q)
	c.join()
	// Records nearly always come in chain order, so one pass is enough. If it met a stranger that may belong to the chain
	// after all, there is a second one, and no third: the chain is complete by then.
	if c.strangers && len(c.names) > 1 {
		c.addrs, c.known = c.addrs[:0], nil
		c.records(p, q)
	}
	if len(c.addrs) > 0 {
		a.Addrs = c.addrs
	}
	if len(c.addrs) == 0 || q.service() {
		a.Targets = slices.DeleteFunc(c.names[1:], func(name string) bool { return name == a.Name })
	}
	if len(a.Addrs) > 0 || len(a.Targets) > 0 {
		a.TTL = time.Duration(c.ttl) * time.Second
	}
	return a
}

// chain is the set of names reached from the question so far.
type chain struct {
	names     []string // in the form of question.name
	addrs     []netip.Addr
	known     map[netip.Addr]bool // addrs, once there are many
	ttl       uint32              // seconds; valid once seen
	seen      bool
	strangers bool // a record with addresses had an owner outside the chain
	links     []link
}

// link is a record that makes the target's addresses the owner's, and whose owner was outside the chain when it came.
type link struct {
	owner, target string // in the form of question.name
	ttl           uint32 // seconds
}

// maxLinks is how many links are remembered. An answer about a chain of maxChain names has fewer, in whatever order.
const maxLinks = 16 * maxChain

func (c *chain) records(p dnsmessage.Parser, q question) {
	c.answers(p)
	if q.service() {
		c.additionals(p)
	}
}

func (c *chain) answers(p dnsmessage.Parser) {
	for {
		h, err := p.AnswerHeader()
		if err != nil {
			return
		}
		if !c.record(&p, &h) && p.SkipAnswer() != nil {
			return
		}
	}
}

func (c *chain) additionals(p dnsmessage.Parser) {
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return
	}
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return
		}
		if !c.record(&p, &h) && p.SkipAdditional() != nil {
			return
		}
	}
}

// record processes one record. It reports whether it moved the parser past the record.
func (c *chain) record(p *dnsmessage.Parser, h *dnsmessage.ResourceHeader) bool {
	if h.Class != dnsmessage.ClassINET {
		return false
	}
	switch h.Type {
	case dnsmessage.TypeA:
		if h.Length != 4 || !c.owns(&h.Name) {
			return false
		}
		r, err := p.AResource()
		if err != nil {
			return false
		}
		c.add(netip.AddrFrom4(r.A), h.TTL)
	case dnsmessage.TypeAAAA:
		if h.Length != 16 || !c.owns(&h.Name) {
			return false
		}
		r, err := p.AAAAResource()
		if err != nil {
			return false
		}
		c.add(netip.AddrFrom16(r.AAAA), h.TTL)
	case dnsmessage.TypeCNAME:
		r, err := p.CNAMEResource()
		if err != nil {
			return false
		}
		c.link(&h.Name, &r.CNAME, h.TTL)
	case dnsmessage.TypeHTTPS, dnsmessage.TypeSVCB:
		var r dnsmessage.SVCBResource
		var err error
		if h.Type == dnsmessage.TypeSVCB {
			r, err = p.SVCBResource()
		} else {
			var https dnsmessage.HTTPSResource
			https, err = p.HTTPSResource()
			r = https.SVCBResource
		}
		if err != nil {
			return false
		}
		c.service(&h.Name, &r, h.TTL)
	default:
		return false
	}
	return true
}

// service processes an HTTPS or SVCB record (RFC 9460, sections 2.2 and 7.3).
func (c *chain) service(owner *dnsmessage.Name, r *dnsmessage.SVCBResource, ttl uint32) {
	if r.Target.Length > 1 { // not "."
		c.link(owner, &r.Target, ttl)
	}
	if r.Priority == 0 || !c.owns(owner) { // AliasMode has no parameters
		return
	}
	v4, _ := r.GetParam(dnsmessage.SVCParamIPv4Hint)
	for b := range slices.Chunk(v4, 4) {
		if a, ok := netip.AddrFromSlice(b); ok {
			c.add(a, ttl)
		}
	}
	v6, _ := r.GetParam(dnsmessage.SVCParamIPv6Hint)
	for b := range slices.Chunk(v6, 16) {
		if len(b) == 16 { // a remainder of 4 bytes is not an IPv4 address
			c.add(netip.AddrFrom16([16]byte(b)), ttl)
		}
	}
}

func (c *chain) owns(n *dnsmessage.Name) bool {
	if c.has(n) {
		return true
	}
	c.strangers = true
	return false
}

// has reports whether the chain has reached n.
func (c *chain) has(n *dnsmessage.Name) bool {
	var b [255]byte
	l := canonicalTo(&b, n)
	return slices.ContainsFunc(c.names, func(name string) bool { return name == string(b[:l]) })
}

// link follows a record from its owner to target, now or when the chain has reached the owner.
func (c *chain) link(owner, target *dnsmessage.Name, ttl uint32) {
	switch {
	case c.has(owner):
		c.follow(canonical(target), ttl)
	case len(c.links) < maxLinks:
		c.links = append(c.links, link{canonical(owner), canonical(target), ttl})
	}
}

// join follows the links that the chain has reached since they came.
func (c *chain) join() {
	for more := len(c.links) > 0; more; {
		before := len(c.names)
		for _, l := range c.links {
			if slices.Contains(c.names, l.owner) {
				c.follow(l.target, l.ttl)
			}
		}
		more = len(c.names) > before
	}
}

func (c *chain) follow(target string, ttl uint32) {
	c.lower(ttl)
	if len(c.names) < maxChain && !slices.Contains(c.names, target) {
		c.names = append(c.names, target)
	}
}

func (c *chain) add(a netip.Addr, ttl uint32) {
	a = a.Unmap()
	if !usable(a) {
		return
	}
	c.lower(ttl)
	if !c.listed(a) {
		c.addrs = append(c.addrs, a)
	}
}

// listed reports whether a is among addrs, and if there are many, that it will be.
func (c *chain) listed(a netip.Addr) bool {
	const many = 16 // an answer has room for 4,000: comparing each with each would take 10 ms
	switch {
	case len(c.addrs) < many:
		return slices.Contains(c.addrs, a)
	case c.known == nil:
		c.known = make(map[netip.Addr]bool)
		for _, b := range c.addrs {
			c.known[b] = true
		}
	}
	had := c.known[a]
	c.known[a] = true
	return had
}

func (c *chain) lower(ttl uint32) {
	if ttl > 1<<31-1 { // RFC 2181, section 8
		ttl = 0
	}
	if !c.seen || ttl < c.ttl {
		c.ttl, c.seen = ttl, true
	}
}

// usable reports whether a connection to a leaves this host over a route.
func usable(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() &&
		!(a.Is6() && a.IsLinkLocalUnicast()) && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// canonical returns n in lower case (ASCII only, as DNS compares) without the final dot.
func canonical(n *dnsmessage.Name) string {
	var b [255]byte
	return string(b[:canonicalTo(&b, n)])
}

// canonicalTo writes canonical(n) to b, and returns how long it is.
func canonicalTo(b *[255]byte, n *dnsmessage.Name) int {
	l := max(int(n.Length)-1, 0)
	for i := range l {
		b[i] = lowerByte(n.Data[i])
	}
	return l
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}
