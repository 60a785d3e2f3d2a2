package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// pause follows a connection that failed, so that failing keeps no processor busy.
const pause = time.Millisecond

// send has t.N flows send until the server has counted, and returns how much they sent.
func send(t task) report {
	return throughput(t, func(c socket, b []byte) (int, error) { return c.write(b) })
}

// receive has t.N flows receive, and counts what they get.
func receive(t task) report {
	return throughput(t, func(c socket, b []byte) (int, error) { return c.read(b) })
}

func throughput(t task, move func(socket, []byte) (int, error)) report {
	flows := make([]socket, t.N)
	for i := range flows {
		c, err := dial(t.To[i%len(t.To)], 0)
		if err != nil {
			for _, c := range flows[:i] {
				c.close()
			}
			return report{Err: err.Error()}
		}
		flows[i] = c
	}
	var total atomic.Int64
	var stop atomic.Bool
	var wait sync.WaitGroup
	errs := make(chan error, len(flows))
	for _, c := range flows {
		wait.Go(func() {
			defer c.close()
			b := make([]byte, bufferSize)
			for !stop.Load() {
				n, err := move(c, b)
				if err != nil {
					errs <- err
					return
				}
				total.Add(int64(n))
			}
		})
	}
	r := countFor(t, &total)
	stop.Store(true)
	wait.Wait()
	r.All = total.Load()
	select {
	case err := <-errs:
		r.Failure = err.Error()
	default:
	}
	return r
}

// connect has t.N workers make one short connection after the other: the client sends a message, gets one back and
// closes.
func connect(t task) report {
	var mu sync.Mutex
	var r report
	var next atomic.Int64
	began := time.Now()
	end := began.Add(t.Time)
	var wait sync.WaitGroup
	for range t.N {
		wait.Go(func() {
			ok, failed, first := 0, 0, ""
			for time.Now().Before(end) {
				dst := t.To[int(next.Add(1))%len(t.To)]
				err := converse(dst, t.From)
				if err == nil {
					ok++
					continue
				}
				if failed++; failed == 1 {
					first = err.Error()
				}
				time.Sleep(pause)
			}
			mu.Lock()
			defer mu.Unlock()
			r.OK += ok
			r.Failed += failed
			if r.Failure == "" {
				r.Failure = first
			}
		})
	}
	wait.Wait()
	r.Took = time.Since(began)
	return r
}

func converse(dst netip.AddrPort, from uint16) error {
	c, err := dial(dst, from)
	if err != nil {
		return err
	}
	defer c.close()
	var b [messageSize]byte
	if err := c.writeFull(b[:]); err != nil {
		return err
	}
	return c.readFull(b[:])
}

// ping measures round trips over one connection.
func ping(t task) report {
	c, err := dial(t.To[0], 0)
	if err == nil {
		defer c.close()
		err = c.noDelay()
	}
	if err != nil {
		return report{Err: err.Error()}
	}
	var b [pingSize]byte
	var trips []time.Duration
	warm := time.Now().Add(t.Warm)
	for end := warm.Add(t.Time); ; {
		began := time.Now()
		if began.After(end) && len(trips) > 0 {
			break
		}
		if err := errors.Join(c.writeFull(b[:]), c.readFull(b[:])); err != nil {
			return report{Err: err.Error()}
		}
		if began.After(warm) {
			trips = append(trips, time.Since(began))
		}
	}
	slices.Sort(trips)
	return report{OK: len(trips), P50: quantile(trips, 0.5), P99: quantile(trips, 0.99)}
}

// hold opens t.N connections and keeps them open.
func (p *performer) hold(t task) report {
	const workers = 8
	var mu sync.Mutex
	var r report
	var next atomic.Int64
	end := time.Now().Add(t.Time)
	var wait sync.WaitGroup
	for range workers {
		wait.Go(func() {
			for {
				i := int(next.Add(1))
				if i > t.N || time.Now().After(end) {
					return
				}
				c, err := dial(t.To[i%len(t.To)], 0)
				mu.Lock()
				if err == nil {
					r.OK++
					p.held = append(p.held, c)
				} else {
					r.Failed++
					r.Failure = err.Error()
				}
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	return r
}

func (p *performer) release() {
	for _, c := range p.held {
		c.close()
	}
	p.held = nil
}

// resolve asks the name server t.To for t.N names.
func resolve(t task) report {
	const workers = 8
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, t.To[0].String())
	}}
	ctx, cancel := context.WithTimeout(context.Background(), t.Time)
	defer cancel()
	var next, addrs atomic.Int64
	errs := make(chan error, workers)
	for range workers {
		go func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= t.N {
					errs <- nil
					return
				}
				list, err := r.LookupNetIP(ctx, "ip4", manyName(i)+".")
				if err != nil {
					errs <- fmt.Errorf("resolve: %w", err)
					return
				}
				addrs.Add(int64(len(list)))
			}
		}()
	}
	var first error
	for range workers {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	if first != nil && !errors.Is(first, io.EOF) {
		return report{Err: first.Error()}
	}
	return report{OK: int(addrs.Load())}
}
