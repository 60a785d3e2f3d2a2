package lease

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// runModel interprets ops in the synctest bubble. The table remembers most tuples that are not held.
func runModel(t *testing.T, ops []byte, most int) {
	m, pins := newModel(t)
	m.table.recency.most = most
	pick := func(list []*modelRequest, b byte) *modelRequest {
		if len(list) == 0 {
			return nil
		}
		return list[int(b)%len(list)]
	}
	waits := []time.Duration{0, 3 * time.Second, 30 * time.Second, time.Hour}
	reclaims := []time.Duration{0, 0, 5 * time.Second, 8 * time.Second}
	cooldowns := []time.Duration{0, 0, 0, 10 * time.Second}
	rests := []time.Duration{0, 0, 50 * time.Millisecond, time.Minute, 10 * time.Minute}
	passes := []time.Duration{time.Millisecond, time.Second, 4 * time.Second, time.Minute, memory, 3 * longest}
	for ; len(ops) >= 4 && m.op < 250; ops = ops[4:] {
		m.op++
		what, a, b, c := ops[0]%18, ops[1], ops[2], ops[3]
		holder, waiter := pick(m.holding, a), pick(m.waiting, b)
		switch {
		case what < 7:
			r := Request{
				Pin:      pins[int(a)%len(pins)],
				Dst:      modelDsts[int(a)/len(pins)%3/2], // mostly the first
				Wait:     waits[b%4],
				Reclaim:  reclaims[b/4%4],
				Cooldown: cooldowns[c%4],
			}
			if r.Wait > 0 {
				r.Wait = m.until(r.Wait)
			}
			if r.Cooldown > 0 {
				r.Cooldown += time.Duration(m.op) * time.Microsecond
			}
			m.acquire(r)
		case what < 11 && holder != nil:
			rest := rests[int(c)%len(rests)]
			if rest > 0 {
				rest = m.until(rest)
			}
			q := m.release(holder, rest)
			synctest.Wait()
			if q != nil {
				m.verify(q)
			}
		case what < 12 && waiter != nil:
			m.cancel(waiter)
		case what < 13 && holder != nil && waiter != nil && holder.r.Cooldown == 0:
			m.releaseAndCancel(holder, waiter)
		case what < 14 && holder != nil && !holder.port.asked:
			holder.flow.touch()
		case what < 16 && holder != nil:
			if holder.r.Wait > 0 {
				holder.r.Wait = m.until(holder.r.Wait)
			}
			m.exchange(holder, m.until(rests[2+int(c)%3]))
		default:
			m.pass(m.until(passes[int(a)%len(passes)] + 2*time.Millisecond))
		}
		m.step()
	}
	for len(m.waiting) > 0 {
		m.cancel(m.waiting[0])
	}
	for len(m.holding) > 0 {
		m.release(m.holding[0], 0)
	}
	m.step()
	time.Sleep(time.Hour)
	synctest.Wait()
	checkEmpty(t, m.table)
}

// TestTwin runs random operations.
func TestTwin(t *testing.T) {
	n := 150
	if testing.Short() {
		n = 30
	}
	for seed := range n {
		rnd := rand.New(rand.NewPCG(uint64(seed), 1))
		ops := make([]byte, 4*(20+rnd.IntN(400)))
		for i := range ops {
			ops[i] = byte(rnd.Uint32())
		}
		synctest.Test(t, func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("seed %d", seed)
				}
			}()
			runModel(t, ops, []int{mostRemembered, 1, 3}[seed%3])
		})
	}
}

// mostFuzzed is how many bytes of operations FuzzTable looks at. The twin searches its lists after each operation,
// so a long input costs more than many short ones, and TestTwin covers long ones.
const mostFuzzed = 4 * 60

func FuzzTable(f *testing.F) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{4, 40, 120, mostFuzzed} {
		ops := make([]byte, n)
		for i := range ops {
			ops[i] = byte(rnd.Uint32())
		}
		f.Add(ops)
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		ops = ops[:min(len(ops), mostFuzzed)]
		synctest.Test(t, func(t *testing.T) { runModel(t, ops, mostRemembered) })
	})
}
