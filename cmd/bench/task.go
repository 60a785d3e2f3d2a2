package main

import (
	"net/netip"
	"time"
)

// Services of the server, by port, on all its addresses.
const (
	portSink    = 9001 // reads forever
	portSource  = 9002 // writes forever
	portShort   = 9003 // one message in, one back; the client closes first
	portEcho    = 9004
	portHold    = 9005 // holds the connection until told to release it
	portPinned  = 9006 // as portShort, for a single source port
	portPlain   = 9007 // the same, for a server without timestamps: what one leaves behind must not meet the other
	portWho     = 9008 // says where the connection comes from
	messageSize = 100  // of portShort
	pingSize    = 64
)

// pushQueue limits what may wait to be sent at the end that pushes, in bytes of all flows together if there are
// many. Without it the kernel lets the queue grow to megabytes for each flow, and all hosts here share one limit for
// TCP memory.
const (
	pushQueue = 32 << 20
	pushMany  = 64 // flows
)

// socketPatience limits every call on a socket, so that an agent answers whatever happens to the other end.
const socketPatience = 3 * time.Second

// servicePorts are the ports of all services.
var servicePorts = []uint16{portSink, portSource, portShort, portEcho, portHold, portPinned, portPlain, portWho}

// pinnedTo are the only source ports that the server answers on these ports.
var pinnedTo = map[uint16]uint16{portPinned: 63999, portPlain: 63998}

// task is what an agent is told to do. The agent answers each task with a report, one after the other.
type task struct {
	Do   string           // see performer.perform
	To   []netip.AddrPort `json:",omitempty"` // taken in turns
	From uint16           `json:",omitempty"` // port to bind to
	N    int              `json:",omitempty"` // flows, workers or names
	Warm time.Duration    `json:",omitempty"` // before anything counts
	Time time.Duration    `json:",omitempty"` // for which it counts

	Beside *task `json:",omitempty"` // done at the same time
}

// report is the result of a task.
type report struct {
	Bytes   int64         `json:",omitempty"` // within Took
	Took    time.Duration `json:",omitempty"`
	All     int64         `json:",omitempty"` // bytes, from the beginning of the task to its end
	OK      int           `json:",omitempty"` // connections
	Failed  int           `json:",omitempty"`
	P50     time.Duration `json:",omitempty"`
	P99     time.Duration `json:",omitempty"`
	Local   string        `json:",omitempty"` // of the connection to portWho
	Seen    string        `json:",omitempty"` // what portWho said
	Failure string        `json:",omitempty"` // the task's error, or the first of Failed
	Err     string        `json:",omitempty"` // there is no result
}
