package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/link"
)

// Parent and child talk over a SOCK_SEQPACKET socket pair. A message is one packet.
//
//	parent                          child
//	  ── order, JSON ─────────────▶   sets up everything
//	  ◀─ report, JSON, the TUN        or the step that failed
//	     and a sock_diag socket
//	  ── one byte ────────────────▶   becomes the command: the socket is closed on exec
//	  ◀─ end of file                  or a report that it can't

// maxMessage bounds a message. An nsswitch.conf has hundreds of bytes.
const maxMessage = 128 << 10

// order is what the child is to set up.
type order struct {
	Config
	Net, Mnt string // the parent's namespaces, which the child must not be in
	Sysctls  [][2]string
	Keep     bool // keep the capabilities: the command runs as root
}

// report is the child's result.
type report struct {
	Text     string // of the error, with the step that failed; empty: none
	Errno    syscall.Errno
	Kind     kind
	Device   link.FD
	Diag     int  `json:"-"` // socket of NETLINK_SOCK_DIAG; -1: there is none
	Dead     bool // routes into a device without a carrier are not used
	Warnings []string
}

// descriptors returns those that came with the report.
func (r report) descriptors() (fds []int) {
	for _, fd := range []int{r.Device.FD, r.Diag} {
		if fd >= 0 {
			fds = append(fds, fd)
		}
	}
	return fds
}

// kind is the additional information that the other side needs about an error.
type kind int

const (
	kindOther kind = iota
	kindNoTUN
	kindDevice // not allowed to open it
	kindExec
)

// failed reports an error.
func failed(err error) report {
	r := report{Text: err.Error()}
	_ = errors.As(err, &r.Errno)
	switch {
	case errors.Is(err, link.ErrNoTUN):
		r.Kind = kindNoTUN
	case errors.Is(err, ErrDevice):
		r.Kind = kindDevice
	}
	return r
}

// stepError is a report as an error; its errno and sentinel unwrap.
type stepError struct {
	text  string
	cause []error
}

func (e *stepError) Error() string   { return e.text }
func (e *stepError) Unwrap() []error { return e.cause }

// err returns nil if no step failed.
func (r report) err() error {
	if r.Text == "" {
		return nil
	}
	e := &stepError{text: r.Text}
	if r.Errno != 0 {
		e.cause = append(e.cause, r.Errno)
	}
	switch r.Kind {
	case kindNoTUN:
		e.cause = append(e.cause, link.ErrNoTUN)
	case kindDevice:
		e.cause = append(e.cause, ErrDevice)
	}
	return e
}

// The child uses send and receive; the parent has a net.UnixConn.
func send(sock int, r report, fds ...int) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	return unix.Sendmsg(sock, b, rights, nil, unix.MSG_NOSIGNAL)
}

func receive(sock int) ([]byte, error) {
	b := make([]byte, maxMessage)
	for {
		n, err := unix.Read(sock, b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, fmt.Errorf("hear from the parent: %w", err)
		case n == 0:
			return nil, errors.New("hear from the parent: it has ended")
		default:
			return b[:n], nil
		}
	}
}
