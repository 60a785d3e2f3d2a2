package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a program running on a host. Its methods are safe for concurrent use.
type Process struct {
	cmd  *exec.Cmd
	out  output
	errs output
	done chan struct{}
	err  error // from Wait, once done is closed
}

// Start starts cmd, which must not have been started before, in the host's network namespace. Its standard output
// and error are collected unless cmd sets them. The process is killed when the network is closed. If this process
// ends before that, the kernel kills it.
func (h *Host) Start(cmd *exec.Cmd) (*Process, error) {
	p := &Process{cmd: cmd, done: make(chan struct{})}
	p.out.changed, p.errs.changed = make(chan struct{}), make(chan struct{})
	if cmd.Stdout == nil {
		cmd.Stdout = &p.out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.errs
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if cmd.SysProcAttr.Pdeathsig == 0 {
		cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	}
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = time.Second // for what its own children still hold open
	}
	started := make(chan error, 1)
	go p.live(h, started) // ends with the process: Close kills it and waits
	if err := <-started; err != nil {
		return nil, fmt.Errorf("%s: %w", h.name, err)
	}
	h.net.atClose(p.end)
	return p, nil
}

// Run runs cmd on the host as Start does, waits for it and returns what it wrote to its standard output and standard
// error. The error includes the standard error.
func (h *Host) Run(cmd *exec.Cmd) (stdout, stderr string, err error) {
	p, err := h.Start(cmd)
	if err != nil {
		return "", "", err
	}
	err = p.Wait()
	if err != nil {
		err = fmt.Errorf("%s: %s: %w\n%s", h.name, strings.Join(cmd.Args, " "), err, p.Stderr())
	}
	return p.Stdout(), p.Stderr(), err
}

// live keeps one thread for the life of the process. A process starts in the namespace of the thread that forks it,
// and gets its PDEATHSIG when that thread ends. The thread is never unlocked, so it ends with the goroutine.
func (p *Process) live(h *Host, started chan<- error) {
	defer close(p.done)
	runtime.LockOSThread()
	err := h.enter()
	if err == nil {
		err = p.cmd.Start()
	}
	started <- err
	if err == nil {
		p.err = p.cmd.Wait()
	}
}

func (p *Process) end() error {
	p.cmd.Process.Kill()
	<-p.done
	return nil
}

// Pid returns the process ID.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Signal sends s to the process. The error is os.ErrProcessDone once it has ended.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Done is closed when the process has ended and all its output has arrived.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the process to end. The error is that of exec.Cmd.Wait.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Stdout returns what the process has written to its standard output so far.
func (p *Process) Stdout() string { return p.out.String() }

// Stderr returns what the process has written to its standard error so far.
func (p *Process) Stderr() string { return p.errs.String() }

// Expect waits until the process has written text to its standard output or error. If the process or ctx ends first,
// the error says what was written instead.
func (p *Process) Expect(ctx context.Context, text string) error {
	for {
		out, outChanged := p.out.read()
		errs, errsChanged := p.errs.read()
		if strings.Contains(out, text) || strings.Contains(errs, text) {
			return nil
		}
		select {
		case <-outChanged:
		case <-errsChanged:
		case <-p.done:
			if !strings.Contains(p.Stdout(), text) && !strings.Contains(p.Stderr(), text) {
				return fmt.Errorf("wait for %q of %s: it ended (%v)\n%s%s", text, p.cmd.Path, p.err, p.Stdout(), p.Stderr())
			}
			return nil
		case <-ctx.Done():
			return fmt.Errorf("wait for %q of %s: %w\n%s%s", text, p.cmd.Path, ctx.Err(), out, errs)
		}
	}
}

// output collects what a process writes and notifies waiting goroutines.
type output struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	changed chan struct{} // closed at the next write
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
	return o.buf.Write(b)
}

func (o *output) read() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String(), o.changed
}

func (o *output) String() string {
	s, _ := o.read()
	return s
}
