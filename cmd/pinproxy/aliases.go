package main

import (
	"slices"
	"sync"
	"time"

	"pinproxy/rules"
)

const (
	maxAliases = 4096           // targets that are remembered
	aliasTTL   = 24 * time.Hour // at most: unbound keeps no record longer
)

// aliases remembers which names of rules are aliases of names that have no rule and are looked up separately. The zero
// value remembers nothing.
type aliases struct {
	mu sync.RWMutex
	of map[string]alias // by target
}

type alias struct {
	names []string // never changed in place
	until time.Time
}

// names returns the names that target stands for.
func (a *aliases) names(target string, now time.Time) []string {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if known := a.of[target]; now.Before(known.until) {
		return known.names
	}
	return nil
}

// add says that name is an alias of target. Programs use answers a little longer than they may, so there is a grace.
func (a *aliases) add(name, target string, ttl time.Duration, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.of[target]
	if !now.Before(known.until) {
		known = alias{}
	}
	names := slices.DeleteFunc(slices.Clone(known.names), func(n string) bool { return n == name })
	if len(names) >= rules.MaxNamesPerAddr {
		names = names[1:]
	}
	until := now.Add(min(ttl, aliasTTL) + rules.Grace)
	if until.Before(known.until) {
		until = known.until
	}
	if a.of == nil {
		a.of = make(map[string]alias)
	}
	if _, has := a.of[target]; !has && len(a.of) >= maxAliases {
		for other := range a.of { // at random, so that a flood can't tell whose place it takes
			delete(a.of, other)
			break
		}
	}
	a.of[target] = alias{append(names, name), until}
}
