package sockdiag

import (
	"sync"
	"time"
)

// rememberFor is how long a socket's owner is remembered. The kernel's number of a socket is never used again, but a
// program may hand its socket to another one, and end.
const rememberFor = 5 * time.Second

// Memory remembers which programs own sockets. A flow that waits for a port asks about the same socket twenty times a
// second, and a page that shows the ports does so every second, while each search reads all of /proc. The zero value
// is ready for use, and its methods are safe for concurrent use.
type Memory struct {
	// Find searches. Nil means the function Owners.
	Find func([]Socket) []Process

	mu    sync.Mutex
	known map[uint64]memory // by Socket.ID
	swept time.Time
}

type memory struct {
	Process
	at time.Time
}

// Owners does what the function [Owners] does, as of rememberFor ago at most.
func (m *Memory) Owners(sockets []Socket) []Process {
	now := time.Now()
	owners := make([]Process, len(sockets))
	var unknown []Socket
	var places []int
	m.mu.Lock()
	m.sweepLocked(now)
	for i, s := range sockets {
		known, ok := m.known[s.ID()]
		switch {
		case s.Orphan():
		case ok && now.Sub(known.at) < rememberFor:
			owners[i] = known.Process
		default:
			unknown, places = append(unknown, s), append(places, i)
		}
	}
	m.mu.Unlock()
	if len(unknown) == 0 {
		return owners
	}
	find := m.Find
	if find == nil {
		find = Owners
	}
	found := find(unknown)
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, p := range found {
		owners[places[i]] = p
		m.known[unknown[i].ID()] = memory{p, now}
	}
	return owners
}

// sweepLocked forgets what is too old, so that only sockets of the last seconds are kept.
func (m *Memory) sweepLocked(now time.Time) {
	if m.known != nil && now.Sub(m.swept) < rememberFor {
		return
	}
	m.swept = now
	if m.known == nil {
		m.known = make(map[uint64]memory)
	}
	for id, known := range m.known {
		if now.Sub(known.at) >= rememberFor {
			delete(m.known, id)
		}
	}
}
