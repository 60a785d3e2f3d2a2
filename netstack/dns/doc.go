// Package dns carries the application's DNS traffic on port 53 and learns from
// it: relays, byte for byte, what is asked and answered, and holds an answer
// back until the addresses in it can be pinned. It also resolves the rules'
// exact names by itself, at start and again as their TTL ends.
//
// # Theory of operation
//
// A rule that names a host can only act on addresses. The link captures
// addresses, and which addresses belong to a name is known only to whoever saw
// the answer. So the answer is read on its way, and the application gets it only
// after the routes to its addresses stand:
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
// The query goes to the resolver it was meant for, from a socket of ours whose
// mark skips the capture rules. pinproxy is not a resolver and has no cache.
//
// UDP: one relay flow for each (application src, dst), holding one connected
// socket, so that the kernel drops what other hosts send and tells us about ICMP
// errors. A flow ends [Limits.Answered] after its last query was answered, or
// [Limits.Unanswered] after the last one if an answer is still missing. When
// there are [Limits.Flows] of them, a new one takes the place of the flow that
// has been without an open question longest. If all have one, whoever floods makes
// room: the oldest flow of the address that has most, about the zone (the last two
// labels of the name) and resolver that it asks most about. Its own further
// questions take such a place once a millisecond, and are dropped before anything is spent
// on them. Sockets are made by few goroutines, for those who have fewer first.
//
// TCP: [Tap] wraps the upstream connection of an ordinary flow. It follows the
// two-byte frames of RFC 1035, section 4.2.2; answers may come in any order (RFC
// 7766, section 6.2.1.1). Bytes that belong to no answer being waited for are never held.
//
// # What is learned
//
// Queries are remembered by (ID, question) if their name is wanted
// ([Observer.Wants]), their class is IN and their type may yield addresses (A,
// AAAA, HTTPS, SVCB, ANY). Only an answer to such a query, with success as its
// response code, is learned from; a second copy of it only if the query was sent
// twice. Everything else is relayed without being parsed; a name that nobody
// wants costs the parse of one question.
//
// The addresses of an answer are those of the A and AAAA records whose owner is
// the question's name or can be reached from it over CNAME records, in whatever
// order the records come, over at most 16 names; the TTL is the lowest of all
// records on that way. Names compare without case (0x20 included) and are handed on in lower
// case without the final dot. A truncated or damaged answer is learned from as
// far as it goes. Addresses that no TCP connection leaves the host for are left out:
// unspecified (ad blockers answer 0.0.0.0), loopback, multicast, broadcast and
// IPv6 link-local. An IPv4-mapped AAAA is an IPv4 address.
//
// HTTPS and SVCB (RFC 9460): ipv4hint and ipv6hint of records in ServiceMode
// count, whatever their TargetName, since a client may connect to them for the
// name it asked for. A TargetName other than "." continues the chain as a CNAME does, which
// takes in the addresses a resolver adds in the additional section (RFC 9460,
// section 4.2; read for these two types only). Addresses that the client asks
// for in a separate query for the target are not learned for the first name:
// that would need state across queries, and a rule can name the target. Labels
// with a leading underscore (_8443._https.host) are taken off such a question:
// the addresses are the host's.
//
// # Ordering
//
// An answer to a wanted query reaches the application after Observe has returned
// nil for all its addresses, or not at all. Within one relay flow, and within one TCP
// connection, answers are handed on in the order in which they came; while
// Observe works, the later ones of the same flow wait. Flows don't wait for each other.
//
// # Failures
//
//	Observe fails                UDP: SERVFAIL with the query's ID and question, and an
//	                             extended error (RFC 8914) if EDNS was spoken; TCP: the
//	                             same in the frame's place; logged, repeated causes
//	                             once a minute (TCP: for each connection)
//	resolver refuses (ICMP)      Query.Unreachable: ECONNREFUSED for the application
//	no route, dial fails, EPERM  Query.Unreachable, logged, rate-limited
//	resolver silent              silence; the flow ends, the application asks again
//	answer nobody asked for      relayed if it came from the resolver, not learned
//	too many flows               the oldest idle one goes, else the oldest of whoever has most:
//	                             its late answer is lost
//	too many queries             128 wanted and unanswered in one flow; 1024 waiting to be sent
//	                             of one flow or of whoever has most, 2048 in all: the query is
//	                             dropped, never sent unseen;
//	                             TCP: 1024 wanted and unanswered, Write fails
//	not DNS, UDP                 relayed unchanged, both ways
//	not DNS, TCP                 Tap turns transparent at the first implausible frame
//	EOF or reset in a frame      the partial frame is passed on, then the error
//	shutdown                     sockets close, Serve returns after its goroutines;
//	                             an Observe under way is waited for
//
// The [Resolver]'s failures (no such name, timeout, an error from the server)
// are logged once until the cause changes, and tried again after 1 s, doubling
// up to 60 s.
//
// # Limits
//
// DNS over HTTPS, TLS or QUIC can't be seen, nor can a resolver on this host that
// answers over loopback: its own queries are seen if they leave through the link,
// but if it follows a CNAME with a query of its own, the answer to that names only
// the CNAME's target. Multiple questions in one message, other classes and
// opcodes are relayed and not learned. What an application cached before pinproxy
// started is covered by the Resolver for exact names only.
package dns
