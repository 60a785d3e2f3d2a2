// Package udp carries an application's UDP datagrams to where they were sent, and
// the answers back.
//
// # Theory of operation
//
// UDP has no connections, so one is assumed: whatever goes from one address and port of the
// application to one destination is a flow, and a flow has a socket of ours, connected
// to the destination. The kernel gives it a port, drops what anybody else sends there,
// and tells it of ICMP errors.
//
//	application                      pinproxy                          peer
//	    |  datagram     +---------+  Handle    +-------+  datagram       |
//	    |-------------->|         |----------->|       |---------------->|
//	    |               | netstack|            | Relay |                 |
//	    |<--------------|         |<-----------|       |<----------------|
//	    |  datagram     +---------+   Reply    +---+---+  datagram       |
//	    |                    ^                     |  error queue        |
//	    |<- - - ICMP - - - - +--------ICMP---------+<- - - ICMP - - - - -|
//
// A flow is one goroutine, which opens the socket and then waits for what comes
// back. What goes out is sent by whoever calls Handle, without waiting: a wake-up for
// each datagram would cost more than the system call. Only while the socket
// is being opened, or when it takes no more, datagrams are queued; the flow's goroutine, or a
// second one that ends with the queue, sends them as room comes. So Handle never blocks.
//
//	           dialed                first answer
//	new flow ──────────▶ unanswered ──────────────▶ answered
//	   │ dial fails          │ 30 s unused             │ 180 s unused
//	   ▼                     ▼                         ▼
//	 ICMP                  (none)                    (none)
//
// A datagram in either direction counts as use. When there are [Limits.Flows] of
// them, or [Limits.PerSource] from one address, the flow goes that was never answered and is
// unused for longest, or else the one that is unused for longest: a scan of ports
// does not end a call.
//
// Buffers are taken when a datagram is there and given back before waiting for the
// next: an idle flow holds none. With UDP_GRO one read takes what the network card or
// a sender on this machine has put together, up to 64 KiB, which is how
// QUIC servers send.
//
// # Size
//
// A datagram that nobody may fragment ([Datagram.DontFragment]) is sent with
// IP_PMTUDISC_DO (IPV6_MTU_DISCOVER alike). If it is larger than the path MTU, the kernel says so in
// the error queue, at once or when a router has answered, and the application gets the
// ICMP "fragmentation needed" or ICMPv6 "packet too big" that it would have got from that router.
// Its kernel then knows the path MTU. Any other datagram is sent with
// IP_PMTUDISC_DONT and fragmented by the kernel and by routers, up to 65,507 bytes
// (IPv6: 65,527). Answers have any size; [Datagram.Reply] fragments them for the device.
//
// The TTL is the application's, so that traceroute sees the way as from this host: the
// TUN and we are no hop.
//
// # Failures
//
//	what happens                            what the application gets
//	peer's port closed                      its ICMP port unreachable: ECONNREFUSED
//	any other ICMP error                    the same, from the same router
//	too big, and not to be fragmented       ICMP with the MTU: EMSGSIZE
//	no route, no IPv6                       ICMP net unreachable
//	forbidden by this host's firewall       ICMP prohibited
//	any other error of dial or send         ICMP host unreachable; logged, once a minute for
//	                                        each errno. The flow ends, for the route it was bound to
//	                                        may have gone, and the next datagram begins a new one
//	socket takes no more                    queue; beyond 256 KiB a flow or 16 MiB in all: loss
//	no buffers in the kernel (ENOBUFS)      loss
//	no descriptors left (EMFILE)            loss; the flow that is missed least goes. Logged
//	too many flows                          the flow that is missed least goes; what comes
//	                                        for it later is lost
//	to multicast, broadcast, loopback       silence; to IPv6 link-local: ICMP net unreachable
//	shutdown                                sockets close, Serve returns after its goroutines
//
// An error in the kernel's queue is returned by the next call on the socket, which
// then does nothing else: a send that meets one is tried again.
//
// # Limits
//
// Multicast and broadcast are not carried: their answers come from addresses nobody can tell
// beforehand. For the same reason a peer that answers from another address or port than it was asked
// at is not heard (RFC 4787 calls this address and port-dependent filtering), and nobody
// reaches an application that has not sent first. TOS, ECN and IP options are not carried in either direction, nor the
// TTL of answers. A flow keeps its local address when the host gets another one; it ends with the
// first error the kernel gives for that, or by going unused.
//
// The package knows nothing of UDP but the names of options: an ICMP socket is a connected
// datagram socket as well, see package ping. On systems other than Linux datagrams go there and back, but
// ICMP, TTL and path MTU are not looked at.
package udp
