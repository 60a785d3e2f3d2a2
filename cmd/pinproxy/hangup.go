package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// listenForHangups returns a channel that has something in it when SIGHUP has come: the rules are to be reread. But
// when the terminal that we were started from is gone, SIGHUP says so, and the context returned ends, as programs do
// then; unless we were started to survive it, by nohup(1).
func listenForHangups(parent context.Context) (stop context.Context, hangups <-chan struct{}, restore func()) {
	stop, end := context.WithCancel(parent)
	interactive := hasTerminal() && !signal.Ignored(syscall.SIGHUP)
	signals, reread := make(chan os.Signal, 1), make(chan struct{}, 1)
	signal.Notify(signals, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop.Done():
				return
			case <-signals:
			}
			if interactive && !hasTerminal() {
				end()
				return
			}
			select {
			case reread <- struct{}{}:
			default: // it will be reread anyway
			}
		}
	}()
	return stop, reread, func() {
		signal.Stop(signals)
		end()
		<-done
	}
}

// hasTerminal tells whether the process has a controlling terminal. One that has hung up is none any more
// (__tty_hangup, tty_signal_session_leader).
func hasTerminal() bool {
	f, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	return f.Close() == nil
}
