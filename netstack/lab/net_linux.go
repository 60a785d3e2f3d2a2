package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// TB is the part of testing.TB that [ForTest] needs, so that programs need not link package testing.
type TB interface {
	Helper()
	Fatal(...any)
	Error(...any)
	Cleanup(func())
}

// Net is a throw-away network. Its building methods belong to one goroutine (see the package comment).
type Net struct {
	helper func()
	fail   func(error) // does not return
	dir    string
	links  int // number created so far, for hardware addresses
	ca     *authority

	mu     sync.Mutex
	undo   []func() error // run by Close, last first
	closed bool
}

// ForTest returns a network that lives as long as t. Errors in building it fail t.
func ForTest(t TB) *Net {
	t.Helper()
	n, err := newNet(t.Helper, func(err error) { t.Helper(); t.Fatal("lab:", err) })
	if err != nil {
		t.Fatal("lab:", err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error("lab:", err)
		}
	})
	return n
}

// Run calls f with a network that lives as long as the call. It returns f's error, or the error from building the
// network. The process should have called [Enter].
func Run(f func(n *Net) error) (err error) {
	type failure struct{ error }
	n, err := newNet(func() {}, func(err error) { panic(failure{err}) })
	if err != nil {
		return err
	}
	defer func() {
		r := recover()
		if failed, ok := r.(failure); ok {
			err = failed.error
		}
		err = errors.Join(err, n.Close())
		if _, ok := r.(failure); r != nil && !ok {
			panic(r)
		}
	}()
	return f(n)
}

func newNet(helper func(), fail func(error)) (*Net, error) {
	if err := private(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		return nil, err
	}
	n := &Net{helper: helper, fail: fail, dir: dir}
	n.atClose(func() error { return os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // programs of other users read its contents
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// private returns an error unless the process is in namespaces that Enter created.
func private() error {
	here, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return fmt.Errorf("find mount namespace: %w", err)
	}
	if was := os.Getenv(Env); was == "" || was == here {
		return errors.New("not in private namespaces: call lab.Main in TestMain, or lab.Enter")
	}
	return nil
}

// check stops building the network if err is not nil. Call it as n.check("add route …", err).
func (n *Net) check(what string, err error) {
	if err != nil {
		n.helper()
		n.fail(fmt.Errorf("%s: %w", what, err))
		panic("lab: failed set-up went on")
	}
}

// atClose makes Close call f, before the functions given to atClose earlier.
func (n *Net) atClose(f func() error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		f()
		return
	}
	n.undo = append(n.undo, f)
}

// Close ends all processes and servers of the network and releases its namespaces. It may be called more than once;
// ForTest and Run always call it.
func (n *Net) Close() error {
	n.mu.Lock()
	undo := n.undo
	n.undo, n.closed = nil, true
	n.mu.Unlock()
	var errs []error
	for _, f := range slices.Backward(undo) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// File writes a file into the network's own directory, which is removed with the network, and returns its path.
func (n *Net) File(name, content string) string {
	n.helper()
	path := filepath.Join(n.dir, name)
	n.check("write file", os.WriteFile(path, []byte(content), 0o644))
	return path
}
