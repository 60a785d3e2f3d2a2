package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"pinproxy/netstack/lab"
)

// bench makes the whole run.
func bench(ctx context.Context, o options, stdout, stderr io.Writer) error {
	path, err := filepath.Abs(o.pinproxy)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		return err
	}
	o.pinproxy = path
	all, err := load(o)
	if err != nil {
		return err
	}
	if f, err := os.OpenFile(tunDevice, os.O_RDWR, 0); err != nil {
		return fmt.Errorf("%w (run it as root, with the kernel's TUN driver)", err)
	} else {
		f.Close()
	}
	if err := lab.Enter(); err != nil {
		return err
	}
	// From here on we are in namespaces of our own.
	if err := allowDescriptors(); err != nil {
		return fmt.Errorf("allow more descriptors: %w", err)
	}
	if most := descriptors(); o.flows+spare > most && (len(o.only) == 0 || slices.Contains(o.only, "memory")) {
		return fmt.Errorf("--flows %d: a process may have %d descriptors here; ulimit -Hn, or CAP_SYS_RESOURCE, allows more", o.flows, most)
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bencher{o: o, dir: dir, samples: all, first: all.rounds(), progress: newProgress(stderr)}
	if err := b.plan(); err != nil {
		return err
	}
	b.progress.note(b.foreword())
	limit := 2*b.progress.planned + 3*time.Minute // the plan assumes an otherwise idle machine
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// Building a network knows no deadline, so force ends the process.
	force := time.AfterFunc(limit+time.Minute, func() {
		fmt.Fprintf(os.Stderr, "\nbench: error: not done after %s\n", limit)
		os.Exit(1)
	})
	defer force.Stop()
	err = lab.Run(func(n *lab.Net) error { return b.run(ctx, n) })
	b.progress.done()
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		err = fmt.Errorf("not done after %s", limit)
	}
	if len(all.List) > 0 { // if the run was cut short, print what there is
		all.table(stdout)
	}
	if err != nil {
		return err
	}
	return b.publish(stdout)
}

// bencher is a run.
type bencher struct {
	o        options
	dir      string
	samples  *samples
	first    int // number of the first round
	progress *progress
	found    map[string]string // what can be measured, by kind
	network  *network
	systems  []*system
}

// plan finds out which systems there are, and estimates how long the run will take.
func (b *bencher) plan() error {
	b.found = find(kinds, b.o.pinproxy)
	n := time.Duration(0)
	for _, k := range kinds {
		if b.found[k.key] == "" && slices.Contains(b.o.systems, k.key) {
			return fmt.Errorf("--systems %s: %s is not on the PATH", k.key, k.program)
		}
		if b.wants(k) {
			n += time.Duration(len(b.roles(k)))
			for round := range b.o.rounds {
				for _, p := range probes {
					if b.takesPart(p, k, round) {
						b.progress.planned += calmTime + p.needs(b.o)
					}
				}
			}
		}
	}
	if n == 0 {
		return fmt.Errorf("nothing to measure: of --systems %s none has --only %s", strings.Join(b.o.systems, ","), strings.Join(b.o.only, ","))
	}
	b.progress.planned += n * startTime
	return nil
}

// foreword says what is going to happen.
func (b *bencher) foreword() string {
	var there, missing []string
	for _, k := range kinds {
		switch {
		case b.wants(k):
			there = append(there, k.title)
		case b.found[k.key] == "" && !slices.Contains(missing, k.program):
			missing = append(missing, k.program)
		}
	}
	text := fmt.Sprintf("About %s: %s of %s.", b.progress.planned.Round(time.Second), rounds(b.o.rounds), strings.Join(there, ", "))
	if len(missing) > 0 && len(b.o.systems) == 0 {
		text += fmt.Sprintf("\nNot on the PATH: %s.", strings.Join(missing, ", "))
	}
	return text + "\nShorter with --rounds 1, --time, --only or --systems; see --help. Ctrl-C ends it and leaves nothing behind."
}

// wants reports whether systems of the kind are available and asked for.
func (b *bencher) wants(k kind) bool {
	if b.found[k.key] == "" || len(b.o.systems) > 0 && !slices.Contains(b.o.systems, k.key) {
		return false
	}
	return slices.ContainsFunc(probes, func(p probe) bool { return b.asked(p) && p.fits(k) })
}

func (b *bencher) asked(p probe) bool {
	return len(b.o.only) == 0 || slices.Contains(b.o.only, p.group)
}

// roles returns in which roles systems of the kind run: as a gateway for a host behind them (true), not as one
// (false), or as one of each. The roles are separate because being a gateway may have a cost.
func (b *bencher) roles(k kind) (list []bool) {
	for _, gateway := range []bool{false, true} {
		if slices.ContainsFunc(probes, func(p probe) bool { return b.asked(p) && p.fits(k) && p.gateway() == gateway }) {
			list = append(list, gateway)
		}
	}
	return list
}

func (b *bencher) takesPart(p probe, k kind, round int) bool {
	return b.asked(p) && p.fits(k) && (!p.once || round == b.o.rounds-1) && (p.every == 0 || round%p.every == 0)
}

// run builds the network, starts everything and measures.
func (b *bencher) run(ctx context.Context, n *lab.Net) error {
	var err error
	if b.network, err = newNetwork(n); err != nil {
		return err
	}
	if _, err := b.network.server.do(ctx, task{Do: "serve"}); err != nil {
		return err
	}
	defer func() {
		for _, s := range b.systems {
			s.stop()
		}
	}()
	for _, k := range kinds {
		if !b.wants(k) {
			continue
		}
		for _, gateway := range b.roles(k) {
			b.progress.step("starting "+k.title, startTime)
			s, err := newSystem(b.network, k, gateway, b.found[k.key], b.dir)
			if err != nil {
				return err
			}
			b.systems = append(b.systems, s)
			b.samples.Versions[k.key] = version(k, s.binary)
			if err := b.start(ctx, s); err != nil {
				return err
			}
			if s.broken != nil { // so that it appears in the table
				for _, p := range probes {
					if b.asked(p) && p.measures(s) {
						b.failed(p, s, b.first, s.broken)
					}
				}
			}
		}
	}
	b.samples.Machine = machine()
	for round := range b.o.rounds {
		for _, p := range probes {
			for _, i := range rand.Perm(len(b.systems)) { // random, or each would always follow the same one
				s := b.systems[i]
				if !p.measures(s) || !b.takesPart(p, s.kind, round) {
					continue
				}
				b.progress.step(fmt.Sprintf("round %d of %d: %s: %s", round+1, b.o.rounds, p.name, s.title), calmTime+p.needs(b.o))
				if err := b.measure(ctx, p, s, b.first+round); err != nil {
					return err
				}
			}
		}
		if b.o.samples != "" {
			if err := b.samples.save(b.o.samples); err != nil {
				return err
			}
		}
	}
	return nil
}

// start starts a system. Without the systems of pinproxy there is nothing to compare, so their failure is an error.
// Others are left out.
func (b *bencher) start(ctx context.Context, s *system) error {
	s.broken = s.start(ctx)
	switch {
	case s.broken == nil:
		return nil
	case ctx.Err() != nil || s.program == "":
		return s.broken
	}
	b.progress.note(fmt.Sprintf("left out: %v", s.broken))
	return nil
}

// measure runs one probe on a system.
func (b *bencher) measure(ctx context.Context, p probe, s *system, round int) error {
	if s.broken != nil || b.samples.failed(s.key, p.results[0], b.first) >= enough {
		return nil
	}
	if p.once { // otherwise earlier probes would affect the figure
		s.stop()
		err := b.start(ctx, s)
		if s.broken != nil {
			b.failed(p, s, round, s.broken)
			return err
		}
	}
	calm(ctx, b.o.window)
	b.network.setTimestamps(!p.plain)
	results, err := p.measure(ctx, s, b.o)
	b.network.setTimestamps(true)
	switch {
	case err == nil:
		for _, r := range results {
			b.samples.List = append(b.samples.List, sample{Round: round, System: s.key, Measure: r.measure, Value: r.value, Failed: r.failed})
		}
		return nil
	case ctx.Err() != nil || errors.Is(err, errServer) || s.program == "" && errors.Is(err, errBroken):
		return fmt.Errorf("%s: %s: %w%s", p.name, s.title, err, s.lastWords())
	}
	b.failed(p, s, round, err)
	if errors.Is(err, errBroken) {
		s.broken = err
		b.progress.note(fmt.Sprintf("left out from here on: %s: %v%s", s.title, err, s.lastWords()))
	}
	return nil
}

// enough is how many failures in a run end the attempts at a measure: failing takes longer than succeeding.
const enough = 2

// failed records why there is no figure.
func (b *bencher) failed(p probe, s *system, round int, err error) {
	for _, m := range p.results {
		b.samples.List = append(b.samples.List, sample{Round: round, System: s.key, Measure: m, Err: first(err)})
	}
}

// publish writes the page, if one was asked for.
func (b *bencher) publish(stdout io.Writer) error {
	if b.o.page == "" {
		return nil
	}
	if !b.samples.complete() {
		fmt.Fprintf(stdout, "\n%s is left as it was: it takes a run of everything.\n", b.o.page)
		return nil
	}
	picture := b.o.page[:len(b.o.page)-len(filepath.Ext(b.o.page))] + ".svg"
	err := os.WriteFile(b.o.page, []byte(b.samples.page(filepath.Base(picture))), 0o644)
	if err == nil {
		err = os.WriteFile(picture, []byte(b.samples.picture()), 0o644)
	}
	if err == nil {
		fmt.Fprintf(stdout, "\nWritten: %s and %s.\n", b.o.page, picture)
	}
	return err
}
