package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// listenForHangups returns a channel that receives a value when SIGHUP asks for the rules to be reread. SIGHUP also
// says that the terminal that started us is gone. Then the returned context ends, as programs do in that case,
// unless we were started to survive it, by nohup(1).
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
			default: // a reread is due already
			}
		}
	}()
	return stop, reread, func() {
		signal.Stop(signals)
		end()
		<-done
	}
}

// hasTerminal says whether the process has a controlling terminal. A terminal that has hung up does not count
// (__tty_hangup, tty_signal_session_leader).
func hasTerminal() bool {
	f, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	return f.Close() == nil
}
