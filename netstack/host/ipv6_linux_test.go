package host

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// With IPv6 switched off, the kernel deletes the device's address and routes, and does not let us add any.
func TestIPv6SwitchedOff(t *testing.T) {
	b := newBench(t)
	before := b.snapshot()
	b.apply(web())
	whole := b.snapshot()
	_, stop := b.run(time.Minute)
	defer stop()
	b.awaitLook()

	// On the device alone, while the host has it.
	b.Client.Sysctl("net.ipv6.conf.pin0.disable_ipv6", "1")
	b.soon("repaired", func() bool { return slices.Equal(b.snapshot(), whole) })
	b.same("after the repair", whole)

	// On the whole host, and on again. What the host lost besides, its owner puts back.
	rules, routes := b.inPlace()
	b.Client.Sysctl("net.ipv6.conf.all.disable_ipv6", "1")
	b.soon("no longer captured", func() bool { r, _ := b.inPlace(); return r < rules })
	b.capturedFromTUN(dialer{}, server4, 443)
	b.Client.Sysctl("net.ipv6.conf.all.disable_ipv6", "0")
	b.Client.Addr("eth0", lab.Client6+"/64")
	b.Client.Route("default", lab.Near6)
	b.soon("captured again", func() bool { r, n := b.inPlace(); return r == rules && n == routes })
	b.same("after IPv6 came back", whole)
	for _, a := range servers {
		b.capturedFromTUN(dialer{}, a, 443)
	}
	if strings.Contains(b.logs.String(), "cannot") {
		t.Error(b.logs)
	}
	if err := b.undo(t.Context()); err != nil {
		t.Error(err)
	}
	b.tun.file.Close()
	b.same("after undo", before)
}

// If a first attempt to capture IPv6 fails after the device has its address, a later one succeeds.
func TestAddressIsThere(t *testing.T) {
	b := newBench(t)
	b.apply(web())
	whole := b.snapshot()
	b.host.mu.Lock()
	err := b.host.dropIPv6()
	b.host.mu.Unlock()
	if err == nil {
		err = b.Client.Netlink().AddrAdd(b.pin0(), addr{link: Link, addr: Addr6}.netlink())
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.host.look(dirtIPv6); err != nil {
		t.Error(err)
	}
	b.same("at the second attempt", whole)
}

// Rules that can't be deleted when the capture of IPv6 ends are not forgotten: they go later, and are not in the way
// when it begins again.
func TestIPv6RulesStay(t *testing.T) {
	for _, again := range []bool{true, false} {
		t.Run(fmt.Sprint("again=", again), func(t *testing.T) {
			b := newBench(t)
			before := b.snapshot()
			b.apply(web())
			whole := b.snapshot()
			b.host.mu.Lock()
			err := b.Client.Do(func() error { return withoutNetAdmin(b.host.dropIPv6) })
			b.host.mu.Unlock()
			if !errors.Is(err, unix.EPERM) {
				t.Fatal("deleted without privileges:", err)
			}
			if again {
				if _, err := b.host.look(dirtIPv6); err != nil {
					t.Error(err)
				}
				b.same("captured again", whole)
			}
			if err := b.undo(t.Context()); err != nil {
				t.Error(err)
			}
			b.tun.file.Close()
			b.same("after undo", before)
		})
	}
}

// withoutNetAdmin calls f while this thread has no CAP_NET_ADMIN.
func withoutNetAdmin(f func() error) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	if err := unix.Capget(&header, &had[0]); err != nil {
		return err
	}
	less := had
	less[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&header, &less[0]); err != nil {
		return err
	}
	return errors.Join(f(), unix.Capset(&header, &had[0]))
}

// Where /proc/sys is read-only, as in many containers, IPv6 is captured if the device has it, and not any more once it
// is switched off. If the device would have to be given it, the error says why that fails. Strict capturing goes
// without the setting that it wants, and says so.
func TestSysctlsAreReadOnly(t *testing.T) {
	for _, off := range []string{"0", "1"} {
		t.Run("off="+off, func(t *testing.T) {
			b := newBench(t)
			b.Client.Sysctl("net.ipv6.conf.default.disable_ipv6", off)
			b.Client.Sysctl("net.ipv4.conf.all.rp_filter", "1")
			b.tun = openTUN(t, b.Client)
			c := web()
			c.Strict = true
			c.Log = slog.New(slog.NewTextHandler(b.logs, nil))
			var err error
			if b.host, err = New(c); err != nil {
				t.Fatal(err)
			}
			done := make(chan error)
			go func() {
				runtime.LockOSThread() // and never unlocked: the mounts end with this thread
				err := readOnlySysctls()
				if err == nil {
					err = b.Client.Do(func() (err error) { b.undo, err = b.host.Apply(t.Context()); return err })
				}
				done <- err
			}()
			err = <-done
			if off == "1" {
				if !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "disable_ipv6=0: ") {
					t.Error(err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer b.undo(t.Context())
			if w := fmt.Sprint(b.host.Warnings()); !strings.Contains(w, "--strict: sysctls are read-only here") {
				t.Error("warnings:", w)
			}
			if rules, _ := ourRules(b.host.kernel.nl, v6); len(rules) == 0 {
				t.Error("IPv6 is not captured")
			}
			b.Client.Sysctl("net.ipv6.conf.all.disable_ipv6", "1")
			if _, err := b.host.look(dirtLink); err != nil {
				t.Error(err)
			}
			if rules, err := ourRules(b.host.kernel.nl, v6); len(rules) > 0 || err != nil {
				t.Errorf("IPv6 is still captured, %v: %v", err, rules)
			}
		})
	}
}

// readOnlySysctls makes this thread see a read-only /proc/sys.
func readOnlySysctls() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil { // and with it CLONE_FS
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}
