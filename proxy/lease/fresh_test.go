package lease

import (
	"slices"
	"testing"
)

// FuzzFresh compares the queue of ranges with a plain one.
func FuzzFresh(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 3, 1, 1, 2, 7})
	f.Fuzz(func(t *testing.T, ops []byte) {
		got := fresh{{First: 3, Last: 9}, {First: 65530, Last: 65535}}
		want := []uint16{3, 4, 5, 6, 7, 8, 9, 65530, 65531, 65532, 65533, 65534, 65535}
		var out []uint16
		for ; len(ops) >= 2; ops = ops[2:] {
			switch {
			case ops[0]%3 == 0:
				port := got.pop()
				if len(want) == 0 {
					want = []uint16{0}
				} else {
					out = append(out, want[0])
				}
				if port != want[0] {
					t.Fatalf("popped %d, want %d", port, want[0])
				}
				want = want[1:]
			case ops[0]%3 == 1 && len(out) > 0:
				i := int(ops[1]) % len(out)
				got.push(out[i])
				want = append(want, out[i])
				out = slices.Delete(out, i, i+1)
			case ops[0]%3 == 2 && len(want) > 0:
				i := int(ops[1]) % len(want)
				got.remove(want[i])
				got.remove(want[i]) // does nothing
				out = append(out, want[i])
				want = slices.Delete(want, i, i+1)
			}
		}
		var flat []uint16
		for _, r := range got {
			for port := int(r.First); port <= int(r.Last); port++ {
				flat = append(flat, uint16(port))
			}
		}
		if !slices.Equal(flat, want) {
			t.Fatalf("%v, want %v", flat, want)
		}
	})
}
