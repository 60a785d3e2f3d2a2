package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// talk is one connection whose ends speak, pause and end as a seed determines. What both must hear follows from the
// seed alone. So it does not matter whether the connection was direct or carried: a talk notices any difference.
type talk struct {
	seed     uint64
	up, down int // bytes that the client and the server have to say
	end      ending
	after    int // the end that resets does so when it has heard this much
}

type ending string

const (
	inOrder      ending = "in order" // both ends by FIN, after saying everything
	clientResets ending = "client resets"
	serverResets ending = "server resets"
)

// talk derives a talk from a seed.
func (ts *talks) talk(seed uint64) talk {
	random := rand.New(rand.NewPCG(seed, 1))
	t := talk{seed: seed, up: logUniform(random, ts.most), down: logUniform(random, ts.most), end: inOrder}
	if ts.orderly {
		return t
	}
	switch random.IntN(10) {
	case 0: // the client has heard something, so the server knows which talk it is
		t.end, t.after = clientResets, 1+random.IntN(t.down)
	case 1:
		t.end, t.after = serverResets, random.IntN(t.up+1)
	}
	return t
}

// logUniform returns a number between 1 and most, each magnitude equally often.
func logUniform(random *rand.Rand, most int) int {
	return int(math.Exp(random.Float64() * math.Log(float64(most))))
}

// speech is what all streams are cut from, at places determined by their seeds.
var speech = func() []byte {
	b := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b)
	return b
}()

// utterance returns the next bytes of a stream from offset at on, at most n.
func utterance(seed uint64, at, n int) []byte {
	from := (int(seed%(1<<20)) + at) % len(speech)
	return speech[from:min(from+n, len(speech))]
}

// said is the result of one end's part in a talk.
type said struct {
	heard int
	how   string // "end", "reset", or an error
}

var errOtherBytes = errors.New("bytes that nobody has said")

// speak writes size bytes of a stream, in pieces and with pauses.
func speak(c io.Writer, seed uint64, size int) error {
	random := rand.New(rand.NewPCG(seed, 2))
	for at := 0; at < size; {
		piece := min(logUniform(random, 256<<10), size-at)
		for n := 0; n < piece; {
			k, err := c.Write(utterance(seed, at, piece-n))
			at, n = at+k, n+k
			if err != nil {
				return err
			}
		}
		dawdle(random)
	}
	return nil
}

// listen reads a stream to its end, or until it has heard enough bytes if that is not negative.
func listen(c io.Reader, seed uint64, enough int) (heard int, err error) {
	random := rand.New(rand.NewPCG(seed, 3))
	b := make([]byte, 64<<10)
	for heard != enough {
		part := b[:1+random.IntN(len(b))]
		if enough >= 0 {
			part = part[:min(len(part), enough-heard)]
		}
		n, err := c.Read(part)
		for at := 0; at < n; {
			want := utterance(seed, heard, n-at)
			if !bytes.Equal(part[at:at+len(want)], want) {
				return heard, errOtherBytes
			}
			at, heard = at+len(want), heard+len(want)
		}
		if err == io.EOF {
			return heard, nil
		} else if err != nil {
			return heard, err
		}
		dawdle(random)
	}
	return heard, nil
}

// dawdle pauses now and then.
func dawdle(random *rand.Rand) {
	if random.IntN(16) == 0 {
		time.Sleep(time.Duration(random.IntN(5000)) * time.Microsecond)
	}
}

// part plays one end's part: it says size bytes of one stream and hears the other.
func part(c *net.TCPConn, sayIt uint64, size int, hearIt uint64, resets bool, after int) said {
	enough := -1
	if resets {
		enough = after
	}
	var speaking sync.WaitGroup
	var spoken error
	speaking.Go(func() {
		if spoken = speak(c, sayIt, size); spoken == nil && !resets {
			spoken = c.CloseWrite()
		}
	})
	heard, err := listen(c, hearIt, enough)
	if resets && err == nil {
		_ = c.SetLinger(0)
		_ = c.Close()
		speaking.Wait()
		return said{heard, "end"}
	}
	if err != nil {
		_ = c.Close() // a writer that nobody hears would wait for its deadline
	}
	speaking.Wait()
	// A reset is reported once, either to the reader or to the writer.
	switch {
	case isReset(err), err == nil && isReset(spoken):
		return said{heard, "reset"}
	case err != nil:
		return said{heard, err.Error()}
	case spoken != nil:
		return said{heard, spoken.Error()}
	}
	return said{heard, "end"}
}

func isReset(err error) bool {
	return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

const talkHeader = 8 // the seed

// client plays the part of the end that connects.
func (t talk) client(c *net.TCPConn) said {
	if _, err := c.Write(binary.BigEndian.AppendUint64(nil, t.seed)); err != nil {
		return said{0, err.Error()}
	}
	return part(c, t.seed, t.up, ^t.seed, t.end == clientResets, t.after)
}

func (t talk) server(c *net.TCPConn) said {
	return part(c, ^t.seed, t.down, t.seed, t.end == serverResets, t.after)
}

// check says what was wrong with a talk.
func (t talk) check(client, server said) error {
	wantClient, wantServer := said{t.down, "end"}, said{t.up, "end"}
	switch t.end {
	case clientResets:
		wantClient.heard = t.after
		wantServer = said{min(server.heard, t.up), "reset"}
	case serverResets:
		wantServer.heard = t.after
		wantClient = said{min(client.heard, t.down), "reset"}
	}
	if client != wantClient || server != wantServer {
		return fmt.Errorf("%+v: the client heard %+v, want %+v; the server %+v, want %+v", t, client, wantClient, server, wantServer)
	}
	return nil
}

// talks are the talks in progress.
type talks struct {
	most    int  // bytes that an end says at most
	orderly bool // without resets
	bytes   atomic.Int64
	count   atomic.Int64

	mu     sync.Mutex
	served map[uint64]chan said
}

func newTalks(most int) *talks { return &talks{most: most, served: make(map[uint64]chan said)} }

// serve is the function for a server.
func (ts *talks) serve(c net.Conn) {
	var header [talkHeader]byte
	if _, err := io.ReadFull(c, header[:]); err != nil {
		return
	}
	seed := binary.BigEndian.Uint64(header[:])
	ts.mu.Lock()
	done := ts.served[seed]
	ts.mu.Unlock()
	if done != nil {
		_ = c.SetDeadline(time.Now().Add(talkPatience))
		done <- ts.talk(seed).server(c.(*net.TCPConn))
	}
}

// one holds one talk over c.
func (ts *talks) one(seed uint64, c *net.TCPConn) error {
	t, done := ts.talk(seed), make(chan said, 1)
	ts.mu.Lock()
	ts.served[seed] = done
	ts.mu.Unlock()
	defer func() {
		ts.mu.Lock()
		defer ts.mu.Unlock()
		delete(ts.served, seed)
	}()
	client := t.client(c)
	_ = c.Close()
	select {
	case server := <-done:
		ts.bytes.Add(int64(client.heard + server.heard))
		ts.count.Add(1)
		return t.check(client, server)
	case <-time.After(talkPatience):
		return fmt.Errorf("%+v: the client heard %+v; the server has heard nothing of it", t, client)
	}
}
