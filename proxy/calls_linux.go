package proxy

import (
	"encoding/binary"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls in this file do not notify Go's scheduler. They do not block, and notifying it wakes another thread if
// the process was idle (entersyscallWakeSysmon).

func readNow(fd uintptr, b []byte) (int, error) {
	return now(syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b))))
}

func writevNow(fd uintptr, iov []unix.Iovec) (int, error) {
	return now(syscall.RawSyscall(syscall.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov))))
}

// sendUrgentNow makes the last byte of b urgent data.
func sendUrgentNow(fd uintptr, b []byte) (int, error) {
	return now(syscall.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_OOB|unix.MSG_NOSIGNAL, 0, 0))
}

// siocatmark is SIOCATMARK (asm-generic/sockios.h), which package unix lacks. Where it is another number, on MIPS, the
// call fails and urgent data is ordinary.
const siocatmark = 0x8905

// nextNow reports whether there is something to read, and whether the next byte is urgent data.
func nextNow(fd uintptr) (there, urgent bool) {
	p := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN | unix.POLLPRI | unix.POLLRDHUP}
	var atOnce unix.Timespec
	_, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&atOnce)), 0, 0, 0)
	if errno != 0 {
		return true, false // reading tells why
	}
	if p.Revents&unix.POLLPRI != 0 { // it is among what is to be read
		var atMark int32
		_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, fd, siocatmark, uintptr(unsafe.Pointer(&atMark)))
		urgent = errno == 0 && atMark != 0
	}
	return p.Revents != 0, urgent
}

func now(n, _ uintptr, errno syscall.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// connectNow normally fails, because the connection is still under way.
func connectNow(fd uintptr, a sockaddrInet) syscall.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&a.raw)), uintptr(a.size))
	return errno
}

// bindNow and the functions below fail with an os.SyscallError.
func bindNow(fd uintptr, a sockaddrInet) error {
	_, _, errno := unix.RawSyscall(unix.SYS_BIND, fd, uintptr(unsafe.Pointer(&a.raw)), uintptr(a.size))
	return failure("bind", errno)
}

func shutdownNow(fd uintptr, how int) error {
	_, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, fd, uintptr(how), 0)
	return failure("shutdown", errno)
}

// option is a socket option with a numeric value.
type option struct{ level, name, value int }

func setsockoptNow(fd uintptr, o option) error {
	value := int32(o.value)
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, fd, uintptr(o.level), uintptr(o.name),
		uintptr(unsafe.Pointer(&value)), unsafe.Sizeof(value), 0)
	return failure("setsockopt", errno)
}

func getsocknameNow(fd uintptr) (netip.AddrPort, error) {
	a := sockaddrInet{size: unix.SizeofSockaddrInet6}
	_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, fd, uintptr(unsafe.Pointer(&a.raw)), uintptr(unsafe.Pointer(&a.size)))
	return a.addrPort(), failure("getsockname", errno)
}

func failure(call string, errno syscall.Errno) error {
	if errno != 0 {
		return os.NewSyscallError(call, errno)
	}
	return nil
}

// sockaddrInet is a struct sockaddr_in or sockaddr_in6 (ip(7), ipv6(7)), of size bytes.
type sockaddrInet struct {
	raw  [unix.SizeofSockaddrInet6]byte
	size uint32
}

func sockaddrOf(a netip.AddrPort) sockaddrInet {
	var s sockaddrInet
	binary.BigEndian.PutUint16(s.raw[2:], a.Port())
	if addr := a.Addr().Unmap(); addr.Is4() {
		binary.NativeEndian.PutUint16(s.raw[:], unix.AF_INET)
		ip := addr.As4()
		copy(s.raw[4:], ip[:])
		s.size = unix.SizeofSockaddrInet4
	} else {
		binary.NativeEndian.PutUint16(s.raw[:], unix.AF_INET6)
		ip := addr.As16()
		copy(s.raw[8:], ip[:])
		s.size = unix.SizeofSockaddrInet6
	}
	return s
}

func (s *sockaddrInet) family() int { return int(binary.NativeEndian.Uint16(s.raw[:])) }

func (s *sockaddrInet) addrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16(s.raw[2:])
	if s.family() == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(s.raw[4:8])), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(s.raw[8:24])), port)
}
