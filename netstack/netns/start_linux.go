package netns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/link"
)

const (
	nsNet  = "/proc/self/ns/net"
	nsMnt  = "/proc/self/ns/mnt"
	nsUser = "/proc/self/ns/user"
)

// startTimeout bounds what the child does before it reports: milliseconds, on a machine that is not
// overloaded.
const startTimeout = 30 * time.Second

// errEnded is the end of the socket's other end.
var errEnded = errors.New("the child has ended")

// Child is a command in namespaces of its own. Its methods are safe for concurrent use, but for Exec
// and Close, which are called once, in this order.
type Child struct {
	pid  int
	path string        // of the command
	sock *net.UnixConn // until Exec
	life *life

	link     *link.Link
	device   link.FD
	leave    bool // the device when we end
	warnings []error
}

// Start makes the namespaces and everything in them, and returns when the TUN device is here. The
// command does not run before [Child.Exec]. Start is called once in a process whose main function began with
// [Main]; ctx bounds Start alone.
func Start(ctx context.Context, c Config) (*Child, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("make a socket pair: %w", err)
	}
	defer theirs.Close()
	p := privileges()
	o, err := p.order(c)
	if err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	l := newLife()
	pid, err := p.fork(int(theirs.Fd()), c)
	if err != nil {
		l.close()
		return nil, errors.Join(explain(fmt.Errorf("make namespaces: %w", err), p), ours.Close())
	}
	l.watch(pid)
	child := &Child{pid: pid, path: c.Path, sock: ours, life: l}
	_ = theirs.Close() // so that its end is seen
	if err := child.order(ctx, o); err != nil {
		// Without the socket the child ends by itself, but it may hang.
		_ = unix.Kill(pid, unix.SIGKILL)
		status := child.Wait()
		if errors.Is(err, errEnded) {
			err = &EndedError{status}
		}
		return nil, errors.Join(explain(err, p), child.Close())
	}
	return child, nil
}

// socketPair returns two ends, of which theirs survives exec. The descriptors are the lowest that are
// free: those that the user gave us to pass on are not in the way.
func socketPair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fds[0]), "parent's end")
	defer f.Close()
	theirs = os.NewFile(uintptr(fds[1]), "child's end")
	c, err := net.FileConn(f) // a duplicate
	if err == nil {
		_, err = unix.FcntlInt(theirs.Fd(), unix.F_SETFD, 0)
	}
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return c.(*net.UnixConn), theirs, nil
}

// order sends o, and waits for the device.
func (c *Child) order(ctx context.Context, o order) error {
	if err := c.sock.SetDeadline(time.Now().Add(startTimeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.sock.SetDeadline(time.Now()) })
	defer stop()
	b, err := json.Marshal(o)
	if err == nil {
		_, err = c.sock.Write(b)
	}
	if errors.Is(err, unix.EPIPE) {
		return errEnded
	} else if err != nil {
		return errors.Join(fmt.Errorf("tell the child: %w", err), ctx.Err())
	}
	r, err := c.hear()
	if err != nil {
		return errors.Join(err, ctx.Err())
	}
	if err := r.err(); err != nil {
		return err
	}
	for _, w := range r.Warnings {
		c.warnings = append(c.warnings, errors.New(w))
	}
	l, err := link.FromFD(r.Device)
	if err != nil {
		_ = unix.Close(r.Device.FD)
		return err
	}
	c.link, c.device, c.leave = l, r.Device, r.Dead
	return nil
}

// hear waits for a report of the child, and the descriptor that comes with it.
func (c *Child) hear() (r report, err error) {
	b, rights := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	n, nr, _, _, err := c.sock.ReadMsgUnix(b, rights)
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) { // reset if it has left something unread
		return r, errEnded
	} else if err != nil {
		return r, fmt.Errorf("hear from the child: %w", err)
	}
	fds, err := descriptorsOf(rights[:nr])
	if err == nil && len(fds) > 1 {
		err = fmt.Errorf("%d descriptors came", len(fds))
	}
	if err != nil {
		closeAll(fds)
		return r, fmt.Errorf("take the device over: %w", err)
	}
	if err := json.Unmarshal(b[:n], &r); err != nil {
		closeAll(fds)
		return r, fmt.Errorf("read the child's report: %w", err)
	}
	r.Device.FD = -1
	if len(fds) > 0 {
		r.Device.FD = fds[0]
	}
	return r, nil
}

// descriptorsOf returns those of a message, which net has set to be closed on exec.
func descriptorsOf(rights []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	for i := range messages {
		some, e := unix.ParseUnixRights(&messages[i])
		fds, err = append(fds, some...), errors.Join(err, e)
	}
	return fds, err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// Link is the device, to be given to a netstack. It is the child's: Close closes it.
func (c *Child) Link() *link.Link { return c.link }

// Warnings are what could not be done, and need not be.
func (c *Child) Warnings() []error { return c.warnings }

// Exec has the child become the command, and returns when it has. An [ExecError] says that it can't.
func (c *Child) Exec() error {
	if err := c.sock.SetDeadline(time.Time{}); err != nil { // a terminal may stop the child
		return err
	}
	if _, err := c.sock.Write([]byte{1}); err != nil && !errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("tell the child: %w", err)
	}
	r, err := c.hear()
	c.life.runs.Store(true)
	switch {
	case errors.Is(err, errEnded): // exec closed the other end, or the child was killed, which Wait tells
		return nil
	case err != nil:
		return err
	case r.Kind == kindExec:
		return &ExecError{Path: c.path, Err: r.Errno}
	}
	return r.err()
}

// Close ends what serves the child, and closes the device, which goes with the network namespace: at once if
// nothing is left in it. The command is not ended: call it after Wait,
// or after Start where the command is not to run.
func (c *Child) Close() error {
	err := c.sock.Close()
	c.life.close()
	if c.link == nil {
		return err
	}
	return errors.Join(err, c.Leave(), c.link.Close())
}

// Leave is enough where the process ends at once: it has the device go with the network namespace, if it can be
// left to it, and so spares us the wait.
func (c *Child) Leave() error {
	if !c.leave {
		return nil
	}
	return c.device.Leave()
}

// order completes c with what the child can't find out by itself.
func (p privilege) order(c Config) (o order, err error) {
	o = order{Config: c, Keep: p.root}
	o.Path, o.Argv = "", nil // in the child's arguments
	if o.Net, err = os.Readlink(nsNet); err != nil {
		return o, err
	}
	if o.Mnt, err = os.Readlink(nsMnt); err != nil {
		return o, err
	}
	// Who may ping by an ICMP socket: inside everybody, for what goes outside is ours.
	everybody, own := "0 2147483647", fmt.Sprintf("%d %d", os.Getgid(), os.Getgid())
	const groups = "net/ipv4/ping_group_range"
	if p.every {
		o.Sysctls = append(o.Sysctls, [2]string{groups, everybody})
	}
	o.Sysctls = append(o.Sysctls, [2]string{groups, own})
	// Containers often let everybody listen below 1024.
	const ports = "net/ipv4/ip_unprivileged_port_start"
	if b, err := os.ReadFile("/proc/sys/" + ports); err == nil {
		if value := strings.TrimSpace(string(b)); value != "1024" {
			o.Sysctls = append(o.Sysctls, [2]string{ports, value})
		}
	}
	return o, nil
}

// fork starts this program again in new namespaces.
func (p privilege) fork(sock int, c Config) (pid int, err error) {
	// A file with capabilities makes a process whose /proc files are root's, uid_map among them.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
		return 0, err
	}
	name := "pinproxy"
	if len(os.Args) > 0 {
		name = os.Args[0]
	}
	argv := append([]string{name, childMark, strconv.Itoa(sock), c.Path}, c.Argv...)
	return syscall.ForkExec(self, argv, &syscall.ProcAttr{Env: syscall.Environ(), Files: []uintptr{0, 1, 2}, Sys: p.attr()})
}
