//go:build !linux

package link

import "runtime"

// Yielder lets other goroutines run.
type Yielder struct{}

// NewYielder needs no resources.
func NewYielder() (*Yielder, error) { return &Yielder{}, nil }

// Yield lets the goroutines run that can.
func (*Yielder) Yield() { runtime.Gosched() }

// Close does nothing.
func (*Yielder) Close() error { return nil }
