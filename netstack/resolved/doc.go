// Package resolved makes systemd-resolved send its queries for the rules' names to pinproxy. Through resolved's
// D-Bus interface org.freedesktop.resolve1, it makes the link the resolver for these names. It also knows which
// servers resolved would ask otherwise.
//
// # Theory of operation
//
// resolved binds its queries to the interface whose server it asks (IP_UNICAST_IF). For such a socket no route into
// another device is used, so policy rules do not bring the queries to pinproxy. But resolved itself chooses the
// interface by name. So the link is given a server, and the rules' names as routing domains:
//
//	application ── nss-resolve, 127.0.0.53 ──▶ resolved      dns.bank.example?  ~bank.example is pin0's
//	                                              │ query, bound to pin0, to 192.0.0.53
//	                                              ▼
//	                    pin0 ──▶ netstack ──▶ dns.Forwarder ─── Upstreams ──▶ resolved's state, read over D-Bus
//	                                              │                           without ours: eth0, 198.51.100.1
//	                                              ▼
//	                                        198.51.100.1, over eth0, marked like all our sockets
//
// The server's address is in 192.0.0.0/24 and assigned to nothing; no packet to it leaves the host. The servers that
// resolved would ask without pinproxy are chosen by resolved's own rules: the interfaces (or the global settings)
// with the longest domain that the name ends with, or else those that are default routes. Several are asked side by
// side, the servers of each in order. This is read again for queries that are at least a second apart, once for all that
// come meanwhile, so it needs no notifications. It never contains 127.0.0.53, 127.0.0.54 or our own address, because
// that would be a loop.
//
// A wildcard *.bank.example becomes the domain bank.example, and an exact name becomes a domain itself. Prefixes and
// `*` need no names. If there are more than 256 domains, which is resolved's limit, those below another one are left
// out, and then the longest are shortened. An extra name does no harm: it is answered by the servers that would have been
// asked anyway. Names below local are left to multicast DNS, unless a network has a domain that they are in: resolved
// would ask no server for them, and the longest domain that matches takes a name away from all others.
//
// An interface may have the domain of a wildcard itself. resolved then asks both it and us, and takes the first answer:
// ours come late for some names, and a warning says so. If an interface's domain is in that of a wildcard, it would be
// asked alone, so we register that domain too. An exact name is longer than either, so it is ours alone.
//
// A fresh link has an empty cache of its own, so what resolved cached before pinproxy's start is not used for the
// rules' names.
//
// The link inherits settings from the upstreams. Its DNSSEC mode is the strictest of those that the domains lead to.
// resolved can validate what pinproxy passes on, because queries and answers are not changed. Upstreams with
// DNSOverTLS=yes are asked over TLS, and their certificate is checked. With DNSOverTLS=opportunistic they are asked
// without TLS.
//
// Calls never start a service (D-Bus activation). A resolved in another network namespace is left alone, because the
// interface with our number is a different one there.
//
// # What happens when
//
//	no D-Bus, no resolved at the start   nothing, at once; looked for again after 1 s to 60 s
//	resolved starts, or restarts         registered as soon as D-Bus reports it (NameOwnerChanged)
//	another program changes the link's   registered again: at once if D-Bus reports it (servers), otherwise
//	settings (NetworkManager)            within 10 s; a warning; at growing intervals if it goes on, in the
//	                                     end a minute
//	resolved refuses                     a warning that says what to do; tried again every 10 s
//	resolved does not answer in 2 s      likewise
//	an interface comes, goes, roams      seen by the next query
//	no upstream is known for a name      SERVFAIL
//	an interface's servers do not have   that is the answer, 2 s later: another may have the name, but must
//	the name, another's are silent       answer before the client gives up
//	only FallbackDNS is known            the link becomes a default route as well: resolved stops using
//	                                     the fallback when any interface has a server
//	the end                              the domains are removed first, then, after the last flow, the rest
//	SIGKILL                              the link is gone, and with it what resolved knew of it
package resolved
