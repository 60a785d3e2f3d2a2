package host

import (
	"testing"
	"time"
)

func TestPacer(t *testing.T) {
	var p pacer
	now := time.Unix(1000, 0)
	if got := p.next(now); got != paceFirst {
		t.Errorf("first: %v", got)
	}
	last := time.Duration(0)
	for range 20 {
		wait := p.next(now)
		if wait < last {
			t.Errorf("%v after %v", wait, last)
		}
		last, now = wait, now.Add(wait)
		p.repaired(now)
	}
	if last != paceMost {
		t.Errorf("a fight goes on every %v", last)
	}
	if got := p.next(now.Add(paceQuiet)); got != paceMost {
		t.Errorf("before it is quiet: %v", got)
	}
	if got := p.next(now.Add(paceQuiet + 1)); got != paceFirst {
		t.Errorf("after it was quiet: %v", got)
	}
}
