// Package ping carries an application's echo requests through unprivileged ICMP
// sockets, so that ping works without capabilities, and tells of what is really there.
//
// # Theory of operation
//
// A Linux ICMP socket (SOCK_DGRAM, IPPROTO_ICMP or IPPROTO_ICMPV6; net/ipv4/ping.c) sends echo
// requests and gets the replies to them. The kernel writes its own identifier, which is the
// socket's port, and the checksum, and leaves sequence number and data alone. Any
// process may open one whose group lies in the sysctl net.ipv4.ping_group_range of its network namespace,
// which holds for IPv6 as well.
//
// It is a connected datagram socket, so package udp's Relay does the work: an identifier
// of the application to one destination is a flow with its socket, bounded and timed out as
// such, and netstack's Echo puts the application's identifier back. Errors come out of the same error queue. They
// quote the message they are about, so that each finds its sequence number: traceroute -I and
// ping -t see the routers.
//
// # Failures
//
//	what happens                            what the application gets
//	nobody answers                          nothing
//	ICMP error from a router                the same, from the same router
//	too big, and not to be fragmented       ICMP with the MTU
//	group not in ping_group_range (EACCES)  ICMP administratively prohibited; a line
//	                                        in the log says what to set, once a minute
//	no route                                ICMP net unreachable
//	unused for 60 s (RFC 5508, REQ-2)       the flow ends; the next request begins a new one
//	a reply from another host               silence: the kernel looks at the identifier only, so we do
//	                                        at the address
//
// # Limits
//
// Nothing but echo is carried: no timestamp requests, no address masks. Pings to multicast and
// broadcast are not. The TTL of a reply is netstack's, not the one it came with. Linux only.
package ping
