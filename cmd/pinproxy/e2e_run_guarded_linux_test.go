package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// Environments in which a command can't have namespaces, or can have them only in a roundabout way.

// guards are what guarded does to itself before it becomes the program in its arguments.
var guards = map[string]func() error{
	"no capability": func() error { return dropCapabilities(unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN) },
	"few capabilities": func() error {
		return dropCapabilities(unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_SETUID, unix.CAP_SETGID)
	},
	"bare root":     func() error { return dropCapabilities(unix.CAP_SYS_ADMIN, unix.CAP_SETFCAP) },
	"no other user": func() error { return dropCapabilities(unix.CAP_SETUID, unix.CAP_SETGID) },
	"user":          func() error { return become(nobody) },
	"no namespaces": func() error {
		return errors.Join(os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0\n"), 0), dropCapabilities(unix.CAP_SYS_ADMIN))
	},
	"seccomp": func() error { return errors.Join(dropCapabilities(unix.CAP_SYS_ADMIN), forbidUserNamespaces()) },
	"no device": func() error {
		return errors.Join(unix.Mount("none", "/dev/net", "tmpfs", 0, ""), become(nobody))
	},
	"no permission": func() error {
		return errors.Join(unix.Mount("none", "/mnt", "tmpfs", 0, ""), unix.Mknod("/mnt/tun", unix.S_IFCHR|0o600, int(unix.Mkdev(10, 200))),
			unix.Mount("/mnt/tun", "/dev/net/tun", "", unix.MS_BIND, ""), become(nobody))
	},
	"no resolv.conf": func() error { // a link to a file that does not exist
		return errors.Join(unix.Mount("none", "/mnt", "tmpfs", 0, "mode=755"), os.Symlink("/mnt/none", "/mnt/resolv.conf"),
			unix.Mount("/mnt", "/etc", "", unix.MS_BIND, ""), become(nobody))
	},
	"hosts file": func() error {
		return errors.Join(unix.Mount("none", "/mnt", "tmpfs", 0, "mode=755"),
			os.WriteFile("/mnt/hosts", []byte("127.0.0.1 localhost\n203.0.113.2 www.bank.example\n"), 0o644),
			unix.Mount("/mnt/hosts", "/etc/hosts", "", unix.MS_BIND, ""), become(nobody))
	},
	"linked resolv.conf": func() error {
		return errors.Join(unix.Mount("none", "/mnt", "tmpfs", 0, "mode=755"), os.Symlink("../mnt/stub", "/mnt/resolv.conf"),
			os.WriteFile("/mnt/stub", []byte("search bank.example\nnameserver 203.0.113.2\n"), 0o644),
			os.WriteFile("/mnt/nsswitch.conf", []byte("hosts: mymachines resolve [!UNAVAIL=return] files myhostname\n"), 0o644),
			unix.Mount("/mnt", "/etc", "", unix.MS_BIND, ""), become(nobody))
	},
}

// guarded becomes the program in its arguments after the first, which names a guard.
func guarded() {
	runtime.LockOSThread() // capabilities belong to a thread
	err := guards[os.Args[1]]()
	if err == nil {
		err = unix.Exec("/proc/self/exe", os.Args[2:], os.Environ())
	}
	fmt.Fprintln(os.Stderr, "guarded:", err)
	os.Exit(99)
}

func become(id int) error {
	return errors.Join(syscall.Setgroups([]int{id}), syscall.Setgid(id), syscall.Setuid(id))
}

// dropCapabilities gives up capabilities for good, also across exec.
func dropCapabilities(list ...uint) error {
	var have [2]unix.CapUserData
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	err := unix.Capget(&head, &have[0])
	for _, c := range list {
		err = errors.Join(err, unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0))
		have[c/32].Effective &^= 1 << (c % 32)
		have[c/32].Permitted &^= 1 << (c % 32)
	}
	return errors.Join(err, unix.Capset(&head, &have[0]))
}

// forbidUserNamespaces does what the filters of container runtimes do: clone(2) with CLONE_NEWUSER gives EPERM.
func forbidUserNamespaces() error {
	const number, flags = 0, 16 // in struct seccomp_data (include/uapi/linux/seccomp.h), little-endian
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_CLONE, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: flags},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: unix.CLONE_NEWUSER, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return errors.Join(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
		unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0))
}

// guarded runs pinproxy behind a guard, in mount and user namespaces of its own if flags ask for them.
func (w *network) guarded(guard string, flags uintptr, args ...string) result {
	w.t.Helper()
	cmd := w.by(user{}, args...)
	cmd.Args = append([]string{"guarded", guard, "pinproxy"}, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: flags &^ unix.CLONE_NEWUSER, Cloneflags: flags & unix.CLONE_NEWUSER}
	if flags&unix.CLONE_NEWUSER != 0 {
		all := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = all, all
	}
	return w.result(cmd)
}

func TestRunForbidden(t *testing.T) {
	needRoot(t)
	w := newNetwork(t)
	before := w.Client.Snapshot()
	for _, test := range []struct {
		guard       string
		flags       uintptr
		error, hint string
	}{
		{"no namespaces", unix.CLONE_NEWUSER, "user namespaces are off (user.max_user_namespaces = 0)", "sysctl -w user.max_user_namespaces="},
		{"seccomp", 0, "a seccomp filter forbids namespaces", "--security-opt"},
		{"bare root", 0, "root without CAP_SETFCAP may not have a user namespace", "--cap-add SETFCAP"},
		{"no device", unix.CLONE_NEWNS, "open /dev/net/tun: no TUN device", "modprobe tun"},
		{"no permission", unix.CLONE_NEWNS, "open /dev/net/tun: permission denied", "chmod 0666 /dev/net/tun"},
	} {
		got := w.guarded(test.guard, test.flags, "--rule", "*:443=63999", "--", "echo", "here")
		said := lines(got.said)
		if got.status != exitNotRun || got.out != "" || len(said) != 2 ||
			!strings.HasPrefix(said[0], "pinproxy: error: ") || !strings.Contains(said[0], test.error) ||
			!strings.HasPrefix(said[1], "pinproxy: hint: ") || !strings.Contains(said[1], test.hint) {
			t.Errorf("%s: status %d, printed %q, said\n%s", test.guard, got.status, got.out, got.said)
		}
	}
	if after := w.Client.Snapshot(); after != before {
		t.Errorf("the host is changed:\n%s\nto\n%s", before, after)
	}
}

// As in containers: root without the capabilities that make it root of the host.
func TestRunAsRootOfContainer(t *testing.T) {
	needRoot(t)
	w := newNetwork(t)
	server := w.Server.Serve(":7", lab.Echo)
	const users = `
	cat /proc/self/uid_map | tr -s ' '; id -u; reach 203.0.113.2:7,hello`
	for _, test := range []struct {
		guard string
		flags uintptr
		users string // that the command knows
	}{
		{"no capability", 0, " 0 0 4294967295\n"},
		{"few capabilities", 0, " 0 0 1\n"},
		{"no capability", unix.CLONE_NEWUSER, " 0 0 65536\n"},
		{"few capabilities", unix.CLONE_NEWUSER, " 0 0 1\n"},
	} {
		got := w.guarded(test.guard, test.flags, "--rule", "*:7=63999", "--", "sh", "-c", users)
		if want := (result{test.users + "0\nhello\n", "", 0}); got != want {
			t.Errorf("%s, flags %#x: %+v, want %+v", test.guard, test.flags, got, want)
		}
	}
	for _, from := range server.Seen() {
		if from.Port() != 63999 {
			t.Errorf("a connection came from %v", from)
		}
	}
}

func TestRunOtherResolverFiles(t *testing.T) {
	needRoot(t)
	w := newNetwork(t)
	w.names()
	w.Server.Serve(":7", lab.Echo)
	for _, test := range []struct{ guard, out string }{
		{"no resolv.conf", "# By pinproxy, for this command: each name server stands for one of the host's.\nnameserver 192.0.0.53\n"},
		{"linked resolv.conf", "# By pinproxy, for this command: each name server stands for one of the host's.\nnameserver 192.0.0.53\nsearch bank.example\n" +
			"hosts: files myhostname dns\n"},
	} {
		if test.guard == "no resolv.conf" && !lab.KernelIs(5, 11) {
			continue // an ordinary user may not mount an overlay
		}
		got := w.guarded(test.guard, unix.CLONE_NEWNS, "--rule", "*:443=63999", "--", "sh", "-c", "cat /etc/resolv.conf /etc/nsswitch.conf 2>/dev/null; true")
		if want := (result{test.out, "", 0}); got != want {
			t.Errorf("%s: %+v, want %+v", test.guard, got, want)
		}
	}
	got := w.guarded("linked resolv.conf", unix.CLONE_NEWNS, "--rule", "*:443=63999", "--", "reach", "v4:7,hello")
	if want := (result{"hello\n", "", 0}); got != want {
		t.Errorf("by the search list: %+v", got)
	}
}

// A command that is itself a pinproxy: the outer one has the last word, since it is nearer to the network.
func TestRunNested(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		w.names()
		server := w.Server.Serve(":7", lab.Echo)
		for _, f := range families {
			w.runs(w.by(u, "--rule", "*.bank.example:7=63999", "--", "pinproxy", "--rule", "*:7=62000", "--",
				"pinproxy", "--rule", "*:8=61000", "--", "reach", at(f.nested(), 7)+",hello"), "hello\n")
		}
		for _, from := range server.Seen() {
			if from.Port() != 63999 {
				w.t.Errorf("a connection came from %v, want the outer pin", from)
			}
		}
	})
}

// nested returns a name of the server in this family.
func (f family) nested() string {
	return map[string]string{"IPv4": "v4", "IPv6": "v6"}[f.name] + ".bank.example"
}
