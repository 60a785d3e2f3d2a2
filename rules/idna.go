package rules

import "golang.org/x/net/idna"

// toALabels returns the ASCII form of the name, under which resolvers look it up (RFC 5891 section 5, with the
// mappings of UTS 46). U-labels become A-labels, and existing A-labels are validated.
func toALabels(name string) (string, error) { return profile.ToASCII(name) }

// profile turns a name typed by a person into what resolvers ask for. It is idna.Lookup, except that it allows
// underscores and hyphens in the third and fourth place, since real hosts have them. It is never written to.
var profile = idna.New(
	idna.MapForLookup(),
	idna.BidiRule(),
	idna.StrictDomainName(false),
	idna.CheckHyphens(false),
)
