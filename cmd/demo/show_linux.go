package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"pinproxy/netstack/lab"
)

const (
	bankName = "www.bank.example"
	bankURL  = "https://" + bankName + "/"
	port     = 63999
	rule     = bankName + ":443=63999"
)

const introduction = `A bank lets its customer in from one source port only. This is their network, made of
namespaces; yours is not touched.

   client ─────────────── firewall ─────────────── www.bank.example
   198.51.100.2           passes TCP from          203.0.113.2
   2001:db8:1::2          source port 63999        2001:db8:2::2
`

var zone = lab.Zone(`
	www.bank.example 60 A    203.0.113.2
	www.bank.example 60 AAAA 2001:db8:2::2
`)

// show runs the demo with the pinproxy at path.
func show(ctx context.Context, path string, out io.Writer) error {
	if err := openTUN(); err != nil {
		return err
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if err := lab.Enter(); err != nil {
		return forbidden{err}
	}
	// From here on we are in namespaces of our own. Building a network knows no deadline, so force ends the process.
	force := time.AfterFunc(limit+5*time.Second, func() {
		fmt.Fprintf(os.Stderr, "\ndemo: error: not done after %s\n", limit)
		os.Exit(1)
	})
	defer force.Stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	begin := time.Now()
	err = lab.Run(func(n *lab.Net) error {
		return build(n, path, out).all(ctx)
	})
	if err == nil {
		fmt.Fprintf(out, "\nAll as it should be, in %.1f seconds.\n", time.Since(begin).Seconds())
	}
	return err
}

// demo is the network and what runs on it.
type demo struct {
	transcript
	net      *lab.Net
	client   *lab.Host
	firewall *lab.Firewall
	bank     []*lab.HTTPS  // one per family
	asked    chan struct{} // gets a value when the slow page is requested
	answer   chan struct{} // closed when the page may be answered
	path     string        // of pinproxy
	pinproxy *lab.Process
}

// build sets up the network, the bank and its name server.
func build(n *lab.Net, path string, out io.Writer) *demo {
	d := &demo{
		transcript: transcript{w: out},
		net:        n,
		asked:      make(chan struct{}, 1),
		answer:     make(chan struct{}),
		path:       path,
	}
	t := n.Topology()
	d.client = t.Client
	d.firewall = t.Firewall(port)
	for _, addr := range []string{lab.Server4, lab.Server6} {
		bank := t.Server.HTTPS(netip.AddrPortFrom(netip.MustParseAddr(addr), 443).String(), bankName)
		bank.Handle("/statement", d.statement)
		d.bank = append(d.bank, bank)
	}
	t.Server.DNS(zone, lab.Server4+":53")
	n.ResolvConf(lab.Server4)
	return d
}

// statement serves a page that takes its time.
func (d *demo) statement(w http.ResponseWriter, r *http.Request) {
	select {
	case d.asked <- struct{}{}:
	default:
	}
	select {
	case <-d.answer:
		fmt.Fprintf(w, "your statement. you came from %s\n", r.RemoteAddr)
	case <-r.Context().Done():
	}
}
