// Package sockdiag asks the kernel which TCP sockets it holds on a port, and which processes have them open
// (NETLINK_INET_DIAG, see sock_diag(7)).
//
// The lease table knows pinproxy's own flows. Whatever else the kernel holds is visible only here: the TIME_WAIT of
// an ended connection, a FIN that is still unanswered, another program's listener. bind and connect say that a port
// is taken, but not by which program or for how long.
//
// # Theory of operation
//
// Find looks up one 4-tuple in the kernel's hash table. OnPort walks through the whole table, filtered by the
// kernel. On a host with many connections this takes up to milliseconds, so use it only for messages, and during
// waits that have already begun. OnPorts and From have the kernel list all sockets. Owners reads all of /proc and is
// for messages only; a Memory does so once for each socket in some seconds. Looking needs no privileges, but only root
// is told the processes of other users.
//
// Bind tries whether a port is available: nothing else shows which sockets have set SO_REUSEADDR.
//
// Source asks for the address that a connection would leave from, and Owns whether the host has an address
// (rtnetlink(7)). They need no privileges.
//
// Destroy ends a socket that was looked at before. The request carries the socket's cookie, so it can't hit another
// socket that has taken its place. It needs CAP_NET_ADMIN and a kernel with CONFIG_INET_DIAG_DESTROY; for a
// TIME_WAIT, Linux 6.1 (EndsTimeWait).
//
// # Failures
//
//	event                                 result
//	no such socket                        Find: false; OnPort: nothing
//	the socket is gone before Destroy     nothing: the goal is reached
//	no capability                         Destroy: EPERM
//	a kernel without SOCK_DESTROY         Destroy: EOPNOTSUPP
//	/proc is another user's               Owners: no process
//	no route                              Source: ENETUNREACH; Owns: false
//	not Linux                             errors.ErrUnsupported
package sockdiag
