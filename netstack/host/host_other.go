//go:build !linux

package host

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
)

var errOther = fmt.Errorf("change the host's routing on %s: %w", runtime.GOOS, errors.ErrUnsupported)

// Host is a host whose connections are captured: on Linux only.
type Host struct{}

// Lock is the right of one process to change a network namespace: on Linux only.
type Lock struct{}

// New returns errors.ErrUnsupported.
func New(Config) (*Host, error) { return nil, errOther }

// Apply returns errors.ErrUnsupported.
func (h *Host) Apply(context.Context) (undo func(context.Context) error, err error) {
	return nil, errOther
}

// Run returns errors.ErrUnsupported.
func (h *Host) Run(context.Context) error { return errOther }

// Add returns errors.ErrUnsupported.
func (h *Host) Add(context.Context, []Capture) error { return errOther }

// Remove returns errors.ErrUnsupported.
func (h *Host) Remove(context.Context, []Capture) error { return errOther }

// Replace returns errors.ErrUnsupported.
func (h *Host) Replace(context.Context, Config, []Capture, func()) error { return errOther }

// Linger returns errors.ErrUnsupported.
func (h *Host) Linger([][2]netip.AddrPort) error { return errOther }

// Stop returns errors.ErrUnsupported.
func (h *Host) Stop(context.Context) error { return errOther }

// Warnings returns nothing.
func (h *Host) Warnings() []error { return nil }

// Gateways returns nothing.
func (h *Host) Gateways() []Gateway { return nil }

// LookGateways returns errors.ErrUnsupported.
func LookGateways([]string) ([]Gateway, error) { return nil, errOther }

// Whereabouts tells where addresses are: on Linux only.
type Whereabouts struct{}

// OpenWhereabouts returns errors.ErrUnsupported.
func OpenWhereabouts() (*Whereabouts, error) { return nil, errOther }

// Close does nothing.
func (w *Whereabouts) Close() error { return nil }

// Own returns errors.ErrUnsupported.
func (w *Whereabouts) Own(netip.Addr) (bool, error) { return false, errOther }

// MTU returns errors.ErrUnsupported.
func (w *Whereabouts) MTU(netip.Addr) (int, error) { return 0, errOther }

// Look returns errors.ErrUnsupported.
func Look(string) (Facts, error) { return Facts{}, errOther }

// HasIPv6 returns errors.ErrUnsupported.
func HasIPv6() (bool, error) { return false, errOther }

// Namespace returns "": there are no namespaces.
func Namespace() (string, error) { return "", nil }

// FindRunning finds nothing.
func FindRunning() (r Running, ok bool, err error) { return Running{}, false, nil }

// FindWay returns errors.ErrUnsupported.
func FindWay(Connection) (Way, error) { return Way{}, errOther }

// FindAhead finds nothing.
func FindAhead(netip.AddrPort) (Ahead, error) { return Ahead{}, nil }

// Announce does nothing.
func (l *Lock) Announce(string) {}

// Hold returns errors.ErrUnsupported.
func Hold(context.Context) (*Lock, error) { return nil, errOther }

// Release does nothing.
func (l *Lock) Release() error { return nil }

// Cleanup returns errors.ErrUnsupported.
func (l *Lock) Cleanup(context.Context, string) ([]string, error) { return nil, errOther }
