package netns

import "os"

const (
	// childMark is the first argument of the process that becomes the command.
	childMark = "--become-the-command-of-pinproxy"
	self      = "/proc/self/exe"
)

// Main must be called at the very beginning of a program that calls [Start]. In the process that is to become a
// command it does not return; in any other process it does nothing.
func Main() {
	if len(os.Args) > 4 && os.Args[1] == childMark {
		become(os.Args[2], os.Args[3], os.Args[4:])
	}
}
