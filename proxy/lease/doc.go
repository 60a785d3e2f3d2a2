// Package lease knows who holds which source port towards which destination.
//
// A lease is the exclusive right to one 4-tuple (source address, source port,
// destination address, destination port) while a flow uses it. The kernel
// refuses a second socket on a live 4-tuple at once (EADDRNOTAVAIL); the table
// here turns that refusal into an orderly queue, and spreads flows over a range
// so that each port rests as long as it can.
//
// # Theory of operation
//
// A pool is a pin towards a destination: the ports that one rule may use there.
// A pair is a source address and a destination; it owns the 4-tuples, because
// pins with different ports may overlap (=63999 and =63990-63999) and must still
// never hold one 4-tuple twice. Nearly every pair has one pool.
//
// A 4-tuple goes round like this:
//
//	         Acquire             Release, with a rest or a cooldown
//	(fresh) ─────────▶ [held] ────────────────────────────▶ [resting]
//	   ▲                ▲  │▲                                   │
//	   │        Acquire │  │└─── the longest-waiting is given ──┤ the rest
//	   │                │  ▼     it directly                    │ is over
//	   │               [ready] ◀────────────────────────────────┘
//	   │   forgotten      │
//	   └──────────────────┘  4 minutes after its last use
//
// Fresh 4-tuples cost nothing: a pool keeps them as a queue of port ranges, at
// first the pin's own, taken in ascending order. Only states in brackets have a
// record. Ready ports are taken in the order of their release, after the fresh
// ones: least recently used first. A resting port is in a heap of its own, keyed
// by the end of its rest, so that a long rest holds up nobody else. The rest
// ends when both the cooldown of the request that held the port and the rest
// given at Release are over. A forgotten port joins the fresh queue at its back,
// which keeps the order; neighbours merge into one range.
//
// Acquire takes a port if one is fresh or ready. That never overtakes anybody:
// whenever a port becomes ready it is given to the longest-waiting of all pools
// of the pair that contain it, so a port is ready only if nobody who waits could
// use it. Otherwise Acquire joins its pool's queue and leaves it with a lease,
// at the end of Request.Wait, or with its context. All three meet under the
// table's mutex: a lease that was given in the same moment as the context ended
// goes on to the next in line as if it had never left, without a cooldown; one
// given as Wait ends is returned.
//
// Reclaim. While requests with Reclaim wait, the holders of their pool are asked
// to close, the one idle longest first, each once and only when idle for as long
// as the request says. No more are under way at a time than such requests wait
// in the pool: a port asked for counts until it has been released and has
// rested. Idle times change without notice, so the heap of holders is keyed by
// when each was last seen busy, a lower bound; a timer is set for when the first
// could have been idle long enough, and only then is it asked how long it really
// was. Where pins overlap, a flow closing for one pool counts in the others that
// share its port: they may ask later than they could, never more than needed.
//
// Timers: one for each pool that has a queue (end of a rest, an idle holder), one
// for the table (forgetting). There is no goroutine; a timer's function runs
// briefly and ends.
//
// A pin without a source address is a source address of its own here (0.0.0.0 or
// ::): which address the kernel will choose is not known before it has. Should
// it choose that of another pin, the kernel's EADDRNOTAVAIL is the judge. Then,
// as with any 4-tuple that the kernel does not part with although nobody here
// holds it, Exchange the lease: the port rests, without a cooldown, for it was not
// used; in a range another port is next, the refused one comes last; and who has
// to wait does so in the turn it had.
//
// # Failures
//
//	what happens                          what comes of it
//	all ports held, Wait is 0             *BusyError at once, naming holders
//	all ports held until Wait ends        *BusyError, likewise
//	all ports resting                     as held; BusyError.FreeAt says until when
//	context ends while waiting            its error; the place goes, no port is lost
//	context ends as a port is given       its error; the port goes to the next in line
//	Wait ends as a port is given          the lease
//	Release twice, or of an old lease     nothing
//	a flow is never released              its port stays taken; Held names it
//	a flow asked to close does not        nobody else is asked for that waiter
//	a holder is busy again when asked     it is asked nevertheless: it was idle a moment ago
//	the pin's address is of dst's other   an error at once, not ErrBusy
//	family, or the pin has no ports
//
// # Cost
//
// With n ports in use towards a destination, Acquire and Release cost O(log n),
// times the pools of that pair which contain the port (1 unless pins overlap);
// how many other destinations there are does not matter. A waiter costs O(1) to
// queue and to serve. The first request of a pin towards a destination where
// another pin is in use looks once at each port used there. While a request waits
// with Reclaim, a holder is asked how long it has been idle about once in that
// time.
//
// Records exist for 4-tuples held or resting, and for those released within the
// last 4½ minutes; a pool goes with its last record and its last waiter, a pair
// with its last pool. 100,000 destinations of a 1,000-port pin cost as many
// records as there are flows, not 100,000,000.
package lease
