// Package host makes a whole host's connections enter the TUN device, and puts the host back. Linux
// only; [Plan] is pure and built everywhere.
//
// # Theory of operation
//
// Policy rules choose connections by destination port; routing tables, one for each distinct set of
// destination ports, choose among them by destination address. So what is captured can change by
// single routes, a hundred thousand of them cost a connection one longest-prefix lookup, and whatever
// is in no table goes the way it always went. The rules of one family, in the order the kernel asks them:
//
//	   0  lookup local                          the host's own addresses are never captured
//	4000  fwmark 0x70 ───────────────────┐      our own dials
//	4001  from TUN lookup 40000 ─▶ pin0  │      the rest of a captured flow
//	4002  from TUN unreachable           │      … once the device is gone
//	4003  has a source, iif lo ──────────┤      bound sockets, and connections open already
//	4010  iif lo tcp dport 443,          │      capture rules: one a range of ports;
//	        lookup 40002 ─▶ pin0         │        whatever the table does not have goes on
//	…                                    │
//	4900  tcp dport 1-65534, iif lo ─────┤      only if a set has a range that ends at 65535, a port
//	4901  iif lo tcp, lookup 40003 ─▶ pin0      that no rule can name
//	4999  nop ◀──────────────────────────┘      others' rules go on to mean what they meant
//	5210… Tailscale, wg-quick, main
//
// TUN is the device's address. `iif lo` means made on this host. The way of a captured connection:
//
//	connect()   source not chosen: 4003 does not mean it. 4010: table 40002 has the destination
//	            → device pin0, and the route's `src` becomes the source: the TUN's address
//	SYN, data   source is the TUN's address: 4001 → pin0, whatever else is asked for
//	pin0        a netstack reads the packets, and a socket of ours dials
//	our dial    has the mark: 4000 jumps behind the capture rules → main, or another's rule.
//	            If that finds no way, connect fails with ENETUNREACH: there is no way back to pin0
//	answers     written to pin0, source the server's: to a local address, so delivered. rp_filter
//	            asks for the way from the TUN's address to the server: 4001 → pin0, as it should be
//
// "Has a source" is written differently for the two families. IPv4: `not from 0.0.0.0/32`. IPv6: a
// rule with a source prefix never matches a lookup without source (fib6_rule_match), so `from ::/1` and
// `from 8000::/1` together are any source, and no rule can say "none". Connections that are open have
// a source: they are not captured, neither at the start nor at the end, for the guards come before the
// capture rules and go after them. A netstack would reset what it knows nothing of.
//
// IPv6 is captured while the host has an IPv6 route of its own, beyond its links: otherwise our address
// would make getaddrinfo(3) believe in IPv6. The device never speaks by itself: no link-local address,
// hence no router solicitation, no multicast, no ff00::/8 route. While nothing is captured its packet
// counters stay zero.
//
// DNS, if asked for, is one more table and a rule each for UDP and TCP to port 53.
//
// The pins' ports are added to net.ipv4.ip_local_reserved_ports, so that the kernel hands none of
// them to another program; binding them explicitly works on. Which of the entries are ours is written to
// a state file before the sysctl is changed.
//
// # Replace
//
// The order of the capture rules means nothing, nor does that of the guards among themselves: each has a place of its own,
// and what one table does not have goes on to the next. So single rules come and go while the others stand. A
// configuration that replaces another is reached like this:
//
//	          stands               Replace                                   stands then
//	rules     mark, self, guards ─────────────────────────────────────────▶ the same
//	          dport 443 ▶ 40002 ──────────────────────────────────────────▶ the same, not touched
//	          dport 80  ▶ 40003                     3 deleted: its place and its number stay free
//	                               2 dport 22 ▶ 40004, in a free place ────▶
//	routes    in 40002 ───────────────────────────────────────────────────▶ the same, not touched
//	                               1 in 40004, and new ones in 40002 ──────▶
//	          in 40003                              4 deleted
//	reserved  63999 ──────────────────────────────────────────────────────▶ the same
//	          64001                                 5 given back
//	                               0 63000, written down first ────────────▶
//
// 0 and 5 may fail, which is a warning. An error in 1 to 4 takes back what was done, the last thing first, and
// everything stands as before. What is repaired, brought when IPv6 appears and undone at the end is the new configuration
// from then on. Table numbers are Capture.Set's, so whoever keeps those keeps the routes.
//
// A flow of this host goes on without what captured it, since 4001 knows its address. One of a host behind a gateway does not:
// Linger gives it a rule of its own, from its source to its destination with both ports, at 4399, as long as it lives.
//
// # Strict
//
// Config.Strict leaves 4003 out, and the capture rules begin at 4400. Sockets bound to a source address are then captured as well. So is
// everything else with a source that a capture rule means: connections that are open at the start, which
// the netstack resets, and, where destination ports are `*`, the answers of servers on this host to
// clients whose address is captured. In 4003's place the pins' own source ports pass by: otherwise, where
// any rule of the host looks at the ports of forwarded packets, rp_filter=1 drops the answers to our
// own dials (and then still does to those from other ports than the pins', as `busy=any` makes them).
//
// Sockets bound to a device (SO_BINDTODEVICE, or IP_UNICAST_IF) are not captured either way: no
// route into another device is used for them.
//
// # Who undoes what
//
//	what happens                  what follows
//	error in the middle of Apply  what was done is undone; the error quotes the line that failed
//	error in the middle of        what was done is taken back, and what stood before stands;
//	Replace                       no rule or route that both want was touched
//	no place for rules to come    an error, nothing was changed: with hundreds of ranges, old and
//	beside those to go            new ones together may be more than there are places
//	orderly end                   Stop: nothing further is captured; flows end; undo, in reverse
//	SIGKILL                       the kernel removes device, addresses, routes. The rules left find
//	                              empty tables: all traffic goes its usual way at once. 4002 keeps what
//	                              is left of captured flows from leaving with the TUN's address.
//	                              Cleanup, also at the next start, removes rules and reserved ports
//	a rule, route or address of   put back within some 10 ms, in the order of the plan; when it goes on,
//	ours is deleted               less and less often, every 5 s at last. Meanwhile what it captured
//	                              goes its usual way; connections of which only the guard is gone,
//	                              capture rules still there, are captured and so reset
//	device set down               set up, and everything on it put back
//	device deleted                Run returns ErrLinkGone
//	notifications lost (ENOBUFS)  everything is compared
//	suspend; sysctl.conf reread   everything is compared at least once a minute
//	IPv6 appears                  captured from the route's coming on, while addresses are tentative
//	IPv6 disappears               not captured any more after two regular looks that miss it, so
//	                              that roaming ends no flow
//	an uplink changes             nothing: no route of ours names one
//	state file cannot be written  ports are used unreserved, with a warning
//	second start                  HeldError names the first's pid; the lock goes with the process
//	other tools' entries          stay: everything of ours has protocol number 80, and only
//	                              ports that were not reserved before us are taken back
//
// Every change is a [Step], whose text is the `ip` or `sysctl` line that makes it; those lines, pasted
// into a shell, leave a host as Apply does.
package host
