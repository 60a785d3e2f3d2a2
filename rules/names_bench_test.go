package rules

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// learn returns Names with n names of one address each, all under one wildcard, observed within one second.
func learn(b *testing.B, n int) *Names {
	return learnFor(b, mustSet(b, "*.example:443=63999", "*.test:22=63998"), n)
}

// learnFor is learn for other rules.
func learnFor(b *testing.B, set *Set, n int) *Names {
	b.Helper()
	names := NewNames(set)
	for i := range n {
		_, err := names.Observe(nthName(i), []netip.Addr{nthAddr(i)}, time.Minute, true, start.Add(time.Duration(i)*time.Second/time.Duration(n)))
		if err != nil {
			b.Fatal(err)
		}
	}
	return names
}

func nthName(i int) string { return fmt.Sprintf("host%d.example", i) }

func nthAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, byte(i >> 16), byte(i >> 8), byte(i)})
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{1, 100_000} {
		b.Run(fmt.Sprintf("addrs=%d", n), func(b *testing.B) {
			names := learn(b, n)
			// The few connections of a machine, the same however much is known.
			var dsts [64]netip.AddrPort
			for i := range dsts {
				dsts[i] = netip.AddrPortFrom(nthAddr(i*7919%n), 443)
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if names.Decide(dsts[i%len(dsts)]).Rule == nil {
					b.Fatal("no rule")
				}
				i++
			}
		})
	}
	b.Run("rules=10000/addrs=100000", func(b *testing.B) {
		names, dsts := learnMany(b)
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			if names.Decide(dsts[i%len(dsts)]).Rule == nil {
				b.Fatal("no rule")
			}
			i++
		}
	})
	b.Run("unknown/addrs=100000", func(b *testing.B) {
		names := learn(b, 100_000)
		dst := netip.MustParseAddrPort("[2001:db8::1]:443")
		b.ReportAllocs()
		for b.Loop() {
			if names.Decide(dst).Rule != nil {
				b.Fatal("a rule")
			}
		}
	})
	b.Run("parallel/addrs=100000", func(b *testing.B) {
		names := learn(b, 100_000)
		dst := netip.AddrPortFrom(nthAddr(50_000), 443)
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				names.Decide(dst)
			}
		})
	})
}

// learnMany is learn for 10,000 rules and 100,000 addresses. It also returns some of the addresses.
func learnMany(b *testing.B) (*Names, [64]netip.AddrPort) {
	list := append(manyRules(b, "wildcard", 9_999), mustParse(b, "*.example:443=63999")...)
	set, err := NewSet(list)
	if err != nil {
		b.Fatal(err)
	}
	const n = 100_000
	var dsts [64]netip.AddrPort
	for i := range dsts {
		dsts[i] = netip.AddrPortFrom(nthAddr(i*7919%n), 443)
	}
	return learnFor(b, set, n), dsts
}

func BenchmarkHold(b *testing.B) {
	for _, n := range []int{1, 100_000} {
		b.Run(fmt.Sprintf("addrs=%d", n), func(b *testing.B) {
			names := learn(b, n)
			addr := nthAddr(n / 2)
			b.ReportAllocs()
			for b.Loop() {
				names.Hold(addr)()
			}
		})
	}
}

func BenchmarkObserve(b *testing.B) {
	for _, n := range []int{1, 100_000} {
		b.Run(fmt.Sprintf("known/addrs=%d", n), func(b *testing.B) {
			names := learn(b, n)
			name, addrs := nthName(n/2), []netip.Addr{nthAddr(n / 2)}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := names.Observe(name, addrs, time.Minute, true, at(2)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("ignored", func(b *testing.B) {
		names := learn(b, 1)
		addrs := []netip.Addr{nthAddr(1)}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := names.Observe("www.nobody.invalid", addrs, time.Minute, true, at(2)); err != nil {
				b.Fatal(err)
			}
		}
	})
	// Every answer evicts the address of another.
	for _, n := range []int{100, 100_000} {
		b.Run(fmt.Sprintf("full/addrs=%d", n), func(b *testing.B) {
			names := learn(b, n)
			names.limits.pairs = n
			addrs := make([]netip.Addr, 1)
			var next [4096]string
			for i := range next {
				next[i] = fmt.Sprintf("next%d.example", i)
			}
			i := n
			b.ReportAllocs()
			for b.Loop() {
				addrs[0] = nthAddr(i)
				l, err := names.Observe(next[i%len(next)], addrs, time.Minute, true, at(2))
				if err != nil || len(l.Drop) != 1 {
					b.Fatal(l.Drop, err)
				}
				names.Forget(l.Drop)
				i++
			}
		})
	}
}

func BenchmarkExpired(b *testing.B) {
	for _, n := range []int{1, 100_000} {
		b.Run(fmt.Sprintf("none/addrs=%d", n), func(b *testing.B) {
			names := learn(b, n)
			b.ReportAllocs()
			for b.Loop() {
				if len(names.Expired(at(10))) > 0 {
					b.Fatal("expired")
				}
			}
		})
	}
	// All are in use: each is looked at once a Grace, but not more often.
	b.Run("in use/addrs=100000", func(b *testing.B) {
		const n = 100_000
		names := learn(b, n)
		for i := range n {
			names.Hold(nthAddr(i))
		}
		second := 2
		b.ReportAllocs()
		for b.Loop() {
			second++
			if len(names.Expired(at(second))) > 0 {
				b.Fatal("expired")
			}
		}
	})
	b.Run("all/addrs=100000", func(b *testing.B) {
		const n = 100_000
		for b.Loop() {
			b.StopTimer()
			names := learn(b, n)
			b.StartTimer()
			all := 0
			for gone := names.Expired(at(1000)); len(gone) > 0; gone = names.Expired(at(1000)) {
				names.Forget(gone)
				all += len(gone)
			}
			if all != n || names.live != 0 {
				b.Fatal(all)
			}
		}
	})
}
