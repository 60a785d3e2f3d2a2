package lease

import (
	"fmt"
	"testing"
	"time"
)

// fill takes n leases of the pin and leaves one port free at each destination: 100,000 leases of a thousand-port pin
// fill a hundred destinations.
func fill(b *testing.B, table *Table, r Request, n int) {
	for i := range n {
		r.Dst = dstOf(i / (r.Pin.Ports().Len() - 1))
		r.Holder = &flow{}
		acquire(b, table, r)
	}
}

// BenchmarkAcquireRelease takes and releases a port beside the given number of live leases. Those of the same
// destination use all other ports of the pin.
func BenchmarkAcquireRelease(b *testing.B) {
	for _, live := range []int{1, 1000, 100_000} {
		b.Run(fmt.Sprintf("live=%d", live), func(b *testing.B) {
			table := NewTable()
			r := Request{Pin: pinOf(b, "20000-20999"), Dst: dstOf(0), Holder: &flow{}}
			fill(b, table, r, live)
			b.ReportAllocs()
			for b.Loop() {
				l, err := table.Acquire(b.Context(), r)
				if err != nil {
					b.Fatal(err)
				}
				l.Release(0)
			}
		})
	}
}

// BenchmarkChurn ends the oldest of the given number of flows and begins another to the same destination, so that
// caches see all of them.
func BenchmarkChurn(b *testing.B) {
	for _, live := range []int{1, 1000, 100_000} {
		b.Run(fmt.Sprintf("live=%d", live), func(b *testing.B) {
			table := NewTable()
			r := Request{Pin: pinOf(b, "20000-20999")}
			leases := make([]*Lease, live)
			for i := range leases {
				leases[i] = acquire(b, table, Request{Pin: r.Pin, Dst: dstOf(i % 100), Holder: &flow{}})
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				leases[i].Release(0)
				r.Dst = dstOf(i % 100)
				l, err := table.Acquire(b.Context(), r)
				if err != nil {
					b.Fatal(err)
				}
				leases[i] = l
				if i++; i == live {
					i = 0
				}
			}
		})
	}
}

// BenchmarkHandOver passes one port from flow to flow.
func BenchmarkHandOver(b *testing.B) {
	table := NewTable()
	r := Request{Pin: pinOf(b, "63999"), Dst: dst, Wait: time.Hour, Reclaim: time.Minute, Holder: &flow{}}
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			l, err := table.Acquire(b.Context(), r)
			if err != nil {
				b.Error(err)
				return
			}
			l.Release(0)
		}
	})
}
