// Package netstack is the application's side: it terminates the TCP connections
// that come out of the TUN device and hands each one on as a Flow, before it is
// answered.
//
// # Theory of operation
//
//	TUN ──▶ gate ──▶ gVisor ──▶ default TCP handler ──▶ Flow ──▶ handler (package proxy)
//	          │                        (a SYN)            │
//	          └─ knows every Flow by its 4-tuple          ├─ Accept: SYN-ACK, Conn
//	                                                      ├─ Reject: RST or ICMP
//	                                                      └─ Drop:   silence
//
// A SYN is parked, not answered: the packet itself is kept, and gVisor does not know of it yet. The handler dials upstream
// first and then says what the application is to see. Only Accept shows the SYN to a listening endpoint of gVisor, which no
// packet reaches otherwise, and that does the handshake. Nothing waits for its end: a half-open connection
// costs an endpoint, and no goroutine; see handshake.go. While a SYN is parked its
// retransmissions are ignored, but counted: when they stop coming, the application
// has given up, which it says in no other way, and the handler's context ends. So it
// does when a SYN with another initial sequence number comes on the same 4-tuple.
//
// Flows that come in a crowd take turns, to begin, to be answered, and whenever they ask for one (Flow.Turn): by Config.Group,
// and within it by source. That is what keeps a flood of them from everybody else's packets; see turns.go.
//
// Flows that move as many bytes as they can do so in rounds, between which those who wait for a packet have their turn
// (Stack.Yield); see rounds.go.
//
// The gate sits between the device and gVisor and looks at the flags of each TCP
// packet. It repairs what goes wrong where no listening endpoint is in gVisor's demultiplexer: an application that
// reuses its own source port sends a SYN on a 4-tuple
// whose old endpoint netstack still keeps (TIME_WAIT for 60 s, or a FIN or RST that is
// queued but not yet processed). gVisor drops that SYN, or answers it with a
// reset. The gate knows that the application has ended the old connection,
// because the FIN or RST went through it, takes the old endpoint out of the
// demultiplexer, and the SYN becomes a new flow. The old endpoint finishes its
// queue by itself.
//
// The gate also keeps some acknowledgements back for a moment, as a reply that comes within it says the same: see replies.go.
//
// A handler may return while its connection lives on, if it detaches the flow. A Conn can
// be watched then instead of read: gVisor's queue of waiters calls back when there is
// something to read, so nothing has to wait for it.
//
// UDP goes another way: each datagram is handed to Config.Datagrams, and answered
// by Datagram.Reply. There is no UDP endpoint and no state. So do echo requests, by
// Config.Echoes: gVisor, to which every address is its own, would answer them all, also for
// hosts that do not exist. Both come put together from their fragments, with what
// a relay needs to send them on alike (TTL, whether they may be fragmented), and ICMP
// errors about them are passed back (Datagram.ICMP, Echo.ICMP) as they came.
//
// # Life of a flow
//
//	         SYN              Accept               handshake done
//	(none) ──────▶ parked ────────────▶ answering ────────────────▶ open ──▶ (none)
//	                 │ Reject, Drop,                │ RST, silence,          when gVisor's endpoint
//	                 │ another SYN                  ▼ another SYN            has closed
//	                 └───────────────────────▶ (none)
//
// # Failures
//
//	what happens                            what the application sees
//	Reject(ECONNREFUSED)                    RST to its SYN: ECONNREFUSED
//	Reject(EHOSTUNREACH)                    ICMP host unreachable, ICMPv6 address unreachable
//	Reject(ENETUNREACH)                     ICMP net unreachable, ICMPv6 no route
//	Reject(EACCES)                          ICMP administratively prohibited: EHOSTUNREACH;
//	                                        ICMPv6 address unreachable, as prohibited would read EACCES
//	Drop                                    nothing; its next SYN is a new flow
//	Conn.Close after SetLinger(0)           what was written, then RST: ECONNRESET
//	application's RST                       Read and Write fail with ECONNRESET
//	more than MaxParked SYNs parked         silence; counted
//	a long line of SYNs waits to begin      silence to further ones; counted
//	MaxParked handshakes are under way      silence; Accept fails with ENOBUFS
//	Datagram.Unreachable, Echo.Unreachable  ICMP port, host, net unreachable or prohibited
//	UDP, no Config.Datagrams                ICMP port unreachable
//	echo request, no Config.Echoes          ICMP administratively prohibited
//	echo request with a wrong checksum      silence
//	to a multicast group                    silence: gVisor is in none but IPv6's own
//	a segment of a connection we don't know RST (the rest of a predecessor's flow)
//	Stack.Serve ends                        RST on what is still open
//
// gVisor's types end at this package's boundary; netip and net.Conn go on.
package netstack
