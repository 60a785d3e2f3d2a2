// Package dns carries the application's DNS traffic on port 53 and learns from it. It relays queries and
// answers byte for byte, and holds an answer back until the addresses in it can be pinned. It also resolves the
// rules' exact names itself: at start, and again whenever their TTL ends.
//
// # Theory of operation
//
// A rule that names a host can only act on addresses. The link captures addresses, and only a program that saw
// the answer knows which addresses belong to a name. So pinproxy reads the answer in transit, and passes it to
// the application only after the routes to its addresses are set:
//
//	application                      pinproxy                          resolver
//	    |  query, UDP   +---------+  Handle    +-------+  same bytes      |
//	    |-------------->|         |----------->|       |----------------->|
//	    |               | netstack|            | Relay |                  |
//	    |               |         |            |       |<-----------------|
//	    |               |         |            |       |  answer          |
//	    |               |         |            |   | Answers: the question's addresses
//	    |               |         |            |   | Observer.Observe: capture them
//	    |               |         |   Reply    |   v routes stand
//	    |<--------------|         |<-----------|       |
//	    |  same bytes   +---------+            +-------+
//	    |
//	    |  query, TCP   +---------+   splice   +-------+  same bytes      |
//	    |-------------->| netstack|----------->|  Tap  |----------------->|
//	    |<--------------|         |<-----------|       |<-----------------|
//	                    +---------+            +-------+
//
// The query goes to the resolver it was addressed to, from a pinproxy socket whose mark bypasses the capture
// rules. pinproxy is not a resolver and has no cache.
//
// UDP: each (application src, dst) pair has one relay flow with one connected socket. The kernel therefore
// drops packets from other hosts and reports ICMP errors. A flow ends 2 s after its last query was
// answered, or 10 s after the last query if an answer is still missing. When there are 4096 flows, a new one
// replaces the flow that has gone longest without an open question. If all flows have an open question, a flood
// makes room: pinproxy takes the address with the most flows, and the zone (the last two labels of the name)
// and resolver that this address asks about most, and ends the oldest of those flows. Further questions of that
// share replace one of its flows once a millisecond; the others are dropped before anything is spent on them. A
// few goroutines open the sockets, and serve the smaller shares first.
//
// TCP: [Tapper] wraps the upstream connection of an ordinary flow. It follows the two-byte frames of RFC 1035,
// section 4.2.2. Answers may come in any order (RFC 7766, section 6.2.1.1). Bytes that belong to no awaited
// answer are never held.
//
// # What is learned
//
// A query is remembered by (ID, question) if its name is wanted ([Observer.Wants]), its class is IN and its
// type may yield addresses (A, AAAA, HTTPS, SVCB, ANY). pinproxy learns only from an answer to such a query
// whose response code is success. It learns from a second copy only if the query was sent twice. Everything
// else is relayed without being parsed. A name that nobody wants costs the parse of one question.
//
// The addresses of an answer are those of the A and AAAA records whose owner is the question's name or can be
// reached from it over CNAME records, in whatever order the records come, over at most 16 names. The TTL is the
// lowest of all records on that path. Names compare without case (0x20 included) and are passed on in lower
// case without the final dot. A truncated or damaged answer is used as far as it goes. Addresses that no TCP
// connection leaves the host for are left out: unspecified (ad blockers answer 0.0.0.0), loopback, multicast,
// broadcast and IPv6 link-local. An IPv4-mapped AAAA is an IPv4 address.
//
// HTTPS and SVCB (RFC 9460): ipv4hint and ipv6hint of records in ServiceMode count, whatever their TargetName,
// since a client may connect to them for the name it asked for. A TargetName other than "." continues the chain
// as a CNAME does. This includes the addresses that a resolver adds in the additional section (RFC 9460,
// section 4.2), which is read for these two types only. Labels with a leading underscore (_8443._https.host) are
// removed from such a question: the addresses are the host's.
//
// An answer may lead to names whose addresses are asked for separately: by a client that follows an HTTPS record, or by
// a resolver on this host that asks each zone's own servers. The observer is told of them ([Observer.Alias]), so that it
// can want them too.
//
// # Ordering
//
// An answer to a wanted query reaches the application after Observe has returned nil for all its addresses, or
// not at all. Within one relay flow, and within one TCP connection, answers are passed on in the order in which
// they came. While Observe runs, later answers of the same flow wait. Flows wait for each other only inside
// Observe, where [Turns] lets the askers take turns.
//
// # Failures
//
//	Observe fails                UDP: SERVFAIL with the query's ID and question, and an
//	                             extended error (RFC 8914) if EDNS was spoken; TCP: the
//	                             same instead of the frame; logged, repeated causes
//	                             once a minute
//	too many answers to learn    the same: a host's from one resolver, with 16,384
//	                             addresses in those that wait for their turn. The
//	                             answer is not read ([Observer.Admit])
//	resolver refuses (ICMP)      Query.Unreachable: ECONNREFUSED for the application
//	no route, dial fails, EPERM  Query.Unreachable; logged, rate-limited
//	resolver silent              silence; the flow ends, the application asks again
//	answer nobody asked for      relayed if it came from the resolver, not learned
//	too many flows               the oldest idle flow ends, else the oldest of the largest share:
//	                             its late answer is lost
//	too many queries             128 wanted and unanswered in one flow; 1024 waiting to be sent
//	                             in one flow or for the largest share, 2048 in all, where one
//	                             counts for as many as it has KiB: the query is dropped, never
//	                             sent unseen;
//	                             TCP: 1024 wanted and unanswered, Write fails
//	not DNS, UDP                 relayed unchanged, both ways
//	not DNS, TCP                 Tap turns transparent at the first implausible frame
//	EOF or reset in a frame      the partial frame is passed on, then the error
//	shutdown                     sockets close, Serve returns after its goroutines and
//	                             after any Observe in progress
//
// A failure of the [Resolver] (no such name, timeout, an error from the server) is logged once until the cause changes.
// The lookup is repeated after 1 s, doubling up to 60 s. So is it if only the addresses of one family could be looked up:
// they are used meanwhile.
//
// # Limits
//
// DNS over HTTPS, TLS or QUIC is invisible. So is a resolver on this host that answers over loopback. Its own queries
// are seen if they leave through the link. Multiple questions in one message, other classes and other opcodes are
// relayed but not learned. What an application cached before pinproxy started is covered by the Resolver, for exact
// names only.
package dns
