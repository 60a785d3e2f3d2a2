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

// startTimeout bounds the child's work before its report: milliseconds, on a machine that is not overloaded.
const startTimeout = 30 * time.Second

// errEnded says that the other end of the socket is closed.
var errEnded = errors.New("the child has ended")

// Child is a command in namespaces of its own. Its methods are safe for concurrent use, except Exec and Close, which
// are called once, in this order.
type Child struct {
	pid  int
	path string        // of the command
	sock *net.UnixConn // until Exec
	life *life

	link     *link.Link
	device   link.FD
	diag     int  // see Diag
	leave    bool // leave the device to its namespace at the end
	warnings []error
}

// Start creates the namespaces and everything in them, and returns when it has received the TUN device. The command
// does not run before [Child.Exec]. Start is called once, in a process whose main function began with [Main]. ctx
// bounds only Start.
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
	child := &Child{pid: pid, path: c.Path, sock: ours, life: l, diag: -1}
	_ = theirs.Close() // so that the end of the child is noticed
	if err := child.order(ctx, o); err != nil {
		// Without the socket the child ends by itself, unless it hangs.
		_ = unix.Kill(pid, unix.SIGKILL)
		status := child.Wait()
		if errors.Is(err, errEnded) {
			err = &EndedError{status}
		}
		return nil, errors.Join(explain(err, p), child.Close())
	}
	return child, nil
}

// socketPair returns both ends; theirs survives exec. The descriptors are the lowest free ones, so descriptors that
// the user passes on to the command are not in the way.
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

// order sends o and waits for the device.
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
		closeAll(r.descriptors())
		return err
	}
	c.link, c.device, c.diag, c.leave = l, r.Device, r.Diag, r.Dead
	return nil
}

// hear waits for a report from the child and the descriptors that come with it.
func (c *Child) hear() (r report, err error) {
	r.Device.FD, r.Diag = -1, -1
	b, rights := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(2*4))
	n, nr, flags, _, err := c.sock.ReadMsgUnix(b, rights)
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) { // reset if the child left something unread
		return r, errEnded
	} else if err != nil {
		return r, fmt.Errorf("hear from the child: %w", err)
	}
	fds, err := descriptorsOf(rights[:nr])
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = fmt.Errorf("more than %d descriptors came", len(fds))
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
	if len(fds) > 1 {
		r.Diag = fds[1]
	}
	return r, nil
}

// descriptorsOf returns the descriptors of a message, which net has made close-on-exec.
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

// Link returns the device, which can be given to a netstack. The child owns it: Close closes it.
func (c *Child) Link() *link.Link { return c.link }

// Diag returns a socket of NETLINK_SOCK_DIAG in the command's network namespace, or -1 if there is none. The child owns
// it: Close closes it.
func (c *Child) Diag() int { return c.diag }

// Warnings returns the steps that failed but are not essential.
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
	case errors.Is(err, errEnded): // exec closed the other end, or the child was killed, which Wait reports
		return nil
	case err != nil:
		return err
	case r.Kind == kindExec:
		return &ExecError{Path: c.path, Err: r.Errno}
	}
	return r.err()
}

// Close ends the goroutines that serve the child and closes the device. The device goes with the network namespace,
// at once if nothing is left in the namespace. Close does not end the command: call it after Wait, or after Start if
// the command is not to run.
func (c *Child) Close() error {
	err := c.sock.Close()
	c.life.close()
	if c.diag >= 0 {
		err = errors.Join(err, unix.Close(c.diag))
	}
	if c.link == nil {
		return err
	}
	return errors.Join(err, c.Leave(), c.link.Close())
}

// Leave is enough if the process ends right away. If the device can be left to the network namespace, it goes with
// the namespace, and this process need not wait for that.
func (c *Child) Leave() error {
	if !c.leave {
		return nil
	}
	return c.device.Leave()
}

// order completes c with what the child can't find out itself.
func (p privilege) order(c Config) (o order, err error) {
	o = order{Config: c, Keep: p.root}
	o.Path, o.Argv = "", nil // in the child's arguments
	if o.Net, err = os.Readlink(nsNet); err != nil {
		return o, err
	}
	if o.Mnt, err = os.Readlink(nsMnt); err != nil {
		return o, err
	}
	// Groups that may ping over an ICMP socket: all groups inside, because traffic to the outside uses our socket.
	everybody, own := "0 2147483647", fmt.Sprintf("%d %d", os.Getgid(), os.Getgid())
	const groups = "net/ipv4/ping_group_range"
	if p.every {
		o.Sysctls = append(o.Sysctls, [2]string{groups, everybody})
	}
	o.Sysctls = append(o.Sysctls, [2]string{groups, own})
	// Containers often let all users listen below 1024.
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
	// A process started from a file with capabilities has /proc files owned by root, including uid_map.
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
