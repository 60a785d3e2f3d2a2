// Package monitor tells what a running pinproxy does: on the control socket to `check` and `status`, and over --http to
// people and to their monitoring.
//
//	names, pins, dialer, stack ──▶ look: everything at one moment, with rates since an earlier look
//	                                 │
//	control socket  GET /about       what it is and its rules: About
//	                GET /status      everything at one moment: Status
//	                GET /destination?dst=A:P[&name=N][&rule=R]
//	                                 what would happen to a connection: Destination
//	--http          GET /            the page, and /events with what changes on it each second
//	                GET /metrics     for Prometheus
//	                GET /healthz     200 or 503
//
// Everything here is read-only, and counts nothing: a look reads what the parts count anyway, and lets flows on in
// between. Nothing is done while nobody looks, apart from the page's timeline.
//
// Those who may open the control socket, the same user, root and the group of --socket-group, may see everything it
// tells. They are not trusted to be quick, to be few, or to ask for anything sensible.
//
// --http serves whoever can connect. They are trusted with what they can read there and with nothing else: they can hold
// up nobody for long. Somebody else's web page, in a browser that may connect, must not read it. So there is no CORS
// header, and a name that is not ours is refused, since that page could use it to appear as ours (DNS rebinding).
//
//	what goes wrong                     what happens
//	a client asks nonsense              400, nothing in the log
//	a client reads slowly, or not       its connection ends after writeTime
//	too many clients                    they wait for a free connection, others' flows do not
//	too many rules, flows, names        lists are cut where a browser, or memory, would suffer; the counts are whole
//	the kernel can't list its sockets   the ports show flows alone
//	a listener fails                    an error for the log; flows go on
package monitor
