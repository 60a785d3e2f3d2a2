// Package lease tracks which flow holds which source port towards which destination.
//
// A lease is the exclusive right to one 4-tuple (source address, source port, destination address, destination port)
// while a flow uses it. The kernel refuses a second socket on a live 4-tuple at once (EADDRNOTAVAIL). The table in
// this package turns that refusal into an orderly queue. It also spreads flows over a range, so that each port rests
// as long as it can.
//
// # Theory of operation
//
// A pool is a pin towards a destination: the ports that one rule may use there. A pair is a source address and a
// destination. The pair owns the 4-tuples, because pins with different ports may overlap (=63999 and =63990-63999)
// and must still never hold one 4-tuple twice. Nearly every pair has one pool.
//
// The life cycle of a 4-tuple:
//
//	         Acquire             Release, with a rest or a cooldown
//	(fresh) ─────────▶ [held] ────────────────────────────▶ [resting]
//	   ▲                ▲  │▲                                   │
//	   │        Acquire │  │└── given straight to the longest ──┤ the rest
//	   │                │  ▼    waiter                          │ is over
//	   │               [ready] ◀────────────────────────────────┘
//	   │   forgotten      │
//	   └──────────────────┘  4 minutes after its last use, or 65,536 uses of others
//
// Fresh 4-tuples cost nothing: a pool keeps them as a queue of port ranges. Initially these are the pin's own
// ranges, taken in ascending order. Only the states in brackets have a record. Ready ports are taken after the fresh
// ones, in the order of their release: least recently used first. Resting ports are in a heap of their own, keyed by
// the end of the rest, so that a long rest does not delay other ports. The rest ends when both the cooldown of the
// request that held the port and the rest given at Release are over. A forgotten port joins the back of the fresh
// queue, which preserves the order. Neighbours merge into one range.
//
// Acquire takes a port if one is fresh or ready. This never overtakes a waiting request: a port that becomes ready
// is given to the longest-waiting request among all pools of the pair that contain the port. A port is therefore
// ready only if no waiting request can use it. If no port is available, Acquire joins its pool's queue. It leaves
// the queue with a lease, at the end of Request.Wait, or when its context ends. All three are serialized by the
// table's mutex. If the context ends at the moment a lease is given, the lease goes to the next in line, without a
// cooldown, as if it had never been given. If Wait ends at that moment, the lease is returned.
//
// Reclaim. While requests with Reclaim wait, the holders in their pool are asked to close, the one idle longest
// first. Each is asked once, and only when it has been idle for as long as the request says. The number of holders
// asked at a time never exceeds the number of such requests waiting in the pool: a port whose holder was asked
// counts until it has been released and has rested. Idle times change without notice, so the heap of holders is
// keyed by when each was last seen busy, which is a lower bound. A timer is set for the earliest time at which the
// first of them can have been idle long enough. Only then is it asked how long it really was idle. Where pins
// overlap, a flow closing for one pool also counts in the others that share its port: they may ask later than they
// could, but never ask more holders than needed.
//
// Timers: each pool that has a queue has one (end of a rest, an idle holder), and the table has one (forgetting).
// There is no goroutine; a timer's function runs briefly and ends.
//
// A pin without a source address is treated as a source address of its own (0.0.0.0 or ::), because the address that
// the kernel will choose is not known in advance. If the kernel chooses the address of another pin, its EADDRNOTAVAIL
// decides. In that case, and whenever the kernel keeps a 4-tuple that no flow here holds, Exchange the lease. The port
// then rests without a cooldown, because it was not used. In a range, another port is next and the refused one comes
// last. A request that has to wait keeps its turn. Where the kernel is known to choose another address than the holders
// have, ask for the pin with that address (rules.Pin.From): that is another pair, in which nobody is in the way.
//
// # Failures
//
//	event                                 result
//	all ports held, Wait is 0             *BusyError at once, naming holders
//	all ports held until Wait ends        *BusyError, likewise
//	all ports resting                     as held; BusyError.FreeAt says until when
//	context ends while waiting            its error; the place is given up, no port is lost
//	context ends as a port is given       its error; the port goes to the next in line
//	Wait ends as a port is given          the lease
//	second Release, or of an old lease    nothing
//	a flow is never released              its port stays taken; Held names it
//	a flow asked to close does not        no other flow is asked for that waiter
//	a holder is busy again when asked     it is asked nevertheless: it was idle a moment ago
//	pin and dst of different families,    an error at once, not ErrBusy
//	or the pin has no ports
//
// # Cost
//
// With n ports in use towards a destination, Acquire and Release cost O(log n), times the number of pools of that
// pair which contain the port (1 unless pins overlap). The number of other destinations does not matter. A waiter
// costs O(1) to queue and to serve. The first request of a pin towards a destination where another pin is in use
// looks once at each port used there. While a request with Reclaim waits, a holder is asked how long it has been
// idle about once per Reclaim interval.
//
// Records exist for 4-tuples that are held or resting, and for those released within the last 4½ minutes, 65,536 of
// these at most. A pool is dropped with its last record and its last waiter, a pair with its last pool. 100,000
// destinations of a 1,000-port pin cost as many records as there are flows, not 100,000,000.
package lease
