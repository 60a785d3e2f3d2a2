package sockdiag

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newTestNamer returns a Namer and the end of the process that it asks.
func newTestNamer(t *testing.T) (*Namer, net.Conn) {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := NewNamer(ends[0])
	if err != nil {
		t.Fatal(err)
	}
	asked, err := fileConn(ends[1])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n.conn != nil {
			n.close()
		}
		_ = asked.Close()
	})
	return n, asked
}

// An answer that is late is nobody's, and the next question gets its own.
func TestNamerAnswersLate(t *testing.T) {
	n, asked := newTestNamer(t)
	in, out := json.NewDecoder(asked), json.NewEncoder(asked)
	question := func() (inodes []uint32) {
		t.Helper()
		if err := in.Decode(&inodes); err != nil {
			t.Fatal(err)
		}
		return inodes
	}
	n.wait = 10 * time.Millisecond
	if got, err := n.ask([]uint32{1}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("no answer: %v, %v", got, err)
	}
	question()
	// Half of the answer is there. Nothing more is asked until the rest is.
	if _, err := asked.Write([]byte(`[{"PID":1,`)); err != nil {
		t.Fatal(err)
	}
	if got, err := n.ask([]uint32{2}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("half an answer: %v, %v", got, err)
	}
	if _, err := asked.Write([]byte("\"Name\":\"late\"}]\n")); err != nil {
		t.Fatal(err)
	}
	n.wait = time.Minute
	got := make(chan []Process)
	go func() {
		for { // this test may be too slow to read what is there
			if owners, err := n.ask([]uint32{3}); !errors.Is(err, os.ErrDeadlineExceeded) {
				got <- owners
				return
			}
		}
	}()
	if inodes := question(); len(inodes) != 1 || inodes[0] != 3 {
		t.Errorf("asked for %v, want 3", inodes)
	}
	want := Process{PID: 3, Name: "timely"}
	if err := out.Encode([]Process{want}); err != nil {
		t.Fatal(err)
	}
	if p := <-got; len(p) != 1 || p[0] != want {
		t.Errorf("got %v, want %v", p, want)
	}
}

// When the other process has gone, we look ourselves.
func TestNamerIsGone(t *testing.T) {
	n, asked := newTestNamer(t)
	_ = asked.Close()
	for range 2 {
		if p := n.Owners([]Socket{{}}); len(p) != 1 || p[0] != (Process{}) {
			t.Errorf("got %v, want no process", p)
		}
	}
}
