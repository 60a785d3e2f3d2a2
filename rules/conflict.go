package rules

import "fmt"

// ConflictError says that two rules of a set are equally specific and share a destination port, so that neither can
// win. First was given before Second.
type ConflictError struct {
	First, Second *Rule
	Port          uint16 // the lowest port they share
}

// Error returns the error on one line, naming both rules and where they were written.
func (e *ConflictError) Error() string {
	if e.First.text == e.Second.text {
		return fmt.Sprintf("the rule %s is given again as %s", e.First.where(), e.Second.where())
	}
	return fmt.Sprintf("the rules %s and %s are equally specific for port %d; give one of them fewer ports",
		e.First.where(), e.Second.where(), e.Port)
}
