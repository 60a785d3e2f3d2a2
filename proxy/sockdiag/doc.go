// Package sockdiag asks the kernel which TCP sockets it holds on a port, and
// whose they are (NETLINK_INET_DIAG, see sock_diag(7)).
//
// The lease table knows our own flows. What the kernel holds besides is seen only
// here: an ended connection's TIME_WAIT, a FIN that is still unanswered, another
// program's listener. bind and connect say that a port is taken, but not by whom
// nor for how long.
//
// # Theory of operation
//
// Find is a lookup of one 4-tuple in the kernel's hash table. OnPort is a walk
// through all of it, filtered by the kernel: it costs up to milliseconds on a host
// with many connections, and is for messages, and for waits that have already
// begun. Owner reads all of /proc, and is for messages only. Looking needs no
// privileges; the processes of other users are named to root alone.
//
// Bind asks by trying whether a port can be had: who set SO_REUSEADDR is not told otherwise.
//
// Destroy ends a socket that was looked at before: the request carries the
// socket's cookie, so it can't meet another one that has taken its place. It needs
// CAP_NET_ADMIN and a kernel with CONFIG_INET_DIAG_DESTROY.
//
// # Failures
//
//	what happens                          what comes of it
//	no such socket                        Find: false; OnPort: nothing
//	the socket is gone before Destroy     nothing: that is what was wanted
//	no capability                         Destroy: EPERM
//	a kernel without SOCK_DESTROY         Destroy: EOPNOTSUPP
//	/proc is another user's               Owners: no process
//	not Linux                             errors.ErrUnsupported
package sockdiag
