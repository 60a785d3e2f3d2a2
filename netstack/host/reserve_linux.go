package host

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// reserved is the sysctl ip_local_reserved_ports of one network namespace. /proc/sys/net shows the namespace of
// the thread that opens a file, and the open file stays with that namespace.
type reserved struct {
	file *os.File
	path string // of the state file
	boot string // this boot's ID
}

func openReserved(statePath string) (*reserved, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile("/proc/sys/"+sysctlReserved, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &reserved{f, statePath, strings.TrimSpace(string(boot))}, nil
}

func (r *reserved) close() error { return r.file.Close() }

// ports returns the ports that are reserved now.
func (r *reserved) ports() (ports, error) { return readReserved(r.file) }

// readReserved reads everything at once: at any other offset there is nothing to read (proc_do_large_bitmap).
func readReserved(f io.ReaderAt) (ports, error) {
	const longest = 32768 * len("65535,") // every second port
	b := make([]byte, longest+1)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return ports{}, fmt.Errorf("read %s: %w", sysctlReserved, err)
	}
	return parsePorts(string(b[:n]))
}

// set replaces the reserved ports. The kernel accepts 4095 bytes at a time and joins what follows at a later
// offset to what was written at an earlier one. WriteAt does exactly that.
func (r *reserved) set(p ports) error {
	if _, err := r.file.WriteAt([]byte(p.String()+"\n"), 0); err != nil {
		return fmt.Errorf("%s: %w", sysctl{sysctlReserved, p.String()}, err)
	}
	return nil
}

// ours returns the ports that the state file lists as ours.
func (r *reserved) ours() (ports, error) {
	s, err := readState(r.path)
	if err != nil || s.BootID != r.boot {
		return ports{}, err
	}
	p, err := parsePorts(s.Ports)
	if err != nil {
		return ports{}, &DamagedError{Path: r.path, Err: err}
	}
	return p, nil
}

// add reserves the ports of want that are not reserved yet, after recording them in the state file. It returns
// them. Entries of an earlier state file stay recorded.
func (r *reserved) add(want ports) (added ports, err error) {
	now, err := r.ports()
	if err != nil {
		return ports{}, err
	}
	added = want.without(now)
	if added.empty() {
		return ports{}, nil
	}
	before, err := r.ours()
	if err != nil {
		return ports{}, err
	}
	if err := writeState(r.path, state{r.boot, before.or(added).String()}); err != nil {
		return ports{}, err
	}
	if err := r.set(now.or(added)); err != nil {
		return ports{}, errors.Join(err, r.forget())
	}
	return added, nil
}

// change reserves the ports of then and releases those of mine that are not in then. mine is what the state
// file says now. At no time is a port ours that the file does not list.
func (r *reserved) change(mine, then ports) error {
	now, err := r.ports()
	if err != nil {
		return err
	}
	if err := writeState(r.path, state{r.boot, mine.or(then).String()}); err != nil {
		return err
	}
	if want := now.or(then).without(mine.without(then)); want != now {
		if err := r.set(want); err != nil {
			return err
		}
	}
	if then.empty() {
		return r.forget()
	}
	return writeState(r.path, state{r.boot, then.String()})
}

// remove releases mine, which the caller knows of, and the ports that the state file lists as ours, and returns
// them. Somebody may have deleted or damaged the file. Ports that were reserved before, and those that others have
// added meanwhile, stay. The error is a *[DamagedError] if mine and the file together say nothing.
func (r *reserved) remove(mine ports) (removed ports, err error) {
	ours, unread := r.ours()
	ours = ours.or(mine)
	now, err := r.ports()
	if err != nil {
		return ports{}, err
	}
	if removed = now.and(ours); !removed.empty() {
		if err := r.set(now.without(ours)); err != nil {
			return ports{}, err
		}
	}
	damaged, ok := errors.AsType[*DamagedError](unread)
	if unread != nil && !ok {
		return removed, unread
	}
	if err := r.forget(); err != nil {
		return removed, err
	}
	if damaged != nil && mine.empty() && !now.empty() {
		damaged.Reserved = now.String()
		return removed, damaged
	}
	return removed, nil
}

// forget deletes the state file.
func (r *reserved) forget() error {
	if _, err := removeFile(r.path); err != nil {
		return fmt.Errorf("remove state: %w", err)
	}
	return nil
}

// unreserved reports ports that could not be reserved. In a container, where sysctls are read-only, whoever starts it
// can.
func unreserved(p ports, err error) error {
	err = fmt.Errorf("ports %v are not reserved: %w", p, err)
	if errors.Is(err, unix.EROFS) {
		return &DemandError{err.Error(), "in a container, have it started with them: docker run --sysctl net.ipv4.ip_local_reserved_ports=" + p.String()}
	}
	return err
}
