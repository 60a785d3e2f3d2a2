// Package udp carries an application's UDP datagrams to their destinations, and the answers back.
//
// # Theory of operation
//
// UDP has no connections, so the package defines flows: everything that goes from one address and port of the
// application to one destination is a flow. Each flow has a socket of ours, connected to the destination. The kernel
// gives the socket a port, drops what other senders send there, and reports ICMP errors to it.
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
// A flow is one goroutine, which opens the socket and then waits for what comes back. Outgoing datagrams are sent by
// the caller of Handle, without waiting: a wake-up for each datagram would cost more than the system call. Datagrams
// are queued only while the socket is being opened or takes no more. The flow's goroutine, or a second one that ends
// with the queue, sends them as space becomes available. So Handle never blocks.
//
//	           dialed                first answer
//	new flow ──────────▶ unanswered ──────────────▶ answered
//	   │ dial fails          │ 30 s unused             │ 180 s unused
//	   ▼                     ▼                         ▼
//	 ICMP                  (none)                    (none)
//
// A datagram in either direction counts as use. When there are 4096 flows, one is evicted: the longest-unused among
// those never answered, or, if all were answered, the longest-unused of all. A port scan therefore does not end a call.
//
// A buffer is taken when a datagram is there and given back before waiting for the next, so an idle flow holds none.
// With UDP_GRO, one read returns what the network card or a sender on this machine has put together, up to 64 KiB.
// This is how QUIC servers send.
//
// # Size
//
// A datagram that must not be fragmented ([Datagram.DontFragment]) is sent with IP_PMTUDISC_DO (the same value for
// IPV6_MTU_DISCOVER). If it is larger than the path MTU, the kernel says so in the error queue, either at once or
// when a router has answered. The application gets the ICMP "fragmentation needed" or ICMPv6 "packet too big" that
// it would have got from that router, and its kernel then knows the path MTU. Any other datagram is sent with
// IP_PMTUDISC_DONT and fragmented by the kernel and by routers, up to 65,507 bytes (IPv6: 65,527). Answers may have
// any size; [Datagram.Reply] fragments them for the device.
//
// The TTL is the application's, so that traceroute sees the path as it is from this host. Neither the TUN nor
// pinproxy counts as a hop.
//
// # Failures
//
//	event                                   what the application gets
//	peer's port closed                      its ICMP port unreachable: ECONNREFUSED
//	any other ICMP error                    the same, from the same router
//	too big, and not to be fragmented       ICMP with the MTU: EMSGSIZE
//	no route, no IPv6                       ICMP net unreachable
//	forbidden by this host's firewall       ICMP prohibited
//	any other error of dial or send         ICMP host unreachable; logged, once a minute for
//	                                        each errno. The flow ends, because the route it was
//	                                        bound to may be gone; the next datagram begins a new one
//	socket takes no more                    queue; beyond 256 KiB a flow or 16 MiB in all: loss
//	no buffers in the kernel (ENOBUFS)      loss
//	no descriptors left (EMFILE)            loss; one flow is evicted, as above. Logged
//	too many flows                          one flow is evicted, as above; what arrives for it
//	                                        later is lost
//	to multicast, broadcast, loopback       silence; to IPv6 link-local: ICMP net unreachable
//	shutdown                                sockets close, Serve returns after its goroutines
//
// An error in the kernel's queue is returned by the next call on the socket, and that call does nothing else. A send
// that returns such an error is therefore tried again.
//
// # Limits
//
// Multicast and broadcast are not carried, because their answers come from addresses that cannot be known in
// advance. For the same reason, an answer from another address or port than the request was sent to is dropped
// (RFC 4787 calls this address and port-dependent filtering), and nobody can reach an application that has not sent
// first. TOS, ECN and IP options are not carried in either direction, nor is the TTL of answers. A flow keeps its
// local address when the host gets another one. It ends with the first error the kernel reports for that address, or
// when it goes unused.
//
// Option names are the only thing in the package that is specific to UDP. An ICMP socket is a connected datagram
// socket too; see package ping. On systems other than Linux, datagrams are carried both ways, but ICMP, TTL and path
// MTU are ignored.
package udp
