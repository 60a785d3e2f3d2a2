package netstack

import (
	"io"
	"math"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// Bytes that an application has sent lie in the buffers that its packets were read into. Lend lets the caller write
// them from there. They are then copied only twice on their way through the process, both times by the kernel: out of
// pin0 and into the socket.
const (
	lentBytes  = 1 << 20 // at a time; with a quarter of this, a single flow is a sixth slower
	lentPieces = 256     // at a time; a packet is one piece, a train of packets many
)

// Lend calls take with the bytes that can be read now, or the first of them, and removes from the stream as many
// bytes as take says it has used. It does not wait: when nothing can be read, it returns no bytes and no error. It
// returns the same errors as Read. It ignores the read deadline; WaitRead observes it.
//
// An urgent byte is lent alone, and take is told so.
//
// The pieces must not be kept or written to. The endpoint is locked meanwhile, so that neither a reset nor Close
// frees them; take must therefore not block and not use the Conn.
func (c *conn) Lend(take func(pieces [][]byte, urgent bool) int) (int, error) {
	there, terr := c.ep.GetSockOptInt(tcpip.ReceiveQueueSizeOption)
	if terr != nil {
		return 0, c.fail("read", errnoOf(terr))
	}
	l := loans.Get().(*loan)
	defer l.end()
	l.take, l.want, l.most = take, min(there, lentBytes), math.MaxInt
	if n, ok := c.urgentAhead(); ok {
		l.most, l.urgent = max(n, 1), n == 0
		l.want = min(l.want, l.most)
	}
	if _, err := c.receive(l, tcpip.ReadOptions{Peek: true}); err != nil || l.taken == 0 {
		return 0, err
	}
	// Nobody else reads, so what was taken is still at the front, unless a reset has thrown everything away. The next
	// call reports that.
	taken := l.taken
	_, _ = c.receive((*used)(&l.taken), tcpip.ReadOptions{})
	return taken, nil
}

// loan collects pieces while gVisor shows them one by one.
type loan struct {
	take   func(pieces [][]byte, urgent bool) int
	pieces [][]byte
	size   int // of pieces
	want   int // how many bytes to wait for
	most   int // how many may be lent
	urgent bool
	taken  int
}

var loans = sync.Pool{New: func() any { return &loan{pieces: make([][]byte, 0, lentPieces)} }}

// Write receives the next piece, with the endpoint locked. At the last piece that is wanted, all of them are lent.
func (l *loan) Write(b []byte) (int, error) {
	b = b[:min(len(b), l.most-l.size)]
	l.pieces = append(l.pieces, b)
	l.size += len(b)
	if l.size < l.want && len(l.pieces) < lentPieces {
		return len(b), nil
	}
	l.taken = l.take(l.pieces, l.urgent)
	return len(b), io.EOF // enough
}

// end forgets what was lent.
func (l *loan) end() {
	clear(l.pieces)
	*l = loan{pieces: l.pieces[:0]}
	loans.Put(l)
}

// used takes this many bytes out of the stream.
type used int

func (u *used) Write(b []byte) (int, error) {
	n := min(len(b), int(*u))
	if *u -= used(n); *u == 0 {
		return n, io.EOF
	}
	return n, nil
}
