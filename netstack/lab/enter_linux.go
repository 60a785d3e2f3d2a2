package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Env is the environment variable that carries the identity of the mount namespace in which Enter was called. A
// process whose own identity differs is inside, and so are all its descendants, including fuzz workers and
// re-executed test binaries. If a program that calls Enter is started with a fresh environment (by testscript, for
// example), the variable must be passed on to it.
const Env = "PINPROXY_LAB_OUTSIDE"

// Main is for TestMain: it runs m in namespaces of its own and exits with its status. See [Enter].
func Main(m interface{ Run() int }) {
	if err := Enter(); err != nil {
		fmt.Fprintf(os.Stderr, "lab: %v\n", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// Enter returns nil in a process that is in network and mount namespaces of its own. Outside them, it runs this
// program again inside, with the same arguments, environment and standard streams, passes signals on to it, and
// exits with its status. In that case it returns only if this fails. So it belongs at the very beginning of a
// program.
//
// Without privileges it also creates a user namespace, in which the caller is root.
func Enter() error {
	here, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return fmt.Errorf("find mount namespace: %w", err)
	}
	if was := os.Getenv(Env); was != "" && was != here {
		return loopbackUp()
	}
	if err := os.Setenv(Env, here); err != nil {
		return err
	}

	// PDEATHSIG is sent when the thread that forked ends, not when the process ends, so keep the thread.
	runtime.LockOSThread()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	cmd := again()
	err = cmd.Start()
	if errors.Is(err, unix.EPERM) {
		cmd = again()
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
		err = cmd.Start()
	}
	if err != nil {
		signal.Stop(signals)
		runtime.UnlockOSThread()
		return fmt.Errorf("make namespaces (are unprivileged user namespaces allowed here?): %w", err)
	}
	unix.Exit(attend(cmd, signals)) // not os.Exit, in which the race detector sleeps for a second
	return nil
}

// again returns this program, to be started in new namespaces. The flags go to unshare(2) instead of clone(2),
// because package syscall then also makes all mounts private.
func again() *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		Pdeathsig:    unix.SIGKILL,
	}
	return cmd
}

// attend passes signals on to cmd until it ends, and returns the status to exit with.
func attend(cmd *exec.Cmd, signals <-chan os.Signal) int {
	go passOn(signals, cmd.Process) // ends with the process, which the next line waits for
	cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return cmd.ProcessState.ExitCode()
}

func passOn(signals <-chan os.Signal, p *os.Process) {
	for s := range signals {
		p.Signal(s)
	}
}

// loopbackUp sets up lo in the network namespace of the process.
func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil && lo.Attrs().Flags&net.FlagUp == 0 {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
