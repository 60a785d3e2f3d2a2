package host

import "fmt"

// Ahead are other programs' policy rules that the kernel asks before ours, and that lead connections past the device. A
// rule that is added without a priority, as by wg-quick, gets one before all but the first (fib_default_rule_pref),
// whatever ours have.
type Ahead struct {
	Priorities string // a list; empty: there are none
	IPv6       bool
}

// String says what is wrong.
func (a Ahead) String() string {
	return fmt.Sprintf("policy rules of other programs are asked before pinproxy's: %s", a.Priorities)
}

// Hint says what helps.
func (a Ahead) Hint() string {
	ip := "ip"
	if a.IPv6 {
		ip = "ip -6"
	}
	return fmt.Sprintf("`%s rule` shows them: give them priorities above %d, or start their program before pinproxy", ip, prefEnd)
}
