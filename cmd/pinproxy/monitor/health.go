package monitor

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
)

// health says whether connections are captured. At first they are not.
type health struct {
	link  string
	state atomic.Int32
}

const (
	healthStarting = iota
	healthCapturing
	healthEnding
)

// Capturing says that connections are captured from now on.
func (m *Monitor) Capturing() { m.health.state.Store(healthCapturing) }

// Ending says that connections are not captured any more.
func (m *Monitor) Ending() { m.health.state.Store(healthEnding) }

func (h *health) ending() bool { return h.state.Load() == healthEnding }

// err returns nil while connections are captured and the device is up. Otherwise it says what is wrong.
func (h *health) err() error {
	switch h.state.Load() {
	case healthStarting:
		return errors.New("starting: connections are not captured yet")
	case healthEnding:
		return errors.New("ending: connections are not captured any more")
	}
	i, err := net.InterfaceByName(h.link)
	switch {
	case err != nil:
		return fmt.Errorf("the device %s is gone", h.link)
	case i.Flags&net.FlagUp == 0:
		return fmt.Errorf("the device %s is down: it is set up again within seconds", h.link)
	}
	return nil
}

// serveHealth answers a health check: 200 or 503, with the reason in words.
func (m *Monitor) serveHealth(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if err := m.health.err(); err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = fmt.Fprintln(w, err)
		return
	}
	_, _ = fmt.Fprintf(w, "ok: capturing into %s, rules: %d\n", m.health.link, len(m.Names.Set().Rules()))
}
