package sockdiag

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Owners finds for each socket a process that has it open. The Process has PID 0 if there is none, or if /proc does
// not show it to this process.
func Owners(sockets []Socket) []Process {
	inodes := make([]uint32, len(sockets))
	for i, s := range sockets {
		inodes[i] = s.inode
	}
	return ownersOf(inodes)
}

// ownersOf is Owners for sockets with these inode numbers; 0 means no process has the socket.
func ownersOf(inodes []uint32) []Process {
	owners := make([]Process, len(inodes))
	wanted := make(map[string][]int)
	for i, inode := range inodes {
		if inode != 0 {
			link := fmt.Sprintf("socket:[%d]", inode)
			wanted[link] = append(wanted[link], i)
		}
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return owners
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		if len(wanted) == 0 {
			break
		}
		for _, link := range links(filepath.Join("/proc", p.Name(), "fd")) {
			for _, i := range wanted[link] {
				owners[i] = Process{PID: pid, Name: command(pid)}
			}
			delete(wanted, link)
		}
	}
	return owners
}

// links returns what the descriptors in dir refer to; nothing if dir may not be read.
func links(dir string) []string {
	fds, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var list []string
	for _, fd := range fds {
		if link, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil {
			list = append(list, link)
		}
	}
	return list
}

func command(pid int) string {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "a process that has ended"
	}
	return strings.TrimSpace(string(comm))
}
