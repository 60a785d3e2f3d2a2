// Package host makes a whole host's connections enter the TUN device, and restores the host afterwards. It
// works on Linux only; [Plan] is pure and built everywhere.
//
// # Theory of operation
//
// Policy rules select connections by destination port. Routing tables, one for each distinct set of destination
// ports, select among them by destination address. So single routes are enough to change what is captured, a
// hundred thousand routes cost a connection one longest-prefix lookup, and traffic that is in no table takes
// its usual path. The rules of one family, in the order in which the kernel evaluates them:
//
//	   0  lookup local                          the host's own addresses are never captured
//	4000  fwmark 0x70 ───────────────────┐      our own dials
//	4001  from TUN, iif lo,              │      the rest of a captured flow
//	        lookup 40000 ─▶ pin0         │
//	4002  from TUN unreachable           │      … once the device is gone, and others' packets
//	4003  has a source, iif lo ──────────┤      bound sockets, and open connections
//	4010  iif lo tcp dport 443,          │      capture rules: one per range of ports;
//	        lookup 40002 ─▶ pin0         │        what the table lacks continues below
//	…                                    │
//	4900  tcp dport 1-65534, iif lo ─────┤      only if a set has a range that ends at 65535, a port
//	4901  iif lo tcp, lookup 40003 ─▶ pin0      that no rule can name
//	4999  nop ◀──────────────────────────┘      others' rules keep their meaning
//	5210… Tailscale, wg-quick, main
//
// TUN is the device's address. `iif lo` means originated on this host. The path of a captured connection:
//
//	connect()   source not chosen: 4003 does not match. 4010: table 40002 has the destination
//	            → device pin0, and the route's `src` becomes the source: the TUN's address
//	SYN, data   source is the TUN's address: 4001 → pin0, whatever the destination
//	pin0        a netstack reads the packets, and a socket of ours dials
//	our dial    has the mark: 4000 jumps behind the capture rules → main, or another's rule.
//	            If that finds no route, connect fails with ENETUNREACH: nothing leads back to pin0
//	answers     written to pin0, source the server's: to a local address, so delivered. rp_filter
//	            looks up the path from the TUN's address to the server: 4001 → pin0, as it should be
//
// "Has a source" is written differently for the two families. For IPv4 it is `not from 0.0.0.0/32`. For IPv6, a
// rule with a source prefix never matches a lookup without a source (fib6_rule_match), so `from ::/1` and `from
// 8000::/1` together mean any source, and no rule can say "none". Open connections have a source. They are not
// captured, neither at the start nor at the end, because the guards are added before the capture rules and
// removed after them. A netstack would reset connections that it does not know.
//
// With gateways the device has two addresses. Hosts behind one may be masqueraded on their way into the device.
// They then get the second, by which they are told from this host. 4003 and 4004 are for it what 4001 and 4002 are
// for the first, and all that follows comes later.
//
// IPv6 is captured while the host has an IPv6 route of its own, beyond its links. Otherwise our address would
// make getaddrinfo(3) believe in IPv6. The device never sends anything by itself: it has no link-local address,
// hence no router solicitation, no multicast, and no ff00::/8 route. While nothing is captured its packet
// counters stay zero.
//
// DNS, if requested, is one more table and one rule each for UDP and TCP to port 53.
//
// The pins' ports are added to net.ipv4.ip_local_reserved_ports, so that the kernel gives none of them to
// another program. Binding them explicitly still works. A state file records which entries are ours before the
// sysctl is changed.
//
// # Replace
//
// The order of the capture rules does not matter, nor does the order of the guards among themselves: each has
// its own place, and a lookup that one table does not answer continues with the next. So single rules come and
// go while the others stay. A configuration replaces another like this:
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
//	          64001                                 5 released
//	                               0 63000, recorded first ────────────────▶
//
// 0 and 5 may fail, which is a warning. An error in 1 to 4 undoes what was done, in reverse, and everything is
// as before. From then on repairs, the start of IPv6 and the final undo use the new configuration. Table
// numbers are Capture.Set's, so keeping those keeps the routes.
//
// A flow of this host continues without the rule that captured it, since 4001 knows its address. A flow of a
// host behind a gateway does not. Linger gives it a rule of its own at 4397 to 4399, from its source to its destination
// with both ports, for as long as it lives.
//
// # Strict
//
// Config.Strict omits 4003, and the capture rules begin at 4400. Sockets bound to a source address are then
// captured as well. So is everything else with a source that matches a capture rule: connections that are open
// at the start, which the netstack resets, and, where destination ports are `*`, the answers of servers on this
// host to clients whose address is captured. In place of 4003 there are rules that let the pins' own source
// ports through. Without them, if any rule of the host looks at the ports of forwarded packets, rp_filter=1
// drops the answers to our own dials. It still drops the answers to dials from ports other than the pins',
// which `busy=any` makes. If no rule of the host does, rp_filter=1 would drop the answers to bound sockets, so the
// device's own is set to 2.
//
// Sockets bound to a device (SO_BINDTODEVICE, or IP_UNICAST_IF) are never captured: no route into another
// device is used for them.
//
// # Who undoes what
//
//	what happens                  what follows
//	error in the middle of Apply  what was done is undone; the error quotes the line that failed
//	error in the middle of        what was done is undone, and the previous state stands;
//	Replace                       no rule or route that both want was touched
//	no room for new rules beside  an error, nothing was changed: with hundreds of ranges, old and
//	the old ones                  new ones together may be more than there are places
//	SIGKILL                       the kernel removes device, addresses, routes. The remaining rules
//	                              find empty tables: all traffic takes its usual path at once. 4002
//	                              keeps remnants of captured flows from leaving with the TUN's address.
//	                              Cleanup, also at the next start, removes rules and reserved ports
//	a rule, route or address of   put back within some 10 ms, in plan order; if it happens again, less
//	ours is deleted               and less often, finally every 5 s. Meanwhile what it captured takes
//	                              its usual path; if only a guard is gone and the capture rules are
//	                              still there, its connections are captured and so reset
//	… but cannot be put back      a warning; tried again likewise
//	device set down               set up, and everything on it put back
//	IPv6 off on the device alone  set on, and everything put back
//	IPv6 off on the whole host    no longer captured from then on, captured as soon as it is back
//	device deleted                Run returns ErrLinkGone
//	notifications lost (ENOBUFS)  everything is compared
//	suspend; sysctl.conf reread   everything is compared at least once a minute
//	IPv6 appears                  captured as soon as the route is there, even with tentative addresses
//	IPv6 disappears               no longer captured after two regular checks without it, so
//	                              that roaming ends no flow
//	an uplink changes             nothing: no route of ours names one
//	state file cannot be written  ports are used unreserved, with a warning
//	state file is damaged         if we were killed, too: the ports stay reserved, with a warning
//	second start                  HeldError gives the first one's pid; the lock ends with the process
//	other tools' entries          stay: everything of ours has protocol number 80, and only
//	                              ports that were not reserved before us are released
//
// Every change is a [Step], whose text is the `ip` or `sysctl` line that makes it. Pasted into a shell, those
// lines leave a host in the same state as Apply.
package host
