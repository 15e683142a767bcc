package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// A token is a JWS in the compact serialization (RFC 7515 7.1): header, payload and MAC, each in base64url, between
// dots. This file has two layers and the JSON reader that both need. The lower layer takes bytes to bytes and knows no
// claim; the upper one reads, checks and writes claims (RFC 7519). Neither knows of users or of HTTP.

const (
	// encodedHeader is {"alg":"HS256","typ":"JWT"}, with which every token that we sign begins. Most libraries write
	// the very same bytes, so that one comparison spares nearly every token the reading of its header.
	encodedHeader = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"

	// encodedMACLen is the length of 32 bytes in base64url without padding.
	encodedMACLen = 43

	// maxTokenLen, in bytes, bounds what is worth a hash. Our own tokens have about 320.
	maxTokenLen = 4096
)

var (
	errTokenTooLong = fmt.Errorf("token longer than %d bytes", maxTokenLen)
	errSegments     = errors.New("token has not exactly three segments")
	errSignature    = errors.New("signature does not hold")
)

// base64url is the encoding of segments (RFC 7515 2). Strict refuses stray bits in the last character.
var base64url = base64.RawURLEncoding.Strict()

// An hmacKey is a key for HS256 (RFC 7518 3.2). It is safe for concurrent use.
type hmacKey struct {
	pool sync.Pool // of *keyedMAC
}

// A keyedMAC is an HMAC that has absorbed its key, and the memory to work in. It is kept for reuse, since to key an
// HMAC costs as much as to compute it over a token.
type keyedMAC struct {
	hash    hash.Hash
	sum     [sha256.Size]byte
	encoded [encodedMACLen]byte
	token   []byte
	segment []byte
}

// newHMACKey takes a secret of any length: whoever loads the secret refuses one under 32 bytes.
func newHMACKey(secret []byte) *hmacKey {
	secret = slices.Clone(secret)
	k := new(hmacKey)
	k.pool.New = func() any { return &keyedMAC{hash: hmac.New(sha256.New, secret)} }
	return k
}

// mac returns the encoded MAC of the signing input. It is overwritten by the next call.
func (m *keyedMAC) mac(input []byte) []byte {
	m.hash.Reset()
	m.hash.Write(input)
	base64url.Encode(m.encoded[:], m.hash.Sum(m.sum[:0]))
	return m.encoded[:]
}

// sign returns the token of a payload.
func (k *hmacKey) sign(payload []byte) string {
	m := k.pool.Get().(*keyedMAC)
	defer k.pool.Put(m)
	m.token = append(m.token[:0], encodedHeader+"."...)
	m.token = base64url.AppendEncode(m.token, payload)
	mac := m.mac(m.token)
	m.token = append(m.token, '.')
	m.token = append(m.token, mac...)
	return string(m.token)
}

// open returns the payload of a token that this key signed.
//
// The MAC comes first: nothing is decoded, let alone parsed, until it holds. It is compared in its encoded form, with
// the 43 characters that we would write: no other spelling of a signature is ever decoded.
func (k *hmacKey) open(token string) (payload string, err error) {
	if len(token) > maxTokenLen {
		return "", errTokenTooLong
	}
	header, rest, _ := strings.Cut(token, ".")
	_, mac, ok := strings.Cut(rest, ".")
	if !ok || strings.Contains(mac, ".") {
		return "", errSegments
	}
	m := k.pool.Get().(*keyedMAC)
	defer k.pool.Put(m)
	m.token = append(m.token[:0], token...)
	signed, given := m.token[:len(token)-len(mac)-1], m.token[len(token)-len(mac):]
	if !hmac.Equal(m.mac(signed), given) {
		return "", errSignature
	}
	if header != encodedHeader {
		if err := m.decode(signed[:len(header)]); err != nil {
			return "", fmt.Errorf("header: %w", err)
		}
		if err := checkHeader(string(m.segment)); err != nil {
			return "", fmt.Errorf("header: %w", err)
		}
	}
	if err := m.decode(signed[len(header)+1:]); err != nil {
		return "", fmt.Errorf("payload: %w", err)
	}
	return string(m.segment), nil
}

// decode reads a segment into m.segment. Only the one spelling that encodes back to itself is taken: the package
// base64 skips line breaks, even when it is strict, so that what it decodes then encodes to less.
func (m *keyedMAC) decode(segment []byte) (err error) {
	m.segment, err = base64url.AppendDecode(m.segment[:0], segment)
	if err == nil && base64url.EncodedLen(len(m.segment)) != len(segment) {
		err = errors.New("line break in base64url")
	}
	return err
}

// checkHeader reports what in a header other than our own stands against the token. The algorithm is pinned: the
// header may confirm it, never choose it (RFC 8725 3.1). Parameters that we don't know are ignored (RFC 7515 4).
func checkHeader(header string) error {
	alg := ""
	err := readObject(header, func(name string, v jsonValue) error {
		switch name {
		case "alg":
			alg = v.text
			if v.kind != jsonString {
				return errors.New("alg: not a string")
			}
		case "typ":
			// RFC 7519 5.1. Another type of token under the same key is not ours to take (RFC 8725 3.11).
			if v.kind != jsonString || v.text != "JWT" {
				return errors.New("typ: not JWT")
			}
		case "kid":
			// RFC 7515 4.1.4: "its value MUST be a case-sensitive string". We have no use for it.
			if v.kind != jsonString {
				return errors.New("kid: not a string")
			}
		case "crit":
			// RFC 7515 4.1.11: it names what the recipient must understand, and there is nothing that we do.
			return errors.New("crit: no extension is understood")
		case "b64":
			// RFC 7797 3: with false the payload is not encoded.
			if v.text != "true" || v.kind != jsonLiteral {
				return errors.New("b64: only an encoded payload is understood")
			}
		}
		return nil
	})
	if err == nil && alg != "HS256" {
		return errors.New("alg: not HS256")
	}
	return err
}

// claims are what a token says (RFC 7519 4.1, and the two claims of our own). Times are in seconds since the epoch,
// with a fraction where the token has one (NumericDate, RFC 7519 2).
type claims struct {
	subject   string   // sub: the user's id
	scopes    []string // scopes
	typ       string   // type: access or refresh
	id        string   // jti
	issuedAt  float64  // iat
	notBefore float64  // nbf
	expiry    float64  // exp
	issuer    string   // iss

	hasSubject, hasExpiry bool
}

// parseClaims reads a payload. An error names the claim that has the wrong type; what is missing, and what the values
// mean, is for checkTime and checkParties.
func parseClaims(payload string) (claims, error) {
	var c claims
	err := readObject(payload, c.set)
	return c, err
}

// set takes one member of the claims set. RFC 7519 4: "all claims that are not understood [...] MUST be ignored".
func (c *claims) set(name string, v jsonValue) (err error) {
	switch name {
	case "sub":
		c.hasSubject = true
		c.subject, err = v.str()
	case "scopes":
		c.scopes, err = v.strings()
	case "type":
		c.typ, err = v.str()
	case "jti":
		c.id, err = v.str()
	case "iat":
		c.issuedAt, err = v.number()
	case "nbf":
		c.notBefore, err = v.number()
	case "exp":
		c.hasExpiry = true
		c.expiry, err = v.number()
	case "iss":
		c.issuer, err = v.str()
	case "aud":
		// RFC 7519 4.1.3: who does not find itself in the audience must reject the token, and we have no name.
		err = errors.New("not for this audience")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// checkTime reports whether the token holds at a time. A token that never ends is none of ours.
func (c *claims) checkTime(now time.Time) error {
	at := float64(now.UnixNano()) / 1e9
	switch {
	case !c.hasExpiry:
		return errors.New("exp: missing")
	case at >= c.expiry: // RFC 7519 4.1.4: "on or after which the JWT MUST NOT be accepted"
		return errors.New("exp: token expired")
	case at < c.notBefore: // RFC 7519 4.1.5
		return errors.New("nbf: token not valid yet")
	case at < c.issuedAt:
		return errors.New("iat: token issued in the future")
	}
	return nil
}

// errTokenType is told apart, since /auth/refresh answers it in words of its own.
var errTokenType = errors.New("type: another type of token")

// checkParties reports whether the token is from this issuer, about somebody, and of the type asked for, in this order.
func (c *claims) checkParties(issuer, typ string) error {
	switch {
	case c.issuer != issuer: // RFC 7519 4.1.1
		return errors.New("iss: another issuer")
	case !c.hasSubject: // RFC 7519 4.1.2
		return errors.New("sub: missing")
	case c.typ != typ:
		return errTokenType
	}
	return nil
}

// appendJSON appends the claims in the order and spacing in which PyJWT writes them for the original service.
func (c *claims) appendJSON(dst []byte) []byte {
	dst = append(dst, `{"sub":`...)
	dst = appendJSONString(dst, c.subject)
	dst = append(dst, `,"scopes":`...)
	dst = appendJSONStrings(dst, c.scopes)
	dst = append(dst, `,"type":`...)
	dst = appendJSONString(dst, c.typ)
	dst = append(dst, `,"jti":`...)
	dst = appendJSONString(dst, c.id)
	dst = append(dst, `,"iat":`...)
	dst = strconv.AppendInt(dst, int64(c.issuedAt), 10)
	dst = append(dst, `,"exp":`...)
	dst = strconv.AppendInt(dst, int64(c.expiry), 10)
	dst = append(dst, `,"iss":`...)
	dst = appendJSONString(dst, c.issuer)
	return append(dst, '}')
}

// appendJSONStrings appends a JSON array of strings.
func appendJSONStrings(dst []byte, list []string) []byte {
	dst = append(dst, '[')
	for i, s := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendJSONString(dst, s)
	}
	return append(dst, ']')
}

// appendJSONString appends a JSON string. Nearly all that we write needs no escape and is copied as it is.
func appendJSONString(dst []byte, s string) []byte {
	for i := range len(s) {
		if endsPlain[s[i]] {
			// Marshal has no error for a string. What it is given moves to the heap: a copy, so that s need not.
			quoted, _ := json.Marshal(strings.Clone(s))
			return append(dst, quoted...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// What follows reads JSON (RFC 8259) from outside, of tokens and of request bodies. encoding/json folds the letter case
// of names, takes the last of two equal ones, reads null as nothing, and lets broken UTF-8 and lone surrogates through
// as U+FFFD: each of these has let something forged or ambiguous through somewhere. Here the first is impossible, and
// the others are errors. Errors and positions follow Python's json, which is what clients of the original see.

// jsonKind is the kind of a JSON value.
type jsonKind byte

const (
	jsonString  jsonKind = iota + 1
	jsonNumber           // as written
	jsonLiteral          // true, false or null
	jsonObject           // as written
	jsonArray            // as written
)

// A jsonValue is one JSON value. The text of a string is decoded, that of any other kind is the source's.
type jsonValue struct {
	kind jsonKind
	text string
}

// str returns the value of a string.
func (v jsonValue) str() (string, error) {
	if v.kind != jsonString {
		return "", errors.New("not a string")
	}
	return v.text, nil
}

// number returns the value of a number that fits a float64.
func (v jsonValue) number() (float64, error) {
	if v.kind != jsonNumber {
		return 0, errors.New("not a number")
	}
	if n, err := strconv.Atoi(v.text); err == nil {
		return float64(n), nil // as nearly every time is, in a fifth of the time
	}
	f, err := strconv.ParseFloat(v.text, 64)
	if err != nil {
		return 0, errors.New("number out of range")
	}
	return f, nil
}

// strings returns the values of a list of strings.
func (v jsonValue) strings() ([]string, error) {
	if v.kind != jsonArray {
		return nil, errors.New("not a list")
	}
	list := make([]string, 0, strings.Count(v.text, ",")+1)
	r := jsonReader{src: v.text}
	err := r.array(func(element jsonValue) error {
		s, err := element.str()
		list = append(list, s)
		return err
	})
	return list, err
}

// A jsonError says where a text is not JSON, or is more than one JSON text could say.
type jsonError struct {
	pos int // in code points from the start of the text
	msg string
}

func (e *jsonError) Error() string {
	return fmt.Sprintf("%s: char %d", e.msg, e.pos)
}

var errNotObject = errors.New("not a JSON object")

// maxJSONDepth bounds how deep values may nest (RFC 8259 9), and with it the stack that a text can take.
const maxJSONDepth = 1000

// A jsonReader reads JSON from a string, front to back.
type jsonReader struct {
	src   string
	pos   int // in bytes
	depth int
}

// readObject reads a JSON text that is one object, and calls member for each of its members in order. It stops at the
// first error, be it the text's or member's. Names are unique in every object, however deep (RFC 8259 4 leaves open
// which of two counts).
func readObject(src string, member func(name string, v jsonValue) error) error {
	r := jsonReader{src: src}
	r.skipSpace()
	isObject := r.next('{')
	var err error
	if isObject {
		err = r.object(member)
	} else {
		_, err = r.value()
	}
	if err != nil {
		return err
	}
	r.skipSpace()
	if r.pos < len(src) {
		return r.errorAt(r.pos, "Extra data")
	}
	if !isObject {
		return errNotObject
	}
	return nil
}

func (r *jsonReader) errorAt(pos int, msg string) error {
	return &jsonError{utf8.RuneCountInString(r.src[:pos]), msg}
}

func (r *jsonReader) skipSpace() {
	for r.pos < len(r.src) && isSpace(r.src[r.pos]) {
		r.pos++
	}
}

func isSpace(c byte) bool { return c <= ' ' && (c == ' ' || c == '\t' || c == '\n' || c == '\r') }

// next reports whether the next byte is c.
func (r *jsonReader) next(c byte) bool {
	return r.pos < len(r.src) && r.src[r.pos] == c
}

// value reads a value of any kind.
func (r *jsonReader) value() (jsonValue, error) {
	start := r.pos
	if start == len(r.src) {
		return jsonValue{}, r.errorAt(start, "Expecting value")
	}
	var err error
	kind := jsonLiteral
	switch c := r.src[start]; {
	case c == '"':
		s, err := r.str()
		return jsonValue{jsonString, s}, err
	case c == '{':
		kind, err = jsonObject, r.object(ignoreMember)
	case c == '[':
		kind, err = jsonArray, r.array(ignoreElement)
	case c == '-' || '0' <= c && c <= '9':
		kind, err = jsonNumber, r.number()
	default:
		err = r.literal()
	}
	return jsonValue{kind, r.src[start:r.pos]}, err
}

func ignoreMember(string, jsonValue) error { return nil }
func ignoreElement(jsonValue) error        { return nil }

// descend is called at the opening bracket of an object or an array. It goes past it and what space follows.
func (r *jsonReader) descend() error {
	r.depth++
	if r.depth > maxJSONDepth {
		return r.errorAt(r.pos, "Too many levels")
	}
	r.pos++
	r.skipSpace()
	return nil
}

// closes reports whether the container ends here, and goes past its closing bracket if so.
func (r *jsonReader) closes(bracket byte) bool {
	if !r.next(bracket) {
		return false
	}
	r.pos++
	r.depth--
	return true
}

// passes goes past a separator and the space around it, or reports that there is none.
func (r *jsonReader) passes(separator byte) bool {
	r.skipSpace()
	if !r.next(separator) {
		return false
	}
	r.pos++
	r.skipSpace()
	return true
}

// object reads an object and calls member for each of its members.
func (r *jsonReader) object(member func(string, jsonValue) error) error {
	if err := r.descend(); err != nil {
		return err
	}
	if r.closes('}') {
		return nil
	}
	var seen nameSet
	for {
		start := r.pos
		if !r.next('"') {
			return r.errorAt(start, "Expecting property name enclosed in double quotes")
		}
		name, err := r.str()
		if err != nil {
			return err
		}
		if !seen.add(name) {
			return r.errorAt(start, "Property name given twice")
		}
		if !r.passes(':') {
			return r.errorAt(r.pos, "Expecting ':' delimiter")
		}
		v, err := r.value()
		if err != nil {
			return err
		}
		if err := member(name, v); err != nil {
			return err
		}
		if r.passes(',') {
			continue
		}
		if r.closes('}') {
			return nil
		}
		return r.errorAt(r.pos, "Expecting ',' delimiter")
	}
}

// array reads an array and calls element for each of its elements.
func (r *jsonReader) array(element func(jsonValue) error) error {
	if err := r.descend(); err != nil {
		return err
	}
	if r.closes(']') {
		return nil
	}
	for {
		v, err := r.value()
		if err != nil {
			return err
		}
		if err := element(v); err != nil {
			return err
		}
		if r.passes(',') {
			continue
		}
		if r.closes(']') {
			return nil
		}
		return r.errorAt(r.pos, "Expecting ',' delimiter")
	}
}

// A nameSet holds the names of one object. Most objects have few: those are compared one by one, and a map is made
// only for the rest, so that of many thousand names each costs as much as the first.
type nameSet struct {
	marks uint64 // a bit for each name's length and last byte, which tells of most names at once that they are new
	few   [8]string
	n     int
	many  map[string]bool
}

// add reports whether the name was not in the set yet, and puts it there.
func (s *nameSet) add(name string) bool {
	mark := uint64(1)
	if len(name) > 0 {
		mark = 1 << ((len(name)<<3 ^ int(name[len(name)-1])) & 63)
	}
	known := s.marks&mark != 0 && (slices.Contains(s.few[:s.n], name) || s.many[name])
	switch {
	case known:
		return false
	case s.n < len(s.few):
		s.few[s.n] = name
		s.n++
	case s.many == nil:
		s.many = map[string]bool{name: true}
	default:
		s.many[name] = true
	}
	s.marks |= mark
	return true
}

// str reads a string and decodes it. One of plain ASCII without escapes, as nearly all are, is a part of the source and
// takes no memory.
func (r *jsonReader) str() (string, error) {
	start := r.pos
	r.pos++
	if text := r.plainText(); r.next('"') {
		r.pos++
		return text, nil
	}
	r.pos = start + 1
	return r.anyText(start)
}

// endsPlain tells of each byte whether the plain text of a string ends before it: at a quote, a backslash, a control
// character, or what is not ASCII.
var endsPlain = func() (ends [256]bool) {
	for c := range ends {
		ends[c] = c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf
	}
	return ends
}()

// plainText goes to the end of the plain text that begins here, and returns it.
func (r *jsonReader) plainText() string {
	text := r.src[r.pos:]
	for i := range len(text) {
		if endsPlain[text[i]] {
			text = text[:i]
			break
		}
	}
	r.pos += len(text)
	return text
}

// anyText reads the rest of a string that begins at start, whatever is in it. JSON is UTF-8 (RFC 8259 8.1): here is where
// a byte that is not is found, since outside of strings JSON is ASCII.
func (r *jsonReader) anyText(start int) (string, error) {
	var text []byte
	for {
		text = append(text, r.plainText()...)
		if r.pos == len(r.src) {
			return "", r.errorAt(start, "Unterminated string starting at")
		}
		var char rune
		var err error
		switch c := r.src[r.pos]; {
		case c == '"':
			r.pos++
			return string(text), nil
		case c == '\\':
			char, err = r.escape(start)
		case c >= utf8.RuneSelf:
			char, err = r.utf8Rune()
		default:
			err = r.errorAt(r.pos, "Invalid control character at")
		}
		if err != nil {
			return "", err
		}
		text = utf8.AppendRune(text, char)
	}
}

// utf8Rune reads one character beyond ASCII.
func (r *jsonReader) utf8Rune() (rune, error) {
	char, size := utf8.DecodeRuneInString(r.src[r.pos:])
	if size == 1 {
		return 0, r.errorAt(r.pos, "Invalid UTF-8")
	}
	r.pos += size
	return char, nil
}

// escape reads an escape sequence (RFC 8259 7) of the string that begins at start.
func (r *jsonReader) escape(start int) (rune, error) {
	at := r.pos
	if at+1 == len(r.src) {
		return 0, r.errorAt(start, "Unterminated string starting at")
	}
	r.pos += 2
	switch c := r.src[at+1]; c {
	case '"', '\\', '/':
		return rune(c), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
		return r.unicodeEscape(at)
	}
	return 0, r.errorAt(at, `Invalid \escape`)
}

// unicodeEscape reads the rest of the \u escape at a position, and the second one of a surrogate pair.
func (r *jsonReader) unicodeEscape(at int) (rune, error) {
	char, err := r.hex4()
	if err != nil || !utf16.IsSurrogate(char) {
		return char, err
	}
	low := rune(0)
	if strings.HasPrefix(r.src[r.pos:], `\u`) {
		r.pos += 2
		if low, err = r.hex4(); err != nil {
			return 0, err
		}
	}
	// DecodeRune answers U+FFFD for anything but a high surrogate with a low one after it.
	if char = utf16.DecodeRune(char, low); char == utf8.RuneError {
		return 0, r.errorAt(at, "Lone surrogate escape")
	}
	return char, nil
}

// hex4 reads the four hexadecimal digits of a \u escape. They can't be the last of a text: the string goes on.
func (r *jsonReader) hex4() (rune, error) {
	start := r.pos
	if start+4 < len(r.src) {
		r.pos += 4
		if n, err := hex.DecodeString(r.src[start:r.pos]); err == nil {
			return rune(n[0])<<8 | rune(n[1]), nil
		}
	}
	return 0, r.errorAt(start-1, `Invalid \uXXXX escape`)
}

// number goes past the longest number that begins here (RFC 8259 6).
func (r *jsonReader) number() error {
	start := r.pos
	if r.next('-') {
		r.pos++
	}
	if r.next('0') {
		r.pos++
	} else if r.digits() == 0 {
		r.pos = start
		return r.errorAt(start, "Expecting value")
	}
	if end := r.pos; r.next('.') {
		r.pos++
		if r.digits() == 0 {
			r.pos = end
			return nil
		}
	}
	end := r.pos
	if r.next('e') || r.next('E') {
		r.pos++
		if r.next('+') || r.next('-') {
			r.pos++
		}
		if r.digits() == 0 {
			r.pos = end
		}
	}
	return nil
}

// digits goes past decimal digits and returns how many there were.
func (r *jsonReader) digits() int {
	start := r.pos
	for r.pos < len(r.src) && '0' <= r.src[r.pos] && r.src[r.pos] <= '9' {
		r.pos++
	}
	return r.pos - start
}

// literal goes past true, false or null.
func (r *jsonReader) literal() error {
	for _, word := range []string{"true", "false", "null"} {
		if strings.HasPrefix(r.src[r.pos:], word) {
			r.pos += len(word)
			return nil
		}
	}
	return r.errorAt(r.pos, "Expecting value")
}
