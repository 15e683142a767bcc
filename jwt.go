package main

import (
	"cmp"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"jwt-auth-api/internal/strictjson"
)

// A token is a JWS in the compact serialization (RFC 7515 section 7.1): header, payload and MAC,
// each in base64url, separated by dots. The lower layer of this file takes bytes to bytes and
// knows no claims. The upper layer parses, validates and writes claims (RFC 7519).

const (
	// encodedHeader is {"alg":"HS256","typ":"JWT"}, the header of every token signed here. Most
	// libraries write the same bytes, so one comparison replaces parsing for nearly every token.
	encodedHeader = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"

	maxTokenLen = 4096    // bytes; bounds what is hashed
	maxGen      = 1 << 53 // the last whole number before a float64 has gaps
	leeway      = 60      // seconds; how far clocks of several machines may differ
)

var (
	errTokenTooLong = fmt.Errorf("token longer than %d bytes", maxTokenLen)
	errSegments     = errors.New("token must have three segments")
	errSignature    = errors.New("invalid signature")
)

// base64url is the encoding of segments (RFC 7515 section 2). Strict rejects stray bits in the
// last character.
var base64url = base64.RawURLEncoding.Strict()

// An hmacKey signs and verifies with HS256 (RFC 7518 section 3.2). It is safe for concurrent use.
type hmacKey struct {
	pool sync.Pool // of *keyedMAC
}

// A keyedMAC is a keyed HMAC with its buffers. Keying costs as much as a MAC over a token, so
// keyed MACs are reused.
type keyedMAC struct {
	hash hash.Hash
	sum  [sha256.Size]byte
	buf  []byte
}

// newHMACKey returns a key with a secret of any length. The caller rejects secrets under 32 bytes.
func newHMACKey(secret []byte) *hmacKey {
	secret = slices.Clone(secret)
	return &hmacKey{sync.Pool{New: func() any { return &keyedMAC{hash: hmac.New(sha256.New, secret)} }}}
}

// appendMAC appends a dot and the encoded MAC of m.buf to m.buf.
func (m *keyedMAC) appendMAC() {
	m.hash.Reset()
	m.hash.Write(m.buf)
	m.buf = base64url.AppendEncode(append(m.buf, '.'), m.hash.Sum(m.sum[:0]))
}

// sign returns the token with payload.
func (k *hmacKey) sign(payload []byte) string {
	m := k.pool.Get().(*keyedMAC)
	defer k.pool.Put(m)
	m.buf = base64url.AppendEncode(append(m.buf[:0], encodedHeader+"."...), payload)
	m.appendMAC()
	return string(m.buf)
}

// verify returns the payload of a token signed with k.
//
// The MAC comes first: nothing is decoded or parsed until it is valid. It is compared in its
// encoded form with the 43 characters that sign would write, so a signature has one spelling.
func (k *hmacKey) verify(token string) (string, error) {
	if len(token) > maxTokenLen {
		return "", errTokenTooLong
	}
	header, rest, _ := strings.Cut(token, ".")
	payload, mac, ok := strings.Cut(rest, ".")
	if !ok || strings.Contains(mac, ".") {
		return "", errSegments
	}
	m := k.pool.Get().(*keyedMAC)
	defer k.pool.Put(m)
	input := token[:len(token)-len(mac)-1]
	m.buf = append(m.buf[:0], input...)
	m.appendMAC()
	if !hmac.Equal(m.buf[len(input)+1:], []byte(mac)) {
		return "", errSignature
	}
	if header != encodedHeader {
		text, err := m.decode(header)
		if err == nil {
			err = checkHeader(text)
		}
		if err != nil {
			return "", prefixed("header", err)
		}
	}
	text, err := m.decode(payload)
	return text, prefixed("payload", err)
}

// decode decodes a segment, and overwrites m.buf. It accepts only the spelling that re-encodes to
// itself: package base64 skips line breaks even in strict mode, and then decodes to fewer bytes.
func (m *keyedMAC) decode(segment string) (string, error) {
	decoded, err := base64url.AppendDecode(m.buf[:0], []byte(segment))
	if err != nil {
		return "", err
	}
	if base64url.EncodedLen(len(decoded)) != len(segment) {
		return "", errors.New("line break in base64url")
	}
	return string(decoded), nil
}

// checkHeader validates a header that differs from encodedHeader. The algorithm is pinned: the
// header may confirm it, never choose it (RFC 8725 section 3.1). Unknown parameters are ignored
// (RFC 7515 section 4).
func checkHeader(header string) error {
	alg := ""
	err := strictjson.ParseObject(header, func(name string, v strictjson.Value) (err error) {
		switch name {
		case "alg":
			alg, err = v.Str()
		case "typ":
			// Another type of token under the same key is not accepted (RFC 8725 section 3.11).
			if v.Kind != strictjson.String || !strings.EqualFold(v.Text, "JWT") {
				err = errors.New("must be JWT")
			}
		case "kid":
			// RFC 7515 section 4.1.4: "Its value MUST be a case-sensitive string."
			_, err = v.Str()
		case "crit":
			// It lists extensions that the recipient must understand (RFC 7515 section 4.1.11).
			err = errors.New("no extension is supported")
		case "b64":
			// false means an unencoded payload (RFC 7797 section 3).
			if v.Kind != strictjson.Literal || v.Text != "true" {
				err = errors.New("must be true")
			}
		}
		return prefixed(name, err)
	})
	if err == nil && alg != "HS256" {
		return errors.New("alg: must be HS256")
	}
	return err
}

// prefixed returns err with the name of what it is about.
func prefixed(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}

// Types of tokens, the values of the claim type.
const (
	accessToken  = "access"
	refreshToken = "refresh"
)

// claims are the claims of a token (RFC 7519 section 4.1). Times are in seconds since the epoch,
// with a fraction if the token has one (NumericDate, RFC 7519 section 2).
type claims struct {
	subject   string   // sub, the user's id
	scopes    []string // scopes
	typ       string   // type, accessToken or refreshToken
	id        string   // jti
	issuedAt  float64  // iat
	notBefore float64  // nbf
	expiry    float64  // exp
	issuer    string   // iss
	session   string   // sid; empty in a token of the original
	gen       int64    // generation of a refresh token
}

// sessionID returns the id of the session that a token belongs to. A token of the original has its
// own id for that.
func (c *claims) sessionID() string { return cmp.Or(c.session, c.id) }

// parseClaims parses a payload. An error names the claim that has the wrong type.
func parseClaims(payload string) (c claims, err error) {
	err = strictjson.ParseObject(payload, c.set)
	return c, err
}

// set stores one claim. RFC 7519 section 4: "all claims that are not understood by implementations
// MUST be ignored".
func (c *claims) set(name string, v strictjson.Value) (err error) {
	switch name {
	case "sub":
		c.subject, err = v.Str()
	case "scopes":
		c.scopes, err = v.Strings()
	case "type":
		c.typ, err = v.Str()
	case "jti":
		c.id, err = v.Str()
	case "iat":
		c.issuedAt, err = v.Float()
	case "nbf":
		c.notBefore, err = v.Float()
	case "exp":
		c.expiry, err = v.Float()
	case "iss":
		c.issuer, err = v.Str()
	case "sid":
		if c.session, err = v.Str(); err == nil && c.session == "" {
			err = errors.New("must not be empty")
		}
	case "gen":
		var n float64
		if n, err = v.Float(); err == nil && (n < 0 || n > maxGen || n != math.Trunc(n)) {
			err = errors.New("must be an integer from 0 to 2^53")
		}
		c.gen = int64(n)
	case "aud":
		// A recipient that is not in the audience must reject the token (RFC 7519 section 4.1.3).
		err = errors.New("no audience is supported")
	}
	return prefixed(name, err)
}

var errTokenType = errors.New("wrong token type")

// validate returns an error unless the token is valid now and comes from issuer, and then
// errTokenType unless it has the type typ.
func (c *claims) validate(now time.Time, issuer, typ string) error {
	at := float64(now.UnixNano()) / 1e9
	switch {
	case c.expiry <= at: // RFC 7519 section 4.1.4; a missing exp is 0
		return errors.New("exp: missing, or token expired")
	case c.notBefore > at+leeway: // RFC 7519 section 4.1.5
		return errors.New("nbf: token not yet valid")
	case c.issuedAt > at+leeway:
		return errors.New("iat: token issued in the future")
	case c.issuer != issuer: // RFC 7519 section 4.1.1
		return errors.New("iss: wrong issuer")
	case c.subject == "": // RFC 7519 section 4.1.2
		return errors.New("sub: missing")
	case c.typ != typ:
		return errTokenType
	}
	return nil
}

// appendJSON appends the claims in the order and spacing of PyJWT, then those of sessions.
func (c *claims) appendJSON(dst []byte) []byte {
	dst = appendString(append(dst, `{"sub":`...), c.subject)
	dst = append(dst, `,"scopes":[`...)
	for i, scope := range c.scopes {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, scope)
	}
	dst = appendString(append(dst, `],"type":`...), c.typ)
	dst = appendString(append(dst, `,"jti":`...), c.id)
	dst = strconv.AppendInt(append(dst, `,"iat":`...), int64(c.issuedAt), 10)
	dst = strconv.AppendInt(append(dst, `,"exp":`...), int64(c.expiry), 10)
	dst = appendString(append(dst, `,"iss":`...), c.issuer)
	dst = appendString(append(dst, `,"sid":`...), c.session)
	if c.typ == refreshToken {
		dst = strconv.AppendInt(append(dst, `,"gen":`...), c.gen, 10)
	}
	return append(dst, '}')
}

// appendString appends s as a JSON string.
func appendString(dst []byte, s string) []byte {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, _ := json.Marshal(s) // never fails for a string
			return append(dst, quoted...)
		}
	}
	return append(append(append(dst, '"'), s...), '"')
}

// newUUID returns a random UUID, version 4 (RFC 9562 section 5.4).
func newUUID() string {
	b := randomBytes(16)
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	text := []byte("00000000-0000-0000-0000-000000000000")
	hex.Encode(text, b[:4])
	hex.Encode(text[9:], b[4:6])
	hex.Encode(text[14:], b[6:8])
	hex.Encode(text[19:], b[8:10])
	hex.Encode(text[24:], b[10:])
	return string(text)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}
