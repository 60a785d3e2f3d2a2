//go:build !linux

package main

import (
	"pinproxy/netstack/link"
	"pinproxy/proxy/sockdiag"
)

// takeOver returns an empty handover.
func takeOver() (*handover, error) { return &handover{}, nil }

// drop does nothing: only Linux has something to drop.
func (h *handover) drop(options) error { return nil }

// open opens the device.
func (h *handover) open(c link.Config) (*link.Link, error) { return link.Open(c) }

// owners returns nil: only Linux has it.
func (h *handover) owners() (func([]sockdiag.Socket) []sockdiag.Process, error) { return nil, nil }

func namerMain() {}

// mayBindLow returns false: capabilities exist only on Linux.
func mayBindLow() bool { return false }
