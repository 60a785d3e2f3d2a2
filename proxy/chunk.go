package proxy

import "sync"

// chunkSize is how much is read at a time on the way down. 64 KiB would cost one flow a fifth of its throughput. A
// chunk makes four packets to the device, each as full as gVisor sends them (sender.sendData), with no remainder for
// a fifth.
const chunkSize = 4 * pieceSize

// pieceSize is how much is read at a time when many flows share the memory.
const pieceSize = 65535 - 161

// A chunk is a buffer. A direction has one only while bytes move.
type chunk struct {
	b      []byte
	urgent bool // it holds one byte, of urgent data
}

var (
	chunks = sync.Pool{New: func() any { return &chunk{b: make([]byte, chunkSize)} }}
	pieces = sync.Pool{New: func() any { return &chunk{b: make([]byte, pieceSize)} }}
)

// newChunk returns a buffer of size, which must be chunkSize or pieceSize.
func newChunk(size int) *chunk {
	if size == chunkSize {
		return chunks.Get().(*chunk)
	}
	return pieces.Get().(*chunk)
}

// free gives the chunk back.
func (c *chunk) free() {
	c.urgent = false
	if len(c.b) == chunkSize {
		chunks.Put(c)
	} else {
		pieces.Put(c)
	}
}
