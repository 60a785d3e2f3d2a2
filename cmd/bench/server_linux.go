package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// bufferSize is how much both ends read and write at once.
const bufferSize = 128 << 10

// server is the other end of all connections.
type server struct {
	received atomic.Int64 // by portSink

	mu   sync.Mutex
	held []socket
}

// serve listens on all ports. Its goroutines live as long as the agent.
func serve() (*server, error) {
	s := &server{}
	for port, handle := range map[uint16]func(socket){
		portSink:   s.sink,
		portSource: source,
		portShort:  answer,
		portEcho:   echo,
		portHold:   s.hold,
		portPinned: answerPinned(pinnedTo[portPinned]),
		portPlain:  answerPinned(pinnedTo[portPlain]),
		portWho:    func(c socket) { _ = c.writeFull([]byte(c.remote())) },
	} {
		l, err := listen(port)
		if err != nil {
			return nil, err
		}
		go accept(l, handle, port != portHold)
	}
	return s, nil
}

func accept(l socket, handle func(socket), closing bool) {
	for {
		c, err := l.accept()
		if err != nil {
			time.Sleep(time.Millisecond) // out of descriptors
			continue
		}
		go func() {
			handle(c)
			if closing {
				c.close()
			}
		}()
	}
}

func (s *server) sink(c socket) {
	b := make([]byte, bufferSize)
	for {
		n, err := c.read(b)
		if err != nil {
			return
		}
		s.received.Add(int64(n))
	}
}

func source(c socket) {
	b := make([]byte, bufferSize)
	for {
		if _, err := c.write(b); err != nil {
			return
		}
	}
}

func answer(c socket) {
	var b [messageSize]byte
	if c.readFull(b[:]) == nil && c.writeFull(b[:]) == nil {
		_, _ = c.read(b[:]) // the client closes first
	}
}

// answerPinned answers clients that connect from the port.
func answerPinned(from uint16) func(socket) {
	suffix := fmt.Sprintf(":%d", from)
	return func(c socket) {
		if strings.HasSuffix(c.remote(), suffix) {
			answer(c)
		}
	}
}

func echo(c socket) {
	if c.noDelay() != nil {
		return
	}
	var b [pingSize]byte
	for c.readFull(b[:]) == nil && c.writeFull(b[:]) == nil {
	}
}

func (s *server) hold(c socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = append(s.held, c)
}

// count counts what the sink gets in t.Time after t.Warm.
func (s *server) count(t task) report {
	return countFor(t, &s.received)
}

// countFor counts what is added to n.
func countFor(t task, n *atomic.Int64) report {
	time.Sleep(t.Warm)
	before, began := n.Load(), time.Now()
	time.Sleep(t.Time)
	return report{Bytes: n.Load() - before, Took: time.Since(began)}
}

// holding waits for t.N connections, but at most for t.Time.
func (s *server) holding(t task) report {
	for end := time.Now().Add(t.Time); ; time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		n := len(s.held)
		s.mu.Unlock()
		if n >= t.N || time.Now().After(end) {
			return report{OK: n}
		}
	}
}

func (s *server) flows() []socket {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.held)
}

func (s *server) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.held {
		c.close()
	}
	s.held = nil
}

// who connects to portWho.
func who(t task) report {
	c, err := dial(t.To[0], t.From)
	if err != nil {
		return report{Err: err.Error()}
	}
	defer c.close()
	seen := make([]byte, 0, 64)
	for {
		n, err := c.read(seen[len(seen):cap(seen)])
		if errors.Is(err, io.EOF) {
			return report{Local: c.local(), Seen: string(seen)}
		}
		if err != nil {
			return report{Err: err.Error()}
		}
		seen = seen[:len(seen)+n]
	}
}
