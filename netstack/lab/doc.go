// Package lab builds throw-away networks for tests and the demo. Linux only.
//
// # Theory of operation
//
// A test binary calls [Main] from its TestMain. Main runs the same binary again, with the same arguments, in its own
// network and mount namespaces. If the caller has no privileges, it also gets a user namespace. Whatever the tests
// then do to routes, rules, sysctls or /etc/resolv.conf affects only these namespaces. The kernel removes them with
// the last process in them. An ordinary program does the same with [Enter].
//
// Inside, [ForTest] (or [Run], outside tests) returns a [Net]: any number of hosts and the links between them. Each
// host is a network namespace, held by a descriptor and never given a name in the file system. A socket belongs for
// life to the namespace of the thread that created it. So [Host.Do] moves one OS thread into the host's namespace,
// runs a function there and moves the thread back; everything else here is built on that. Afterwards, sockets may be
// used from any goroutine.
//
// The package never starts `ip`, `nft` or `sysctl`.
//
// # The usual network
//
// [Net.Topology] builds what most tests need:
//
//	client ──────── eth0 router eth1 ──────── server
//	  198.51.100.0/24    (firewall)     203.0.113.0/24
//	  2001:db8:1::/64                   2001:db8:2::/64
//	       .2        .1           .1        .2
//
// [Host.Firewall] makes the router the kind of firewall that pinproxy exists for: it keeps no state and passes TCP
// from the client by its source port alone.
//
// # Errors
//
// Methods that build (Host, Link, Route, Sysctl, HTTPS, …) return no error, because an error would always end the
// test. Under ForTest, an error fails the test. Under Run, it ends the function given to Run, and Run returns it.
// These methods must therefore be called on the goroutine that called ForTest or Run. Methods for which failure is a
// possible result (Do, Dial, Listen, Start, …) return the error and may be called on any goroutine.
//
//	failure                           result
//	namespaces are forbidden          Enter and Main say which step was refused; tests fail, never skip
//	the parent of Main is killed      the kernel kills the child (PDEATHSIG), and with it the namespaces
//	a process outlives its test       Close kills it
//	a thread cannot be moved back     panic: going on would run unrelated code in the wrong network
package lab
