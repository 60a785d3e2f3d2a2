package dns

import (
	"slices"
	"time"
)

// asked remembers the wanted queries that were sent and are still unanswered. It is not safe for concurrent
// use. The zero value remembers nothing; set max and keep.
type asked struct {
	max  int           // distinct queries
	keep time.Duration // after this time an unanswered query may be forgotten to make room
	n    int
	byID map[uint16][]ask
}

type ask struct {
	q     question
	times int // how often it was sent; the same number of answers is accepted
	at    time.Time
}

// add reports false if there is no room. The query must then not be sent, because its answer would go
// unnoticed.
func (a *asked) add(id uint16, q question, now time.Time) bool {
	for i, have := range a.byID[id] {
		if have.q == q {
			a.byID[id][i].times++
			a.byID[id][i].at = now
			return true
		}
	}
	if a.n >= a.max {
		a.forget(now.Add(-a.keep))
	}
	if a.n >= a.max {
		return false
	}
	if a.byID == nil {
		a.byID = make(map[uint16][]ask)
	}
	a.byID[id] = append(a.byID[id], ask{q: q, times: 1, at: now})
	a.n++
	return true
}

// has reports whether any query with this ID is waiting for an answer.
func (a *asked) has(id uint16) bool { return len(a.byID[id]) > 0 }

// take reports whether q was asked with this ID, and counts it as answered.
func (a *asked) take(id uint16, q question) bool {
	asks := a.byID[id]
	i := slices.IndexFunc(asks, func(k ask) bool { return k.q == q })
	if i < 0 {
		return false
	}
	if asks[i].times--; asks[i].times == 0 {
		a.put(id, slices.Delete(asks, i, i+1))
		a.n--
	}
	return true
}

func (a *asked) forget(before time.Time) {
	for id, asks := range a.byID {
		l := len(asks)
		asks = slices.DeleteFunc(asks, func(k ask) bool { return k.at.Before(before) })
		a.n -= l - len(asks)
		a.put(id, asks)
	}
}

func (a *asked) put(id uint16, asks []ask) {
	if len(asks) == 0 {
		delete(a.byID, id)
	} else {
		a.byID[id] = asks
	}
}
