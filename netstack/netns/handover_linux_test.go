package netns

import (
	"encoding/json"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzHandOver: whatever the other end of the hand-over sends yields a report or an error, and no descriptor is
// leaked.
func FuzzHandOver(f *testing.F) {
	good, err := json.Marshal(report{Warnings: []string{"one"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, uint8(1))
	f.Add(good, uint8(0))
	f.Add([]byte(`{"Step":"open","Errno":13,"Kind":2}`), uint8(0))
	f.Add([]byte(`{"Device":{"FD":7,"Name":"pin0","MTU":-1}}`), uint8(3))
	f.Add([]byte("{"), uint8(1))
	f.Add(good, uint8(2))
	f.Add([]byte{}, uint8(2))
	null, err := os.Open(os.DevNull)
	if err != nil {
		f.Fatal(err)
	}
	defer null.Close()
	f.Fuzz(func(t *testing.T, said []byte, rights uint8) {
		ours, theirs, err := socketPair()
		if err != nil {
			t.Fatal(err)
		}
		defer theirs.Close()
		defer ours.Close()
		c := &Child{sock: ours}
		var control []byte
		if n := int(rights % 4); n > 0 {
			fds := make([]int, n)
			for i := range fds {
				fds[i] = int(null.Fd())
			}
			control = unix.UnixRights(fds...)
		}
		if len(said) > maxMessage {
			said = said[:maxMessage]
		}
		if len(said) == 0 && len(control) > 0 {
			control = nil // an empty packet is end of file here
		}
		if err := unix.Sendmsg(int(theirs.Fd()), said, control, nil, 0); err != nil {
			t.Fatal(err)
		}
		before := descriptors(t)
		r, err := c.hear()
		if err == nil {
			_ = r.err()
			got := r.descriptors()
			if want := int(rights % 4); want > 2 || len(control) > 0 && len(got) != want || len(control) == 0 && len(got) != 0 {
				t.Errorf("%d descriptors of a message with %d", len(got), want)
			}
			closeAll(got)
		}
		if after := descriptors(t); after != before {
			t.Errorf("%d descriptors, %d before: %q with %d is %v", after, before, said, rights%4, err)
		}
	})
}
