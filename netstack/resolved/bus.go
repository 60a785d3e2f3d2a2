package resolved

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	service     = "org.freedesktop.resolve1"
	managerPath = "/org/freedesktop/resolve1"
	manager     = service + ".Manager"
	linkIface   = service + ".Link"
	properties  = "org.freedesktop.DBus.Properties"

	// callWait bounds every call. resolved answers within microseconds.
	callWait = 2 * time.Second

	scopeDNS = 1 // SD_RESOLVED_DNS, in ScopesMask
)

// bus is a connection to the system's D-Bus. owner is resolved's unique name there, which is never reused.
type bus struct {
	conn  *dbus.Conn
	owner string
}

// Handed is a connection to the bus that was made elsewhere, as user UID. Without an FD there is none.
type Handed struct {
	FD  int
	UID int
}

// open authenticates on the connection and sends Hello.
func (h Handed) open(ctx context.Context) (*dbus.Conn, error) {
	f := os.NewFile(uintptr(h.FD), "D-Bus")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	conn, err := dbus.NewConn(c, dbus.WithContext(ctx))
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	err = conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(h.UID))})
	if err == nil {
		err = conn.Hello()
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// openBus connects, or uses h if it is given. It subscribes signals to changes of resolved's owner and settings. The
// connection ends with ctx.
func openBus(ctx context.Context, h Handed, signals chan<- *dbus.Signal) (*dbus.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(callWait, cancel) // nothing else bounds the authentication
	open := func(ctx context.Context) (*dbus.Conn, error) { return dbus.ConnectSystemBus(dbus.WithContext(ctx)) }
	if h.FD != 0 {
		open = h.open
	}
	conn, err := open(ctx)
	if !late.Stop() && err == nil {
		err = errors.Join(context.DeadlineExceeded, conn.Close())
	}
	if err != nil {
		cancel()
		return nil, err
	}
	conn.Signal(signals)
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, service)},
		{dbus.WithMatchSender(service), dbus.WithMatchInterface(properties), dbus.WithMatchObjectPath(managerPath)},
	} {
		if err := conn.AddMatchSignalContext(ctx, match...); err != nil {
			cancel()
			return nil, errors.Join(err, conn.Close())
		}
	}
	context.AfterFunc(conn.Context(), cancel)
	return conn, nil
}

// findOwner returns the bus name that owns resolved's service, "" if there is none.
func findOwner(ctx context.Context, conn *dbus.Conn) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	var owner string
	err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, service).Store(&owner)
	if isError(err, "org.freedesktop.DBus.Error.NameHasNoOwner") {
		return "", nil
	}
	return owner, err
}

// call calls a method of resolved. It starts nothing.
func (b bus) call(ctx context.Context, path dbus.ObjectPath, method string, args []any, into ...any) error {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	err := b.conn.Object(b.owner, path).CallWithContext(ctx, method, dbus.FlagNoAutoStart, args...).Store(into...)
	if err != nil {
		return fmt.Errorf("%s: %w", method[strings.LastIndexByte(method, '.')+1:], err)
	}
	return nil
}

// set calls a manager method that has no result.
func (b bus) set(ctx context.Context, method string, args ...any) error {
	return b.call(ctx, managerPath, manager+"."+method, args)
}

func (b bus) getAll(ctx context.Context, path dbus.ObjectPath, iface string) (values, error) {
	var v map[string]dbus.Variant
	err := b.call(ctx, path, properties+".GetAll", []any{iface}, &v)
	return values(v), err
}

// link returns the settings of an interface.
func (b bus) link(ctx context.Context, index int) (values, error) {
	var path dbus.ObjectPath
	if err := b.call(ctx, managerPath, manager+".GetLink", []any{int32(index)}, &path); err != nil {
		return nil, err
	}
	return b.getAll(ctx, path, linkIface)
}

func isError(err error, names ...string) bool {
	var e dbus.Error
	return errors.As(err, &e) && slices.Contains(names, e.Name)
}

// checkNamespace returns errElsewhere if resolved is not in our network namespace. The files of /proc/PID/net, which any
// user may stat, have inode numbers that are unique to a namespace.
func (b bus) checkNamespace(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	var pid uint32
	if err := b.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetConnectionUnixProcessID", 0, b.owner).Store(&pid); err != nil {
		return err
	}
	ours, err := os.Stat("/proc/thread-self/net/dev")
	if err != nil {
		return err
	}
	theirs, err := os.Stat("/proc/" + strconv.Itoa(int(pid)) + "/net/dev")
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat("/proc/1"); errors.Is(err, os.ErrNotExist) {
			return errHidden
		}
		return errElsewhere // in another PID namespace
	}
	if err == nil && !os.SameFile(ours, theirs) {
		err = errElsewhere
	}
	return err
}

// values are the properties of an object. A property that an older resolved lacks, or has with another type, reads
// as empty.
type values map[string]dbus.Variant

func (v values) text(name string) string { s, _ := v[name].Value().(string); return s }
func (v values) flag(name string) bool   { b, _ := v[name].Value().(bool); return b }
func (v values) mask(name string) uint64 { m, _ := v[name].Value().(uint64); return m }

// store decodes a property into what into points to, and reports whether it could.
func (v values) store(name string, into any) bool {
	p, has := v[name] // Store panics on the zero Variant
	return has && p.Store(into) == nil
}

// domain is a domain of an interface, as D-Bus encodes it.
type domain struct {
	Name  string
	Route bool
}

// domains returns the domains of an interface.
func (v values) domains() (list []domain) {
	v.store("Domains", &list)
	return list
}

// addresses returns the server addresses of an interface. What is not an address becomes the zero value.
func (v values) addresses() (list []netip.Addr) {
	var entries []address
	v.store("DNS", &entries)
	for _, e := range entries {
		a, _ := netip.AddrFromSlice(e.Bytes)
		list = append(list, a)
	}
	return list
}

// address is an address as D-Bus encodes it.
type address struct {
	Family int32
	Bytes  []byte
}

// linkServer is a server and the interface that it belongs to; 0 for none.
type linkServer struct {
	link int
	server
}

// servers reads the list for all interfaces, "DNS" or "FallbackDNS". Ports and names came with version 246.
func (v values) servers(name string) (list []linkServer) {
	var extended []struct {
		Link   int32
		Family int32
		Bytes  []byte
		Port   uint16
		Name   string
	}
	if !v.store(name+"Ex", &extended) {
		var plain []struct {
			Link   int32
			Family int32
			Bytes  []byte
		}
		v.store(name, &plain)
		for _, p := range plain {
			list = appendServer(list, int(p.Link), p.Bytes, 0, "")
		}
		return list
	}
	for _, e := range extended {
		list = appendServer(list, int(e.Link), e.Bytes, e.Port, e.Name)
	}
	return list
}

func appendServer(list []linkServer, link int, bytes []byte, port uint16, name string) []linkServer {
	a, ok := netip.AddrFromSlice(bytes)
	if !ok {
		return list
	}
	if a.Is6() && a.IsLinkLocalUnicast() && link != 0 {
		a = a.WithZone(strconv.Itoa(link))
	}
	return append(list, linkServer{link, server{netip.AddrPortFrom(a, port), name}})
}
