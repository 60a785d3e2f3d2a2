//go:build !unix

package proxy

import "net"

func newUpstream(c *net.TCPConn) (Conn, error) { return c, nil }
