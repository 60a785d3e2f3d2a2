package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"pinproxy/cmd/pinproxy/identity"
	"pinproxy/proxy/sockdiag"
)

// The namer is a separate process. It has the capabilities needed to see whose a socket is, if we have them. It is
// separate also because Landlock lets us see nothing outside. It answers one question only: which process has the
// socket with a given inode number. It ends when the socket it is asked over is closed.

// Marks of the namer: its first argument, before and after it has given up everything else.
const (
	namerMark  = "--name-the-owners-of-sockets"
	namerReady = "--name-the-owners-of-sockets-for-pinproxy"
)

// namerName is what the namer is called, for pidof and pkill to find the one that takes signals.
const namerName = "pinproxy-namer"

// namerSocket is the descriptor of the namer's socket.
const namerSocket = 3

// startNamer starts a namer as id, and returns the other end of its socket.
func startNamer(id identity.Identity) (int, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("make a socket pair: %w", err)
	}
	defer unix.Close(ends[1])
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("start the namer: %w", err)
	}
	defer null.Close()
	argv := []string{namerName, namerMark, id.Name, strconv.Itoa(id.UID), strconv.Itoa(id.GID)}
	files := []uintptr{null.Fd(), null.Fd(), null.Fd(), uintptr(ends[1])}
	_, err = syscall.ForkExec(identity.OwnFile, argv, &syscall.ProcAttr{Env: os.Environ(), Files: files, Dir: "/"})
	if err != nil {
		return 0, fmt.Errorf("start the namer: %w", err)
	}
	return ends[0], nil
}

// namerMain belongs at the beginning of main. In the namer it does not return.
func namerMain() {
	if len(os.Args) < 2 || os.Args[1] != namerMark && os.Args[1] != namerReady {
		return
	}
	// The namer is in our process group and unit, but is needed until we end.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	_ = os.WriteFile("/proc/self/comm", []byte(namerName), 0)
	if os.Args[1] == namerReady || len(os.Args) != 5 {
		sockdiag.Serve(namerSocket)
		os.Exit(exitOK)
	}
	closeOthers()
	id := identity.Identity{Name: os.Args[2], Caps: naming}
	id.UID, _ = strconv.Atoi(os.Args[3])
	id.GID, _ = strconv.Atoi(os.Args[4])
	id.Groups = []int{id.GID}
	_ = id.Exec([]string{namerName, namerReady}, os.Environ())
	os.Exit(exitFailed)
}

// closeOthers has exec close what the user's shell had open. Before Linux 5.11, close_range(2) could not.
func closeOthers() {
	entries, _ := os.ReadDir("/proc/self/fd") // exec needs /proc, too
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > namerSocket {
			unix.CloseOnExec(fd)
		}
	}
}
