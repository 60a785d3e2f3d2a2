package rules

import "golang.org/x/net/idna"

// toALabels returns the name in the ASCII form under which resolvers look it up (RFC 5891 section 5, with the
// mappings of UTS 46): U-labels become A-labels, and A-labels are checked to be ones.
func toALabels(name string) (string, error) { return profile.ToASCII(name) }

// profile turns a name typed by a person into what resolvers ask for: idna.Lookup, but with underscores and with
// hyphens in third and fourth place let pass, since hosts have them. It is never written to.
var profile = idna.New(
	idna.MapForLookup(),
	idna.BidiRule(),
	idna.StrictDomainName(false),
	idna.CheckHyphens(false),
)
