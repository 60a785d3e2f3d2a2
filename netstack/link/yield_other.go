//go:build !linux

package link

import "runtime"

// Yielder lets others on.
type Yielder struct{}

// NewYielder needs nothing.
func NewYielder() (*Yielder, error) { return &Yielder{}, nil }

// Yield lets on those who can run.
func (*Yielder) Yield() { runtime.Gosched() }

// Close does nothing.
func (*Yielder) Close() error { return nil }
