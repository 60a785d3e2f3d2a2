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
// do we, and two goroutines carry the bytes, one a direction, until both
// directions have ended. A direction that ends by FIN ends the same direction
// on the other side, and the other goes on. Whatever else ends one end, ends
// the other end by a reset, behind the bytes that were on their way.
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
// moment, and the flow goes on as if it were busy.
//
// # Failures
//
//	upstream                        application                 log
//	refuses (RST to our SYN)        ECONNREFUSED                flow failed: connection refused
//	unreachable (ICMP, no route)    EHOSTUNREACH, ENETUNREACH   flow failed: no route to host
//	silent                          silence                     flow failed after Config.DialTimeout
//	closes one direction            that direction closes       -
//	resets, times out               ECONNRESET                  flow, end "reset by upstream"
//
//	pin                             application                 log
//	every port busy                 the rule's busy list        who holds them
//	cannot be bound                 EHOSTUNREACH                bind: cause
//	is not what the socket has      EHOSTUNREACH                both addresses
//	leads back to itself            EHOSTUNREACH                source equals destination
//
//	application                     upstream
//	closes one direction            that direction closes
//	resets, is killed               reset
//	gives up while we dial          nothing; the dial ends and the port is free
//
//	we end a flow (reclaim, stop)   both: FIN, what was read is delivered; who says more
//	                                then, or has not ended a second later, is reset
//
// The package knows no device and no gVisor: a Flow is what it consumes.
package proxy
