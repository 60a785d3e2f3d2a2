package monitor

import (
	"errors"
	"fmt"
	"net"
	"net/http"
)

// Whether connections are captured.
const (
	healthStarting = iota
	healthCapturing
	healthEnding
)

// Capturing says that connections are captured from now on.
func (m *Monitor) Capturing() { m.health.Store(healthCapturing) }

// Ending says that connections are not captured any more.
func (m *Monitor) Ending() { m.health.Store(healthEnding) }

// ill returns nil while connections are captured and the device is up. Otherwise it says what is wrong.
func (m *Monitor) ill() error {
	switch m.health.Load() {
	case healthStarting:
		return errors.New("starting: connections are not captured yet")
	case healthEnding:
		return errors.New("ending: connections are not captured any more")
	}
	i, err := net.InterfaceByName(m.Link)
	switch {
	case err != nil:
		return fmt.Errorf("the device %s is gone", m.Link)
	case i.Flags&net.FlagUp == 0:
		return fmt.Errorf("the device %s is down: it is set up again within seconds", m.Link)
	}
	return nil
}

// serveHealth answers a health check: 200 or 503, with the reason in words.
func (m *Monitor) serveHealth(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if err := m.ill(); err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = fmt.Fprintln(w, err)
		return
	}
	_, _ = fmt.Fprintf(w, "ok: capturing into %s, rules: %d\n", m.Link, len(m.Names.Set().Rules()))
}
