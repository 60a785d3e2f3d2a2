package sockdiag

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Namer asks another process for the owners of sockets. That process may see what this one may not. Its methods are
// safe for concurrent use.
type Namer struct {
	mu   sync.Mutex
	conn net.Conn
	in   *bufio.Reader
	line []byte        // of an answer, as far as it has come
	owed bool          // an answer is still to come to a question that was given up
	wait time.Duration // at most, for one answer
}

// askTimeout bounds one question. Searching /proc takes some milliseconds per thousand processes.
const askTimeout = 2 * time.Second

// owedTimeout bounds the wait for an answer that is late already. Whoever asks next must not wait for it as long as
// the first one did.
const owedTimeout = 10 * time.Millisecond

// NewNamer returns a Namer that asks over fd, a connected stream socket whose other end is used by [Serve]. It takes
// over fd.
func NewNamer(fd int) (*Namer, error) {
	c, err := fileConn(fd)
	if err != nil {
		return nil, fmt.Errorf("ask for the owners of sockets: %w", err)
	}
	return &Namer{conn: c, in: bufio.NewReader(c), wait: askTimeout}, nil
}

func fileConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "namer")
	defer f.Close()
	return net.FileConn(f) // duplicates the descriptor
}

// Owners does what the function [Owners] does. If it gets no answer in time, it calls that function. A late answer is
// dropped when it comes, and then the other process is asked again.
func (n *Namer) Owners(sockets []Socket) []Process {
	inodes := make([]uint32, len(sockets))
	for i, s := range sockets {
		inodes[i] = s.inode
	}
	owners, err := n.ask(inodes)
	if err != nil || len(owners) != len(sockets) {
		return Owners(sockets)
	}
	return owners
}

func (n *Namer) ask(inodes []uint32) (owners []Process, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn == nil {
		return nil, net.ErrClosed
	}
	if n.owed {
		if _, err := n.answer(owedTimeout); err != nil {
			return nil, err
		}
	}
	// A question of which only a part was sent can't be continued.
	err = n.conn.SetWriteDeadline(time.Now().Add(n.wait))
	if err == nil {
		err = json.NewEncoder(n.conn).Encode(inodes)
	}
	if err != nil {
		n.close()
		return nil, err
	}
	n.owed = true
	answer, err := n.answer(n.wait)
	if err != nil {
		return nil, err
	}
	err = json.Unmarshal(answer, &owners)
	return owners, err
}

// answer reads the answer that is owed, a line. After a timeout it is still owed; after any other error there are no
// more answers.
func (n *Namer) answer(wait time.Duration) ([]byte, error) {
	err := n.conn.SetReadDeadline(time.Now().Add(wait))
	if err == nil {
		var part []byte
		part, err = n.in.ReadBytes('\n')
		n.line = append(n.line, part...)
	}
	if err != nil {
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			n.close()
		}
		return nil, err
	}
	line := n.line
	n.line, n.owed = nil, false
	return line, nil
}

func (n *Namer) close() {
	_ = n.conn.Close()
	n.conn = nil
}

// Serve answers a [Namer] until it closes its end.
func Serve(fd int) {
	unix.CloseOnExec(fd)
	c, err := fileConn(fd)
	if err != nil {
		return
	}
	defer c.Close()
	for in, out := json.NewDecoder(c), json.NewEncoder(c); ; {
		var inodes []uint32
		if in.Decode(&inodes) != nil || out.Encode(ownersOf(inodes)) != nil {
			return
		}
	}
}
