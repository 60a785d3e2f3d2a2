package dns

import "golang.org/x/net/dns/dnsmessage"

// unrouted is the reason for withholding an answer.
const unrouted = "the routes to this answer's addresses could not be set, or not soon enough"

// servfail returns the response that replaces answer, with the same ID and question. If answer is a query, the
// result is the response to it. answer contains at least a header.
//
// If answer uses EDNS, so does the result: a client that asked with EDNS and gets none back may take the server
// for an old one and omit it the next time. The extended error (RFC 8914, code 0) tells a person with dig the
// reason.
func servfail(answer []byte, why string) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(answer)
	if err != nil {
		return nil
	}
	h = dnsmessage.Header{
		ID:                 h.ID,
		Response:           true,
		RecursionDesired:   h.RecursionDesired,
		RecursionAvailable: h.RecursionAvailable,
		CheckingDisabled:   h.CheckingDisabled,
		RCode:              dnsmessage.RCodeServerFailure,
	}
	msg, err := build(h, p, why)
	if err != nil { // a question that can't be copied
		b := dnsmessage.NewBuilder(nil, h)
		msg, _ = b.Finish() // a header alone can't fail
	}
	return msg
}

// build returns h with the question, and the EDNS if any, of the message whose question p is positioned at.
func build(h dnsmessage.Header, p dnsmessage.Parser, why string) ([]byte, error) {
	const extendedError = 15
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	b := dnsmessage.NewBuilder(nil, h)
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if err := b.Question(q); err != nil {
		return nil, err
	}
	opt, ok := edns(p)
	if !ok {
		return b.Finish()
	}
	var rh dnsmessage.ResourceHeader
	if err := rh.SetEDNS0(1232, dnsmessage.RCodeSuccess, opt.DNSSECAllowed()); err != nil {
		return nil, err
	}
	if err := b.StartAdditionals(); err != nil {
		return nil, err
	}
	r := dnsmessage.OPTResource{Options: []dnsmessage.Option{{Code: extendedError, Data: []byte("\x00\x00pinproxy: " + why)}}}
	if err := b.OPTResource(rh, r); err != nil {
		return nil, err
	}
	return b.Finish()
}

// edns returns the header of the message's OPT record. p is positioned in the questions.
func edns(p dnsmessage.Parser) (dnsmessage.ResourceHeader, bool) {
	if p.SkipAllQuestions() != nil || p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return dnsmessage.ResourceHeader{}, false
	}
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return dnsmessage.ResourceHeader{}, false
		}
		if h.Type == dnsmessage.TypeOPT {
			return h, true
		}
		if p.SkipAdditional() != nil {
			return dnsmessage.ResourceHeader{}, false
		}
	}
}
