// Package ping carries an application's echo requests through unprivileged ICMP sockets, so that ping works without
// capabilities and shows what is really there.
//
// # Theory of operation
//
// A Linux ICMP socket (SOCK_DGRAM, IPPROTO_ICMP or IPPROTO_ICMPV6; net/ipv4/ping.c) sends echo requests and receives
// the replies to them. The kernel writes its own identifier, which is the socket's port, and the checksum. It leaves
// the sequence number and the data alone. A process may open such a socket if its group is in the sysctl
// net.ipv4.ping_group_range of its network namespace; this sysctl applies to IPv6 as well.
//
// The socket is a connected datagram socket, so package udp's Relay does the work. One identifier of the application
// towards one destination is a flow with its own socket, bounded and timed out as such. netstack's Echo restores the
// application's identifier. Errors are read from the same error queue. They quote the message they are about, so
// each can be matched to its sequence number: traceroute -I and ping -t see the routers.
//
// # Failures
//
//	event                                   what the application gets
//	no reply                                nothing
//	ICMP error from a router                the same, from the same router
//	too big, and not to be fragmented       ICMP with the MTU
//	group not in ping_group_range (EACCES)  ICMP administratively prohibited; a line
//	                                        in the log says what to set, once a minute
//	the host prohibits the destination      ICMP administratively prohibited
//	no route                                ICMP net unreachable
//	unused for 60 s (RFC 5508, REQ-2)       the flow ends; the next request begins a new one
//	a reply from another host               silence: the kernel checks only the identifier, so
//	                                        pinproxy checks the address
//
// # Limits
//
// Before Linux 6.1 the kernel writes a wrong checksum into an ICMPv6 request of more than a page (ping_getfrag), which then
// gets no reply.
//
// Only echo is carried: no timestamp requests, no address masks, no pings to multicast or broadcast. The TTL of a
// reply is netstack's, not the one it arrived with. Linux only.
package ping
