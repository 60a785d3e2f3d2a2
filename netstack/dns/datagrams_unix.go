//go:build unix

package dns

import "syscall"

const canReadRaw = true

func readRaw(fd uintptr, b []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), b)
		if err != syscall.EINTR {
			return n, err
		}
	}
}
