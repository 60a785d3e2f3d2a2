package udp

import (
	"slices"
	"syscall"
	"testing"
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

// An error about an earlier datagram does not cost the one that is being sent from the queue, even if the socket is
// full again by the time that it is sent once more.
func TestFlushSendsAgain(t *testing.T) {
	r := New(nil, nil, Limits{})
	got := newInbox()
	s := &scripted{errs: []error{syscall.ECONNREFUSED, errBusy, syscall.ECONNREFUSED, errBusy}}
	one, two := got.from(app4, dst4, "one"), got.from(app4, dst4, "two")
	r.mu.Lock()
	f := newFlow(r, key{app4, dst4}, new(order), one)
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
