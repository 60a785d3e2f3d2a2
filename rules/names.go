package rules

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// Grace is how long an address stays after its TTL and its name's last flow.
	Grace = time.Minute
	// MaxNamesPerAddr is how many names of one address are known.
	MaxNamesPerAddr = 64

	maxAddrsPerName = 1024
	maxPairs        = 200_000
)

// maxTTL is the longest time an answer is believed (RFC 8767 section 4 recommends seven days).
const maxTTL = 7 * 24 * time.Hour

// limits bound what Names holds. Tests have smaller ones.
type limits struct {
	addrsPerName int
	namesPerAddr int
	pairs        int // of a name and an address
}

// Names holds what is known of the names that rules are interested in: the addresses from DNS answers, for as long
// as something may still connect to them. It does nothing by itself: the caller passes in the time and carries out
// the captures.
//
// Every method may be called from any goroutine at any time. But captures must be carried out one answer after the
// other, as the package documentation shows: Observe or Expired, then what they returned, then Forget, all under one
// mutex of the caller's.
type Names struct {
	limits limits

	mu     sync.RWMutex
	set    *Set
	side   int           // index of set's hosts in nameEntry.hosts; other's are at the other index
	other  *Set          // decides where set has no rule: see Prepare and Switch; mostly nil
	settle time.Duration // when a former set stops being other, since the epoch
	byName map[string]*nameEntry
	byAddr map[netip.Addr]*addrEntry
	live   int           // pairs that are not leaving
	inUse  int           // live pairs whose name is in use
	seq    int64         // number of the last event: an address was observed, or a name's last flow ended
	epoch  time.Time     // the first time passed in; zero before that
	now    time.Duration // the latest time passed in, since epoch
	freed  []*nameEntry  // names whose last flow has ended after now
	ends   queue         // live pairs by due
	ages   queue         // live pairs by age
	warned map[sharers]bool
}

// nameEntry is a name with its addresses.
type nameEntry struct {
	name  string
	hosts [2][]*hostRules // hosts with rules for the name, the most specific first, on either side: see Names.side
	sets  []int           // port sets of those rules, ascending
	next  []int           // the new value of sets, from Prepare to Switch

	pairs []*pair // in no order
	live  int     // how many of pairs are not leaving
	held  int     // how many of pairs, leaving or not, have an address with a flow

	freed    bool          // whether it is in Names.freed
	freedAt  time.Duration // when its last flow ended, since the epoch
	freedSeq int64         // the number of that event
}

// inUse reports whether a flow uses any address of the name.
func (e *nameEntry) inUse() bool { return e.held > 0 }

// hosts returns e's hosts in the set; none if no rule is interested in the name any more.
func (n *Names) hosts(e *nameEntry) []*hostRules { return e.hosts[n.side] }

// otherHosts returns e's hosts in the other set, while there is one.
func (n *Names) otherHosts(e *nameEntry) []*hostRules { return e.hosts[1-n.side] }

// ruleOf returns the rule for port from the first of hosts that has one, or nil.
func ruleOf(hosts []*hostRules, port uint16) *Rule {
	for _, h := range hosts {
		if r := h.index.rule(port); r != nil {
			return r
		}
	}
	return nil
}

// addrEntry is an address with its names.
type addrEntry struct {
	addr     netip.Addr
	flows    int
	captures []captureCount // by set, ascending
	pairs    []*pair        // the name asked for last comes first
	live     int            // how many of pairs are not leaving
}

// pair is a name's address. It is live until it expires or is evicted. Then it is leaving: it decides as before
// until Forget says that its captures are gone. It becomes live again if it is observed or used before that.
type pair struct {
	name    *nameEntry
	addr    *addrEntry
	expires time.Duration // end of the TTL, since the epoch
	seq     int64         // number of the event when it was last observed
	leaving bool

	index int        // in name.pairs
	ends  queuePlace // in Names.ends while live
	ages  queuePlace // in Names.ages while live
}

// NewNames returns Names for the rules of set. No name is known yet.
func NewNames(set *Set) *Names {
	n := &Names{
		set:    set,
		limits: limits{maxAddrsPerName, MaxNamesPerAddr, maxPairs},
		byName: make(map[string]*nameEntry),
		byAddr: make(map[netip.Addr]*addrEntry),
		warned: make(map[sharers]bool),
	}
	n.ends.place = func(p *pair) *queuePlace { return &p.ends }
	n.ages.place = func(p *pair) *queuePlace { return &p.ages }
	return n
}

// advance records the time, since the epoch. Names freed since the last call count as freed now. If time runs
// backwards, it stands still.
func (n *Names) advance(now time.Time) time.Duration {
	if n.epoch.IsZero() {
		n.epoch = now
	}
	n.now = max(n.now, now.Sub(n.epoch))
	for _, e := range n.freed {
		e.freed, e.freedAt = false, n.now
	}
	clear(n.freed)
	n.freed = n.freed[:0]
	return n.now
}

// Decision is the rule for a connection, nil if there is none, and the name for which the rule was chosen, "" for
// the rule of a prefix or "*".
type Decision struct {
	Rule *Rule
	Name string
}

// Decide returns the rule for a connection to dst. It tries the names of the address, the one asked for last first;
// the first name that has a rule for the port decides. If none has one, the rules of prefixes and "*" decide. While
// the rules are being replaced, there may be another set to ask after that: see [Names.Prepare].
//
// A flow calls Hold before Decide, so that the name that decided can't expire in between. Decide does not allocate.
func (n *Names) Decide(dst netip.AddrPort) Decision {
	n.mu.RLock()
	if a := n.byAddr[plain(dst.Addr())]; a != nil {
		for _, p := range a.pairs {
			if r := ruleOf(n.hosts(p.name), dst.Port()); r != nil {
				n.mu.RUnlock()
				return Decision{r, p.name.name}
			}
		}
	}
	set, other := n.set, n.other
	n.mu.RUnlock()
	if r := set.matchAddr(dst); r != nil || other == nil {
		return Decision{Rule: r}
	}
	return n.decideByOther(dst)
}

// Others returns the other addresses of name that are of addr's family, most recently observed first; addresses of
// one answer keep its order. The slice is the caller's.
func (n *Names) Others(name string, addr netip.Addr) []netip.Addr {
	name, addr = canonical(name), plain(addr)
	n.mu.RLock()
	defer n.mu.RUnlock()
	e := n.byName[name]
	if e == nil {
		return nil
	}
	others := make([]*pair, 0, len(e.pairs))
	for _, p := range e.pairs {
		if !p.leaving && p.addr.addr != addr && p.addr.addr.Is4() == addr.Is4() {
			others = append(others, p)
		}
	}
	slices.SortFunc(others, func(a, b *pair) int { return cmp.Compare(b.seq, a.seq) })
	addrs := make([]netip.Addr, len(others))
	for i, p := range others {
		addrs[i] = p.addr.addr
	}
	return addrs
}

// Entry is one address of a name, for status.
type Entry struct {
	Name    string
	Addr    netip.Addr
	Expires time.Time // when the TTL ends or ended; the entry stays longer while in use and for Grace
	InUse   bool      // whether a flow uses this or another address of the name
}

// All yields what is known, sorted by name and address, as of the moment when the iteration begins.
func (n *Names) All() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for _, e := range n.entries() {
			if !yield(e) {
				return
			}
		}
	}
}

func (n *Names) entries() []Entry {
	n.mu.RLock()
	entries := make([]Entry, 0, n.live)
	for _, e := range n.byName {
		if len(n.hosts(e)) == 0 {
			continue
		}
		for _, p := range e.pairs {
			if !p.leaving {
				entries = append(entries, Entry{e.name, p.addr.addr, n.epoch.Add(p.expires), e.inUse()})
			}
		}
	}
	n.mu.RUnlock()
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), a.Addr.Compare(b.Addr))
	})
	return entries
}

// Len returns how many entries All would yield.
func (n *Names) Len() int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.live
}
