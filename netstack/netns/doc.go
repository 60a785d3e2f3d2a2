// Package netns runs one command in namespaces of its own and returns the TUN device that is the command's only path
// to the network. It needs no privileges. It works on Linux only; the platform-independent parts build everywhere.
//
// # Theory of operation
//
//	shell ── fork ──▶ pinproxy (parent)                    CMD (child, later)
//	                  host's namespaces                    own user, network, mount namespace
//	                 ┌───────────────────────────┐        ┌────────────────────────────────┐
//	                 │                           │ clone  │ [Main], /proc/self/exe again:  │
//	                 │ [Start] ──────────────────┼───────▶│  mounts to slaves, lo up       │
//	                 │      config ──────────────┼──sock─▶│  TUN, address, routes, MTU     │
//	                 │                           │        │  ping, ports, TSO: sysctls     │
//	                 │ TUN, diag ◀─ SCM_RIGHTS ──┼──sock──│  resolv.conf, nsswitch.conf    │
//	                 │ link, netstack, proxy     │        │                                │
//	                 │ [Child.Exec] ── a byte ───┼──sock─▶│  capabilities dropped          │
//	                 │      end of file ◀────────┼──exec──│  execve(CMD): same pid         │
//	                 │ [Child.Wait]              │        │                                │
//	                 │  signals ─── kill ────────┼───────▶│ CMD                            │
//	                 │  wait4 ◀── stop, end ─────┼────────│  │ connect, sendto, ping       │
//	                 │                           │  TUN   │  ▼                             │
//	network ◀─ dial ─┤ netstack ◀────────────────┼─ pin0 ─┤ default route                  │
//	                 └───────────────────────────┘        └────────────────────────────────┘
//	     0, 1, 2, terminal, process group, session, cwd, environment: CMD has the parent's own
//
// The device belongs to the network namespace in which its descriptor was opened, but packets can be read and
// written through the descriptor from any namespace. So the child creates the device, the parent keeps it, and the
// parent's sockets are the host's. When the parent ends, in whatever way, the descriptor is closed and the device
// disappears with it. When both have ended, the namespaces are gone too: no name, file, route or rule is ever
// created outside them.
//
// The same holds for a socket of sock_diag that the child makes: whoever has it can ask which TCP sockets CMD has
// ([Child.Diag]).
//
// At an orderly end the device is left to its namespace, which the kernel tears down in its own time. Closing the
// descriptor would wait for that: 17 ms of a command's 35. Processes left behind by CMD, if any, still find no
// route, because routes into a device in the namespace are used only while the device has a carrier.
//
// # User namespace
//
// An ordinary user gets a user namespace in which uid and gid stay the same. These are the only ones that the kernel
// lets an ordinary user map. Supplementary groups still count, but are shown as nogroup, and setgroups(2) is off.
// All capabilities are gone when CMD starts. Set-user-ID files have no effect there, sudo and su included. A file with
// capabilities gets them over CMD's namespaces only.
//
// Root with CAP_SYS_ADMIN and CAP_NET_ADMIN gets no user namespace, so that everything root may do also works in
// CMD: su, for example, or apt-get, which changes users. Root without them, as in containers, gets a user namespace.
// It contains all users known here if CAP_SETUID and CAP_SETGID allow that.
//
// # Files
//
// resolv.conf lists a stand-in address for each name server of the host, in the same order, so that the C library's
// fail-over still works: [Resolvers]. The parent replaces the stand-in with the real address. The real one may be
// 127.0.0.53, since the parent is on the host. nsswitch.conf loses the services that would look up names in ways
// pinproxy does not see. The files are in a tmpfs that is briefly mounted over /proc, because that directory exists
// everywhere. Each file is bind-mounted at its place, following symbolic links, and then the tmpfs is unmounted. All
// of this happens in the child's mount namespace, whose mounts are slaves: what the host mounts appears there, but
// nothing propagates back. Where there is no resolv.conf, a read-only overlay of its directory provides one.
//
// A mount over a file ends when another file is renamed to its place, which is how resolv.conf is usually replaced. The
// command then sees the host's. So where resolv.conf is a link into a directory that nobody else writes to, such as
// systemd-resolved's, an overlay covers that directory. For a file in /etc there is no such way: it would be read-only,
// and show other files as they were when the command first looked at them. nscd has a directory for itself, which an
// empty socket covers alone.
//
// # Signals and job control
//
// CMD is in the parent's process group, so the terminal's signals reach it as they would without pinproxy. A signal
// that CMD already has from the terminal must not be passed on a second time; a signal meant for CMD must be. Go
// does not report who sent a signal (and keeps the relevant signals unblocked, so a signalfd is not possible). The
// rules are therefore:
//
//	INT, QUIT, WINCH   assumed to come from the terminal if it has our group in the foreground and CMD
//	                   is in that group: CMD has it already. Otherwise passed on
//	HUP                likewise if the terminal is gone; otherwise passed on
//	TERM, USR1, USR2,  passed on: no terminal sends them
//	 ALRM
//	CONT               passed on if CMD is stopped and there is no terminal
//	TSTP, TTIN, TTOU   ignored: the parent stops when CMD does
//	real-time          not received: listening to all of them would slow down the start
//
// As a result, if a signal is sent to the whole group by hand (`kill %1` of a shell, systemd's
// KillMode=control-group), CMD gets TERM twice, and `kill -INT` of the parent alone does nothing while the terminal
// is its own. CMD also ignores the signals that are ignored when pinproxy starts; Go can tell this for SIGHUP and
// SIGINT.
//
// When CMD stops and there is a terminal, the parent stops by the same signal. The shell then sees its job stopped,
// and CMD continues when the parent does. While the parent is stopped, processes that CMD left running have no
// network.
//
// # Failures
//
//	failure                                   result
//	user namespaces forbidden                 Start: *[ForbiddenError] says what forbids them: AppArmor,
//	                                          a sysctl, their number, seccomp
//	no /dev/net/tun; not allowed to open it   Start: link.ErrNoTUN; [ErrDevice]
//	another step in the child                 Start: an error that names the step; errnos unwrap
//	a sysctl cannot be set (/proc/sys is      a warning: [Child.Warnings]; none for those that only make
//	  read-only in containers)                it faster, or end sooner what CMD leaves behind
//	the parent is killed before CMD runs      the child reads end of file from the socket, and ends
//	CMD not found, not executable             [ErrNotFound], *[ExecError], before anything is created
//	                                          if it can be known by then
//	the child is killed before CMD runs       Start: *[EndedError]; after Start, Wait has its status
//	the parent is killed                      CMD goes on; its connections get no more answers, and
//	                                          new ones get ENETUNREACH
//	CMD is killed, or ends                    Wait returns; processes left by CMD have their network until
//	                                          the parent ends, then as if the parent were killed
//	two parents in one network namespace      no conflict: they share nothing
package netns
