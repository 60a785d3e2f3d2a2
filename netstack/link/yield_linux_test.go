package link

import (
	"os"
	"runtime"
	"testing"
	"time"
)

// While one goroutine can always run, Yield lets another one run that waits for the network.
func TestYield(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	y, err := NewYielder()
	if err != nil {
		t.Fatal(err)
	}
	defer y.Close()
	r, w, err := os.Pipe() // Go's poller waits for it
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
	y.Yield() // let the reader begin to wait
	const times = 1000
	late := 0
	for n := range times {
		if _, err := w.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		tries := 0
		for end := time.Now().Add(30 * time.Second); len(heard) == 0; tries++ {
			if time.Now().After(end) {
				t.Fatalf("the reader has not been let on at time %d", n)
			}
			y.Yield()
		}
		<-heard
		if tries > 3 { // two if sysmon has looked in the meantime
			late++
		}
	}
	// On a busy machine, the kernel may stop sysmon's thread after it has got the news and before it has passed them
	// on. But sysmon looks only when nobody has looked for 10 ms. With Gosched in place of Yield, the reader is late
	// nearly every time.
	if late > times/10 {
		t.Errorf("%d times of %d the reader has not been let on at once", late, times)
	}
	t.Logf("%d times of %d it was not at once", late, times)
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
