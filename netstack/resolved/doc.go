// Package resolved brings the rules' names to pinproxy where systemd-resolved looks them up. It makes the link the
// resolver of these names, by resolved's D-Bus interface org.freedesktop.resolve1, and knows who would have been
// asked otherwise.
//
// # Theory of operation
//
// resolved binds its queries to the interface whose server it asks (IP_UNICAST_IF), and no route into another device
// is used for such a socket: policy rules do not bring them to us. But resolved itself chooses the interface by name.
// So the link is given a server and the rules' names as routing domains:
//
//	application ── nss-resolve, 127.0.0.53 ──▶ resolved      dns.bank.example?  ~bank.example is pin0's
//	                                              │ query, bound to pin0, to 192.0.0.53
//	                                              ▼
//	                    pin0 ──▶ netstack ──▶ dns.Forwarder ─── Upstreams ──▶ resolved's state, read over D-Bus
//	                                              │                           without ours: eth0, 198.51.100.1
//	                                              ▼
//	                                        198.51.100.1, over eth0, marked as all sockets of ours
//
// The server's address is one of 192.0.0.0/24 that is assigned to nothing; no packet to it leaves the host. Whom
// resolved would ask if we were not there is decided as resolved decides it: the interfaces (or the global
// settings) with the longest domain that the name ends with, or else those that are default routes; several
// are asked side by side, the servers of each in order. This is read anew for queries that are a second
// apart, so it needs no notifications, and it never contains 127.0.0.53, 127.0.0.54 or our own address: that would be a circle.
//
// A wildcard *.bank.example becomes the domain bank.example, an exact name itself; prefixes and `*` need no
// names. What of this lies below one another is left out, and if more than 256 domains are left, which is what resolved
// takes, the longest are shortened. A name too many does no harm: it is answered by those who would have been asked.
//
// A fresh link has an empty cache of its own, so what resolved has cached before pinproxy's start is not used for the
// rules' names.
//
// The link inherits what the upstreams have: DNSSEC is the strictest mode of those that the domains lead to; resolved
// validates what we hand on, as queries and answers are not changed. Upstreams with DNSOverTLS=yes are
// asked over TLS, with their certificate checked; with DNSOverTLS=opportunistic they are asked without.
//
// Nothing is started by asking for it (D-Bus activation), and nothing is done to a resolved of another network
// namespace, whose interface with our number is another one.
//
// # What happens when
//
//	no D-Bus, no resolved at the start   nothing, at once; looked for again after 1 s to 60 s
//	resolved starts, or restarts         registered as soon as D-Bus tells (NameOwnerChanged)
//	somebody changes the link's          registered again: at once if D-Bus tells (servers), else within
//	settings (NetworkManager)            10 s; a warning; at growing distance if it goes on, a minute at last
//	resolved refuses                     a warning that says what to do; tried again every 10 s
//	resolved does not answer in 2 s      likewise
//	an interface comes, goes, roams      seen by the next query
//	no upstream is known for a name      SERVFAIL
//	only FallbackDNS is known            the link becomes a default route as well: resolved stops using
//	                                     the fallback when any interface has a server
//	the end                              first the domains are taken off, then, after the last flow, all of it
//	SIGKILL                              the link is gone, and with it what resolved knew of it
package resolved
