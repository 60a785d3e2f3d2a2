package host

import (
	"os"
	"testing"

	"pinproxy/netstack/lab"
)

func TestFindRunning(t *testing.T) {
	h := lab.ForTest(t).Host("host")
	find := func(wantOK bool, want Running) {
		t.Helper()
		err := h.Do(func() error {
			if got, ok, err := FindRunning(); got != want || ok != wantOK || err != nil {
				t.Errorf("found %+v, %v, %v; want %+v, %v", got, ok, err, want, wantOK)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	find(false, Running{})
	l, err := hold(t, h)
	if err != nil {
		t.Fatal(err)
	}
	find(true, Running{PID: os.Getpid()})
	l.Announce("/run/pinproxy.sock")
	for range 100 { // asking does not fill the queue
		find(true, Running{PID: os.Getpid(), Socket: "/run/pinproxy.sock"})
	}
	if err := l.Release(); err != nil {
		t.Fatal(err)
	}
	find(false, Running{})
}
