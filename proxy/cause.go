package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"pinproxy/proxy/lease"
	"pinproxy/rules"
)

var (
	errNoRule = errors.New("no rule is for this destination")
	errLoop   = errors.New("this is a connection of our own that was captured: the policy rule for its mark is missing")
	errSigned = errors.New("the application signs its segments (TCP-MD5 or TCP-AO), and would take no answer without a signature")
	errSelf   = errors.New("source and destination are the same address and port: the connection would lead back to itself")
	errGaveUp = errors.New("the application gave up, or pinproxy stopped")
	errCrowd  = errors.New("too many flows wait for an answer")
)

// ErrNotFromPin is in the error of a Dialer whose connection would not leave from the pin.
var ErrNotFromPin = errors.New("the connection would not leave from its pin")

// pinError says that a pin is not available. The flow must not leave in any other way.
type pinError struct {
	err  error
	hint string // what would help; may be empty
}

func (e *pinError) Error() string { return e.err.Error() }
func (e *pinError) Unwrap() error { return e.err }

// unavailable reports whether err is about the pin and not about the upstream.
func unavailable(err error) bool {
	var pin *pinError
	return errors.As(err, &pin)
}

// advised is an error with a hint that is not about the pin.
type advised struct {
	err  error
	hint string
}

func (e *advised) Error() string { return e.err.Error() }
func (e *advised) Unwrap() error { return e.err }

// goneError says that the application no longer wanted the answer, or with ETIMEDOUT, that nothing came back to it.
type goneError struct{ err error }

// notAccepted explains why the application could not be answered.
func notAccepted(err error, behind bool) error {
	err = &goneError{err}
	if behind || !errors.Is(err, syscall.ETIMEDOUT) { // another host may have lost its network
		return err
	}
	return &advised{err, "a firewall of this host may drop what comes out of the device or goes into it: nft list ruleset, iptables -L; the manual says what to let pass"}
}

func (e *goneError) Error() string { return e.err.Error() }
func (e *goneError) Unwrap() error { return e.err }

// hintOf returns what would help against err, or an empty string if nothing is known.
func hintOf(err error) string {
	var pin *pinError
	var other *advised
	var silent *silenceError
	switch {
	case errors.As(err, &pin) && pin.hint != "":
		return pin.hint
	case errors.As(err, &other):
		return other.hint
	case errors.As(err, &silent):
		return silent.hint
	case errors.Is(err, errCrowd):
		return "what they wait for is in the log; 8,192 of one rule and 16,384 of one source are let in"
	case errors.Is(err, errLoop):
		return "some program deletes policy rules; pinproxy puts them back within a second"
	case errors.Is(err, errSigned):
		return "it can only pass by: with rules that leave its port out, and without -- CMD"
	case errors.Is(err, errSelf):
		return "take another source port for this destination"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return "raise the limit of open files: ulimit -n, or LimitNOFILE= in the unit"
	}
	return ""
}

// notHere reports whether the host has not got the pin's address.
func notHere(err error) bool { return fromCall(err, "bind") && errors.Is(err, syscall.EADDRNOTAVAIL) }

// explain names the cause of a failed dial from pin, where the errno alone does not. It leaves what the upstream said
// as it is.
func explain(err error, pin, dst netip.AddrPort) error {
	switch {
	case fromCall(err, "bind") && errors.Is(err, syscall.EACCES):
		return &pinError{
			err:  fmt.Errorf("source port %d is privileged: %w", pin.Port(), err),
			hint: fmt.Sprintf("needs CAP_NET_BIND_SERVICE: run as root, or: sysctl -w net.ipv4.ip_unprivileged_port_start=%d", pin.Port()),
		}
	case notHere(err):
		return &pinError{
			err:  fmt.Errorf("source address %s is not on this host: %w", pin.Addr(), err),
			hint: fmt.Sprintf("give it to the host (ip address add %s dev …), or take one that `ip address` shows", pin.Addr()),
		}
	case fromCall(err, "bind") && !taken(err), errors.Is(err, ErrNotFromPin):
		return &pinError{err: err}
	case taken(err):
		return err
	case errors.Is(err, syscall.EACCES) && dst.Addr().Is6(): // also a router's "administratively prohibited" (icmpv6_err_convert)
		return &advised{
			err:  fmt.Errorf("a firewall, on the way or of this host, forbids the connection: %w", err),
			hint: fmt.Sprintf("have %s to %s let through; on this host: nft list ruleset, ip6tables -L OUTPUT", portOf(pin), dst),
		}
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return &advised{
			err:  fmt.Errorf("a firewall of this host forbids the connection: %w", err),
			hint: fmt.Sprintf("let %s to %s pass: nft list ruleset, iptables -L OUTPUT", portOf(pin), dst),
		}
	case pin.IsValid() && !pin.Addr().IsUnspecified() && unroutable(err):
		return &advised{
			err:  fmt.Errorf("no way to %s from source address %s: %w", dst.Addr(), pin.Addr(), err),
			hint: fmt.Sprintf("ip route get %s from %s", dst.Addr(), pin.Addr()),
		}
	}
	return err
}

func portOf(pin netip.AddrPort) string {
	if pin.Port() == 0 {
		return "any source port"
	}
	return fmt.Sprintf("source port %d", pin.Port())
}

// unroutable reports whether there is no route. The kernel returns EINVAL for a source that can't reach the
// destination at all, such as 127.0.0.1 (ip_route_output_key_hash_rcu).
func unroutable(err error) bool {
	return errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.EINVAL)
}

// taken reports whether the kernel holds the 4-tuple or the port: connect found the 4-tuple in use
// (__inet_check_established), or bind found the port in use (inet_csk_get_port).
func taken(err error) bool {
	if errors.Is(err, syscall.EADDRINUSE) {
		return true
	}
	return errors.Is(err, syscall.EADDRNOTAVAIL) && !fromCall(err, "bind")
}

// unsentError says that connect failed before it sent anything.
type unsentError struct{ err error }

func (e *unsentError) Error() string { return e.err.Error() }
func (e *unsentError) Unwrap() error { return e.err }

// nothingSent reports whether a failed dial has left no trace on the way, which a cooldown would have to outlast.
func nothingSent(err error) bool {
	var u *unsentError
	return errors.As(err, &u) || fromCall(err, "socket") || fromCall(err, "bind")
}

// fromCall reports whether an errno is from the system call name.
func fromCall(err error, name string) bool {
	var sys *os.SyscallError
	return errors.As(err, &sys) && sys.Syscall == name
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// busyHint says what would let more flows through a pin.
func busyHint(rule *rules.Rule, err error) string {
	var busy *lease.BusyError
	if !errors.As(err, &busy) {
		return ""
	}
	return BusyHint(rule, busy.Holding == 0)
}

// BusyHint says what would let more flows through a rule's pin than it has ports. resting means that no port has a
// flow: all of them rest.
func BusyHint(rule *rules.Rule, resting bool) string {
	if resting && rule.Cooldown() > 0 {
		return fmt.Sprintf("the rule's cooldown lets each port serve a destination once in %v: a wider range of source ports serves more", rule.Cooldown())
	}
	for _, way := range rule.Busy() {
		if way.Way == rules.Reclaim {
			return "a wider range of source ports in the rule serves more flows at once"
		}
	}
	return "a wider range of source ports serves more flows at once, busy=reclaim ends idle ones for those that wait"
}
