package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"
)

// Trial is a connection that was made to see whether it can be made.
type Trial struct {
	Local  netip.AddrPort // read back from the socket
	Took   time.Duration  // until the destination answered
	Closes bool           // the destination has closed its end in answer to our FIN
}

// Try connects from pin to dst as a flow does, and ends the connection in order without having sent a byte. The error
// is the one that the flow's log line would have; [Hint] says what would help. After a dial without an answer Try
// dials from another port, as a flow does. The lease table is not asked. A connection that this host's NAT leads away from
// the pin is an error, too.
func (s Sockets) Try(ctx context.Context, pin, dst netip.AddrPort) (Trial, error) {
	begun := time.Now()
	c, err := s.Dial(ctx, pin, dst)
	took := time.Since(begun)
	switch {
	case err == nil:
	case unanswered(err):
		silent := &silenceError{err: err, pin: pin, dst: dst, waited: took}
		probe, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
		defer cancel()
		if told := silent.probe(probe, s); told.other != "" {
			silent.explain(told)
		}
		if nat := s.lookAtNAT(pin, pin, dst); nat != nil {
			return Trial{}, fmt.Errorf("%w; %w", nat, silent)
		}
		return Trial{}, silent
	case taken(err):
		if o := s.Obstacle(pin, dst); o.Cause != "" {
			err = &advised{err: fmt.Errorf("%s: %w", o.Cause, err), hint: o.Hint}
		}
		return Trial{}, &pinError{err: err}
	default:
		return Trial{}, explain(err, pin, dst)
	}
	local, err := verify(c, pin)
	if err != nil {
		err = &pinError{err: err}
	} else {
		err = s.lookAtNAT(pin, local, dst)
	}
	closes := s.endInOrder(c)
	if err != nil {
		return Trial{}, err
	}
	return Trial{Local: local, Took: took, Closes: closes}, nil
}

// endInOrder ends a connection by a FIN both ways, or by a reset if the peer does not send its own soon. Because we were
// first, we get a TIME_WAIT, which would be in the way of the next flow. We end it, if we may. It reports whether the peer
// has sent its FIN.
func (s Sockets) endInOrder(c Conn) bool {
	local, remote := addrPort(c.LocalAddr()), addrPort(c.RemoteAddr())
	_ = c.CloseWrite()
	_ = c.SetReadDeadline(time.Now().Add(endLinger))
	if _, err := io.Copy(io.Discard, c); err != nil { // until the peer's end
		closeByReset(c)
		return false
	}
	_ = c.Close()
	_, _ = s.makeRoom(local, remote)
	return true
}

// Explain names the cause of an error of binding pin for a connection to dst, where its errno alone does not.
func Explain(err error, pin, dst netip.AddrPort) error { return explain(err, pin, dst) }

// Hint says what would help against an error of this package; empty if nothing is known.
func Hint(err error) string {
	if errors.Is(err, context.Canceled) {
		return ""
	}
	return hintOf(err)
}
