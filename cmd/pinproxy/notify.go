package main

import (
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// notifyPatience is how long the service manager may leave its socket full: it must not keep us from ending.
const notifyPatience = 2 * time.Second

// reloading says that the rules are being reread. With Type=notify-reload, systemd takes the READY=1 that follows as
// the end of the reload. It needs the time to tell which signal the message is about.
func reloading() string {
	return fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonic().Microseconds())
}

// oneLine returns text in a form that a state can hold.
func oneLine(text string) string { return strings.ReplaceAll(text, "\n", "; ") }

// notify tells the service manager, if there is one: sd_notify(3). It ignores failures, which the manager will
// notice.
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
	_ = c.SetWriteDeadline(time.Now().Add(notifyPatience))
	_, _ = c.Write([]byte(state))
}
