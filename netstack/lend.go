package netstack

import (
	"io"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// Bytes that an application has sent lie in the buffers that its packets were read into. Lend has them written from
// there, so that they are copied twice on their way through the process, by the kernel: out of pin0 and into the socket.
const (
	lentBytes  = 1 << 20 // at a time: with a quarter of that one flow is a sixth slower
	lentPieces = 256     // at a time: a packet is one, a train of them many
)

// Lend calls take with the bytes that can be read now, or the first of them, and takes as many out of the
// stream as take says that it has used. It does not wait: when nothing can be read, it returns no bytes and no error.
// Errors are Read's; the read deadline is WaitRead's.
//
// The pieces are not to be kept, nor written to. The endpoint is locked meanwhile, so that neither a reset nor Close frees
// them, so take must not block, and not use the Conn.
func (c *conn) Lend(take func(pieces [][]byte) int) (int, error) {
	there, terr := c.ep.GetSockOptInt(tcpip.ReceiveQueueSizeOption)
	if terr != nil {
		return 0, c.fail("read", errnoOf(terr))
	}
	l := loans.Get().(*loan)
	defer l.end()
	l.take, l.want = take, min(there, lentBytes)
	if _, err := c.receive(l, tcpip.ReadOptions{Peek: true}); err != nil || l.taken == 0 {
		return 0, err
	}
	// Nobody else reads, so what was taken is still in front, unless a reset has thrown all away: the next call tells.
	taken := l.taken
	_, _ = c.receive((*used)(&l.taken), tcpip.ReadOptions{})
	return taken, nil
}

// loan collects pieces while gVisor shows them one by one.
type loan struct {
	take   func(pieces [][]byte) int
	pieces [][]byte
	size   int // of pieces
	want   int // how many bytes are waited for
	taken  int
}

var loans = sync.Pool{New: func() any { return &loan{pieces: make([][]byte, 0, lentPieces)} }}

// Write is shown the next piece, with the endpoint locked. The last one that is wanted is where all are lent.
func (l *loan) Write(b []byte) (int, error) {
	l.pieces = append(l.pieces, b)
	l.size += len(b)
	if l.size < l.want && len(l.pieces) < lentPieces {
		return len(b), nil
	}
	l.taken = l.take(l.pieces)
	return len(b), io.EOF // enough
}

// end forgets what was lent.
func (l *loan) end() {
	clear(l.pieces)
	*l = loan{pieces: l.pieces[:0]}
	loans.Put(l)
}

// used takes so many bytes out of the stream.
type used int

func (u *used) Write(b []byte) (int, error) {
	n := min(len(b), int(*u))
	if *u -= used(n); *u == 0 {
		return n, io.EOF
	}
	return n, nil
}
