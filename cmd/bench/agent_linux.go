package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"pinproxy/netstack/lab"
)

// agentMain runs this binary as an agent: it performs the tasks it reads until there are no more.
func agentMain(stdin io.Reader, stdout, stderr io.Writer) int {
	in, out := json.NewDecoder(bufio.NewReader(stdin)), json.NewEncoder(stdout)
	var p performer
	for {
		var t task
		switch err := in.Decode(&t); {
		case errors.Is(err, io.EOF):
			return 0
		case err != nil:
			fmt.Fprintf(stderr, "agent: %v\n", err)
			return 1
		}
		if err := out.Encode(p.perform(t)); err != nil {
			fmt.Fprintf(stderr, "agent: %v\n", err)
			return 1
		}
	}
}

// performer performs tasks, one at a time.
type performer struct {
	server *server
	held   []socket
}

func (p *performer) perform(t task) report {
	if beside := t.Beside; beside != nil {
		t.Beside = nil
		ended := make(chan report, 1)
		go func() { ended <- p.perform(*beside) }()
		r := p.perform(t)
		if b := <-ended; r.Err == "" && b.Err+b.Failure != "" {
			return report{Err: beside.Do + " besides: " + b.Err + b.Failure}
		}
		return r
	}
	switch t.Do {
	case "serve": // from now on
		var err error
		p.server, err = serve()
		return report{Err: text(err)}
	case "count": // what the server's sink gets
		return p.server.count(t)
	case "holding": // how many connections the server holds
		return p.server.holding(t)
	case "release": // all of them, or ours
		if p.server != nil {
			p.server.release()
		}
		p.release()
		return report{}
	case "send":
		return send(t)
	case "receive":
		return receive(t)
	case "connect": // repeatedly
		return connect(t)
	case "ping":
		return ping(t)
	case "hold":
		return p.hold(t)
	case "push": // over all connections held
		return push(p.flows(), t)
	case "pull":
		return pull(p.flows(), t)
	case "who":
		return who(t)
	case "resolve":
		return resolve(t)
	}
	return report{Err: fmt.Sprintf("unknown task %q", t.Do)}
}

// flows returns the flows that the client or the server holds.
func (p *performer) flows() []socket {
	if p.server != nil {
		return p.server.flows()
	}
	return p.held
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// agent is an agent as its starter sees it. Its methods belong to one goroutine.
type agent struct {
	process *lab.Process
	in, out *os.File
	reports *json.Decoder
}

// agentCommand is the command line of an agent.
func agentCommand() ([]string, error) {
	self, err := os.Executable()
	return []string{self, "agent"}, err
}

// startAgent starts cmd, which is an agent or runs one, on h.
func startAgent(h *lab.Host, cmd *exec.Cmd) (a *agent, err error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	pipe := func() (r, w *os.File) {
		if err == nil {
			r, w, err = os.Pipe()
		}
		return r, w
	}
	inR, inW := pipe()
	outR, outW := pipe()
	if err != nil {
		files = []*os.File{inR, inW}
		return nil, err
	}
	cmd.Stdin, cmd.Stdout = inR, outW
	files = []*os.File{inR, outW}
	a = &agent{in: inW, out: outR, reports: json.NewDecoder(outR)}
	if a.process, err = h.Start(cmd); err != nil {
		files = append(files, inW, outR)
		return nil, err
	}
	return a, nil
}

// errBroken says that an agent, or the program that runs it, has not answered and never will.
var errBroken = errors.New("no report")

// do has the agent perform t. The error is the task's, or wraps errBroken if the agent can't be used any more.
func (a *agent) do(ctx context.Context, t task) (report, error) {
	var r report
	if err := a.out.SetReadDeadline(time.Now().Add(t.Warm + t.Time + 10*socketPatience)); err != nil {
		return r, err
	}
	stop := context.AfterFunc(ctx, func() { a.out.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := json.NewEncoder(a.in).Encode(t); err != nil {
		return r, fmt.Errorf("%w: %w", errBroken, err)
	}
	switch err := a.reports.Decode(&r); {
	case ctx.Err() != nil:
		return r, ctx.Err()
	case err != nil:
		return r, fmt.Errorf("%w: %w", errBroken, err)
	case r.Err != "":
		return r, errors.New(r.Err)
	}
	return r, nil
}

// end ends the agent, and also the program that runs it if that ends with its command.
func (a *agent) end() {
	a.in.Close()
	select {
	case <-a.process.Done():
	case <-time.After(endPatience):
		a.process.Signal(os.Kill)
		<-a.process.Done()
	}
	a.out.Close()
}
