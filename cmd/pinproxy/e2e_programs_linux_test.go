package main

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// Real programs, none of which knows of pinproxy. The servers tell what source they came from.

// need returns the path of a program. If it is not installed, need ends the test: by skipping it, or in CI by
// failing it.
func need(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/usr/local/sbin") {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	lacking(t, name+" is not installed")
	return ""
}

// needRoot ends the test like need if we can't have users other than ours.
func needRoot(t *testing.T) {
	t.Helper()
	if !isRoot() {
		lacking(t, "needs to be run by root")
	}
}

// isRoot says whether we can have users other than ours.
func isRoot() bool {
	ids, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(ids))
	return err == nil && len(f) == 3 && f[2] != "1"
}

// needTUN ends the test like need if only root may use the TUN driver.
func needTUN(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		lacking(t, err.Error())
	}
	_ = f.Close()
}

func lacking(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(what + ", and CI must not skip this")
	}
	t.Skip(what)
}

// tool returns a program of this machine, which may run for at most as long as the test.
func tool(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	path := need(t, name)
	ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = environ()
	return cmd
}

// must runs cmd on the client and returns what it wrote.
func (w *network) must(cmd *exec.Cmd) string {
	w.t.Helper()
	return mustOn(w.t, w.Client, cmd)
}

func mustOn(t *testing.T, h *lab.Host, cmd *exec.Cmd) string {
	t.Helper()
	out, _, err := h.Run(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// eachPlace runs a test of a program on the client and on a host behind it. pinproxy runs on the client, and the
// firewall passes nothing but port 63999. must runs a program in that place.
func eachPlace(t *testing.T, rule string, test func(w *network, must func(*exec.Cmd) string)) {
	t.Run("client", func(t *testing.T) {
		w := newNetwork(t)
		w.names()
		w.Firewall(63999)
		w.pinproxy("--rule", rule)
		test(w, w.must)
	})
	t.Run("behind", func(t *testing.T) {
		l := newLAN(t, 1500)
		l.Firewall(63999)
		l.pins("--rule", rule)
		test(l.network, func(cmd *exec.Cmd) string { return mustOn(t, l.inner, cmd) })
	})
}

func TestCurl(t *testing.T) {
	eachPlace(t, "www.bank.example:443=63999", func(w *network, must func(*exec.Cmd) string) {
		w.Server.HTTPS(":443", "www.bank.example")
		for flag, from := range map[string]string{"-4": "198.51.100.2:63999", "-6": "[2001:db8:1::2]:63999"} {
			cmd := tool(w.t, "curl", flag, "-sS", "--max-time", "60", "--cacert", w.net.CA(), "https://www.bank.example/")
			if out := must(cmd); out != "you came from "+from {
				w.t.Errorf("curl %s: %s", flag, out)
			}
		}
	})
}

// The server answers nobody until all are there.
func TestFiftyCurlsShareAPool(t *testing.T) {
	need(t, "curl")
	w := newNetwork(t)
	w.names()
	server := w.Server.HTTPS(":443", "www.bank.example")
	var all sync.WaitGroup
	all.Add(50)
	server.Handle("/together", func(rw http.ResponseWriter, r *http.Request) {
		all.Done()
		all.Wait()
		fmt.Fprintln(rw, r.RemoteAddr)
	})
	w.pinproxy("--rule", "www.bank.example:443=63000-63099")
	var curls sync.WaitGroup
	for i := range 50 {
		cmd := tool(t, "curl", []string{"-4", "-6"}[i%2], "-sS", "--max-time", "60", "--cacert", w.net.CA(), "https://www.bank.example/together")
		curls.Go(func() {
			if _, _, err := w.Client.Run(cmd); err != nil {
				t.Error(err)
			}
		})
	}
	curls.Wait()
	seen := make(map[netip.AddrPort]bool)
	for _, from := range server.Seen() {
		if from.Port() < 63000 || from.Port() > 63099 || seen[from] {
			t.Errorf("a connection came from %v", from)
		}
		seen[from] = true
	}
	if len(seen) != 50 {
		t.Errorf("%d connections came, want 50", len(seen))
	}
}

// gitDaemon serves the repositories below base. If it were started as `git daemon`, it would be a child of git, and
// would outlive git when that is killed.
func gitDaemon(t *testing.T, base string) *exec.Cmd {
	t.Helper()
	dir, err := tool(t, "git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(filepath.Join(strings.TrimSpace(string(dir)), "git-daemon"), "--verbose", "--export-all", "--base-path="+base)
}

func TestGitClone(t *testing.T) {
	need(t, "git")
	eachPlace(t, "*.bank.example:9418=63999", func(w *network, must func(*exec.Cmd) string) {
		git := func(args ...string) *exec.Cmd {
			cmd := tool(w.t, "git", args...)
			cmd.Env = append(cmd.Env, "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
				"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@bank.example", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@bank.example")
			return cmd
		}
		base := w.t.TempDir()
		repo := filepath.Join(base, "ledger")
		must(git("init", "-q", repo))
		if err := os.WriteFile(filepath.Join(repo, "money"), []byte(strings.Repeat("in the bank\n", 50_000)), 0o644); err != nil {
			w.t.Fatal(err)
		}
		must(git("-C", repo, "add", "."))
		must(git("-C", repo, "commit", "-q", "-m", "save"))
		daemon, err := w.Server.Start(gitDaemon(w.t, base))
		if err != nil {
			w.t.Fatal(err)
		}
		if err := daemon.Expect(soon(w.t), "Ready to rumble"); err != nil {
			w.t.Fatal(err)
		}
		for _, test := range []struct{ flag, from string }{
			{"--ipv4", "198.51.100.2:63999"}, {"--ipv6", "[2001:db8:1::2]:63999"},
		} {
			clone := filepath.Join(w.t.TempDir(), "clone")
			must(git("clone", "-q", test.flag, "git://www.bank.example/ledger", clone))
			must(git("-C", clone, "fsck", "--full", "--strict"))
			if err := daemon.Expect(soon(w.t), "Connection from "+test.from); err != nil {
				w.t.Error(err)
			}
		}
	})
}

func TestSSHAndSCP(t *testing.T) {
	need(t, "sshd")
	need(t, "ssh")
	need(t, "scp")
	needRoot(t)
	eachPlace(t, "*.bank.example:2222=63999", func(w *network, must func(*exec.Cmd) string) {
		dir := w.t.TempDir()
		hostKey, userKey := filepath.Join(dir, "host"), filepath.Join(dir, "user")
		for _, key := range []string{hostKey, userKey} {
			must(tool(w.t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key))
		}
		w.startSSHD(hostKey, userKey+".pub")

		options := []string{
			"-F", "none", "-i", userKey, "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none",
			"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=60",
		}
		for _, test := range []struct{ flag, want string }{
			{"-4", "198.51.100.2 63999 203.0.113.2 2222"}, {"-6", "2001:db8:1::2 63999 2001:db8:2::2 2222"},
		} {
			ssh := append([]string{test.flag, "-p", "2222"}, options...)
			if out := must(tool(w.t, "ssh", append(ssh, "root@www.bank.example", "echo $SSH_CONNECTION")...)); out != test.want {
				w.t.Errorf("ssh %s: connection %q, want %q", test.flag, out, test.want)
			}
			there := filepath.Join(dir, "copy"+test.flag)
			scp := append([]string{test.flag, "-P", "2222"}, options...)
			must(tool(w.t, "scp", append(scp, hostKey, "root@www.bank.example:"+there)...))
			sent, _ := os.ReadFile(hostKey)
			if got, err := os.ReadFile(there); string(got) != string(sent) || err != nil {
				w.t.Errorf("scp %s: %d of %d bytes arrived, %v", test.flag, len(got), len(sent), err)
			}
		}
	})
}

// startSSHD starts sshd on the server.
func (w *network) startSSHD(hostKey, authorized string) {
	w.t.Helper()
	cmd := program("apart", need(w.t, "sshd"), "-D", "-e", "-f", "/dev/null", "-p", "2222", "-h", hostKey,
		"-o", "PidFile=none", "-o", "UsePAM=no", "-o", "StrictModes=no", "-o", "PermitRootLogin=yes",
		"-o", "AuthorizedKeysFile="+authorized, "-o", "Subsystem=sftp internal-sftp")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	p, err := w.Server.Start(cmd)
	if err == nil {
		err = p.Expect(soon(w.t), "listening on")
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// apart becomes the program given to it, with a /run of its own. There sshd finds the empty directory that it
// insists on. The mount namespace must be its own.
func apart() {
	err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755")
	if err == nil {
		err = os.Mkdir("/run/sshd", 0o755)
	}
	if err == nil {
		err = unix.Exec(os.Args[1], os.Args[1:], os.Environ())
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
