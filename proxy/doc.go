// Package proxy is the network's side: the life of a flow, from the decision to
// the last byte.
//
// # Theory of operation
//
//	Flow ─▶ decide ─▶ lease a source port ─▶ dial ─▶ verify ─▶ answer ─▶ splice ─▶ release, log
//	         rules        proxy/lease         │         │         │
//	                           ▲              │         │         └ Accept: only now is the
//	                           └── busy ──────┘         │           application's handshake answered
//	                                                    └ getsockname = lease, or the flow fails
//
// The application's SYN waits while we dial. When the upstream has answered, so
// do we, and the bytes are carried until both
// directions have ended. A direction that ends by FIN ends the same direction
// on the other side, and the other goes on. Whatever else ends one end, ends
// the other end by a reset, behind the bytes that were on their way.
//
// A direction has a goroutine while bytes move. When nothing has moved for half a second
// or a whole one it falls asleep: the goroutine ends, and who would have woken it
// (netstack's queue, or an epoll instance of our own, with one goroutine for all sockets)
// has another one started. So an idle flow costs no stack. Nobody sees a difference:
// a sleeping flow is listed, counted as idle, reclaimed, drained and reset as any other, and
// whoever ends it wakes it first. Where an end can't be watched (other systems than Linux,
// connections that are looked into) the goroutine stays. When many flows have fallen
// asleep or ended, Config.Quiet is told that there is memory to return. Flows that wake or end all at once, as when their server
// is restarted, take turns (Flow.Turn).
//
// On the way up nothing is copied in between: the upstream's socket is written from the buffers in which netstack keeps what
// the application has sent, and what the socket does not take stays there (lender, borrower). On the way down a chunk is read
// and written.
//
// What an end does not take is kept, up to a bound for each flow: on the way up in netstack, on the way down in the upstream
// socket, in a chunk of ours and in netstack. While more than 128 flows are awake those that come get a smaller one (Config.Share), and while there are more than
// 512 all have smaller chunks on the way down. When more than a few move many bytes at a time, Config.Busy is told.
// Whoever moves many lets others on in between (Config.Yield), and so does whoever looks at all flows (Config.GiveWay).
//
// A flow leaves from its rule's pin or not at all. The socket is bound
// explicitly, with SO_REUSEADDR on every socket that ever uses the port, then
// connected, and its local port read back: the kernel ignores some ways of
// asking for a port without a word. If every port of the pin is taken, the
// rule's busy list says what happens; busy=any is the only way to another port,
// and it is logged.
//
// The lease table knows our own flows only. The kernel may hold a 4-tuple all the
// same: after we closed first (TIME_WAIT, FIN_WAIT2), or for another program. Bind
// or connect then fail with EADDRINUSE or EADDRNOTAVAIL, the port rests for a
// moment, and the flow goes on as if it were busy, in the turn it had. Once that
// takes more than 20 ms the Dialer is asked what is in the way (Obstacle): the log says
// it, and where the kernel names a time the port rests for as long.
//
// Flows have numbers, of their SYNs' order: they are served by them, and named by them
// in the log. Each is at a stage, with the cause of its waiting (Flows). Those that
// are not answered yet are bounded per rule and per source address (crowd), so that
// a silent upstream does not keep others from being taken in.
//
// # Failures
//
//	upstream                        application                 log
//	refuses (RST to our SYN)        ECONNREFUSED                flow failed: connection refused
//	unreachable (ICMP, no route)    EHOSTUNREACH, ENETUNREACH   flow failed: no route to host
//	silent                          silence                     flow failed after Config.DialTimeout,
//	                                                            and whether another port is answered
//	(too many unanswered flows)     silence; its SYN comes again too many flows wait
//	closes one direction            that direction closes       -
//	resets, times out               ECONNRESET                  flow, end "reset by upstream"
//
//	pin                             application                 log
//	every port busy                 the rule's busy list        who holds them
//	another program has the port    waits, up to the rule's     program, pid, socket
//	                                wait; EHOSTUNREACH
//	TIME_WAIT that can't be ended   waits for its end           seconds left, and why
//	cannot be bound                 EHOSTUNREACH                bind: cause
//	is not what the socket has      EHOSTUNREACH                both addresses
//	leads back to itself            EHOSTUNREACH                source equals destination
//
//	application                     upstream
//	closes one direction            that direction closes
//	resets, is killed               reset
//	gives up while we dial          nothing; the dial ends and the port is free
//
//	its address has left the host   none; after 10 s both are reset, if another flow waits
//	                                for its port
//
//	we end a flow (reclaim, stop)   both: FIN, what was read is delivered; who says more
//	                                then, or has not ended a second later, is reset
//
//	a flow sleeps                   application, upstream       log
//	bytes, FIN, reset come          as above: it wakes          as above
//	the kernel can't watch it       none: it keeps a goroutine  -
//
// The package knows no device and no gVisor: a Flow is what it consumes.
package proxy
