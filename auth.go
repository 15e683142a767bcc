package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"
)

// A secret is a string that nobody prints: in every verb of fmt, in logs and in JSON it is ********. It holds a
// pointer, so that fmt, which calls no method of an unexported field, finds nothing to print there either.
type secret struct {
	value *string
}

const redacted = "********"

func newSecret(value string) secret { return secret{&value} }

// reveal returns the string itself.
func (s secret) reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

func (s secret) Format(f fmt.State, _ rune)   { io.WriteString(f, redacted) }
func (s secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (s secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// argon2Params are what a hash costs (RFC 9106 3.1).
type argon2Params struct {
	memory  uint32 // m, in KiB
	time    uint32 // t, in passes over the memory
	threads uint8  // p, in lanes
}

func (p argon2Params) String() string {
	return fmt.Sprintf("m=%d,t=%d,p=%d", p.memory, p.time, p.threads)
}

// Bounds of what is hashed at all. A hash string comes from a store, and could ask for memory and time without end.
const (
	maxMemory  = 256 << 10 // in KiB
	maxTime    = 10
	maxThreads = 16

	minSalt, maxSalt = 8, 64  // in bytes
	minHash, maxHash = 16, 64 // in bytes

	saltLen, hashLen = 16, 32 // of the hashes that we make (RFC 9106 4)

	maxPHC = 512 // in bytes; ours have 97
)

// parseArgon2Params reads parameters as the PHC string format writes them, m=65536,t=3,p=4, and in no other way.
func parseArgon2Params(text string) (argon2Params, error) {
	var n [3]uint64
	fields := strings.Split(text, ",")
	if len(fields) != len(n) {
		return argon2Params{}, errors.New("want m=65536,t=3,p=4 or the like")
	}
	for i, name := range []string{"m", "t", "p"} {
		digits, ok := strings.CutPrefix(fields[i], name+"=")
		var err error
		// ParseUint takes no sign, no space and, in base 10, no underscore; String below finds leading zeros.
		if n[i], err = strconv.ParseUint(digits, 10, 32); !ok || err != nil {
			return argon2Params{}, fmt.Errorf("%s: want a decimal number", name)
		}
	}
	m, t, p := n[0], n[1], n[2]
	switch {
	case p < 1 || p > maxThreads:
		return argon2Params{}, fmt.Errorf("p: want 1 to %d", maxThreads)
	case t < 1 || t > maxTime:
		return argon2Params{}, fmt.Errorf("t: want 1 to %d", maxTime)
	case m < 8*p || m > maxMemory: // RFC 9106 3.1: m is at least 8p
		return argon2Params{}, fmt.Errorf("m: want %d to %d", 8*p, maxMemory)
	}
	params := argon2Params{memory: uint32(m), time: uint32(t), threads: uint8(p)}
	if params.String() != text {
		return argon2Params{}, errors.New("leading zero")
	}
	return params, nil
}

// A phc is a parsed hash in the PHC string format, $argon2id$v=19$m=65536,t=3,p=4$salt$hash.
type phc struct {
	params argon2Params
	salt   []byte
	hash   []byte
}

const phcPrefix = "$argon2id$v=19$" // 19 is version 1.3 of argon2 (RFC 9106 3.1), the only one that is computed here.

func (h phc) String() string {
	b64 := base64.RawStdEncoding
	return phcPrefix + h.params.String() + "$" + b64.EncodeToString(h.salt) + "$" + b64.EncodeToString(h.hash)
}

// parsePHC reads a hash string, exactly, and bounds what it asks for before any memory is taken: x/crypto's argon2
// panics on t=0 and p=0, takes p modulo 256, raises m silently, and any password matches an empty hash. What is
// accepted encodes back to the same string.
func parsePHC(encoded string) (phc, error) {
	rest, ok := strings.CutPrefix(encoded, phcPrefix)
	fields := strings.Split(rest, "$")
	if !ok || len(encoded) > maxPHC || len(fields) != 3 {
		return phc{}, errors.New("password hash: not an argon2id hash of version 19")
	}
	params, err := parseArgon2Params(fields[0])
	if err != nil {
		return phc{}, fmt.Errorf("password hash: %w", err)
	}
	h := phc{params: params}
	if h.salt, err = base64.RawStdEncoding.DecodeString(fields[1]); err != nil {
		return phc{}, errors.New("password hash: salt is not base64")
	}
	if h.hash, err = base64.RawStdEncoding.DecodeString(fields[2]); err != nil {
		return phc{}, errors.New("password hash: hash is not base64")
	}
	switch {
	case len(h.salt) < minSalt || len(h.salt) > maxSalt:
		return phc{}, fmt.Errorf("password hash: want a salt of %d to %d bytes", minSalt, maxSalt)
	case len(h.hash) < minHash || len(h.hash) > maxHash:
		return phc{}, fmt.Errorf("password hash: want a hash of %d to %d bytes", minHash, maxHash)
	case h.String() != encoded: // line breaks, which base64 skips, or stray bits
		return phc{}, errors.New("password hash: not in its one spelling")
	}
	return h, nil
}

var (
	errMismatch       = errors.New("wrong password")
	errUnknownAddress = errors.New("unknown address")
	errBusy           = errors.New("hashing is full")
)

const (
	// maxHashWait is how long a request waits for its turn to hash.
	maxHashWait = 5 * time.Second

	// maxHashQueue is how many requests wait at once for each hash that runs: at 14 hashes a second on two cores,
	// about as many get their turn in time.
	maxHashQueue = 64
)

// passwords makes and verifies password hashes. It bounds how many it computes at once, since each takes the memory of
// its parameters and as many cores as it has lanes; whoever wants one computed is admitted first.
type passwords struct {
	params  argon2Params
	decoy   secret        // a hash with params that no password has
	slots   chan struct{} // has one element for each hash that runs
	queued  atomic.Int64  // requests that wait for a slot
	maxWait time.Duration
}

func newPasswords(params argon2Params) *passwords {
	decoy := phc{params, randomBytes(saltLen), randomBytes(hashLen)}
	return &passwords{
		params:  params,
		decoy:   newSecret(decoy.String()),
		slots:   make(chan struct{}, hashesAtOnce(params)),
		maxWait: maxHashWait,
	}
}

// hashesAtOnce is how many hashes fill all cores.
func hashesAtOnce(params argon2Params) int {
	return max(1, runtime.GOMAXPROCS(0)/int(params.threads))
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // It never fails.
	return b
}

// admit waits for a turn to hash. The caller calls release when it has hashed. The error is errBusy if there are too
// many who wait or the wait is too long, or says why ctx ended.
func (p *passwords) admit(ctx context.Context) (release func(), err error) {
	release = func() { <-p.slots }
	select {
	case p.slots <- struct{}{}:
		return release, nil
	default:
	}
	defer p.queued.Add(-1)
	if p.queued.Add(1) > int64(maxHashQueue*cap(p.slots)) {
		return nil, errBusy
	}
	timeout := time.NewTimer(p.maxWait)
	defer timeout.Stop()
	select {
	case p.slots <- struct{}{}:
		return release, nil
	case <-timeout.C:
		return nil, errBusy
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// hash makes the hash of a password, with a new salt.
func (p *passwords) hash(password string) secret {
	h := phc{params: p.params, salt: randomBytes(saltLen)}
	h.hash = h.derive(password, hashLen)
	return newSecret(h.String())
}

// derive computes the hash of a password with the parameters and the salt of h.
func (h phc) derive(password string, length int) []byte {
	return argon2.IDKey([]byte(password), h.salt, h.params.time, h.params.memory, h.params.threads, uint32(length))
}

// verify returns nil if the password has this hash, errMismatch if it has not, and another error if that can't be told.
func (p *passwords) verify(password, encoded string) error {
	h, err := parsePHC(encoded)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(h.derive(password, len(h.hash)), h.hash) != 1 {
		return errMismatch
	}
	return nil
}

// outdated reports whether a hash, which verify has taken, was made in another way than hash makes one today.
func (p *passwords) outdated(encoded string) bool {
	h, err := parsePHC(encoded)
	return err != nil || h.params != p.params || len(h.salt) != saltLen || len(h.hash) != hashLen
}

// The types of token, as the claim type has them.
const (
	accessToken  = "access"
	refreshToken = "refresh"
)

// tokens issues and verifies tokens. It is safe for concurrent use.
type tokens struct {
	keys       []*hmacKey // all verify, the first alone signs
	issuer     string
	accessTTL  time.Duration
	refreshTTL time.Duration
	now        func() time.Time
}

// A tokenPair is what a login is answered with (RFC 6749 5.1).
type tokenPair struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int64  `json:"expires_in"` // life of the access token, in seconds
}

func (t *tokens) issuePair(u user) tokenPair {
	return tokenPair{
		AccessToken:  t.issue(u, accessToken, t.accessTTL),
		RefreshToken: t.issue(u, refreshToken, t.refreshTTL),
		TokenType:    "bearer",
		ExpiresIn:    int64(t.accessTTL / time.Second),
	}
}

// issue signs one token.
func (t *tokens) issue(u user, typ string, ttl time.Duration) string {
	now := t.now().Unix()
	var scopes [4]string
	c := claims{
		subject:  u.id,
		scopes:   u.scopes.appendTo(scopes[:0]),
		typ:      typ,
		id:       newUUID(),
		issuedAt: float64(now),
		expiry:   float64(now + int64(ttl/time.Second)),
		issuer:   t.issuer,
	}
	var buf [512]byte
	return t.keys[0].sign(c.appendJSON(buf[:0]))
}

// verify returns the claims of a token if it holds now and has the type.
func (t *tokens) verify(token, typ string) (claims, error) {
	payload, err := t.open(token)
	if err != nil {
		return claims{}, err
	}
	c, err := parseClaims(payload)
	if err != nil {
		return claims{}, err
	}
	if err := c.checkTime(t.now()); err != nil {
		return claims{}, err
	}
	if err := c.checkParties(t.issuer, typ); err != nil {
		return claims{}, err
	}
	return c, nil
}

// open returns the payload of a token that one of the keys signed.
func (t *tokens) open(token string) (payload string, err error) {
	for _, key := range t.keys {
		if payload, err = key.open(token); !errors.Is(err, errSignature) {
			break
		}
	}
	return payload, err
}

// newUUID returns a random UUID (RFC 9562 5.4, version 4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	var text [36]byte
	hex.Encode(text[:], b[:4])
	hex.Encode(text[9:], b[4:6])
	hex.Encode(text[14:], b[6:8])
	hex.Encode(text[19:], b[8:10])
	hex.Encode(text[24:], b[10:])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return string(text[:])
}

// checkPassword returns the user who has the address and the password, if the client may try. An unknown address takes
// the same time as a wrong password, by the same way: there the password is held against the decoy.
//
// The throttle is asked twice: before the wait for a turn to hash, and when it is the request's turn, since the requests
// before it may have failed meanwhile. So no more of those that come at once are tried than hashes run at once.
func (s *server) checkPassword(ctx context.Context, client netip.Addr, address, password string) (user, error) {
	key := addressKey(address)
	if err := s.throttle.check(key, client); err != nil {
		return user{}, err
	}
	release, err := s.passwords.admit(ctx)
	if err != nil {
		return user{}, err
	}
	defer release()
	if err := s.throttle.check(key, client); err != nil {
		return user{}, err
	}
	u, err := s.verifyPassword(address, password)
	if errors.Is(err, errMismatch) || errors.Is(err, errUnknownAddress) {
		s.throttle.failed(key, client)
	} else if err == nil {
		s.throttle.succeeded(key, client)
	}
	return u, err
}

// verifyPassword is checkPassword for who is admitted to hash. A hash that was made in another way than today's is made
// anew: there is no other time at which the password is known.
func (s *server) verifyPassword(address, password string) (user, error) {
	u, known := s.users.withAddress(address)
	hash := s.passwords.decoy
	if known {
		hash = u.hash
	}
	err := s.passwords.verify(password, hash.reveal())
	if !known {
		return user{}, errUnknownAddress
	}
	if err != nil {
		return user{}, err
	}
	if s.passwords.outdated(hash.reveal()) {
		hash = s.passwords.hash(password)
		s.users.update(u.id, func(u *user) { u.hash = hash }) // No user is ever removed, so that this one is there.
	}
	return u, nil
}

type userKey struct{} // of the current user in a request's context

// currentUser returns the user whom requireUser or requireScope found.
func currentUser(ctx context.Context) user {
	return ctx.Value(userKey{}).(user)
}

// requireUser lets through who bears an access token.
func (s *server) requireUser(next handlerFunc) handlerFunc {
	return s.requireScope("", next)
}

// requireScope lets through who bears an access token with the scope, or any access token if the scope is empty.
func (s *server) requireScope(scope string, next handlerFunc) handlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		u, err := s.checkBearer(r.Header, scope)
		if err != nil {
			return err
		}
		return next(w, r.WithContext(context.WithValue(r.Context(), userKey{}, u)))
	}
}

// checkBearer returns the user whose access token a request bears. 401 means that we don't know who asks, 403 that we
// do. A scope counts only if the token has it and the user still has it: who loses a scope loses it at once.
func (s *server) checkBearer(h http.Header, scope string) (user, error) {
	token, ok := bearerToken(h)
	if !ok {
		return user{}, errNotAuthenticated
	}
	c, err := s.tokens.verify(token, accessToken)
	if err != nil {
		return user{}, errBadToken.challenge(scope, "invalid_token").audit("token refused", err)
	}
	u, ok := s.users.withID(c.subject)
	if !ok {
		return user{}, errBadToken.challenge(scope, "invalid_token").audit("token refused", errUnknownUser)
	}
	if scope != "" && !(slices.Contains(c.scopes, scope) && u.scopes.has(scope)) {
		return user{}, errScope(scope, u)
	}
	return u, nil
}

// errScope is the answer to a user who lacks a scope.
func errScope(scope string, u user) error {
	missing := errors.New("Missing required scope: " + scope)
	e := errForbidden.challenge(scope, "insufficient_scope").audit("scope refused", missing, slog.String("user", u.id))
	e.detail = missing.Error()
	return e
}

// bearerToken returns the token of the Authorization header (RFC 6750 2.1), or false if there is none of this scheme. A
// header that is there twice could mean something else to a proxy before us: its token is empty, which never holds.
func bearerToken(h http.Header) (token string, ok bool) {
	values := h["Authorization"]
	if len(values) == 0 {
		return "", false
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if len(values) > 1 {
		token = ""
	}
	return strings.TrimLeft(token, " "), strings.EqualFold(scheme, "Bearer")
}
