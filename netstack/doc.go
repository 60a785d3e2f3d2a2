// Package netstack is the application's side of pinproxy. It terminates the TCP connections that come out of the TUN
// device and hands each one on as a Flow before it is answered.
//
// # Theory of operation
//
//	TUN ──▶ gate ──▶ gVisor ──▶ default TCP handler ──▶ Flow ──▶ handler (package proxy)
//	          │                        (a SYN)            │
//	          └─ knows every Flow by its 4-tuple          ├─ Accept: SYN-ACK, Conn
//	                                                      ├─ Reject: RST or ICMP
//	                                                      └─ Drop:   silence
//
// A SYN is parked, not answered: the packet itself is kept, and gVisor does not know of it yet. The handler dials
// upstream first and then decides what the application sees. Only Accept shows the SYN to gVisor: to a listening
// endpoint that no packet reaches otherwise, which does the handshake. No goroutine waits for the handshake to finish,
// so a half-open connection costs only an endpoint; see handshake.go. While a SYN is parked, its retransmissions are
// ignored, but their times are noted. When they stop, or the application's kernel says so, the application has given up
// (it gives no other sign), and the handler's context ends; see giveup.go. The context also ends when a SYN with
// another initial sequence number arrives on the same 4-tuple.
//
// Flows that arrive in a crowd take turns to begin, to be answered, and whenever they ask for a turn (Flow.Turn).
// Turns go round by Config.Group, and within a group by source. This keeps a flood of flows from delaying everybody
// else's packets; see turns.go.
//
// Flows that move as many bytes as they can do so in rounds. Between two rounds, flows that wait for a packet get
// their turn (Stack.Yield); see rounds.go. Work that is no flow's lets others on more often (Stack.GiveWay,
// Stack.StepAside).
//
// The gate sits between the device and gVisor and looks at the flags of each TCP packet. It repairs what goes wrong
// because there is no listening endpoint in gVisor's demultiplexer. An application that reuses its own source port
// sends a SYN on a 4-tuple whose old endpoint netstack still keeps, because its FIN or RST is queued but not yet
// processed (TIME_WAIT would keep it for 60 s, and is set to 0). gVisor drops that SYN or answers it with a reset. The
// gate knows that the old connection has ended, because the application's FIN or RST, or our RST, went through it. It
// takes the old endpoint out of the demultiplexer, and the SYN becomes a new flow. The old endpoint finishes its queue
// by itself.
//
// The gate also holds some acknowledgements back for a moment, because a reply sent within that time carries the same
// information: see replies.go.
//
// Urgent data passes both ways, though gVisor does not know of it: the gate reads and sets TCP's urgent pointer; see
// urgent.go.
//
// A handler may return while its connection lives on if it detaches the flow. A Conn can be watched instead of read:
// gVisor's wait queue calls back when there is something to read, so no goroutine has to wait for it.
//
// UDP takes another path: each datagram is handed to Config.Datagrams and answered by Datagram.Reply. There is no UDP
// endpoint and no state. Echo requests are handled the same way, by Config.Echoes: to gVisor every address is its
// own, so it would answer all of them, even for hosts that do not exist. Both arrive reassembled from their
// fragments, with what a relay needs to send them on unchanged (TTL, and whether they may be fragmented). ICMP errors
// about them are passed back as they came (Datagram.ICMP, Echo.ICMP).
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
//	more than 32,768 SYNs parked            silence; counted
//	a long line of SYNs waits to begin      silence to further ones; counted
//	32,768 handshakes are under way         silence; Accept fails with ENOBUFS
//	Datagram.Unreachable, Echo.Unreachable  ICMP port, host, net unreachable or prohibited
//	UDP, no Config.Datagrams                ICMP port unreachable
//	echo request, no Config.Echoes          ICMP administratively prohibited
//	echo request with a wrong checksum      silence
//	to a multicast group                    silence: gVisor has joined only IPv6's own
//	a segment of a connection we don't know RST (the rest of a predecessor's flow)
//	Stack.Serve ends                        RST on what is still open
//
// gVisor's types stay inside this package; callers see netip and net.Conn.
package netstack
