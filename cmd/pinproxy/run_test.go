package main

import (
	"slices"
	"testing"

	"pinproxy/rules"
)

// Pins that touch or overlap are told apart: one may be too wide to be reserved.
func TestPinRanges(t *testing.T) {
	set := setOf(t, "*:1=33000\n*:2=33001-55000\n*:3=40000\n*:4=33000\n*:5=33000-33001\n")
	want := []rules.PortRange{{First: 33000, Last: 33000}, {First: 33000, Last: 33001}, {First: 33001, Last: 55000}, {First: 40000, Last: 40000}}
	if got := pinRanges(set); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
