package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// Real programs as the command.

func TestRunCurl(t *testing.T) {
	curl := need(t, "curl")
	eachUser(t, func(w *network, u user) {
		w.names()
		w.Server.HTTPS(":443", "www.bank.example")
		w.Firewall(63999)
		for flag, from := range map[string]string{"-4": "198.51.100.2:63999", "-6": "[2001:db8:1::2]:63999"} {
			w.runs(w.by(u, "--rule", "www.bank.example:443=63999", "--",
				curl, flag, "-sS", "--max-time", "60", "--cacert", w.net.CA(), "https://www.bank.example/"), "you came from "+from+"\n")
		}
		got := w.result(w.by(u, "--rule", "www.bank.example:443=62000", "--",
			curl, "-sS", "--max-time", "1", "--cacert", w.net.CA(), "https://www.bank.example/"))
		if got.status != 28 {
			w.t.Errorf("curl from a port that the firewall stops: %+v", got)
		}
	})
}

func TestRunGitClone(t *testing.T) {
	git := need(t, "git")
	eachUser(t, func(w *network, u user) {
		w.names()
		w.Firewall(63999)
		base := filepath.Dir(w.net.File("base", ""))
		repo := filepath.Join(base, "ledger")
		// all runs git outside, as the user who then owns the repository.
		all := func(args ...string) {
			w.t.Helper()
			cmd := u.is(w.by(u), append([]string{git}, args...)...)
			cmd.Env = append(cmd.Env, "HOME=/", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
				"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@bank.example", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@bank.example")
			w.must(cmd)
		}
		for _, dir := range []string{repo, filepath.Join(base, "clones")} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				w.t.Fatal(err)
			}
			if u.attr != nil {
				if err := os.Chown(dir, nobody, nobody); err != nil {
					w.t.Fatal(err)
				}
			}
		}
		all("init", "-q", repo)
		all("-C", repo, "commit", "-q", "--allow-empty", "-m", "save")
		daemonCmd := u.is(w.by(u), gitDaemon(w.t, base).Args...)
		daemon, err := w.Server.Start(daemonCmd)
		if err != nil {
			w.t.Fatal(err)
		}
		w.expect(daemon, "Ready to rumble")
		for flag, from := range map[string]string{"--ipv4": "198.51.100.2:63999", "--ipv6": "[2001:db8:1::2]:63999"} {
			clone := filepath.Join(base, "clones", flag)
			w.runs(w.by(u, "--rule", "*.bank.example:9418=63999", "--", git, "clone", "-q", flag, "git://www.bank.example/ledger", clone), "")
			all("-C", clone, "fsck", "--full", "--strict")
			w.expect(daemon, "Connection from "+from)
		}
	})
}

// Only as root: sshd does not let the user nobody in.
func TestRunSSH(t *testing.T) {
	need(t, "sshd")
	ssh := need(t, "ssh")
	needRoot(t)
	w := newNetwork(t)
	w.names()
	w.Firewall(63999)
	dir := t.TempDir()
	hostKey, userKey := filepath.Join(dir, "host"), filepath.Join(dir, "user")
	for _, key := range []string{hostKey, userKey} {
		w.must(tool(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key))
	}
	w.startSSHD(hostKey, userKey+".pub")
	for flag, want := range map[string]string{"-4": "198.51.100.2 63999 203.0.113.2 2222\n", "-6": "2001:db8:1::2 63999 2001:db8:2::2 2222\n"} {
		w.runs(w.by(user{}, "--rule", "*.bank.example:2222=63999", "--", ssh, flag, "-p", "2222", "-F", "none", "-i", userKey,
			"-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "StrictHostKeyChecking=no",
			"-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=60", "root@www.bank.example", "echo $SSH_CONNECTION"), want)
	}
}

// The first of the host's name servers is dead. The C library goes on to the second, as it would outside.
func TestRunResolversFailOver(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		w.Server.DNS(lab.Zone(zone), at(lab.Server6, 53))
		w.Server.Serve(":7", lab.Echo)
		for _, env := range []string{"GODEBUG=netdns=go", "GODEBUG=netdns=cgo"} {
			cmd := w.by(u, "--rule", "www.bank.example:443=63999", "--", "reach", "v4.bank.example:7,hello")
			cmd.Env = append(cmd.Env, env)
			w.runs(cmd, "hello\n")
		}
	})
}

// A name that the command knows from a file is also known to pinproxy from that file.
func TestRunNameFromHostsFile(t *testing.T) {
	needRoot(t)
	w := newNetwork(t)
	w.Server.HTTPS(":443", "www.bank.example")
	got := w.guarded("hosts file", unix.CLONE_NEWNS, "--rule", "www.bank.example:443=63999", "--",
		"visit", "-ca", w.net.CA(), "https://www.bank.example/")
	if want := (result{"you came from 198.51.100.2:63999\n", "", 0}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// Without the capability, pinproxy can't end a TIME_WAIT that is left because the peer has no timestamps. The log
// names it.
func TestRunWaitsForTimeWait(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		if u.attr != nil {
			w.keepTimeWait() // for pinproxy it would be a way, before Linux 6.1
		}
		w.Server.Sysctl("net.ipv4.tcp_timestamps", "0")
		server := w.Server.Serve(":7", lab.Echo)
		got := w.result(w.by(u, "--rule", "*:7=63999 busy=wait:1s", "--", "sh", "-c", "reach 203.0.113.2:7,one; reach 203.0.113.2:7,two"))
		switch {
		case u.attr == nil && got != result{"one\ntwo\n", "", 0}:
			w.t.Errorf("with the capability: %+v", got)
		case u.attr != nil && (got.out != "one\nno route to host\n" || !strings.Contains(got.said, "TIME_WAIT")):
			w.t.Errorf("without the capability: %+v", got)
		}
		for _, from := range server.Seen() {
			if from.Port() != 63999 {
				w.t.Errorf("a connection came from %v", from)
			}
		}
	})
}

// tmux gives each of its shells a session and a terminal of its own.
func TestRunTmux(t *testing.T) {
	tmux := need(t, "tmux")
	eachUser(t, func(w *network, u user) {
		w.names()
		w.Server.Serve(":7", lab.Echo)
		dir := filepath.Dir(w.net.File("tmux", ""))
		sockets := filepath.Join(dir, "sockets")
		if err := os.Mkdir(sockets, 0o700); err != nil {
			w.t.Fatal(err)
		}
		if u.attr != nil {
			_ = os.Chown(sockets, nobody, nobody)
		}
		run := func(args ...string) string {
			w.t.Helper()
			cmd := u.is(w.by(u), append([]string{tmux, "-S", filepath.Join(sockets, "s"), "-f", "/dev/null"}, args...)...)
			cmd.Env = append(cmd.Env, "SHELL=/bin/sh", "TERM=xterm", "PS1=ready> ", "HOME=/", "LC_ALL=C.UTF-8") // nobody's own shell is nologin
			got := w.result(cmd)
			if got.status != 0 {
				w.t.Fatalf("tmux %q: %+v", args, got)
			}
			return got.out
		}
		screen := func(text string) {
			w.t.Helper()
			shown := ""
			w.t.Cleanup(func() {
				if w.t.Failed() {
					w.t.Logf("the screen: %s", shown)
				}
			})
			poll(w.t, text, func() bool {
				shown = run("capture-pane", "-p", "-t", "0")
				return strings.Contains(shown, text)
			})
		}
		run("new-session", "-d", "-x", "120", "-y", "40", "pinproxy --rule '*.bank.example:7=63999' -- env 'PS1=ready> ' bash --norc --noprofile -i; sleep 100")
		defer run("kill-server")
		screen("ready>")
		run("send-keys", "reach v4.bank.example:7,pinned", "Enter")
		// What is typed before a prompt, or before the command has the terminal, may go to the shell.
		screen("\npinned\nready>")
		run("send-keys", "sh -c 'echo up; exec sed s/^/heard-/'", "Enter")
		screen("\nup\n")
		run("send-keys", "once", "Enter")
		screen("\nheard-once\n")
		run("send-keys", "C-z")
		screen("Stopped")
		run("send-keys", "fg", "Enter")
		screen("fg\nsh -c")
		run("send-keys", "again", "Enter")
		screen("\nheard-again\n")
		run("send-keys", "C-c")
		screen("^C\nready>")
		run("send-keys", "stty size", "Enter")
		screen("40 120")
	})
}
