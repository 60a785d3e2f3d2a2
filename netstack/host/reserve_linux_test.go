package host

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

const reservedKey = "net.ipv4.ip_local_reserved_ports"

// openReservedOf opens the sysctl of h, with the state file path.
func openReservedOf(t *testing.T, h *lab.Host, path string) *reserved {
	t.Helper()
	var r *reserved
	err := h.Do(func() (err error) {
		r, err = openReserved(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.close() })
	return r
}

func TestReserve(t *testing.T) {
	for _, test := range []struct {
		name                 string
		before, want, during string
		meanwhile            string // written by someone else, if not ""
		after                string
	}{
		{name: "nothing there", want: "63999", during: "63999"},
		{name: "beside others", before: "8080,9000-9010", want: "63990-63999", during: "8080,9000-9010,63990-63999", after: "8080,9000-9010"},
		{name: "partly there", before: "5-7", want: "6-9", during: "5-9", after: "5-7"},
		{name: "all there", before: "1-100", want: "50", during: "1-100", after: "1-100"},
		{name: "others add", before: "5", want: "7", during: "5,7", meanwhile: "5,7,9-10", after: "5,9-10"},
		{name: "others remove theirs", before: "5", want: "7", during: "5,7", meanwhile: "7", after: ""},
		{name: "others remove ours", before: "5", want: "7", during: "5,7", meanwhile: "5", after: "5"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := lab.ForTest(t).Host("host")
			path := filepath.Join(t.TempDir(), "pinproxy.state")
			h.Sysctl(reservedKey, test.before)
			r := openReservedOf(t, h, path)
			want, err := parsePorts(test.want)
			if err != nil {
				t.Fatal(err)
			}
			added, err := r.add(want)
			if err != nil {
				t.Fatal(err)
			}
			if got := h.SysctlGet(reservedKey); got != test.during {
				t.Errorf("reserved %q, want %q", got, test.during)
			}
			if ours, err := r.ours(); err != nil || ours != added {
				t.Errorf("state has %q, %v; added %q", ours, err, added)
			}
			if test.meanwhile != "" {
				h.Sysctl(reservedKey, test.meanwhile)
			}
			for range 2 {
				if _, err := r.remove(ports{}); err != nil {
					t.Fatal(err)
				}
				if got := h.SysctlGet(reservedKey); got != test.after {
					t.Errorf("left %q, want %q", got, test.after)
				}
			}
			if _, err := os.Stat(path); !os.IsNotExist(err) {
				t.Error("state file:", err)
			}
		})
	}
}

// The kernel accepts and returns lists of any length, in pieces and at once.
func TestReserveMany(t *testing.T) {
	h := lab.ForTest(t).Host("host")
	r := openReservedOf(t, h, filepath.Join(t.TempDir(), "state"))
	var every []PortRange
	for p := 1; p < 1<<16; p += 2 {
		every = append(every, PortRange{uint16(p), uint16(p)})
	}
	want := newPorts(every)
	if _, err := r.add(want); err != nil {
		t.Fatal(err)
	}
	if got, err := r.ports(); err != nil || got != want {
		t.Errorf("%d ports reserved, want %d: %v", got.len(), want.len(), err)
	}
	if removed, err := r.remove(ports{}); err != nil || removed != want {
		t.Errorf("%d ports removed: %v", removed.len(), err)
	}
	if got := h.SysctlGet(reservedKey); got != "" {
		t.Errorf("left %q", got)
	}
}

// A state file of an earlier boot says nothing about this boot's sysctls.
func TestStateOfEarlierBoot(t *testing.T) {
	h := lab.ForTest(t).Host("host")
	path := filepath.Join(t.TempDir(), "state")
	h.Sysctl(reservedKey, "7,9")
	if err := writeState(path, state{"another boot", "7"}); err != nil {
		t.Fatal(err)
	}
	r := openReservedOf(t, h, path)
	if removed, err := r.remove(ports{}); err != nil || !removed.empty() {
		t.Errorf("removed %q, %v", removed, err)
	}
	if got := h.SysctlGet(reservedKey); got != "7,9" {
		t.Errorf("left %q", got)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Error("state file:", err)
	}
}

// After a SIGKILL between two starts, what the first one added is still known.
func TestStateIsKept(t *testing.T) {
	h := lab.ForTest(t).Host("host")
	path := filepath.Join(t.TempDir(), "state")
	for _, p := range []uint16{7, 9} {
		if _, err := openReservedOf(t, h, path).add(newPorts([]PortRange{{p, p}})); err != nil {
			t.Fatal(err)
		}
	}
	if removed, err := openReservedOf(t, h, path).remove(ports{}); err != nil || removed.String() != "7,9" {
		t.Errorf("removed %q, %v", removed, err)
	}
}

func TestApplyReserves(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	c := web()
	c.StateDir, c.Reserve = dir, []PortRange{{63999, 63999}}
	b.apply(c)
	for _, w := range b.host.Warnings() {
		t.Error(w)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	var namespace string
	if err := b.Client.Do(func() (err error) { namespace, err = Namespace(); return err }); err != nil {
		t.Fatal(err)
	}
	if files[0] != StateFile(dir, namespace) {
		t.Errorf("state file %s", files[0])
	}
	var got map[string]string
	text, err := os.ReadFile(files[0])
	if err == nil {
		err = json.Unmarshal(text, &got)
	}
	if err != nil || got["reserved_ports"] != "63999" || len(got["boot_id"]) != 36 {
		t.Errorf("state %s, %v", text, err)
	}

	// As `sysctl --system` does.
	b.Client.Sysctl(reservedKey, "8080")
	if repaired, err := b.host.look(dirtAll); err != nil || len(repaired) != 1 || !strings.HasSuffix(repaired[0].String(), "=8080,63999") {
		t.Errorf("repaired %q, %v", repaired, err)
	}
	if err := b.undo(t.Context()); err != nil {
		t.Error(err)
	}
	if got := b.Client.SysctlGet(reservedKey); got != "8080" {
		t.Errorf("left %q", got)
	}
}

// What could not be undone after a SIGKILL is not done, and nothing else depends on it.
func TestApplyCannotReserve(t *testing.T) {
	for _, name := range []string{"missing", "read-only"} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			c := web()
			c.StateDir, c.Reserve = filepath.Join(t.TempDir(), "missing"), []PortRange{{63999, 63999}}
			if name == "read-only" {
				c.StateDir = b.net.ReadOnlyDir()
			}
			b.apply(c)
			w := b.host.Warnings()
			if len(w) != 1 || !strings.HasPrefix(w[0].Error(), "ports 63999 are not reserved: write state: open ") {
				t.Errorf("warnings %v", w)
			}
			if got := b.Client.SysctlGet(reservedKey); got != "" {
				t.Errorf("reserved %q", got)
			}
			b.capturedFromTUN(dialer{}, server4, 443)
			if err := b.undo(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// Somebody deletes the directory of the state file. What is reserved stays reserved and is released all the same,
// and a warning names only the ports that this is about.
func TestStateIsDeleted(t *testing.T) {
	for _, test := range []struct {
		name    string
		then    []PortRange
		warning string
	}{
		{"more", []PortRange{{63998, 63999}}, "ports 63998 are not reserved: write state: open "},
		{"less", nil, "ports 63999 stay reserved: write state: open "},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			b.Client.Sysctl(reservedKey, "8080")
			c := web()
			c.StateDir, c.Reserve = filepath.Join(t.TempDir(), "run"), []PortRange{{63999, 63999}}
			if err := os.Mkdir(c.StateDir, 0o700); err != nil {
				t.Fatal(err)
			}
			b.apply(c)
			if err := os.RemoveAll(c.StateDir); err != nil {
				t.Fatal(err)
			}
			c.Reserve = test.then
			if err := b.replace(t.Context(), c, nil); err != nil {
				t.Fatal(err)
			}
			if w := b.host.Warnings(); len(w) != 1 || !strings.HasPrefix(w[0].Error(), test.warning) {
				t.Errorf("warnings %v", w)
			}
			if got := b.Client.SysctlGet(reservedKey); got != "8080,63999" {
				t.Errorf("reserved %q", got)
			}
			if err := b.undo(t.Context()); err != nil {
				t.Error(err)
			}
			if got := b.Client.SysctlGet(reservedKey); got != "8080" {
				t.Errorf("left %q", got)
			}
		})
	}
}

// A damaged state file stands in the way of nothing. Which ports are ours is said by whoever still knows.
func TestStateIsDamaged(t *testing.T) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "null", `{"boot_id":"x","reserved_po`, "\x00\x00", `{"boot_id":"` + strings.TrimSpace(string(boot)) + `","reserved_ports":"x"}`} {
		t.Run(text, func(t *testing.T) {
			b := newBench(t)
			b.Client.Sysctl(reservedKey, "8080")
			before := b.snapshot()
			c := web()
			c.StateDir, c.Reserve = t.TempDir(), []PortRange{{63999, 63999}}
			var path string
			damage := func() {
				files, err := filepath.Glob(filepath.Join(c.StateDir, "*"))
				if err != nil || len(files) != 1 {
					t.Fatalf("%v, %v", files, err)
				}
				path = files[0]
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			clean := func() (done []string, err error) {
				err = b.Client.Do(func() error { done, err = cleanUp(t.Context(), c.StateDir); return err })
				return done, err
			}

			// While we run, we know.
			b.apply(c)
			damage()
			if err := b.undo(t.Context()); err != nil {
				t.Error(err)
			}
			if got := b.Client.SysctlGet(reservedKey); got != "8080" {
				t.Errorf("undo left %q", got)
			}
			b.tun.file.Close()

			// After a SIGKILL nobody does.
			b.tun = nil
			b.apply(c)
			damage()
			b.tun.file.Close()
			b.tun = nil
			b.host.close()
			done, err := clean()
			damaged, ok := err.(*DamagedError)
			if !ok || damaged.Path != path || damaged.Reserved != "8080,63999" || len(done) == 0 {
				t.Errorf("clean-up did %q: %v", done, err)
			}
			if got := b.Client.SysctlGet(reservedKey); got != "8080,63999" {
				t.Errorf("reserved %q", got)
			}
			b.Client.Sysctl(reservedKey, "8080")
			b.same("otherwise", before)
			if done, err := clean(); len(done) > 0 || err != nil {
				t.Errorf("the second clean-up did %q: %v", done, err)
			}
		})
	}
}

// A SIGKILL in the middle of writing the state file leaves the beginning of another one.
func TestStateIsUnfinished(t *testing.T) {
	for _, name := range []string{"cleaned up", "written again"} {
		t.Run(name, func(t *testing.T) {
			h := lab.ForTest(t).Host("host")
			dir := t.TempDir()
			var done []string
			err := h.Do(func() error {
				namespace, err := Namespace()
				if err != nil {
					return err
				}
				path := StateFile(dir, namespace)
				if err := os.WriteFile(unfinished(path), []byte("{"), 0o600); err != nil {
					return err
				}
				if name == "written again" {
					if err := writeState(path, state{"boot", "7"}); err != nil {
						return err
					}
					return os.Remove(path)
				}
				done, err = cleanUp(t.Context(), dir)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if name == "cleaned up" && (len(done) != 1 || !strings.HasPrefix(done[0], "rm "+dir)) {
				t.Errorf("clean-up did %q", done)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("%v is left, %v", left, err)
			}
		})
	}
}

// Nobody in a container can write sysctls.
func TestUnreserved(t *testing.T) {
	p := newPorts([]PortRange{{63100, 63109}, {63999, 63999}})
	for _, test := range []struct {
		err  error
		hint string
	}{
		{unix.EROFS, "in a container, have it started with them: docker run --sysctl net.ipv4.ip_local_reserved_ports=63100-63109,63999"},
		{unix.EACCES, ""},
	} {
		got, hint := unreserved(p, &fs.PathError{Op: "open", Path: "/proc/x", Err: test.err}), ""
		if demand, ok := errors.AsType[*DemandError](got); ok {
			hint = demand.Hint
		}
		if want := "ports 63100-63109,63999 are not reserved: open /proc/x: " + test.err.Error(); got.Error() != want || hint != test.hint {
			t.Errorf("%v, hint %q; want %s, %q", got, hint, want, test.hint)
		}
	}
}
