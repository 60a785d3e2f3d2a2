package sockdiag

import (
	"testing"
	"testing/synctest"
	"time"
)

func socketWith(id byte) Socket { return Socket{inode: 7, cookie: [8]byte{id}} }

// Each socket is searched for once in a while, however often somebody asks, and then once more: it may have another
// owner. Sockets that nobody asks about any more are forgotten, and those that no program has are not searched for.
func TestMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		searched := make(map[uint64]int)
		m := Memory{Find: func(list []Socket) []Process {
			owners := make([]Process, len(list))
			for i, s := range list {
				searched[s.ID()]++
				owners[i] = Process{PID: 100*searched[s.ID()] + int(s.cookie[0])}
			}
			return owners
		}}
		a, b, orphan := socketWith(1), socketWith(2), Socket{cookie: [8]byte{3}}
		for _, c := range []struct {
			list []Socket
			want []int
		}{
			{[]Socket{a, orphan}, []int{101, 0}},
			{[]Socket{b, a}, []int{102, 101}},
			{[]Socket{a, b}, []int{101, 102}},
		} {
			for i, p := range m.Owners(c.list) {
				if p.PID != c.want[i] {
					t.Errorf("socket %d has pid %d, want %d", i, p.PID, c.want[i])
				}
			}
		}
		time.Sleep(rememberFor)
		if p := m.Owners([]Socket{b}); p[0].PID != 202 {
			t.Errorf("after a while: pid %d, want 202", p[0].PID)
		}
		if len(m.known) != 1 {
			t.Errorf("%d sockets are remembered, want 1", len(m.known))
		}
		if searched[a.ID()] != 1 || searched[b.ID()] != 2 || searched[orphan.ID()] != 0 {
			t.Errorf("searched for %v", searched)
		}
	})
}
