// Package netns runs one command in namespaces of its own and hands out the TUN device that is the
// command's only way to the network. It needs no privileges. Linux only; what is pure is built
// everywhere.
//
// # Theory of operation
//
//	shell ── fork ──▶ pinproxy (parent)                    CMD (child, later)
//	                  host's namespaces                    own user, network, mount namespace
//	                 ┌───────────────────────────┐        ┌────────────────────────────────┐
//	                 │                           │ clone  │ [Main], /proc/self/exe again:  │
//	                 │ [Start] ──────────────────┼───────▶│  mounts to slaves, lo up       │
//	                 │      config ──────────────┼──sock─▶│  TUN, address, routes, MTU     │
//	                 │                           │        │  ping, ports: sysctls          │
//	                 │      TUN ◀── SCM_RIGHTS ──┼──sock──│  resolv.conf, nsswitch.conf    │
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
// The device belongs to the network namespace in which its descriptor was opened. Packets are read
// and written through the descriptor, wherever it is: so the child makes the device, the parent
// keeps it, and the parent's sockets are the host's. When the parent ends in any way, the device goes
// with its descriptor. When both have ended, so have the namespaces: no name, file, route or rule is
// ever made outside.
//
// At an orderly end the device is left to its namespace, which the kernel takes down by and by. Closing the
// descriptor would wait for that, 17 ms of a command's 35. What is left of CMD, if anything is, finds no
// route all the same: devices in the namespace count only while they have a carrier.
//
// # User namespace
//
// An ordinary user gets a user namespace in which uid and gid are what they were (the only ones
// that the kernel lets an ordinary user map; supplementary groups go on to count, but are shown as
// nogroup, and setgroups(2) is off). All capabilities are gone when CMD starts, and nothing brings
// them back: there set-user-ID files do nothing, sudo and su among them.
//
// Root with CAP_SYS_ADMIN and CAP_NET_ADMIN gets no user namespace, so that everything root may do
// works in CMD as well: apt-get, which changes users, or su. Root without them, as in containers, gets a
// user namespace, with all users that are known here if CAP_SETUID and CAP_SETGID allow that.
//
// # Files
//
// resolv.conf lists a stand-in address for each name server of the host, in their order, so that the C
// library's fail-over goes on to work: [Resolvers]. The parent puts the real one in its place; it may
// be 127.0.0.53, since the parent is on the host. nsswitch.conf loses the services that would ask
// others for names behind our back. The files are in a tmpfs that is mounted over /proc for a moment,
// for that directory exists everywhere; each is bound to its place, symbolic links followed, and the
// tmpfs taken off again. All of it is in the child's mount namespace, whose mounts are slaves:
// what the host mounts appears, nothing goes the other way. Where there is no resolv.conf a read-only
// overlay of its directory has one.
//
// # Signals and job control
//
// CMD is in the parent's process group, so the terminal's signals reach it as they would without us.
// What reaches the parent must not reach CMD a second time, and what is meant for CMD must. Go does not say
// who sent a signal (and forces the mask open for the signals that count, so no signalfd can), so:
//
//	INT, QUIT, WINCH   taken for the terminal's if it has our group in the foreground, and CMD is in that
//	                   group: CMD has it already. Else sent on
//	HUP                likewise if the terminal is gone; else sent on
//	TERM, USR1, USR2,  sent on: no terminal sends them
//	 ALRM, real-time
//	CONT               sent on if CMD is stopped and there is no terminal
//	TSTP, TTIN, TTOU   ignored: we stop when CMD does
//
// So who signals the whole group by hand (`kill %1` of a shell, systemd's KillMode=control-group) has CMD
// get TERM twice, and `kill -INT` of the parent alone does nothing while the terminal is its own.
// Signals that are ignored when we start, which for SIGHUP and SIGINT Go can tell, CMD ignores too.
//
// When CMD stops and there is a terminal, the parent stops by the same signal, so that the shell
// sees its job stopped, and CMD goes on when it does. While it is stopped, what CMD has left running
// has no network.
//
// # Failures
//
//	what fails                                what follows
//	user namespaces forbidden                 Start: *[ForbiddenError] says by what: AppArmor, a sysctl,
//	                                          their number, seccomp
//	no /dev/net/tun; not allowed to open it   Start: link.ErrNoTUN; [ErrDevice]
//	another step in the child                 Start: an error that names the step; errnos unwrap
//	a sysctl cannot be set (/proc/sys is      a warning: [Child.Warnings]
//	  read-only in containers)
//	the parent is killed before CMD runs      the child reads the end of the socket, and ends
//	CMD not found, not executable             [ErrNotFound], *[ExecError], before anything is made
//	                                          if that can be known
//	the child is killed before CMD runs       Start: *[EndedError]; after Start, Wait has its status
//	the parent is killed                      CMD goes on; its connections get no answer any more,
//	                                          new ones ENETUNREACH
//	CMD is killed, or ends                    Wait returns; what CMD left running has its network until
//	                                          the parent ends, then as if that were killed
//	two parents in one network namespace      nothing: they share nothing
package netns
