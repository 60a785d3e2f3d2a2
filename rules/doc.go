// Package rules decides which source port a connection must leave from. It is pure logic: it opens no files and no
// sockets, reads no clock and starts no goroutines. Tests therefore need nothing but its inputs and outputs.
//
// # Theory of operation
//
//	text ──Parse──▶ Rule ──NewSet──▶ Set ──NewNames──▶ Names ◀──Observe── DNS answers
//	                                  │                  │
//	                Static: captures ◀┘                  ├──▶ Learned, Expired: captures to add, to drop
//	                from the start                       │
//	                                           Decide ◀──┘──▶ Hold: a flow uses an address
//
// A [Rule] is one line that a person wrote. A [Set] is all of them, compiled. Neither ever changes. [Names] does
// change: it holds what DNS answers have told about the names that rules are interested in. A [Capture] is a
// destination prefix and a set of destination ports. Connections to them must come to us. Turning captures into
// routes is the caller's job.
//
// # Rules
//
//	rule    = host ":" ports "=" pin { " " option }
//	host    = NAME | "*." NAME | IPv4[/LEN] | "[" IPv6[/LEN] "]" | "*"
//	ports   = "*" | range { "," range }              range = PORT [ "-" PORT ]
//	pin     = [ ADDRESS ":" ] range { "," range }    ADDRESS = IPv4 | "[" IPv6 "]"
//	option  = "busy="  how { "," how }               how = "wait" [ ":" DURATION ] | "reclaim" [ ":" DURATION ]
//	        | "cooldown=" DURATION                         | "other-address" | "any" | "fail"
//
// A rule may be surrounded by blanks and tabs, and any number of them may precede an option. Names are kept in the
// form in which DNS carries them: lower-case A-labels without a final dot. Rule.String is canonical: rules that mean
// the same have the same text, and parsing that text gives the rule back.
//
// # The most specific rule wins
//
// The hosts of a set are tried from the most specific to the least, whatever the order of the rules:
//
//	the exact name          one map
//	the longest wildcard    one map, asked once for every dot of the name
//	the longest prefix      one map for every length in use
//	"*"
//
// A host that has no rule for the destination port is passed over. Among the rules of one host, the one with the
// fewest ports wins at each port. The winners are worked out once, when the set is made, and stored as a sorted list
// of port segments that don't overlap. A lookup is a binary search of this list, so a decision takes as long with
// 10,000 rules as with one. Two rules of one host that have equally many ports and share one are ambiguous: they
// make no set.
//
// # How names live and die
//
// A connection shows an address, not the name it was looked up by. So each answer for a name of interest is recorded
// as pairs of the name and an address. A pair goes through these states:
//
//	           Observe                     Expired, or evicted by Observe
//	unknown ──────────────▶ live ────────────────────────────────────────▶ leaving
//	   ▲                     ▲                                                │ │
//	   │                     └───────────────── Observe, Hold ────────────────┘ │
//	   └──────────────────────────────────── Forget ────────────────────────────┘
//
// A live pair expires when its TTL has passed, no flow uses any address of its name, and Grace has passed since
// both. The grace is needed because applications use answers longer than they may. All addresses of a name stay
// while one is in use (cilium#28427: applications come back to the others). A leaving pair still decides, so that a
// connection that arrives while its route is being removed is not let go unpinned. If the pair is wanted again
// before the route is gone, Forget says so and the route is put back.
//
// A capture is counted over the pairs of its address: two names that share an address and a port set share the
// capture, and it goes with the last of them.
//
// What is held is bounded per name, per address and in total. The oldest pair makes room: the one observed or used
// longest ago. A capture is never removed while a flow uses it, because the kernel would send the flow's next packet
// elsewhere.
//
// If an address has several names, the one that an application asked for last decides. Connections don't tell which
// name was meant. If it makes a difference, the caller is told once.
//
// # Carrying captures out
//
// The caller adds and removes routes under one mutex, so that an answer and an expiry can't cross:
//
//	mu.Lock()
//	learned, err := names.Observe(name, addrs, ttl, true, time.Now())
//	if addErr := routes.Add(learned.Add); addErr != nil {
//		names.Lost(learned.Add) // the next Observe lists them again
//	}
//	routes.Remove(learned.Drop)
//	routes.Add(names.Forget(learned.Drop))
//	mu.Unlock()
//	// only now, and only if both errors are nil, is the answer released to the application
//
// and at intervals, say every second, until nothing has expired:
//
//	mu.Lock()
//	expired := names.Expired(time.Now())
//	routes.Remove(expired)
//	routes.Add(names.Forget(expired))
//	mu.Unlock()
//
// A flow calls Hold, then Decide. When it has ended, it calls the release function that Hold returned.
//
// # Other rules
//
// A Set never changes, but another can take its place. Successor gives port sets that both sets have the same
// numbers, so that captures of both can be in place at once. Names then goes from one set to the other in three
// steps:
//
//	               Prepare(next)           Switch                     Grace later
//	decides        the present set         next                       next
//	and where      next                    the former set             –
//	it has no rule
//	captures       the caller adds what is missing
//	               and takes away what is in the way
//
// So a connection that a route brings meets the rule that the route is for, whether the route is new or about to go,
// and whether the rule or the route changes first. A connection that both sets have a rule for never meets a set
// without one. The change is made under the caller's mutex:
//
//	mu.Lock()
//	learned := names.Prepare(next)
//	if err := routes.Replace(next, learned); err != nil { // all or nothing
//		names.Cancel()
//	} else {
//		names.Switch(time.Now())
//	}
//	mu.Unlock()
//
// If both sets have rules for a name, everything known of it stays: its addresses, their TTLs, their order and their
// flows. If only the former set had a rule for a name, what is known of it decides for Grace and is then forgotten.
// If only the new set has a rule for a name, its addresses are learned from the next answer.
//
// # Failures
//
//	what                                    what happens
//	a rule that can't be read               SyntaxError: column, sentence, and the corrected rule if one can be told
//	two rules that tie                      ConflictError: both, and the lowest port they share
//	no rule for a connection                nil, never a default
//	an answer for a name without a rule     ignored
//	an answer with a loopback address       that address is ignored: the kernel's local table is asked before any route
//	an answer beyond the bounds             the oldest unused makes room; ErrFull if all are in use
//	one address, two names, two rules       the name asked for last decides; Shared, once
//	a TTL of 0                              the address stays for Grace
//	a TTL beyond a week                     a week
//	new rules that are given up             Cancel: as if there had been none
//	a time that runs backwards              time stands still
//	a route that could not be added         Lost: offered again by the next answer
//	a route wanted again while it goes      Forget returns it
package rules
