package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pinproxy/netstack/lab"
)

// An application that waits is told from one that has given up by its kernel, not by its SYNs, which may be late.
func TestGivingUp(t *testing.T) {
	each(t, func(w *network, f family) {
		w.Server.Serve(at(f.server, 7), lab.Echo)
		p := w.pinproxy("--rule", inRule(f.server)+":7=63999 busy=wait:10m")
		w.mustConnect(at(f.server, 7))
		ctx, giveUp := context.WithCancel(context.Background())
		var waiting sync.WaitGroup
		w.t.Cleanup(func() {
			giveUp()
			waiting.Wait()
		})
		waiting.Go(func() {
			if c, err := w.Client.Dial(ctx, "tcp", at(f.server, 7)); err == nil {
				_ = c.Close()
			}
		})
		p.await("flow waits for its source port", 1)
		w.Client.DropOutput("pin0") // its SYNs stop coming: by them it would be given up within seven seconds
		dropped := time.Now()
		w.poll("its SYNs to be missed", func() bool {
			return time.Since(dropped) > 9*time.Second || len(p.entries("flow failed")) > 0
		})
		if early := p.entries("flow failed"); len(early) > 0 {
			w.t.Errorf("given up while it waits: %+v", early)
		}
		giveUp()
		if e := p.await("flow failed", 1)[0]; e.Err != "the application gave up, or pinproxy stopped" {
			w.t.Errorf("%+v", e)
		}
	})
}

// impatient gives up a connection to an address after a time, and ends when its standard input does.
func impatient() {
	patience, err := time.ParseDuration(os.Args[1])
	if err == nil {
		_, err = net.DialTimeout("tcp", os.Args[2], patience)
	}
	fmt.Println(err)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// The command's kernel can be asked as well. By its SYNs it would be given up 13 seconds after the first.
func TestRunGivingUp(t *testing.T) {
	eachUser(t, func(w *network, u user) {
		addr := netip.MustParseAddr(lab.Server4)
		w.routeTo(w.Router, unix.RTN_BLACKHOLE, netip.PrefixFrom(addr, addr.BitLen()))
		cmd := w.by(u, "--log-format=json", "--rule", "203.0.113.0/24:*=63999", "--", "impatient", "8s", at(lab.Server4, 9))
		stdin, err := cmd.StdinPipe()
		if err != nil {
			w.t.Fatal(err)
		}
		p := w.startCommand(cmd)
		e := p.await("flow failed", 1)[0]
		var within float64
		if _, err := fmt.Sscanf(e.Err, "no answer from 203.0.113.2:9 to source port 63999 within %fs", &within); err != nil || within < 7 || within > 11 {
			w.t.Errorf("%+v", e)
		}
		_ = stdin.Close()
		p.ended(exitOK)
	})
}
