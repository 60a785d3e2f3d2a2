package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// HTTPS is a web server on a host, running in this process. Its methods are safe for concurrent use.
type HTTPS struct {
	mux http.ServeMux

	mu   sync.Mutex
	seen []netip.AddrPort
}

// HTTPS serves on a TCP address with a certificate for names (or addresses), signed by [Net.CA]. It answers every
// request with "you came from ADDR:PORT", unless [HTTPS.Handle] says otherwise.
func (h *Host) HTTPS(addr string, names ...string) *HTTPS {
	h.net.helper()
	cert, err := h.net.authority().issue(names)
	h.check("issue certificate", err)
	l, err := h.Listen("tcp", addr)
	h.check("listen on "+addr, err)
	s := &HTTPS{}
	s.mux.HandleFunc("/", youCameFrom)
	server := &http.Server{
		Handler:   http.HandlerFunc(s.serve),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
		ErrorLog:  log.New(io.Discard, "", 0), // clients that don't trust the CA are part of the tests
	}
	var wait sync.WaitGroup
	wait.Go(func() { server.ServeTLS(l, "", "") })
	h.net.atClose(func() error {
		err := server.Close()
		wait.Wait()
		return err
	})
	return s
}

func (s *HTTPS) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.seen = append(s.seen, requester(r))
	s.mu.Unlock()
	s.mux.ServeHTTP(w, r)
}

func youCameFrom(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "you came from %s\n", requester(r))
}

func requester(r *http.Request) netip.AddrPort {
	a, _ := netip.ParseAddrPort(r.RemoteAddr)
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Handle makes f answer requests that match pattern (see http.ServeMux; not "/").
func (s *HTTPS) Handle(pattern string, f http.HandlerFunc) { s.mux.HandleFunc(pattern, f) }

// Seen returns the source of each request so far, in order.
func (s *HTTPS) Seen() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

// CA returns the path of the PEM file of the network's own certificate authority, for use with curl --cacert and the
// like.
func (n *Net) CA() string {
	n.helper()
	return n.authority().path
}

// authority signs the certificates of one network. Its key exists only in memory.
type authority struct {
	path string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (n *Net) authority() *authority {
	n.helper()
	if n.ca != nil {
		return n.ca
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	n.check("make CA key", err)
	cert := template("pinproxy lab CA")
	cert.IsCA, cert.BasicConstraintsValid, cert.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	n.check("make CA certificate", err)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	n.ca = &authority{path: n.File("ca.pem", string(text)), cert: cert, key: key}
	return n.ca
}

func (a *authority) issue(names []string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	cert := template("pinproxy lab server")
	cert.KeyUsage = x509.KeyUsageDigitalSignature
	cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			cert.IPAddresses = append(cert.IPAddresses, ip)
		} else {
			cert.DNSNames = append(cert.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

func template(name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(24 * time.Hour),
	}
}
