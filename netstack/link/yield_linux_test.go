package link

import (
	"os"
	"runtime"
	"testing"
)

// While a goroutine can always run, one that waits for the network is let on by Yield.
func TestYield(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	y, err := NewYielder()
	if err != nil {
		t.Fatal(err)
	}
	defer y.Close()
	r, w, err := os.Pipe() // which Go's poller waits for
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	heard := make(chan struct{}, 1)
	go func() {
		for {
			if _, err := r.Read(make([]byte, 1)); err != nil {
				return
			}
			heard <- struct{}{}
		}
	}()
	y.Yield() // so that it waits
	for n := range 1000 {
		if _, err := w.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		for tries := 0; len(heard) == 0; tries++ {
			if tries == 3 { // two, where sysmon has looked meanwhile
				t.Fatalf("the reader has not been let on at time %d", n)
			}
			y.Yield()
		}
		<-heard
	}
}

func TestYieldAfterClose(t *testing.T) {
	y, err := NewYielder()
	if err != nil {
		t.Fatal(err)
	}
	if err := y.Close(); err != nil {
		t.Fatal(err)
	}
	y.Yield()
}

func BenchmarkYield(b *testing.B) {
	y, err := NewYielder()
	if err != nil {
		b.Fatal(err)
	}
	defer y.Close()
	for b.Loop() {
		y.Yield()
	}
}
