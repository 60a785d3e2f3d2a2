package resolved

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The listener sees the other user, and this thread is unchanged afterwards.
func TestConnectAs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs to be run by root") // CI runs as root
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "bus")
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+path)
	other := 65534
	if strconv.IntSize == 32 { // the older of two system calls takes 16 bits
		other = 1<<16 | 7
	}
	if _, err := ConnectAs(other); err == nil {
		t.Error("it connects to nothing")
	}
	l, err := net.Listen("unix", path)
	if err == nil {
		defer l.Close()
		err = os.Chmod(dir, 0o755)
	}
	if err == nil {
		err = os.Chmod(path, 0o666)
	}
	if err == nil {
		err = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGURG), 0, 0, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0) }()
	before := capabilities(t)
	h, err := ConnectAs(other)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(h.FD)
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil || peer.Uid != uint32(other) || h.UID != other {
			t.Errorf("the peer is %+v, %v, and said to be %d; want user %d", peer, err, h.UID, other)
		}
	})
	if uid := unix.Geteuid(); uid != 0 {
		t.Errorf("the thread is user %d afterwards", uid)
	}
	if after := capabilities(t); after != before {
		t.Errorf("capabilities are %x afterwards, were %x", after, before)
	}
	var mother int32
	if _, _, errno := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&mother)), 0); errno != 0 || mother != int32(unix.SIGURG) {
		t.Errorf("the signal at the mother's end is %d (%v)", mother, errno)
	}
	if flags, err := unix.FcntlInt(uintptr(h.FD), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the descriptor's flags are %#x, %v", flags, err)
	}
}

func capabilities(t *testing.T) [2]unix.CapUserData {
	t.Helper()
	var have [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &have[0]); err != nil {
		t.Fatal(err)
	}
	return have
}

// ConnectAs rejects addresses that are not a path: code that knows the other kinds handles them.
func TestConnectAsElsewhere(t *testing.T) {
	for _, address := range []string{"tcp:host=127.0.0.1,port=1", "unix:abstract=bus", "unix:path=/a,guid=1", "unix:path=/a;unix:path=/b", ""} {
		t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
		if _, err := ConnectAs(os.Geteuid()); err == nil {
			t.Errorf("it connects to %q", address)
		}
	}
}
