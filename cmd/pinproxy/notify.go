package main

import (
	"fmt"
	"net"
	"os"
	"strings"
)

// reloading says that the rules are being reread. With Type=notify-reload systemd takes the READY=1 after it for the
// end of that, and asks for the time so that it can tell which signal it is about.
func reloading() string {
	return fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonic().Microseconds())
}

// oneLine is text as it can stand in a state.
func oneLine(text string) string { return strings.ReplaceAll(text, "\n", "; ") }

// notify tells the service manager, if there is one: sd_notify(3). A failure is
// the manager's to notice.
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte(state))
}
