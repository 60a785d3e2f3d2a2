package proxy

import (
	"slices"
	"testing"
	"time"
)

func TestShare(t *testing.T) {
	for _, tt := range []struct{ flows, share, chunk int }{
		{0, 1 << 20, chunkSize},
		{1, 1 << 20, chunkSize},
		{128, 1 << 20, chunkSize},
		{129, 512 << 10, chunkSize},
		{256, 512 << 10, chunkSize},
		{257, 256 << 10, chunkSize},
		{513, 128 << 10, pieceSize},
		{1 << 20, 128 << 10, pieceSize},
	} {
		if got := share(tt.flows); got != tt.share {
			t.Errorf("share(%d) = %d, want %d", tt.flows, got, tt.share)
		}
		if got := chunkFor(tt.share); got != tt.chunk {
			t.Errorf("with %d flows %d bytes are read at a time, want %d", tt.flows, got, tt.chunk)
		}
	}
}

// idle is an end that could sleep if asked.
type idle struct{ Conn }

func (idle) Watch(waker) bool                { return false }
func (idle) WatchReset(waker) bool           { return true }
func (idle) Unwatch()                        {}
func (idle) SetReadDeadline(time.Time) error { return nil }

// The share shrinks with the flow that makes them too many. It grows at a look, when there are few again.
func TestFlowsShareMemory(t *testing.T) {
	var said []int
	p := New(Config{Share: func(up, down int) {
		if up != 2*down {
			t.Errorf("it was told %d on the way up, want twice the %d down", up, down)
		}
		said = append(said, down)
	}})
	p.rest.looking = true // by the test
	var flows []*live
	begin := func(n int) {
		for range n {
			l := newLive(p, new(testFlow), nil)
			l.open(idle{}, idle{}, leased{})
			flows = append(flows, l)
		}
	}
	leave := func(n int) { // to sleep, or forever
		for _, l := range flows[len(flows)-n:] {
			p.rest.remove(l)
		}
		flows = flows[:len(flows)-n]
	}
	is := func(want ...int) {
		t.Helper()
		if !slices.Equal(said, want) {
			t.Errorf("with %d flows it was told %d, want %d", len(flows), said, want)
		}
		said = nil
	}
	begin(128)
	p.rest.find()
	is()
	begin(1)
	is(512 << 10)
	begin(384)
	is(256<<10, 128<<10)
	begin(4000)
	is()
	leave(4503)
	is()
	p.rest.find()
	is(0)
	begin(1)
	is()
}

// A flow is busy because of what it moves, not because it exists. More than a few are many.
func TestManyAreBusy(t *testing.T) {
	var said []bool
	p := New(Config{Busy: func(many bool) { said = append(said, many) }})
	p.rest.looking = true // by the test
	var flows []*live
	for range 100 {
		l := newLive(p, new(testFlow), nil)
		l.open(idle{}, idle{}, leased{})
		flows = append(flows, l)
	}
	for _, c := range []struct {
		flows, bytes int // in each direction
		want         []bool
	}{
		{0, 0, nil},
		{100, busyBytes/2 - 1000, nil},
		{fewBusy, busyBytes, nil},
		{fewBusy + 1, busyBytes / 2, []bool{true}},
		{100, busyBytes, nil},
		{fewBusy, busyBytes, []bool{false}},
		{100, busyBytes, []bool{true}},
		{0, 0, []bool{false}},
	} {
		for _, l := range flows[:c.flows] {
			l.up.bytes.Add(uint64(c.bytes))
			l.down.bytes.Add(uint64(c.bytes))
		}
		said = nil
		p.rest.find()
		if !slices.Equal(said, c.want) {
			t.Errorf("when %d of %d flows had moved 2 × %d bytes it was told %v, want %v", c.flows, len(flows), c.bytes, said, c.want)
		}
	}
}
