package dns

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	frameLen     = 2                          // the length prefix of a message, RFC 1035, section 4.2.2
	headLen      = frameLen + headerLen + 259 // up to the end of any question
	maxAskedTCP  = 1024
	keepAskedTCP = time.Minute
)

var errManyAskedTCP = errors.New("dns: too many unanswered queries on one connection")

// Conn is a TCP connection like *net.TCPConn.
type Conn = interface {
	net.Conn
	CloseWrite() error
	SetLinger(sec int) error
}

// Tapper makes taps, which share the throttle of the log.
type Tapper struct{ learn learner }

// NewTapper returns a Tapper that reports to obs. A nil log discards.
func NewTapper(obs Observer, log *slog.Logger) *Tapper {
	return &Tapper{learner{obs: obs, log: newThrottle(log)}}
}

// Tap wraps c, asker's connection to a resolver, and watches its traffic. Write sees the application's queries.
// Read releases the answer to a wanted query once the observer has learned from it. If c turns out not to carry
// DNS, the tap becomes transparent. It never holds more than one message of 64 KiB in addition to the data of
// one Read.
//
// One goroutine may read while another one writes. Write fails, having written nothing, if 1024 wanted queries
// have each waited less than a minute for an answer.
func (t *Tapper) Tap(asker Asker, c Conn) Conn {
	return &tap{stream: newStream(asker, c, t.learn), conn: c}
}

type tap struct {
	*stream
	conn Conn
}

func (t *tap) CloseWrite() error       { return t.conn.CloseWrite() }
func (t *tap) SetLinger(sec int) error { return t.conn.SetLinger(sec) }

// stream follows the frames in both directions of a connection. It is not a net.PacketConn, because
// net.Resolver would take it for UDP.
//
// Bytes that pass freely are only counted: all that matters is where the next frame starts. A frame is held,
// whole, if a wanted query waits for its ID. Its first bytes are held until the ID is known, but only while a
// wanted query waits: a frame that has begun to pass is not the answer to a later query.
type stream struct {
	net.Conn
	asker Asker
	learn learner
	blind atomic.Bool // not DNS: both directions pass

	mu    sync.Mutex
	asked asked

	// Write's side.
	head  [headLen]byte // of the current frame, as far as it has come
	nhead int
	wskip int // bytes of the frame after head
	ahead int // bytes seen that a failed Write left unsent; they will come again

	// Read's side.
	rskip int    // bytes of the frame still to pass freely
	half  bool   // one byte of a frame's length has passed
	first byte   // that byte
	hold  []byte // starts with a frame that may have to wait
	ready []byte // to be handed out first
	rerr  error  // returned after ready
}

func newStream(asker Asker, c net.Conn, l learner) *stream {
	return &stream{Conn: c, asker: asker, learn: l, asked: asked{max: maxAskedTCP, keep: keepAskedTCP}}
}

// Write sends p. Its queries are remembered before their last byte is sent.
func (s *stream) Write(p []byte) (int, error) {
	seen := min(s.ahead, len(p))
	if err := s.watch(p[seen:]); err != nil {
		return 0, err
	}
	n, err := s.Conn.Write(p)
	s.ahead = max(s.ahead, len(p)) - n
	return n, err
}

// watch follows the frames of the queries.
func (s *stream) watch(p []byte) error {
	for len(p) > 0 && !s.blind.Load() {
		if s.wskip > 0 {
			k := min(s.wskip, len(p))
			s.wskip -= k
			p = p[k:]
			continue
		}
		want := frameLen
		if s.nhead >= frameLen {
			want = min(frameLen+frameSize(s.head[:]), headLen)
		}
		k := copy(s.head[s.nhead:want], p)
		s.nhead += k
		p = p[k:]
		if s.nhead < want {
			return nil
		}
		if want == frameLen {
			if frameSize(s.head[:]) < headerLen {
				s.giveUp()
			}
			continue
		}
		if err := s.query(s.head[frameLen:want]); err != nil {
			return err
		}
		s.wskip = frameLen + frameSize(s.head[:]) - want
		s.nhead = 0
	}
	return nil
}

// query handles a query, or a part of it that includes the question.
func (s *stream) query(msg []byte) error {
	if !plausible(msg) {
		s.giveUp()
		return nil
	}
	_, id, q, ok := parseQuestion(msg, false)
	if !ok || !q.wanted(s.learn.obs) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.blind.Load() && !s.asked.add(id, q, time.Now()) {
		return errManyAskedTCP
	}
	return nil
}

// plausible reports whether msg could begin a request: not a response, a known opcode (RFC 1035, 1996, 2136,
// 8490), no response code, few questions, and no answers in a standard query.
func plausible(msg []byte) bool {
	flags, opcode := msg[3], msg[2]>>3&0xf
	if msg[2]&0x80 != 0 || opcode > 6 || flags&0x4f != 0 || msg[4] != 0 || msg[5] > 16 {
		return false
	}
	return opcode != 0 || msg[6] == 0 && msg[7] == 0
}

func (s *stream) giveUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = asked{}
	s.blind.Store(true)
}

// Read returns what may pass. An error is returned after everything read before it, including partial frames. A
// deadline is different: what is held stays held.
func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return s.Conn.Read(p)
	}
	for {
		if len(s.hold) > 0 {
			s.settle()
		}
		if len(s.ready) > 0 {
			n := copy(p, s.ready)
			if s.ready = s.ready[n:]; len(s.ready) == 0 {
				s.ready = nil
			}
			return n, nil
		}
		if s.rerr != nil {
			return 0, s.rerr
		}
		var n int
		var err error
		if len(s.hold) == 0 {
			n, err = s.Conn.Read(p)
			pass := s.scan(p[:n])
			s.hold = append(s.hold, p[pass:n]...)
			if s.fail(err); pass > 0 {
				return pass, nil
			}
		} else {
			n, err = s.fill()
			s.fail(err)
		}
		if n == 0 && s.rerr == nil {
			return 0, err
		}
	}
}

// fail records an error that ends reading.
func (s *stream) fail(err error) {
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		s.rerr = err
	}
}

// fill reads more of the held frame, and nothing beyond it.
func (s *stream) fill() (int, error) {
	l := len(s.hold)
	want := frameLen + headerLen
	if l >= frameLen {
		want = frameLen + frameSize(s.hold)
	}
	s.hold = slices.Grow(s.hold, want-l)
	n, err := s.Conn.Read(s.hold[l:want])
	s.hold = s.hold[:l+n]
	return n, err
}

// settle moves data from hold to ready once it no longer has to wait.
func (s *stream) settle() {
	b := s.hold
	for len(b) > 0 {
		n := s.scan(b)
		s.ready = append(s.ready, b[:n]...)
		b = b[n:]
		if len(b) < frameLen {
			break
		}
		end := frameLen + frameSize(b)
		if len(b) < end {
			break
		}
		s.ready = append(s.ready, s.answer(b[:end])...)
		b = b[end:]
	}
	if s.rerr != nil { // no more will come
		s.ready = append(s.ready, b...)
		b = nil
	}
	switch {
	case len(b) == 0:
		s.hold = nil
	case len(b) < len(s.hold):
		s.hold = append(s.hold[:0], b...)
	}
}

// scan returns how many bytes of b may pass. b continues the previously scanned data. The rest starts with a
// frame to hold.
func (s *stream) scan(b []byte) int {
	n := 0
	for n < len(b) && !s.blind.Load() {
		switch {
		case s.rskip > 0:
			k := min(s.rskip, len(b)-n)
			s.rskip -= k
			n += k
		case s.half:
			s.half = false
			s.pass(frameSize([]byte{s.first, b[n]}))
			n++
		case s.holds(b[n:]):
			return n
		case len(b)-n == 1:
			s.half, s.first = true, b[n]
			n++
		default:
			s.pass(frameSize(b[n:]))
			n += frameLen
		}
	}
	return len(b)
}

func (s *stream) pass(size int) {
	if size < headerLen {
		s.giveUp()
		return
	}
	s.rskip = size
}

// holds reports whether the frame at the start of b must wait, either until more of it is known or until it is
// complete.
func (s *stream) holds(b []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.asked.n == 0:
		return false
	case len(b) >= frameLen && frameSize(b) < headerLen:
		return false
	case len(b) < 5:
		return true
	}
	return b[4]&0x80 != 0 && s.asked.has(uint16(b[2])<<8|uint16(b[3]))
}

// answer returns the replacement for a frame that was held.
func (s *stream) answer(frame []byte) []byte {
	p, id, q, ok := parseQuestion(frame[frameLen:], true)
	if !ok {
		return frame
	}
	s.mu.Lock()
	hit := s.asked.take(id, q)
	s.mu.Unlock()
	if !hit {
		return frame
	}
	msg := s.learn.release(s.asker, p, q, frame[frameLen:])
	return append([]byte{byte(len(msg) >> 8), byte(len(msg))}, msg...)
}

func frameSize(b []byte) int { return int(b[0])<<8 | int(b[1]) }
