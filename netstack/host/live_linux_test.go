package host

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"pinproxy/netstack/lab"
)

// many returns n captures, half of each family.
func many(n int) []Capture {
	list := make([]Capture, n)
	for i := range list {
		a6 := [16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff}
		binary.BigEndian.PutUint32(a6[12:], uint32(i))
		a := netip.AddrFrom16(a6)
		if i%2 == 0 {
			a = netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		}
		list[i] = Capture{netip.PrefixFrom(a, a.BitLen()), 0}
	}
	return list
}

func TestAddRemove(t *testing.T) {
	b := newBench(t)
	b.apply(Config{
		PortSets: [][]PortRange{{{443, 443}}, {{80, 80}}},
		Captures: []Capture{capture(lab.Server4+"/32", 1)},
	})
	_, stop := b.run(50 * time.Millisecond) // checks, but finds nothing
	defer stop()
	b.direct(dialer{}, server4, 443)
	_, before := b.inPlace()

	both := []Capture{capture(lab.Server4+"/32", 0), capture(lab.Server6+"/128", 0)}
	for range 2 {
		if err := b.host.Add(t.Context(), both); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range servers {
		b.capturedFromTUN(dialer{}, a, 443)
	}
	b.direct(dialer{}, server6, 80)
	b.capturedFromTUN(dialer{}, server4, 80)

	const n = 10000
	if err := b.host.Add(t.Context(), many(n)); err != nil {
		t.Fatal(err)
	}
	if _, routes := b.inPlace(); routes != before+2+n {
		t.Errorf("%d routes, want %d", routes, before+2+n)
	}
	for _, list := range [][]Capture{many(n), many(10), both, {capture(lab.Server4+"/32", 1)}} {
		if err := b.host.Remove(t.Context(), list); err != nil {
			t.Fatal(err)
		}
	}
	if _, routes := b.inPlace(); routes != before {
		t.Errorf("%d routes, want %d", routes, before)
	}
	for _, a := range servers {
		b.direct(dialer{}, a, 443)
	}
	b.capturedFromTUN(dialer{}, server4, 80) // named by the configuration

	if err := b.host.Add(t.Context(), []Capture{capture("192.0.2.0/24", 2)}); err == nil {
		t.Error("added to a port set that is not there")
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.host.Add(canceled, both); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if b.logs.String() != "" {
		t.Error(b.logs)
	}
	if err := b.undo(t.Context()); err != nil {
		t.Error(err)
	}
	if err := b.host.Remove(t.Context(), both); err == nil {
		t.Error("removed from what is undone")
	}
}

func BenchmarkAddRemove(b *testing.B) {
	for _, size := range []struct {
		name string
		n    int
	}{{"1", 1}, {"100000", 100_000}} {
		b.Run(size.name, func(b *testing.B) {
			h := benchmarkHost(b)
			list := many(size.n)
			var adding, removing time.Duration
			for b.Loop() {
				start := time.Now()
				if err := h.Add(b.Context(), list); err != nil {
					b.Fatal(err)
				}
				added := time.Now()
				if err := h.Remove(b.Context(), list); err != nil {
					b.Fatal(err)
				}
				adding += added.Sub(start)
				removing += time.Since(added)
			}
			b.ReportMetric(float64(adding.Nanoseconds())/float64(b.N*size.n), "ns/add")
			b.ReportMetric(float64(removing.Nanoseconds())/float64(b.N*size.n), "ns/remove")
		})
	}
}

// BenchmarkLook measures the regular check of 100,000 routes, and the repair of all of them.
func BenchmarkLook(b *testing.B) {
	h := benchmarkHost(b)
	list := many(100_000)
	if err := h.Add(b.Context(), list); err != nil {
		b.Fatal(err)
	}
	b.Run("nothing missing", func(b *testing.B) {
		for b.Loop() {
			if repaired, err := h.look(dirtAll); err != nil || len(repaired) > 0 {
				b.Fatal(len(repaired), err)
			}
		}
	})
	b.Run("all missing", func(b *testing.B) {
		for b.Loop() {
			if err := errors.Join(h.kernel.undo(linkUp{Link})); err != nil {
				b.Fatal(err)
			}
			if repaired, err := h.look(dirtAll); err != nil || len(repaired) < len(list) {
				b.Fatal(len(repaired), err)
			}
		}
	})
}

func benchmarkHost(b *testing.B) *Host {
	return benchmarkHostOn(b, lab.ForTest(b).Topology().Client)
}

func benchmarkHostOn(b *testing.B, client *lab.Host) *Host {
	openTUN(b, client)
	h, err := New(Config{PortSets: [][]PortRange{{{443, 443}}}})
	if err != nil {
		b.Fatal(err)
	}
	err = client.Do(func() error {
		undo, err := h.Apply(b.Context())
		if err == nil {
			b.Cleanup(func() { undo(context.Background()) })
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return h
}
