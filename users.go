package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// A user is one account. It is made of strings alone, so that a copy shares nothing that can change.
type user struct {
	id     string
	email  string // as shown: the local part as given, the domain in lower case
	name   string
	scopes scopes
	hash   secret // of the password, in the PHC string format
}

// scopes is a list of scopes with one space between two (RFC 6749 3.3).
type scopes string

// appendTo appends the scopes one by one.
func (s scopes) appendTo(list []string) []string {
	for rest := string(s); rest != ""; {
		var scope string
		scope, rest, _ = strings.Cut(rest, " ")
		list = append(list, scope)
	}
	return list
}

// has reports whether the scope is one of them.
func (s scopes) has(scope string) bool { return slices.Contains(s.appendTo(nil), scope) }

var (
	errAddressTaken = errors.New("email already registered")
	errUnknownUser  = errors.New("unknown user")
)

// users holds all accounts, in memory alone. It is safe for concurrent use. No call's cost grows with their number.
//
// Users go in and out as copies; one is changed by putting another in its place. There is no way to remove one, so
// that a position in the order of registration stays good for ever.
type users struct {
	mu        sync.RWMutex   // guards the fields below
	inOrder   []*user        // of registration; what a pointer leads to never changes
	byID      map[string]int // position in inOrder
	byAddress map[string]int // by addressKey
}

func newUsers() *users {
	return &users{byID: make(map[string]int), byAddress: make(map[string]int)}
}

// add registers a user, or returns errAddressTaken. To check and to insert is one step: of many registrations of one
// address at once, one wins.
func (s *users) add(u user) error {
	key := addressKey(u.email)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.byAddress[key]; taken {
		return errAddressTaken
	}
	s.byAddress[key] = len(s.inOrder)
	s.byID[u.id] = len(s.inOrder)
	s.inOrder = append(s.inOrder, &u)
	return nil
}

// withID returns the user with an id.
func (s *users) withID(id string) (user, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	i, ok := s.byID[id]
	return s.at(i, ok)
}

// withAddress returns the user who registered an address, in whatever letter case.
func (s *users) withAddress(address string) (user, bool) {
	key := addressKey(address)
	s.mu.RLock()
	defer s.mu.RUnlock()
	i, ok := s.byAddress[key]
	return s.at(i, ok)
}

// at is called with mu held. It returns the user at a position that a map has, if it has one.
func (s *users) at(i int, ok bool) (user, bool) {
	if !ok {
		return user{}, false
	}
	return *s.inOrder[i], true
}

// update puts a changed copy in a user's place. The id and the address stay as they are.
func (s *users) update(id string, change func(*user)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.byID[id]
	if !ok {
		return errUnknownUser
	}
	u := *s.inOrder[i]
	change(&u)
	u.id, u.email = s.inOrder[i].id, s.inOrder[i].email
	s.inOrder[i] = &u
	return nil
}

// count returns how many users there are.
func (s *users) count() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.inOrder)
}

// position returns a user's place in the order of registration, from 0.
func (s *users) position(id string) (int, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	i, ok := s.byID[id]
	return i, ok
}

// page copies users in the order of registration, from a position on, until dst is full or all are copied, and
// returns how many. Whoever lists them all does so page by page, and so holds the lock for no longer than a page takes.
func (s *users) page(dst []user, from int) int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := 0
	for n < len(dst) && from+n < len(s.inOrder) {
		dst[n] = *s.inOrder[from+n]
		n++
	}
	return n
}

// addressKey returns what two spellings of one address have in common: the address without the difference of letter
// case (Unicode's simple case folding, as strings.EqualFold has it).
func addressKey(address string) string {
	return strings.Map(foldRune, address)
}

// foldRune returns the same rune for all that differ in letter case alone: the least of them, or the lower case of that
// in ASCII. K, k and the Kelvin sign are three of one kind.
func foldRune(r rune) rune {
	least := r
	if r > unicode.MaxASCII {
		for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
			least = min(least, next)
		}
	}
	if 'A' <= least && least <= 'Z' {
		least += 'a' - 'A'
	}
	return least
}

// lowerRune returns the lower case of a rune if that is a difference of letter case alone. The dotted I of Turkish, whose
// lower case is a plain i, makes another domain.
func lowerRune(r rune) rune {
	if lower := unicode.ToLower(r); foldRune(lower) == foldRune(r) {
		return lower
	}
	return r
}

// Limits of an address, in octets (RFC 5321 4.5.3.1.1 and, with its erratum 1690, 4.5.3.1.3), of a domain and a label, in
// letters (RFC 1035 2.3.4), and of what the original looks at at all, in code points.
const (
	maxLocalPart   = 64
	maxLabel       = 63
	maxDomain      = 253
	maxAddress     = 254
	maxAddressText = 2048
)

// parseAddress returns a bare e-mail address with its domain in lower case. The error is the sentence in which the
// original's library, email-validator, names the fault; where several stand against an address, the first in its order.
func parseAddress(text string) (string, error) {
	if utf8.RuneCountInString(text) > maxAddressText {
		return "", refuse("Length must not exceed %d characters", maxAddressText)
	}
	if strings.ContainsAny(text, "\r\n") {
		return "", refusal("Carriage return and line feed characters are not allowed")
	}
	local, domain, ok := strings.Cut(text, "@")
	switch {
	case !ok:
		return "", refusal("An email address must have an @-sign.")
	case strings.HasPrefix(local, `"`):
		return "", refusal("Quoting the part before the @-sign is not allowed here.")
	case strings.Contains(local, "<"):
		return "", refusal("A display name and angle brackets around the email address are not permitted here.")
	}
	if err := checkLocalPart(local); err != nil {
		return "", err
	}
	if err := checkDomain(domain); err != nil {
		return "", err
	}
	address := local + "@" + strings.Map(lowerRune, domain)
	// A letter can take more octets in lower case.
	if over := max(len(text), len(address)) - maxAddress; over > 0 {
		return "", refuse("The email address is too long %s.", tooMany(over))
	}
	return address, nil
}

// checkLocalPart reports what stands against a local part: it is atoms between dots (RFC 5321 4.1.2, Dot-string), and
// letters, marks and digits beyond ASCII are part of an atom (RFC 6531 3.3).
func checkLocalPart(local string) error {
	if local == "" {
		return refusal("There must be something before the @-sign.")
	}
	if over := len(local) - maxLocalPart; over > 0 {
		return refuse("The email address is too long before the @-sign %s.", tooMany(over))
	}
	if bad := invalidCharacters(local, isAtext); bad != "" {
		return refuse("The email address contains invalid characters before the @-sign: %s.", bad)
	}
	switch {
	case strings.HasSuffix(local, "."):
		return refusal("An email address cannot have a period immediately before the @-sign.")
	case strings.HasPrefix(local, "."):
		return refusal("An email address cannot start with a period.")
	case strings.Contains(local, ".."):
		return errTwoPeriods
	}
	return checkUnsafe(local)
}

// A refusal is a sentence for the client, which is why it begins and ends like one.
type refusal string

func (r refusal) Error() string { return string(r) }

func refuse(format string, args ...any) error { return refusal(fmt.Sprintf(format, args...)) }

const errTwoPeriods = refusal("An email address cannot have two periods in a row.")

// checkDomain reports what stands against a domain that is to get mail.
func checkDomain(domain string) error {
	switch {
	case domain == "":
		return refusal("There must be something after the @-sign.")
	case strings.HasPrefix(domain, "[") && strings.HasSuffix(domain, "]"):
		return refusal("A bracketed IP address after the @-sign is not allowed here.")
	}
	if over := utf8.RuneCountInString(domain) - maxDomain; over > 0 {
		return refuse("The email address is too long after the @-sign %s.", tooMany(over))
	}
	if bad := invalidCharacters(domain, isHostname); bad != "" {
		return refuse("The part after the @-sign contains invalid characters: %s.", bad)
	}
	if err := checkUnsafe(domain); err != nil {
		return err
	}
	if err := checkDots(domain); err != nil {
		return err
	}
	labels := strings.Split(domain, ".")
	for _, label := range labels {
		if err := checkLabel(label); err != nil {
			return err
		}
	}
	return checkTopLevel(labels)
}

// checkDots reports where a domain has a dot or a hyphen that it can't have (RFC 952, RFC 1123 2.1).
func checkDots(domain string) error {
	const at, end = "An email address cannot have a %s immediately after the @-sign.", "An email address cannot end with a %s."
	switch {
	case strings.HasSuffix(domain, "."):
		return refuse(end, "period")
	case strings.HasPrefix(domain, "."):
		return refuse(at, "period")
	case strings.Contains(domain, ".."):
		return errTwoPeriods
	case strings.HasSuffix(domain, "-"):
		return refuse(end, "hyphen")
	case strings.HasPrefix(domain, "-"):
		return refuse(at, "hyphen")
	case strings.Contains(domain, ".-"), strings.Contains(domain, "-."):
		return refusal("An email address cannot have a period and a hyphen next to each other.")
	}
	return nil
}

// checkLabel reports what stands against one label of a domain.
func checkLabel(label string) error {
	runes := []rune(label)
	// RFC 5890 2.3.1: hyphens in third and fourth place are kept for encodings, of which there is one, Punycode.
	if len(runes) >= 4 && runes[2] == '-' && runes[3] == '-' && !strings.EqualFold(label[:2], "xn") {
		return refusal("An email address cannot have two letters followed by two dashes immediately after the @-sign or after a period, except Punycode.")
	}
	if over := len(runes) - maxLabel; over > 0 {
		return refuse("After the @-sign, periods cannot be separated by so many characters %s.", tooMany(over))
	}
	return nil
}

// checkTopLevel reports why a domain of these labels can't get mail.
func checkTopLevel(labels []string) error {
	last := addressKey(labels[len(labels)-1])
	switch {
	case slices.Contains([]string{"arpa", "invalid", "local", "localhost", "onion", "test"}, last) && len(labels) > 1:
		return refusal("The part after the @-sign is a special-use or reserved name that cannot be used with email.")
	case len(labels) == 1:
		return refusal("The part after the @-sign is not valid. It should have a period.")
	case strings.IndexFunc(last, func(r rune) bool { return !unicode.IsDigit(r) }) < 0:
		return refusal("The part after the @-sign is not valid. It is not within a valid top-level domain.")
	}
	return nil
}

// isAtext reports whether a rune can stand in a local part, as far as ASCII goes (RFC 5322 3.2.3, and the dot).
func isAtext(r rune) bool {
	return isHostname(r) || r <= '~' && strings.ContainsRune("!#$%&'*+/=?^_`{|}~", r)
}

// isHostname reports whether a rune can stand in a domain, as far as ASCII goes (RFC 952, and the dot).
func isHostname(r rune) bool {
	return r == '.' || r == '-' || '0' <= r && r <= '9' || 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' || r > unicode.MaxASCII
}

// invalidCharacters lists the runes that are not allowed, each once.
func invalidCharacters(text string, allowed func(rune) bool) string {
	var bad []string
	for _, r := range text {
		if !allowed(r) {
			bad = append(bad, displayRune(r))
		}
	}
	slices.Sort(bad)
	return strings.Join(slices.Compact(bad), ", ")
}

// checkUnsafe names the runes beyond ASCII that are not a letter, a mark, or a digit, or that nobody sees: an address
// that looks like another is a trap. A mark that comes first would change the look of the dot or the sign before it.
func checkUnsafe(part string) error {
	var bad []rune
	before := '.'
	for _, r := range part {
		letter := r <= unicode.MaxASCII || unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.IsMark(r) && before != '.'
		before = r
		if !letter || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
			bad = append(bad, r)
		}
	}
	if bad == nil {
		return nil
	}
	slices.Sort(bad)
	var shown []string
	for _, r := range slices.Compact(bad) {
		shown = append(shown, displayRune(r))
	}
	return refuse("The email address contains unsafe characters: %s.", strings.Join(shown, ", "))
}

// displayRune shows a rune in quotes if it has a shape of its own, else by its code point.
func displayRune(r rune) string {
	switch {
	case r == ' ':
		return "SPACE"
	case r == '\'':
		return `"'"`
	case r == '\\':
		return `"\"`
	case unicode.In(r, unicode.L, unicode.N, unicode.P, unicode.S):
		return "'" + string(r) + "'"
	}
	return fmt.Sprintf("U+%04X", r)
}

// tooMany says by how many characters a text is too long.
func tooMany(n int) string {
	if n == 1 {
		return "(1 character too many)"
	}
	return fmt.Sprintf("(%d characters too many)", n)
}
