// Package proxy is the network side. It carries a flow from the decision to the last byte.
//
// # Theory of operation
//
//	Flow ─▶ decide ─▶ lease a source port ─▶ dial ─▶ verify ─▶ answer ─▶ splice ─▶ release, log
//	         rules        proxy/lease         │         │         │
//	                           ▲              │         │         └ Accept: only now is the
//	                           └── busy ──────┘         │           application's handshake answered
//	                                                    └ getsockname = lease, or the flow fails
//
// The application's SYN waits while we dial. Once the upstream has answered, we answer too, and carry bytes until
// both directions have ended. A FIN in one direction is passed on as a FIN in that direction, and the other direction
// continues. If one end ends in any other way, the other end is reset, after the bytes that were under way.
//
// A direction has a goroutine while bytes move. After half a second to a second in which nothing has moved it falls
// asleep: the goroutine ends, and whatever would have woken it (netstack's queue, or an epoll instance of our own,
// with one goroutine for all sockets) starts a new one. So an idle flow costs no stack. The difference is invisible:
// a sleeping flow is listed, counted as idle, reclaimed, drained and reset like any other, and whoever ends it wakes
// it first. Also an end whose stream is over is watched while the other direction sleeps, for a reset, which no read
// reports. Where an end can't be watched (systems other than Linux, connections that are inspected) the goroutine
// stays. When many flows have fallen asleep or ended, Config.Quiet is told that there is memory to return. Flows that
// wake or end all at once, as when their server restarts, take turns (Flow.Turn).
//
// On the way up there is no copy in between. The upstream socket is written from the buffers in which netstack keeps
// what the application has sent, and what the socket does not accept stays there (lender, borrower). On the way down
// a chunk is read and written.
//
// Data that an end does not accept yet is kept, up to a bound per flow: on the way up in netstack; on the way down in
// the upstream socket, in a chunk of ours and in netstack. While more than 128 flows are awake, new ones get a
// smaller bound (Config.Share). While more than 512 are awake, all have smaller chunks on the way down. When more
// than a few flows move many bytes at a time, Config.Busy is told. A flow that moves many bytes lets others run in
// between (Config.Yield), and so does whoever looks at all flows (Config.GiveWay).
//
// A flow leaves from its rule's pin or not at all. The socket is bound explicitly, with SO_REUSEADDR on every socket
// that ever uses the port. Then it is connected, and its local port is read back, because the kernel silently ignores
// some ways of asking for a port. If every port of the pin is taken, the rule's busy list says what happens. Only
// busy=any leads to another port, and it is logged.
//
// The lease table knows only our own flows. The kernel may hold a 4-tuple all the same: after we closed first
// (TIME_WAIT, FIN_WAIT2), or for another program. Bind or connect then fails with EADDRINUSE or EADDRNOTAVAIL. The
// port rests for a moment, and the flow continues as if the port were busy, without losing its turn. If that takes
// more than 20 ms, the Dialer is asked what is in the way (Obstacle), for all flows together a tenth of the time at
// most. The log reports it, and if the kernel gives a time, the port rests for that long.
//
// Flows are numbered in the order of their SYNs. They are served in that order, and the log identifies them by
// number. Each flow has a stage and, while it waits, a cause (Flows). The number of unanswered flows is bounded per
// rule and per source address (crowd), so that a silent upstream does not keep others out.
//
// # Failures
//
//	upstream                        application                 log
//	refuses (RST to our SYN)        ECONNREFUSED                flow failed: connection refused
//	unreachable (ICMP, no route)    EHOSTUNREACH, ENETUNREACH   flow failed: no route to host
//	silent                          silence                     flow failed after Config.DialTimeout,
//	                                                            and whether another port gets an answer
//	(too many unanswered flows)     silence; it repeats its SYN too many flows wait
//	closes one direction            that direction closes       -
//	resets, times out               ECONNRESET                  flow, end "reset by upstream"
//
//	pin                             application                 log
//	every port busy                 the rule's busy list        who holds them
//	another program has the port    waits, up to the rule's     program, pid, socket
//	                                wait; EHOSTUNREACH
//	TIME_WAIT that can't be ended   waits until it ends         seconds left, and why
//	(see Endings)
//	cannot be bound                 EHOSTUNREACH                bind: cause
//	differs from the socket's       EHOSTUNREACH                both addresses
//	leads back to itself            EHOSTUNREACH                source equals destination
//	application signs (TCP-MD5)     EHOSTUNREACH                that it does
//
//	application                     upstream
//	closes one direction            that direction closes
//	resets, is killed               reset
//	gives up while we dial          nothing; the dial ends and the port is free
//
//	its address has left the host   none; after 10 s both are reset, if another flow is waiting
//	                                for a port of the pin, or has just failed to get one
//
//	its application is gone,        reset, if another flow is waiting for a port of the pin, or
//	and its kernel has forgotten it has just failed to get one
//
//	we end a flow (reclaim, stop)   both: FIN, what was read is delivered; an end that sends more
//	                                after that, or has not ended a second later, is reset
//
//	a flow sleeps                   application, upstream       log
//	bytes, FIN, reset come          as above: it wakes          as above
//	the kernel can't watch it       none; it keeps a goroutine  -
//
// The package knows nothing of the device or of gVisor. A Flow is what it consumes.
package proxy
