// Package packaging has tests of what comes with the program: the unit, completions, packages. They work in directories
// of their own, and change nothing on the host.
package packaging

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// need ends the test where there is no such program: CI has them all.
func need(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is not installed, and CI must not skip this", program)
	}
	t.Skipf("%s is not installed", program)
}

// patience is for a program on a busy machine.
const patience = 4 * time.Minute

// run returns what a program prints, and fails the test if it fails.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	need(t, program)
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.WaitDelay = time.Second
	end := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer end.Stop()
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v\n%s%s", program, args, err, out.String(), said.String())
	}
	return out.String()
}

// tree is the files below root, sorted.
func tree(t *testing.T, root string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			files = append(files, strings.TrimPrefix(path, root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// installed is what `make install PREFIX=/usr` puts in place.
var installed = []string{
	"/etc/default/pinproxy",
	"/etc/pinproxy/pinproxy.rules",
	"/usr/bin/pinproxy",
	"/usr/lib/systemd/system/pinproxy.service",
	"/usr/lib/sysusers.d/pinproxy.conf",
	"/usr/lib/udev/rules.d/80-pinproxy.rules",
	"/usr/share/bash-completion/completions/pinproxy",
	"/usr/share/fish/vendor_completions.d/pinproxy.fish",
	"/usr/share/man/man8/pinproxy.8",
	"/usr/share/polkit-1/rules.d/50-pinproxy.rules",
	"/usr/share/zsh/site-functions/_pinproxy",
}

func TestInstall(t *testing.T) {
	root := t.TempDir()
	run(t, "make", "-s", "-C", "..", "install", "DESTDIR="+root, "PREFIX=/usr")
	if got := tree(t, root); !slices.Equal(got, installed) {
		t.Errorf("make install made\n%q, want\n%q", got, installed)
	}
	run(t, "mandoc", "-T", "lint", "-W", "warning", root+"/usr/share/man/man8/pinproxy.8")
	if version := run(t, root+"/usr/bin/pinproxy", "--version"); !strings.HasPrefix(version, "pinproxy ") {
		t.Errorf("it has version %q", version)
	}

	// Who installs for this host is told what the service needs besides.
	if said := run(t, "make", "-s", "-n", "-C", "..", "install", "DESTDIR="); !strings.Contains(said, "systemd-sysusers && systemctl daemon-reload") {
		t.Errorf("make install would do\n%s", said)
	}

	// Another prefix reaches the unit, and rules that are there stay.
	rules := root + "/etc/pinproxy/pinproxy.rules"
	if err := os.WriteFile(rules, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "make", "-s", "-C", "..", "install", "DESTDIR="+root, "PREFIX=/opt/p")
	unit, err := os.ReadFile(root + "/opt/p/lib/systemd/system/pinproxy.service")
	if !strings.Contains(string(unit), "\nExecStart=/opt/p/bin/pinproxy ") {
		t.Errorf("the unit is %s, %v", unit, err)
	}
	if b, err := os.ReadFile(rules); string(b) != "mine" {
		t.Errorf("the rules are %q now, %v", b, err)
	}

	// An older AppArmor could not read the profile.
	profile := root + "/etc/apparmor.d/pinproxy"
	if err := os.MkdirAll(filepath.Dir(profile)+"/abi", 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "make", "-s", "-C", "..", "install", "DESTDIR="+root, "PREFIX=/usr")
	if b, err := os.ReadFile(profile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("for an old AppArmor there is the profile %q, %v", b, err)
	}

	// And all goes again, with a profile that nobody has changed.
	abi := filepath.Dir(profile) + "/abi/4.0"
	if err := os.WriteFile(abi, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"/opt/p", "/usr"} {
		run(t, "make", "-s", "-C", "..", "install", "DESTDIR="+root, "PREFIX="+prefix)
		run(t, "make", "-s", "-C", "..", "uninstall", "DESTDIR="+root, "PREFIX="+prefix)
	}
	left := append([]string{strings.TrimPrefix(abi, root)}, installed[:2]...)
	if got := tree(t, root); !slices.Equal(got, left) {
		t.Errorf("make uninstall left\n%q, want\n%q", got, left)
	}
	if err := os.WriteFile(profile, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "make", "-s", "-C", "..", "uninstall", "DESTDIR="+root, "PREFIX=/usr")
	if b, err := os.ReadFile(profile); string(b) != "mine" {
		t.Errorf("the AppArmor profile is %q now, %v", b, err)
	}
}

// unit is the unit in a directory of its own, with a program that exists.
func unit(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("systemd/pinproxy.service")
	if err != nil {
		t.Fatal(err)
	}
	program, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`(?m)^Documentation=.*\n`).ReplaceAllString(string(b), "") // not installed
	path := filepath.Join(t.TempDir(), "pinproxy.service")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "/usr/bin/pinproxy", program)), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUnit(t *testing.T) {
	need(t, "systemd-analyze")
	path := unit(t)
	if out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", path).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	// systemd 254 and later logs at each start which variables are not set.
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flags := regexp.MustCompile(`(?s)ExecStart=[^\n]* \$(\w+)\n`).FindSubmatch(b)
	if flags == nil || !strings.Contains(string(b), fmt.Sprintf("\nEnvironment=%s=\n", flags[1])) {
		t.Errorf("the flags %q of ExecStart= may not be set", flags)
	}
	out := run(t, "systemd-analyze", "security", "--offline=true", "--no-pager", path)
	m := regexp.MustCompile(`Overall exposure level for pinproxy.service: (\d+\.\d) `).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("systemd-analyze security says\n%s", out)
	}
	const most = "2.4" // what docs/design.md says; other versions of systemd weigh otherwise
	if m[1] > most {
		t.Errorf("the exposure level is %s, and was %s\n%s", m[1], most, out)
	}
}

// bareRoot has dpkg's records, a shell, and what makes a user: no package, and nothing of the host's but copies.
func bareRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"bin", "dev", "etc", "tmp", "var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]string{
		"var/lib/dpkg/status": "", "var/lib/dpkg/available": "", "etc/passwd": "root:x:0:0::/:/bin/sh\n", "etc/group": "root:x:0:\n",
		"dev/null":          "", // as good as the device, for so little
		"etc/nsswitch.conf": "passwd: files\ngroup: files\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	library := regexp.MustCompile(`(/\S+) \(0x`)
	for _, program := range []string{"sh", "useradd", "getent", "rm", "cp", "cmp"} {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Fatal(err)
		}
		copyFile(t, path, filepath.Join(root, "bin", program))
		for _, m := range library.FindAllStringSubmatch(run(t, "ldd", path), -1) {
			copyFile(t, m[1], filepath.Join(root, m[1]))
		}
	}
	return root
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o755)
	}
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The packages, and what a bare machine is like when the one for it has come and gone.
func TestPackages(t *testing.T) {
	need(t, "dpkg")
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs to be run by root, and CI must not skip this")
		}
		t.Skip("needs to be run by root: dpkg changes its root directory")
	}
	dir := t.TempDir()
	run(t, "make", "-s", "-C", "..", "deb", "rpm", "PACKAGES="+dir, "ROOT="+filepath.Join(dir, "root"))
	debs, _ := filepath.Glob(dir + "/pinproxy_*.deb")
	rpms, _ := filepath.Glob(dir + "/pinproxy-*.rpm")
	if len(debs) != 1 || len(rpms) != 1 {
		t.Fatalf("made %q and %q", debs, rpms)
	}
	want := slices.Concat(installed, []string{"/usr/share/doc/pinproxy/copyright", "/usr/share/pinproxy/apparmor"})
	slices.Sort(want)
	owned := slices.Concat(want, []string{"/etc/pinproxy", "/usr/share/doc/pinproxy", "/usr/share/pinproxy"})
	slices.Sort(owned)
	if got := strings.Fields(run(t, "rpm", "-qpl", rpms[0])); !slices.Equal(got, owned) {
		t.Errorf("the rpm has\n%q, want\n%q", got, owned)
	}

	root := bareRoot(t)
	before := tree(t, root)
	dpkg := func(args ...string) string {
		t.Helper()
		return run(t, "dpkg", append([]string{"--root=" + root, "--force-not-root"}, args...)...)
	}
	since := func() (files []string) {
		for _, f := range tree(t, root) {
			if !slices.Contains(before, f) && !strings.HasPrefix(f, "/var/") && !strings.HasPrefix(f, "/etc/passwd") &&
				!strings.HasPrefix(f, "/etc/group") && !strings.HasPrefix(f, "/etc/sub") && f != "/etc/.pwd.lock" {
				files = append(files, f)
			}
		}
		return files
	}
	dpkg("-i", debs[0])
	if got := since(); !slices.Equal(got, want) {
		t.Errorf("installing made\n%q, want\n%q", got, want)
	}
	if users, _ := os.ReadFile(root + "/etc/passwd"); !regexp.MustCompile(`(?m)^pinproxy:.*:/usr/sbin/nologin$`).Match(users) {
		t.Errorf("the users are\n%s", users)
	}
	if version := run(t, "chroot", root, "/usr/bin/pinproxy", "--version"); !strings.HasPrefix(version, "pinproxy ") {
		t.Errorf("it has version %q", version)
	}
	run(t, "systemd-analyze", "--offline=true", "security", "--no-pager", unitOf(t, root))
	// Once more, as an update, while systemd runs. The service does not start again, as with a mistake in its rules.
	systemctl := filepath.Join(root, "bin/systemctl")
	if err := errors.Join(os.MkdirAll(root+"/run/systemd/system", 0o755), os.WriteFile(systemctl, []byte("#!/bin/sh\nexit 1\n"), 0o755)); err != nil {
		t.Fatal(err)
	}
	dpkg("-i", debs[0])
	before = append(before, "/bin/systemctl")

	dpkg("-r", "pinproxy")
	if got := since(); !slices.Equal(got, installed[:2]) {
		t.Errorf("removing left\n%q, want\n%q", got, installed[:2])
	}
	dpkg("-P", "pinproxy")
	if got := since(); len(got) > 0 {
		t.Errorf("purging left %q", got)
	}

	// Where programs need an AppArmor profile, it is renewed and goes with the package, but not if somebody has changed it.
	shipped, profile := root+"/usr/share/pinproxy/apparmor", root+"/etc/apparmor.d/pinproxy"
	write := func(path, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	is := func(when, want string) {
		t.Helper()
		if b, err := os.ReadFile(profile); string(b) != want {
			t.Errorf("%s, the AppArmor profile is %q, %v", when, b, err)
		}
	}
	ours, err := os.ReadFile("apparmor/pinproxy")
	if err != nil {
		t.Fatal(err)
	}
	write(root+"/etc/apparmor.d/abi/4.0", "")
	dpkg("-i", debs[0])
	is("installed", string(ours))
	write(shipped, "former")
	write(profile, "former")
	dpkg("-i", debs[0])
	is("updated", string(ours))
	dpkg("-r", "pinproxy")
	is("removed", "")
	dpkg("-i", debs[0])
	write(profile, "mine")
	dpkg("-i", debs[0])
	is("changed and updated", "mine")
	dpkg("-r", "pinproxy")
	is("changed and removed", "mine")
	dpkg("-P", "pinproxy")
	is("purged", "")
}

// unitOf is the unit that was installed, where the checker accepts it.
func unitOf(t *testing.T, root string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pinproxy.service")
	copyFile(t, root+"/usr/lib/systemd/system/pinproxy.service", path)
	return path
}

// Two builds of the same sources in different directories are the same file.
func TestReproducibleBuild(t *testing.T) {
	need(t, "git")
	var sums []string
	for range 2 {
		dir := t.TempDir()
		for _, file := range strings.Fields(run(t, "git", "-C", "..", "ls-files", "--", "cmd", "netstack", "proxy", "rules", "go.mod", "go.sum")) {
			b, err := os.ReadFile(filepath.Join("..", file))
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed, and not committed yet
			}
			to := filepath.Join(dir, "src", file)
			if err == nil {
				err = os.MkdirAll(filepath.Dir(to), 0o755)
			}
			if err == nil {
				err = os.WriteFile(to, b, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		out := filepath.Join(dir, "pinproxy")
		run(t, "env", "CGO_ENABLED=0", "go", "build", "-C", filepath.Join(dir, "src"), "-trimpath", "-buildvcs=false", "-o", out, "./cmd/pinproxy")
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, fmt.Sprintf("%x", sha256.Sum256(b)))
		billOfMaterials(t, out)
	}
	if sums[0] != sums[1] {
		t.Errorf("two builds differ: %s, %s", sums[0], sums[1])
	}
}

// billOfMaterials checks that the binary names modules with their sums.
func billOfMaterials(t *testing.T, program string) {
	t.Helper()
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, m := range info.Deps {
		if m.Version == "" || m.Sum == "" {
			t.Errorf("%s has no version or sum: %+v", program, m)
		}
		found = append(found, m.Path)
	}
	for _, path := range []string{"gvisor.dev/gvisor", "github.com/spf13/pflag", "github.com/vishvananda/netlink"} {
		if !slices.Contains(found, path) {
			t.Errorf("%s says that it is made of %q, without %s", program, found, path)
		}
	}
}
