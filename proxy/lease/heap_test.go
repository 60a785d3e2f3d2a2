package lease

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestHeap removes entries and raises keys in random order.
func TestHeap(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	var h heap
	var in []*entry
	for range 20_000 {
		switch n := rnd.IntN(8); {
		case n < 4 || len(in) == 0:
			e := new(entry)
			h.push(e, rnd.Int64N(1000))
			in = append(in, e)
		case n < 6:
			i := rnd.IntN(len(in))
			h.remove(in[i])
			if in[i].index != outside {
				t.Fatal("removed, but inside")
			}
			in = slices.Delete(in, i, i+1)
		default:
			e := in[rnd.IntN(len(in))]
			h.raise(e, e.key+rnd.Int64N(100))
		}
		if len(h) != len(in) {
			t.Fatalf("%d entries, want %d", len(h), len(in))
		}
		if len(in) > 0 {
			least := slices.MinFunc(in, func(a, b *entry) int { return cmp.Compare(a.key, b.key) })
			if h.top().key != least.key {
				t.Fatalf("top %d, want %d", h.top().key, least.key)
			}
		}
	}
}
