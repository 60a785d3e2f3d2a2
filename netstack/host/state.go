package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// state is what only we can know: which of the reserved ports are ours. It is in a file so that the ports can
// be found after a SIGKILL.
type state struct {
	BootID string `json:"boot_id"` // of the boot in which the ports were reserved; a reboot clears them
	Ports  string `json:"reserved_ports"`
}

// StateFile returns the name of the state file in dir for the network namespace with the given
// [Namespace] name.
func StateFile(dir, namespace string) string { return scoped(dir, namespace, "state") }

// SocketFile returns the name of the control socket in dir for the network namespace with the given
// [Namespace] name.
func SocketFile(dir, namespace string) string { return scoped(dir, namespace, "sock") }

func scoped(dir, namespace, extension string) string {
	name := "pinproxy." + extension
	if namespace != "" {
		name = "pinproxy." + namespace + "." + extension
	}
	return filepath.Join(dir, name)
}

// DamagedError reports a state file that does not say which ports are ours, as it was cut short or overwritten. It is
// deleted, as it would stand in the way of every start.
type DamagedError struct {
	Path     string
	Reserved string // the ports that are reserved and so may be ours; "" if not known
	Err      error  // what is wrong with the file
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s was damaged (%v) and is deleted; nothing else says which of the reserved ports are a killed pinproxy's, so all stay reserved: %s", e.Path, e.Err, e.Reserved)
}

func (e *DamagedError) Unwrap() error { return e.Err }

// Hint returns how to release the ports.
func (e *DamagedError) Hint() string {
	return "sudo sysctl -w net.ipv4.ip_local_reserved_ports='' releases all; put between the quotes what others need"
}

// readState returns the zero state if there is no file. The error may be a *[DamagedError].
func readState(path string) (state, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, nil
	}
	if err != nil {
		return state{}, fmt.Errorf("read state: %w", err)
	}
	var s state
	err = json.Unmarshal(b, &s)
	if err == nil && s.BootID == "" {
		err = errors.New("it names no boot")
	}
	if err != nil {
		return state{}, &DamagedError{Path: path, Err: err}
	}
	return s, nil
}

// unfinished is the name under which the state file at path is written. It is always the same, so that one that a
// SIGKILL left is found.
func unfinished(path string) string { return path + ".new" }

// writeState replaces the whole file, and returns when it is on disk. Nobody else may do so at the same time.
func writeState(path string, s state) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if _, err := removeFile(unfinished(path)); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	f, err := os.OpenFile(unfinished(path), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) // follows no symbolic link
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	defer os.Remove(f.Name()) // no longer there on success
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

// removeFile removes a file that may not exist.
func removeFile(path string) (removed bool, err error) {
	if err = os.Remove(path); err == nil {
		return true, nil
	}
	if _, gone := os.Lstat(path); errors.Is(gone, fs.ErrNotExist) {
		return false, nil // unlink(2) returns EROFS even so
	}
	return false, err
}

// syncDir makes a rename durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
