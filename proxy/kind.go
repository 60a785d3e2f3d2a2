package proxy

import (
	"context"
	"errors"
	"syscall"

	"pinproxy/proxy/lease"
)

// Kind classifies the cause of a failure. Kinds can be counted; sentences can't.
type Kind uint8

// The kinds of failures.
const (
	KindOther       Kind = iota
	KindRefused          // the destination refused
	KindReset            // the destination answered, and reset at once
	KindUnreachable      // a router said so, or there is no route
	KindSilent           // the destination did not answer
	KindBusy             // flows have every port of the pin, or all ports rest
	KindTaken            // the kernel holds the port, for another program or a connection that is not over
	KindSource           // the pin's source address or port is not available on this host
	KindFirewall         // a firewall of this host forbids it, or, over IPv6, one on the way
	KindNoRule           // no rule applies to the destination
	KindLoop             // the connection would lead back to pinproxy
	KindCrowd            // too many flows waited
	KindFiles            // no descriptor was left
	KindGaveUp           // the application gave up, or pinproxy stopped
	KindUnconfirmed      // nothing came back to what the application was answered
	kinds
)

// Kinds lists all kinds.
func Kinds() []Kind {
	list := make([]Kind, kinds)
	for i := range list {
		list[i] = Kind(i)
	}
	return list
}

// String returns the kind as a word, as metrics and JSON show it.
func (k Kind) String() string {
	return [...]string{
		"other", "refused", "reset", "unreachable", "silent", "busy", "taken", "source", "firewall", "no_rule", "loop", "crowd", "files", "gave_up", "unconfirmed",
	}[k]
}

// kindOf classifies the error of a flow that was not connected.
func kindOf(err error) Kind {
	var silent *silenceError
	var gone *goneError
	is := func(target error) bool { return errors.Is(err, target) }
	switch {
	case is(errCrowd):
		return KindCrowd
	case is(errNoRule):
		return KindNoRule
	case is(errLoop), is(errSelf):
		return KindLoop
	case errors.As(err, &gone) && is(syscall.ETIMEDOUT):
		return KindUnconfirmed
	case is(context.Canceled) && hintOf(err) == "", errors.As(err, &gone):
		return KindGaveUp
	case is(lease.ErrBusy) && !taken(err):
		return KindBusy
	case fromCall(err, "bind") && !taken(err):
		return KindSource
	case taken(err):
		return KindTaken
	case is(syscall.EMFILE), is(syscall.ENFILE):
		return KindFiles
	case errors.As(err, &silent), is(context.DeadlineExceeded), isTimeout(err):
		return KindSilent
	case is(syscall.ECONNREFUSED):
		return KindRefused
	case is(syscall.ECONNRESET):
		return KindReset
	case unroutable(err):
		return KindUnreachable
	case is(syscall.EACCES), is(syscall.EPERM):
		return KindFirewall
	case unavailable(err):
		return KindSource
	}
	return KindOther
}
