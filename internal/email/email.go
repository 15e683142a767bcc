// Package email validates email addresses and compares them.
//
// Parse accepts a local part of dot-separated atoms (RFC 5322 section 3.2.3), an @-sign and a
// domain name, with letters beyond ASCII in both (RFC 6531 section 3.3). It rejects what else RFC
// 5322 allows: display names, comments, quoted strings and IP address literals. It also rejects
// invisible characters, which make two addresses look alike, and domains that never receive email.
//
// One address has many spellings, because letter case may differ and a domain can be in Unicode or
// in Punycode. Key maps them all to one string. Accounts should be indexed by it.
package email

import (
	"regexp"
	"strings"
	"unicode"
)

// A reason is a sentence for the client.
type reason string

func (r reason) Error() string { return string(r) }

const (
	errAt     reason = "An email address must have an @-sign."
	errLong   reason = "The email address is too long: it must not exceed 254 octets."
	errUnsafe reason = "The email address contains an invisible or unsafe character."
	errLocal  reason = "The part before the @-sign must be 1 to 64 octets of letters, digits and " +
		"!#$%&'*+-/=?^_`{|}~, with single periods inside."
	errDomain reason = "The part after the @-sign must be two or more labels of 1 to 63 letters, digits " +
		"and inner hyphens, with single periods between them."
	errReserved reason = "The part after the @-sign is a special-use or reserved name that cannot be used with email."
)

const (
	maxAddress = 254 // octets, RFC 5321 section 4.5.3.1.3 with erratum 1690
	maxLocal   = 64  // octets, RFC 5321 section 4.5.3.1.1
	maxLabel   = 63  // RFC 1035 section 2.3.4

	atom  = "[[:word:][:^ascii:]!#$%&'*+/=?^`{|}~-]+"
	label = "[[:alnum:][:^ascii:]]([[:alnum:][:^ascii:]-]{0,61}[[:alnum:][:^ascii:]])?"
)

// The patterns for the domain apply to its lower-case Unicode form. In localPart and domainName,
// any character beyond ASCII will do, because unsafeChar rejects those that are not allowed.
var (
	localPart  = regexp.MustCompile(`^` + atom + `(\.` + atom + `)*$`)
	domainName = regexp.MustCompile(`^` + label + `(\.` + label + `)+$`)

	// badLabel matches hyphens in third and fourth place, which are reserved for encodings such as
	// Punycode (RFC 5890 section 2.3.1), and a numeric last label, which is part of an IP address.
	badLabel = regexp.MustCompile(`(^|\.)..--|\.\p{Nd}+$`)
	reserved = regexp.MustCompile(`\.(arpa|invalid|local|localhost|onion|test)$`)

	// unsafeChar matches control characters, characters beyond ASCII other than letters, marks and
	// digits, and a mark that would change the look of the period or @-sign before it.
	unsafeChar = regexp.MustCompile(`[^ -~\pL\pM\p{Nd}]|(^|[.@])\pM`)
)

// Parse returns the bare email address in text, with its local part as given and its domain in
// lower case and decoded from Punycode. It ignores spaces and tabs around the address. The error
// is a sentence for the client.
func Parse(text string) (string, error) {
	isInvisible := func(r rune) bool { // a letter or mark, such as a Hangul filler
		return unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
	}
	text = strings.Trim(text, " \t")
	local, domain, ok := strings.Cut(text, "@")
	domain = decodeDomain(strings.Map(lower, domain))
	address := local + "@" + domain
	switch {
	case !ok:
		return "", errAt
	case max(len(text), len(address)) > maxAddress: // a letter can take more octets in lower case
		return "", errLong
	case unsafeChar.MatchString(address), strings.ContainsFunc(address, isInvisible):
		return "", errUnsafe
	case len(local) > maxLocal, !localPart.MatchString(local):
		return "", errLocal
	case !domainName.MatchString(domain), badLabel.MatchString(domain):
		return "", errDomain
	case reserved.MatchString(domain):
		return "", errReserved
	}
	return address, nil
}

// Key returns the canonical form of an address, for comparison only. Two addresses that Parse
// accepts have the same key if and only if they differ in letter case (Unicode simple case folding,
// as in strings.EqualFold), in spaces and tabs around them, or in the encoding of their domain.
func Key(text string) string {
	local, domain, _ := strings.Cut(strings.Map(fold, strings.Trim(text, " \t")), "@")
	return strings.Map(fold, local+"@"+decodeDomain(domain))
}

// fold returns the representative of all runes that differ from r only in letter case: the
// lower-case letter in ASCII if there is one, else the smallest rune.
func fold(r rune) rune {
	smallest := r
	for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
		smallest = min(smallest, next)
	}
	if smallest <= unicode.MaxASCII {
		return unicode.ToLower(smallest)
	}
	return smallest
}

// lower returns r in lower case, with the same fold as r: it keeps İ (U+0130), whose lower case i
// makes another domain. It maps what folds to ASCII to ASCII, also ſ (U+017F), which is lower case.
func lower(r rune) rune {
	folded := fold(r)
	if l := unicode.ToLower(r); folded > unicode.MaxASCII && fold(l) == folded {
		return l
	}
	return folded
}
