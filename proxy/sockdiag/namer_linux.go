package sockdiag

import (
	"encoding/json"
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
	in   *json.Decoder
}

// askTimeout bounds one question. Searching /proc takes some milliseconds per thousand processes.
const askTimeout = 2 * time.Second

// NewNamer returns a Namer that asks over fd, a connected stream socket whose other end is used by [Serve]. It takes
// over fd.
func NewNamer(fd int) (*Namer, error) {
	c, err := fileConn(fd)
	if err != nil {
		return nil, fmt.Errorf("ask for the owners of sockets: %w", err)
	}
	return &Namer{conn: c, in: json.NewDecoder(c)}, nil
}

func fileConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "namer")
	defer f.Close()
	return net.FileConn(f) // duplicates the descriptor
}

// Owners does what the function [Owners] does. If it gets no answer, it calls that function.
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
	err = n.conn.SetDeadline(time.Now().Add(askTimeout))
	if err == nil {
		err = json.NewEncoder(n.conn).Encode(inodes)
	}
	if err == nil {
		err = n.in.Decode(&owners)
	}
	if err != nil { // a late answer would be taken for the next one
		_ = n.conn.Close()
		n.conn = nil
	}
	return owners, err
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
