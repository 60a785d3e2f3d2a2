package resolved

import (
	"context"
	"net"
	"net/netip"
	"time"

	"pinproxy/netstack/dns"
)

const (
	readEvery = time.Second            // between reads of the servers to ask, while queries come
	readWait  = 500 * time.Millisecond // for such a read; after that, the previous result is used
)

// Upstreams is a [dns.Choose]: it returns the servers that resolved would ask for name without us.
func (r *Registration) Upstreams(ctx context.Context, name string) ([][]dns.Upstream, error) {
	if !r.fresh() {
		r.refresh(ctx)
	}
	r.mu.Lock()
	all := r.all
	r.mu.Unlock()
	return upstreams(all, name, ownAddresses()), nil
}

// refresh reads resolved's servers, for one query at a time: others wait for the result.
func (r *Registration) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, readWait)
	defer cancel()
	select {
	case r.reading <- struct{}{}:
		defer func() { <-r.reading }()
	case <-ctx.Done():
	}
	b, _, _ := r.current()
	if ctx.Err() != nil || r.fresh() || b.owner == "" {
		return
	}
	if now, _, err := b.read(ctx, r.cfg.Index, r.cfg.Server); err == nil {
		r.keep(now)
	}
}

// fresh reports whether the servers were read a short while ago.
func (r *Registration) fresh() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Since(r.readAt) <= readEvery
}

func (r *Registration) keep(all []scope) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all, r.readAt = all, time.Now()
}

// ownAddresses returns the addresses of the host.
func ownAddresses() (list []netip.Addr) {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				list = append(list, ip.Unmap())
			}
		}
	}
	return list
}
