package netstack_test

import (
	"context"
	"io"
	"net/netip"
	"testing"

	"pinproxy/netstack"
	"pinproxy/netstack/netstacktest"
)

// BenchmarkFlow measures a flow from its SYN to its end, with a message each way and both kernels in memory. The
// figure includes the application's part.
func BenchmarkFlow(b *testing.B) {
	l, client, err := netstacktest.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	s, err := netstack.New(l, netstack.Config{})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	served := make(chan error, 1)
	go func() {
		served <- s.Serve(ctx, func(_ context.Context, f *netstack.Flow) {
			c, err := f.Accept()
			if err != nil {
				b.Error(err)
				return
			}
			var message [100]byte
			if _, err := io.ReadFull(c, message[:]); err != nil {
				b.Error(err)
			}
			_, _ = c.Write(message[:])
			_, _ = c.Read(message[:]) // until its end
			_ = c.Close()
		})
	}()
	<-s.Ready()
	var message [100]byte
	b.ReportAllocs()
	for b.Loop() {
		c, err := client.Dial(ctx, netip.AddrPort{}, server4)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = c.Write(message[:])
		if _, err := io.ReadFull(c, message[:]); err != nil {
			b.Fatal(err)
		}
		_ = c.Close()
	}
	cancel()
	if err := <-served; err != nil {
		b.Error(err)
	}
}
