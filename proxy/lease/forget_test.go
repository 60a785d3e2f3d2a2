package lease

import (
	"net/netip"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// longest is how long a record may stay after its last use.
const longest = memory + slack

// size counts the pools, and the tuples that have a record.
func size(table *Table) (pools, tuples int) {
	table.lock()
	defer table.unlock()
	for _, pr := range table.pairs {
		pools += len(pr.pools)
		tuples += len(pr.tuples)
	}
	return pools, tuples
}

func TestForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		r := Request{Pin: pinOf(t, "10-19")}
		kept := acquire(t, table, r)
		acquire(t, table, r).Release(0)
		acquire(t, table, r).Release(time.Hour)
		for _, tt := range []struct {
			pass    time.Duration
			records int
		}{
			{memory - time.Second, 3},
			{slack + time.Second, 2},  // the released one
			{time.Hour - 2*memory, 2}, // resting
			{memory + 2*longest, 1},   // rested
			{100 * time.Hour, 1},      // held
		} {
			time.Sleep(tt.pass)
			synctest.Wait()
			check(t, table)
			if _, got := size(table); got != tt.records {
				t.Fatalf("%d records after another %v, want %d", got, tt.pass, tt.records)
			}
		}
		kept.Release(0)
		time.Sleep(longest)
		synctest.Wait()
		checkEmpty(t, table)
	})
}

// TestForgetPools: a pool goes with the last tuple taken through it, even when other, overlapping pools of the pair
// remain.
func TestForgetPools(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		wide, narrow := Request{Pin: pinOf(t, "10-19")}, Request{Pin: pinOf(t, "12")}
		kept := acquire(t, table, wide)
		acquire(t, table, narrow).Release(0)
		if pools, _ := size(table); pools != 2 {
			t.Fatalf("%d pools", pools)
		}
		time.Sleep(longest)
		synctest.Wait()
		check(t, table)
		if pools, _ := size(table); pools != 1 {
			t.Fatalf("%d pools", pools)
		}
		// The port passes from one pool to the other, which takes over its record.
		acquire(t, table, narrow).Release(0)
		for range 9 {
			acquire(t, table, wide)
		}
		check(t, table)
		if pools, _ := size(table); pools != 1 {
			t.Fatalf("%d pools", pools)
		}
		// A failing request leaves nothing behind.
		if _, err := table.Acquire(t.Context(), Request{Pin: narrow.Pin, Dst: dst}); err == nil {
			t.Fatal("a second holder")
		}
		check(t, table)
		if pools, _ := size(table); pools != 1 {
			t.Fatalf("%d pools", pools)
		}
		kept.Release(0)
	})
}

// TestForgetMany forgets more than one batch.
func TestForgetMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		r := Request{Pin: pinOf(t, "1-65535")}
		var leases []*Lease
		for range 2*sweepBatch + 1 {
			leases = append(leases, acquire(t, table, r))
		}
		for _, l := range leases {
			l.Release(0)
		}
		time.Sleep(longest)
		synctest.Wait()
		checkEmpty(t, table)
	})
}

// TestForgetCrowd: a scan of a whole network leaves a bounded number of records behind. What is held, and what has to rest,
// is none that can be forgotten.
func TestForgetCrowd(t *testing.T) {
	table := NewTable()
	const most = mostRemembered / 64
	table.recency.most /= 64 // to be done sooner
	r := Request{Pin: pinOf(t, "10-19"), Dst: dst, Cooldown: time.Hour}
	acquire(t, table, r)
	acquire(t, table, r).Release(0)
	for i := range most + 100 {
		acquire(t, table, Request{Pin: r.Pin, Dst: dstOf(i)}).Release(0)
	}
	check(t, table)
	if _, tuples := size(table); tuples != most+1 {
		t.Errorf("%d records", tuples)
	}
	if v := table.Look(dst, r.Pin); v.Holding != 1 || v.Resting != 1 || len(v.Next) != 8 {
		t.Errorf("%+v", v)
	}
	if v := table.Look(dstOf(0), r.Pin); v.Next[0] != 10 {
		t.Errorf("the oldest is remembered: %+v", v)
	}
	if v := table.Look(dstOf(most), r.Pin); v.Next[0] != 11 {
		t.Errorf("a late one is forgotten: %+v", v)
	}
}

// TestMemory measures what a destination of a wide pin costs while one flow uses it.
func TestMemory(t *testing.T) {
	const n = 20_000
	table := NewTable()
	pin := pinOf(t, "20000-20999")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	leases := make([]*Lease, n)
	for i := range leases {
		leases[i] = acquire(t, table, Request{Pin: pin, Dst: dstOf(i)})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := int64(after.HeapAlloc-before.HeapAlloc) / n
	t.Logf("%d bytes for a destination with one flow", each)
	if each > 2000 {
		t.Errorf("%d bytes for a destination with one flow", each)
	}
	runtime.KeepAlive(leases)
}

// dstOf returns one of 16 million destinations.
func dstOf(i int) netip.AddrPort {
	a := netip.MustParseAddr("2001:db8::").As16()
	a[13], a[14], a[15] = byte(i>>16), byte(i>>8), byte(i)
	return netip.AddrPortFrom(netip.AddrFrom16(a), 443)
}
