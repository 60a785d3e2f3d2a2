package udp

import (
	"errors"
	"net"
	"sync"
	"time"
)

// errBusy says that the socket takes no datagram at the moment.
var errBusy = errors.New("socket is busy")

// maxDatagram is larger than anything the kernel returns at once.
const maxDatagram = 1 << 16

// socket is a connected datagram socket. Only one goroutine at a time may call try and send, and only one may call
// receive. Any goroutine may call errors and Close.
type socket interface {
	// try sends d without waiting, or returns errBusy.
	try(d Datagram) error

	// send waits until the socket takes d.
	send(d Datagram) error

	// receive waits for datagrams and calls deliver with what is there. Each datagram is size bytes long, except
	// that the last may be shorter. deliver must not keep b.
	receive(deliver func(b []byte, size int)) error

	// errors passes on, through last, everything the kernel has queued. told: there was something; local: it was
	// about the datagram just being sent.
	errors(last Datagram) (told, local bool)

	SetReadDeadline(t time.Time) error
	Close() error
}

// plain is a socket of unknown type.
type plain struct{ net.Conn }

func (plain) try(Datagram) error { return errBusy }

func (p plain) send(d Datagram) error {
	_, err := p.Write(d.Payload())
	return err
}

func (p plain) receive(deliver func([]byte, int)) error {
	buf := buffers.Get().(*[maxDatagram]byte)
	defer buffers.Put(buf)
	n, err := p.Read(buf[:])
	if err != nil {
		return err
	}
	deliver(buf[:n], maxDatagram)
	return nil
}

func (plain) errors(Datagram) (told, local bool) { return false, false }

// buffers holds *[maxDatagram]byte. A flow takes one only while it handles datagrams: thousands of flows wait
// without one.
var buffers = sync.Pool{New: func() any { return new([maxDatagram]byte) }}
