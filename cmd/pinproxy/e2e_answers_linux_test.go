package main

import (
	"context"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"

	"pinproxy/netstack/lab"
)

// A server whose answers a rule for all ports captures is told of once, and the hint lets its clients connect.
func TestAnswersOfServers(t *testing.T) {
	t.Parallel()
	for _, f := range families {
		for _, test := range []struct {
			name   string
			server func(l *lan) (host *lab.Host, addr string)
			args   func(l *lan) []string
		}{
			{
				"behind a gateway",
				func(l *lan) (*lab.Host, string) { return l.inner, f.inner() },
				func(l *lan) []string { return []string{"--gateway", l.dev} },
			},
			{
				"strict",
				func(l *lan) (*lab.Host, string) { return l.Client, f.from(0).Addr().String() },
				func(*lan) []string { return []string{"--strict"} },
			},
		} {
			t.Run(test.name+" "+f.name, func(t *testing.T) {
				l := newLAN(t, 1500)
				host, addr := test.server(l)
				host.Serve(":8080", lab.Echo)
				p := l.pinproxy(append(test.args(l), "--rule", inRule(f.server)+":*=50000-50999")...)
				const captured = "a server's answers are captured, so its clients cannot connect"
				ctx, cancel := context.WithCancel(t.Context())
				refused := make(chan error, 2)
				for range 2 {
					go func() {
						c, err := l.Server.Dial(ctx, "tcp", at(addr, 8080))
						if err == nil {
							_ = c.Close()
						}
						refused <- err
					}()
				}
				e := p.await(captured, 1)[0]
				if e.Src != at(addr, 8080) || e.Level != "WARN" {
					t.Errorf("logged %+v", e)
				}
				_, command, _ := strings.Cut(e.Hint, "let these answers pass: ")
				do := func(command string) {
					if _, _, err := l.Client.Run(exec.Command("sh", "-c", command)); err != nil {
						t.Error(err)
					}
				}
				do(command)
				defer do(strings.Replace(command, " add ", " del ", 1)) // the host is as before
				c, err := l.Server.Dial(soon(t), "tcp", at(addr, 8080))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				echo(t, c, "hello")
				cancel()
				<-refused
				<-refused
				if again := p.entries(captured); len(again) != 1 {
					t.Errorf("told %d times", len(again))
				}
			})
		}
	}
}

// However many addresses somebody makes up, the log has a few lines of them.
func TestAnswersAreToldOfAFewTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text strings.Builder
		told := &answers{log: newLogFor(&text, options{}, false)}
		for port := range uint16(1000) {
			for range 2 {
				told.captured(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.10"), port), netip.MustParseAddrPort("203.0.113.2:40000"))
			}
		}
		synctest.Wait()
		if n := strings.Count(text.String(), "\n"); n != mostTold || len(told.told) != mostTold {
			t.Errorf("%d lines, of %d servers:\n%s", n, len(told.told), text.String())
		}
	})
}
