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

// Namer asks another process, which may see what we may not, for the owners of sockets. Its methods are safe for
// concurrent use.
type Namer struct {
	mu   sync.Mutex
	conn net.Conn
	in   *json.Decoder
}

// askTimeout bounds one question. Looking through /proc takes some milliseconds for each thousand processes.
const askTimeout = 2 * time.Second

// NewNamer asks over a connected stream socket, which [Serve] has the other end of. It takes fd over.
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
	return net.FileConn(f) // a duplicate
}

// Owners does what the function [Owners] does. Where nobody answers it is that function's answer.
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
	if err != nil { // what comes later would be taken for the next answer
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
