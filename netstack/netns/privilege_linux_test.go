package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestExplain(t *testing.T) {
	const (
		clone    = "/proc/sys/kernel/unprivileged_userns_clone"
		apparmor = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
		limit    = "/proc/sys/user/max_user_namespaces"
		status   = "/proc/self/status"
		profile  = "/proc/self/attr/apparmor/current"
		older    = "/proc/self/attr/current"
	)
	none := Ban(-1)
	user, root, bareRoot := privilege{user: true}, privilege{root: true, mapRoot: true}, privilege{user: true, root: true}
	for _, test := range []struct {
		name string
		as   privilege
		err  error
		proc map[string]string
		want Ban
	}{
		{"Debian", user, unix.EPERM, map[string]string{clone: "0\n", limit: "1000\n"}, ByClone},
		{"Ubuntu", user, unix.EPERM, map[string]string{clone: "1\n", apparmor: "1\n"}, ByAppArmor},
		{"Ubuntu, mount", user, unix.EACCES, map[string]string{clone: "1\n", apparmor: "1\n", status: "Seccomp:\t0\n"}, ByAppArmor},
		{"Ubuntu, no profile", user, unix.EACCES, map[string]string{apparmor: "1\n", profile: "unconfined\n", status: "Seccomp:\t2\n"}, ByAppArmor},
		{"Ubuntu, a unit's filter, with our profile", user, unix.EPERM, map[string]string{apparmor: "1\n", profile: "pinproxy (unconfined)\n", status: "Seccomp:\t2\n"}, BySeccomp},
		{"Ubuntu, a profile that does not lift it", user, unix.EACCES, map[string]string{apparmor: "1\n", profile: "own (unconfined)\n"}, ByAppArmor},
		{"Ubuntu, within a user namespace", user, unix.EACCES, map[string]string{apparmor: "1\n", profile: "unprivileged_userns (enforce)\n"}, ByAppArmor},
		{"Ubuntu, a profile that confines", user, unix.EACCES, map[string]string{apparmor: "1\n", profile: "own (enforce)\n"}, ByProfile},
		{"Ubuntu, Docker", user, unix.EPERM, map[string]string{apparmor: "1\n", profile: "docker-default (enforce)\n", status: "Seccomp:\t2\n"}, BySeccomp},
		{"Ubuntu, Docker without a filter", user, unix.EACCES, map[string]string{apparmor: "1\n", profile: "docker-default (enforce)\n"}, ByProfile},
		{"Docker", user, unix.EPERM, map[string]string{status: "Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n"}, BySeccomp},
		{"Docker, root", root, unix.EPERM, map[string]string{status: "Seccomp:\t2\n", clone: "0\n", apparmor: "1\n"}, BySeccomp},
		{"container's root", bareRoot, unix.EPERM, map[string]string{status: "Seccomp:\t0\n"}, ByRoot},
		{"chroot", user, unix.EPERM, map[string]string{status: "Seccomp:\t0\n"}, ByUnknown},
		{"a profile of one's own", user, unix.EACCES, map[string]string{profile: "pinproxy (enforce)\n"}, ByProfile},
		{"a profile of one's own, capability", user, unix.EPERM, map[string]string{older: "pinproxy (enforce)\n\x00"}, ByProfile},
		{"a profile in a filtered unit", user, unix.EACCES, map[string]string{profile: "pinproxy (enforce)\n", status: "Seccomp:\t2\n"}, ByProfile},
		{"Docker with its profile", user, unix.EPERM, map[string]string{profile: "docker-default (enforce)\n", status: "Seccomp:\t2\n"}, BySeccomp},
		{"a profile that only complains", user, unix.EPERM, map[string]string{profile: "pinproxy (complain)\n"}, ByUnknown},
		{"Ubuntu's kind of profile", user, unix.EPERM, map[string]string{profile: "pinproxy (unconfined)\n"}, ByUnknown},
		{"SELinux", user, unix.EACCES, map[string]string{older: "unconfined_u:unconfined_r:unconfined_t:s0\x00"}, ByUnknown},
		{"limit 0", user, unix.ENOSPC, map[string]string{limit: "0\n"}, ByLimit},
		{"too many", user, unix.ENOSPC, map[string]string{limit: "1000\n"}, ByNumber},
		{"too many of root's", root, unix.ENOSPC, map[string]string{limit: "0\n"}, ByNumber},
		{"too deep, old kernels", user, unix.EUSERS, nil, ByNumber},
		{"something else", user, unix.ENOMEM, map[string]string{clone: "0\n"}, none},
	} {
		err := explainBy(fmt.Errorf("make namespaces: %w", test.err), test.as, func(path string) string { return test.proc[path] })
		got := none
		if f := (*ForbiddenError)(nil); errors.As(err, &f) {
			got = f.By
		}
		if got != test.want || !errors.Is(err, test.err) {
			t.Errorf("%s: %v: %d, want %d", test.name, err, got, test.want)
		}
	}
}

func TestIDMap(t *testing.T) {
	file := filepath.Join(t.TempDir(), "uid_map")
	for text, want := range map[string]string{
		"         0          0 4294967295\n":                              fmt.Sprintf("[{0 0 %d}]", min(math.MaxUint32, math.MaxInt)), // all that an int can name
		"         0       1000          1\n         1     100000 65536\n": "[{0 0 1} {1 1 65536}]",
		"nonsense\n": "[]",
		"":           "[]",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(idMap(file)); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

// An error that crosses the socket is an error again on the other side.
func TestReportedErrors(t *testing.T) {
	for _, test := range []struct {
		r    report
		text string
		is   []error
	}{
		{report{}, "", nil},
		{failed(fmt.Errorf("set lo up: netlink: %w", unix.EPERM)), "set lo up: netlink: operation not permitted", []error{unix.EPERM, fs.ErrPermission}},
		{failed(&stepError{"open /dev/net/tun: permission denied", []error{unix.EACCES, ErrDevice}}), "open /dev/net/tun: permission denied", []error{ErrDevice, unix.EACCES}},
		{failed(errors.New("cover /etc/resolv.conf: strange")), "cover /etc/resolv.conf: strange", nil},
	} {
		err := test.r.err()
		if errorText(err) != test.text {
			t.Errorf("error %q, want %q", errorText(err), test.text)
		}
		for _, is := range test.is {
			if !errors.Is(err, is) {
				t.Errorf("%v is not %v", err, is)
			}
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
