package dns

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// packet is a DNS response being made, byte by byte.
type packet struct{ msg []byte }

// add appends a record of class IN and returns where it begins. Its owner is a name, or what is there at a place.
func (p *packet) add(owner string, at int, typ dnsmessage.Type, data []byte) int {
	begin := len(p.msg)
	if owner != "" {
		p.msg = append(p.msg, wireName(owner)...)
	} else {
		p.msg = binary.BigEndian.AppendUint16(p.msg, 0xc000|uint16(at))
	}
	p.msg = binary.BigEndian.AppendUint16(p.msg, uint16(typ))
	p.msg = append(p.msg, 0, 1, 0, 0, 0, 60)
	p.msg = binary.BigEndian.AppendUint16(p.msg, uint16(len(data)))
	p.msg = append(p.msg, data...)
	binary.BigEndian.PutUint16(p.msg[6:], binary.BigEndian.Uint16(p.msg[6:])+1)
	return begin
}

// fill adds addresses of the owner at a place until there is no room for more.
func (p *packet) fill(at int) {
	for i := uint32(0xcb007100); len(p.msg)+16 <= maxMessage; i++ {
		p.add("", at, dnsmessage.TypeA, binary.BigEndian.AppendUint32(nil, i))
	}
}

func wireName(s string) (b []byte) {
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0)
}

// A resolver that makes its answers hard to read, with a chain backwards and strangers whose names differ at their ends
// only, gains nothing: others' answers would wait for them.
func TestAnswerCost(t *testing.T) {
	nameOf := func(i int) string {
		long := strings.Repeat("a", 63)
		return fmt.Sprintf("%s.%s.%s.%s%03d.", long, long, long, long[:57], i)
	}
	plain := packet{answerTo(query(1, nameOf(0), dnsmessage.TypeA))}
	plain.fill(headerLen)
	hard := packet{answerTo(query(1, nameOf(0), dnsmessage.TypeA))}
	for i := maxChain - 1; i > 0; i-- {
		hard.add(nameOf(i-1), 0, dnsmessage.TypeCNAME, wireName(nameOf(i)))
	}
	hard.fill(hard.add(nameOf(999), 0, dnsmessage.TypeA, []byte{203, 0, 113, 1}))

	read := func(p packet) (best time.Duration, a answer) {
		best = math.MaxInt64
		for range 10 {
			start := time.Now()
			a, _ = parseAnswer(p.msg)
			best = min(best, time.Since(start))
		}
		return best, a
	}
	expected, a := read(plain)
	if len(a.Addrs) < 4000 {
		t.Errorf("%d addresses", len(a.Addrs))
	}
	took, b := read(hard)
	if len(b.Addrs) != 0 || len(b.Targets) != maxChain-1 {
		t.Errorf("%d addresses, and the chain leads to %d names", len(b.Addrs), len(b.Targets))
	}
	if t.Logf("it took %v, and %v with the same number of addresses", took, expected); took > 10*expected {
		t.Errorf("more than ten times as long")
	}
}
