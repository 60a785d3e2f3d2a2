// Package lab builds throw-away networks for tests and the demo. Linux only.
//
// # Theory of operation
//
// A test binary calls [Main] from its TestMain. Main runs the same binary again, with the same
// arguments, in a network namespace and a mount namespace of its own, and in a user namespace as well
// where the caller has no privileges. Whatever the tests then do to routes, rules, sysctls or
// /etc/resolv.conf touches nothing but these namespaces, which the kernel removes with the last
// process in them. An ordinary program does the same with [Enter].
//
// Inside, [ForTest] (or [Run], outside tests) gives a [Net]: any number of hosts, each a network
// namespace held by a descriptor and never given a name in the file system, and links between
// them. A socket belongs for life to the namespace of the thread that made it, so [Host.Do] moves one
// OS thread into the host's namespace, runs a function there and moves the thread back; everything
// else here is built on that. Sockets may be used from any goroutine afterwards.
//
// Nothing here starts `ip`, `nft` or `sysctl`.
//
// # The usual network
//
// [Net.Topology] builds what most tests want:
//
//	client ──────── eth0 router eth1 ──────── server
//	  198.51.100.0/24    (firewall)     203.0.113.0/24
//	  2001:db8:1::/64                   2001:db8:2::/64
//	       .2        .1           .1        .2
//
// [Host.Firewall] makes the router a firewall of the kind pinproxy exists for: it keeps no state and
// passes TCP from the client by its source port alone.
//
// # Errors
//
// Methods that build (Host, Link, Route, Sysctl, HTTPS, …) return no error: theirs would always be the
// end of the test. Under ForTest they fail it, under Run they end the function given to Run, whose error
// they become. They must therefore be called on the goroutine that called ForTest or Run. Methods whose
// failure is a result (Do, Dial, Listen, Start, …) return it, and may be called on any goroutine.
//
//	what fails                        what happens
//	namespaces are forbidden          Enter and Main say which step was refused; tests fail, never skip
//	the parent of Main is killed      the kernel kills the child (PDEATHSIG), and with it the namespaces
//	a process outlives its test       Close kills it
//	a thread cannot be moved back     panic: going on would run unrelated code in the wrong network
package lab
