package proxy

import "sync"

// chunkSize is how much is read at a time on the way down. 64 KiB cost a fifth of the throughput of one flow. It makes four packets
// to the device that are as full as gVisor sends them (sender.sendData), and no fifth of what is left.
const chunkSize = 4 * pieceSize

// pieceSize is how much, where many flows share the memory.
const pieceSize = 65535 - 161

// A chunk is a buffer. A direction has one only while bytes move.
type chunk struct{ b []byte }

var (
	chunks = sync.Pool{New: func() any { return &chunk{make([]byte, chunkSize)} }}
	pieces = sync.Pool{New: func() any { return &chunk{make([]byte, pieceSize)} }}
)

// newChunk takes a buffer of size, which is one of the two.
func newChunk(size int) *chunk {
	if size == chunkSize {
		return chunks.Get().(*chunk)
	}
	return pieces.Get().(*chunk)
}

// free gives it back.
func (c *chunk) free() {
	if len(c.b) == chunkSize {
		chunks.Put(c)
	} else {
		pieces.Put(c)
	}
}
