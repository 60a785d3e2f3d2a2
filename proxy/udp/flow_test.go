package udp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// scripted is a socket whose sends return errs, one after the other, and then succeed.
type scripted struct {
	socket
	errs []error
	sent []string
}

func (s *scripted) send(d Datagram) error {
	if len(s.errs) > 0 {
		err := s.errs[0]
		s.errs = s.errs[1:]
		return err
	}
	s.sent = append(s.sent, string(d.Payload()))
	return nil
}

func (s *scripted) try(d Datagram) error             { return s.send(d) }
func (*scripted) errors(Datagram) (told, local bool) { return true, false }

// Errors about earlier datagrams do not cost the one that is being sent from the queue, even if the socket is full
// again, or has another error, by the time that it is sent once more.
func TestFlushSendsAgain(t *testing.T) {
	r := New(nil, nil, Timeouts{})
	got := newInbox()
	s := &scripted{errs: []error{syscall.ECONNREFUSED, errBusy, syscall.ECONNREFUSED, syscall.EHOSTUNREACH, errBusy}}
	one, two := got.from(app4, dst4, "one"), got.from(app4, dst4, "two")
	r.mu.Lock()
	f := newFlow(r, key{app4, dst4}, one)
	r.mu.Unlock()
	f.socket = s
	f.pushLocked(two)
	f.flush()
	if want := []string{"one", "two"}; !slices.Equal(s.sent, want) {
		t.Errorf("sent %q, want %q", s.sent, want)
	}
	if one.released.Load() != 1 || two.released.Load() != 1 || r.queued.Load() != 0 {
		t.Errorf("released %d and %d times, %d bytes queued", one.released.Load(), two.released.Load(), r.queued.Load())
	}
}

// quiet is a socket to which nothing comes.
type quiet struct {
	socket
	until time.Time
}

func (s *quiet) SetReadDeadline(t time.Time) error { s.until = t; return nil }

func (s *quiet) receive(func([]byte, int)) error {
	time.Sleep(time.Until(s.until))
	return os.ErrDeadlineExceeded
}

func (*quiet) Close() error { return nil }

// The step in which a flow finds that it is idle takes it out of the table, too: a datagram that comes before its
// socket is closed begins a new flow. One that came before that step keeps the flow.
func TestDatagramAtTheEndOfAFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(func(context.Context, netip.AddrPort) (net.Conn, error) { return nil, errors.New("no socket") }, nil, Timeouts{})
		got := newInbox()
		r.mu.Lock()
		f := newFlow(r, key{app4, dst4}, got.from(app4, dst4, "one"))
		r.flows[f.key] = f
		r.mu.Unlock()
		f.socket = new(quiet)
		ended := make(chan time.Time)
		begun := time.Now()
		go func() { f.receive(); ended <- time.Now() }()
		time.Sleep(20 * time.Second)
		if same, _ := r.flow(got.from(app4, dst4, "two")); same != f {
			t.Error("a datagram in time did not find its flow")
		}
		if took := (<-ended).Sub(begun); took != 50*time.Second {
			t.Errorf("the flow ended after %v", took)
		}
		if other, _ := r.flow(got.from(app4, dst4, "three")); other != nil {
			t.Error("a datagram after the flow's time got a flow that is about to end")
		}
		f.close()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := r.Serve(ctx); err != nil {
			t.Error(err)
		}
	})
}
