package proxy

import (
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// borrow implements borrower.
func (u *upstream) borrow(from lender) (n int, readErr, writeErr error) {
	b := borrowings.Get().(*borrowing)
	defer b.end()
	b.from = from
	if err := u.raw.Write(b.step); err != nil { // closed, or past the deadline
		return 0, nil, err
	}
	if b.writeErr != nil {
		return 0, b.readErr, u.fail("write", b.writeErr)
	}
	return b.n, b.readErr, nil
}

// maxPieces is how many pieces one call writes at most (the kernel's limit is UIO_MAXIOV).
const maxPieces = 1024

// borrowing is one call of borrow. It is reused, because its functions would otherwise be created anew for each call.
type borrowing struct {
	from     lender
	fd       uintptr
	n        int // bytes written
	readErr  error
	writeErr error // a syscall.Errno
	iov      []unix.Iovec
	step     func(fd uintptr) bool
	take     func(pieces [][]byte, urgent bool) int
}

var borrowings = sync.Pool{New: func() any {
	b := new(borrowing)
	b.step, b.take = b.try, b.write
	return b
}}

func (b *borrowing) end() {
	*b = borrowing{iov: b.iov, step: b.step, take: b.take}
	borrowings.Put(b)
}

// try reports false if it must be called again once the socket is writable.
func (b *borrowing) try(fd uintptr) bool {
	b.fd, b.writeErr = fd, nil
	b.n, b.readErr = b.from.Lend(b.take)
	return b.writeErr != syscall.EAGAIN
}

// write is lent pieces, and returns how many bytes the kernel has accepted.
func (b *borrowing) write(pieces [][]byte, urgent bool) int {
	if urgent {
		return b.writeUrgent(pieces[0])
	}
	for _, p := range pieces[:min(len(pieces), maxPieces)] {
		iov := unix.Iovec{Base: unsafe.SliceData(p)}
		iov.SetLen(len(p))
		b.iov = append(b.iov, iov)
	}
	n, err := writevNow(b.fd, b.iov)
	for err == syscall.EINTR {
		n, err = writevNow(b.fd, b.iov)
	}
	b.writeErr = err
	clear(b.iov)
	b.iov = b.iov[:0]
	return n
}

// writeUrgent is lent the urgent byte.
func (b *borrowing) writeUrgent(one []byte) int {
	n, err := sendUrgentNow(b.fd, one)
	for err == syscall.EINTR {
		n, err = sendUrgentNow(b.fd, one)
	}
	b.writeErr = err
	return n
}
