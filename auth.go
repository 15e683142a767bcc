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
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"

	"jwt-auth-api/internal/email"
	"jwt-auth-api/internal/throttle"
)

// A secret is a string that is never printed: every verb of fmt, log/slog and encoding/json write
// ******** instead. It holds a pointer because fmt prints unexported fields without calling their
// methods.
type secret struct {
	value *string
}

const redacted = "********"

func newSecret(value string) secret { return secret{&value} }

// reveal returns the string.
func (s secret) reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

func (s secret) Format(f fmt.State, _ rune)   { io.WriteString(f, redacted) }
func (s secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (s secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// argon2Params are the cost parameters of a hash (RFC 9106 section 3.1).
type argon2Params struct {
	memory  uint32 // m, in KiB
	time    uint32 // t, in passes
	threads uint8  // p, in lanes
}

func (p argon2Params) String() string {
	return fmt.Sprintf("m=%d,t=%d,p=%d", p.memory, p.time, p.threads)
}

// Bounds of what is hashed. A stored hash must not choose its cost freely.
const (
	maxMemory  = 256 << 10 // KiB
	maxTime    = 10        // passes
	maxThreads = 16        // lanes

	minSalt, maxSalt = 8, 64  // bytes
	minHash, maxHash = 16, 64 // bytes

	saltLen, hashLen = 16, 32 // bytes, of new hashes (RFC 9106 section 4)

	maxPHC = 512 // bytes; new hashes have 97
)

// parseArgon2Params parses parameters as the PHC string format writes them: m=65536,t=3,p=4. It
// accepts no other spelling.
func parseArgon2Params(text string) (argon2Params, error) {
	var m, t, p uint32
	fmt.Sscanf(text, "m=%d,t=%d,p=%d", &m, &t, &p) // The comparison below finds errors.
	params := argon2Params{memory: m, time: t, threads: uint8(min(p, 255))}
	switch {
	case params.String() != text:
		return argon2Params{}, errors.New("must look like m=65536,t=3,p=4")
	case p < 1 || p > maxThreads:
		return argon2Params{}, fmt.Errorf("p must be 1 to %d", maxThreads)
	case t < 1 || t > maxTime:
		return argon2Params{}, fmt.Errorf("t must be 1 to %d", maxTime)
	case m < 8*p || m > maxMemory: // RFC 9106 section 3.1: m is at least 8p.
		return argon2Params{}, fmt.Errorf("m must be %d to %d", 8*p, maxMemory)
	}
	return params, nil
}

// A phc is a parsed hash in the PHC string format: $argon2id$v=19$m=65536,t=3,p=4$salt$hash.
type phc struct {
	params argon2Params
	salt   []byte
	hash   []byte
}

const phcPrefix = "$argon2id$v=19$" // version 1.3 of argon2 (RFC 9106 section 3.1)

func (h phc) String() string {
	b64 := base64.RawStdEncoding
	return phcPrefix + h.params.String() + "$" + b64.EncodeToString(h.salt) + "$" + b64.EncodeToString(h.hash)
}

// parsePHC parses an encoded hash and bounds its cost before any memory is allocated: package
// argon2 panics if t or p is 0, takes p modulo 256, raises m silently, and every password matches
// an empty hash. An accepted string re-encodes to itself.
func parsePHC(encoded string) (phc, error) {
	rest, ok := strings.CutPrefix(encoded, phcPrefix)
	fields := strings.Split(rest, "$")
	if !ok || len(encoded) > maxPHC || len(fields) != 3 {
		return phc{}, errors.New("password hash: must be argon2id, version 19")
	}
	params, err := parseArgon2Params(fields[0])
	if err != nil {
		return phc{}, fmt.Errorf("password hash: %w", err)
	}
	h := phc{params: params}
	h.salt, _ = base64.RawStdEncoding.DecodeString(fields[1]) // The last case below finds errors.
	h.hash, _ = base64.RawStdEncoding.DecodeString(fields[2])
	switch {
	case len(h.salt) < minSalt || len(h.salt) > maxSalt:
		return phc{}, fmt.Errorf("password hash: salt must be %d to %d bytes", minSalt, maxSalt)
	case len(h.hash) < minHash || len(h.hash) > maxHash:
		return phc{}, fmt.Errorf("password hash: hash must be %d to %d bytes", minHash, maxHash)
	case h.String() != encoded: // line breaks, which package base64 skips, and stray bits
		return phc{}, errors.New("password hash: must be canonical base64")
	}
	return h, nil
}

// derive computes the hash of password with the parameters and the salt of h. The length is in
// bytes.
func (h phc) derive(password string, length int) []byte {
	return argon2.IDKey([]byte(password), h.salt, h.params.time, h.params.memory, h.params.threads, uint32(length))
}

const (
	errMismatch apiError = "wrong password"
	errBusy     apiError = "busy, try again"
)

const (
	maxHashWait  = 5 * time.Second
	maxHashQueue = 64 // requests per running hash
)

// passwords hashes and verifies passwords. It bounds how many hashes run at once, since each takes
// the memory of its parameters and as many cores as it has lanes. Callers of hash and verify call
// acquire first.
type passwords struct {
	params  argon2Params
	decoy   secret        // a hash with params that no password matches
	slots   chan struct{} // holds an element for each running hash
	queued  atomic.Int64  // requests waiting for a slot
	maxWait time.Duration
}

// newPasswords returns passwords that run up to slots hashes at once.
func newPasswords(params argon2Params, slots int) *passwords {
	decoy := phc{params, randomBytes(saltLen), randomBytes(hashLen)}
	return &passwords{
		params:  params,
		decoy:   newSecret(decoy.String()),
		slots:   make(chan struct{}, slots),
		maxWait: maxHashWait,
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}

// acquire waits for a slot to hash. The caller calls release after hashing. It returns errBusy if
// the queue is full, the wait is too long, or ctx is done.
func (p *passwords) acquire(ctx context.Context) (release func(), err error) {
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
	case <-ctx.Done():
	}
	return nil, errBusy
}

// hash returns the encoded hash of password with a new salt.
func (p *passwords) hash(password string) secret {
	h := phc{params: p.params, salt: randomBytes(saltLen)}
	h.hash = h.derive(password, hashLen)
	return newSecret(h.String())
}

// verify returns nil if password matches encoded, errMismatch if it does not, or another error if
// encoded is malformed.
func (p *passwords) verify(password string, encoded secret) error {
	h, err := parsePHC(encoded.reveal())
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(h.derive(password, len(h.hash)), h.hash) != 1 {
		return errMismatch
	}
	return nil
}

// needsRehash reports whether encoded differs in its parameters from a new hash.
func (p *passwords) needsRehash(encoded secret) bool {
	h, err := parsePHC(encoded.reveal())
	return err != nil || h.params != p.params || len(h.salt) != saltLen || len(h.hash) != hashLen
}

// Types of tokens, the values of the claim type.
const (
	accessToken  = "access"
	refreshToken = "refresh"
)

// tokens issues and verifies tokens. It is safe for concurrent use.
type tokens struct {
	keys       []*hmacKey // all verify, the first signs
	issuer     string
	accessTTL  time.Duration
	refreshTTL time.Duration
	now        func() time.Time
}

// A tokenPair is the response to a login (RFC 6749 section 5.1).
type tokenPair struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int64  `json:"expires_in"` // lifetime of the access token, in seconds
	Scope        string `json:"scope,omitempty"`
}

func (t *tokens) issuePair(u user) tokenPair {
	return tokenPair{
		AccessToken:  t.issue(u, accessToken, t.accessTTL),
		RefreshToken: t.issue(u, refreshToken, t.refreshTTL),
		TokenType:    "bearer",
		ExpiresIn:    int64(t.accessTTL / time.Second),
	}
}

// issue returns a signed token of type typ.
func (t *tokens) issue(u user, typ string, ttl time.Duration) string {
	now := t.now().Unix()
	c := claims{
		subject:  u.id,
		scopes:   u.scopes,
		typ:      typ,
		id:       newUUID(),
		issuedAt: float64(now),
		expiry:   float64(now + int64(ttl/time.Second)),
		issuer:   t.issuer,
	}
	var buf [512]byte
	return t.keys[0].sign(c.appendJSON(buf[:0]))
}

// verify returns the claims of a token that is valid now. It returns errTokenType if the only
// fault of the token is that its type is not typ.
func (t *tokens) verify(token, typ string) (claims, error) {
	payload, err := "", errSignature
	for _, key := range t.keys {
		if payload, err = key.open(token); !errors.Is(err, errSignature) {
			break
		}
	}
	if err != nil {
		return claims{}, err
	}
	c, err := parseClaims(payload)
	if err != nil {
		return claims{}, err
	}
	return c, c.validate(t.now(), t.issuer, typ)
}

// newUUID returns a random UUID, version 4 (RFC 9562 section 5.4).
func newUUID() string {
	b := randomBytes(16)
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	s := hex.EncodeToString(b)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// auth decides who a caller is: by password at login, by token afterwards.
type auth struct {
	users     *users
	passwords *passwords
	tokens    *tokens
	throttle  *throttle.Throttle // nil if off
}

const (
	errBadCredentials   apiError = "incorrect email or password"
	errNotAuthenticated apiError = "Not authenticated"
	errInvalidToken     apiError = "Could not validate credentials"
	errInvalidRefresh   apiError = "invalid refresh token"
)

// A scopeError is the scope that a caller lacks.
type scopeError string

func (e scopeError) Error() string { return "Missing required scope: " + string(e) }

// checkPassword returns the user with this email and password. It returns errBadCredentials if
// there is none, a *throttle.Error if the client must wait, and errBusy if too many hashes are
// queued.
//
// The throttle is checked before the wait for a slot, and again after it, because earlier requests
// may have failed meanwhile. So a burst gets no more guesses than hashes run at once.
func (a *auth) checkPassword(ctx context.Context, client netip.Addr, address, password string) (user, error) {
	account := email.Key(address)
	if err := a.throttle.Check(account, client); err != nil {
		return user{}, err
	}
	release, err := a.passwords.acquire(ctx)
	if err != nil {
		return user{}, err
	}
	defer release()
	if err := a.throttle.Check(account, client); err != nil {
		return user{}, err
	}
	u, err := a.verifyPassword(ctx, address, password)
	if errors.Is(err, errBadCredentials) {
		a.throttle.Failed(account, client)
	} else if err == nil {
		a.throttle.Succeeded(account, client)
	}
	return u, err
}

// verifyPassword is checkPassword without the throttle. The caller has acquired a slot. An unknown
// email takes the same time as a wrong password, since the password is then compared with the
// decoy. A hash whose parameters differ from today's is replaced: only now is the password known.
func (a *auth) verifyPassword(ctx context.Context, address, password string) (user, error) {
	u, err := a.users.byEmail(ctx, address)
	unknown := errors.Is(err, errUnknownUser)
	if unknown {
		u.hash = a.passwords.decoy
	} else if err != nil {
		return user{}, err
	}
	err = a.passwords.verify(password, u.hash)
	switch {
	case unknown:
		return user{}, fmt.Errorf("%w: %w", errBadCredentials, errUnknownUser)
	case errors.Is(err, errMismatch):
		return user{}, fmt.Errorf("%w: %w", errBadCredentials, err)
	case err != nil || !a.passwords.needsRehash(u.hash):
		return u, err
	}
	hash := a.passwords.hash(password)
	return u, a.users.update(ctx, u.id, func(latest *user) error {
		if latest.hash == u.hash { // otherwise the password has changed meanwhile
			latest.hash = hash
		}
		return nil
	})
}

// checkRefresh returns the user of a valid refresh token. It returns errInvalidRefresh, errTokenType
// or errUnknownUser.
func (a *auth) checkRefresh(ctx context.Context, token string) (user, error) {
	c, err := a.tokens.verify(token, refreshToken)
	if err != nil && !errors.Is(err, errTokenType) {
		err = fmt.Errorf("%w: %w", errInvalidRefresh, err)
	}
	if err != nil {
		return user{}, err
	}
	return a.users.byID(ctx, c.subject)
}

// An identity is the caller of a request.
type identity struct {
	user   user
	claims claims
}

type identityKey struct{} // of the identity in a request's context

// caller returns the identity that requireUser or requireScope put into the context of a request.
func caller(ctx context.Context) identity {
	return ctx.Value(identityKey{}).(identity)
}

// requireUser wraps next so that it requires a valid access token.
func (a *auth) requireUser(next handlerFunc) handlerFunc {
	return a.requireScope("", next)
}

// requireScope wraps next so that it requires a valid access token with a scope, or any valid access
// token if scope is empty. A 401 means that the caller is unknown, a 403 that the caller is known
// and lacks the scope. Both carry a challenge (RFC 6750 section 3).
func (a *auth) requireScope(scope string, next handlerFunc) handlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		id, err := a.identify(r.Context(), r.Header)
		code := ""
		if errors.Is(err, errInvalidToken) {
			code = "invalid_token"
		} else if err == nil && scope != "" && !id.has(scope) {
			code, err = "insufficient_scope", fmt.Errorf("user %s: %w", id.user.id, scopeError(scope))
		}
		if code != "" {
			w.Header().Set("WWW-Authenticate", challenge(scope, code))
		}
		if err != nil {
			return err
		}
		return next(w, r.WithContext(context.WithValue(r.Context(), identityKey{}, id)))
	}
}

// challenge returns a WWW-Authenticate header with an error code.
func challenge(scope, code string) string {
	if scope == "" {
		return fmt.Sprintf("Bearer error=%q", code)
	}
	return fmt.Sprintf("Bearer scope=%q, error=%q", scope, code)
}

// has reports whether the token has a scope and the stored user still has it.
func (id identity) has(scope string) bool {
	return slices.Contains(id.claims.scopes, scope) && slices.Contains(id.user.scopes, scope)
}

// identify returns the bearer of the access token in a request's header. It returns
// errNotAuthenticated if there is no token, and errInvalidToken if it is invalid.
func (a *auth) identify(ctx context.Context, h http.Header) (identity, error) {
	token, ok := bearerToken(h)
	if !ok {
		return identity{}, errNotAuthenticated
	}
	c, err := a.tokens.verify(token, accessToken)
	if err != nil {
		return identity{}, fmt.Errorf("%w: %w", errInvalidToken, err)
	}
	u, err := a.users.byID(ctx, c.subject)
	if errors.Is(err, errUnknownUser) {
		err = fmt.Errorf("%w: %w", errInvalidToken, err)
	}
	return identity{u, c}, err
}

// bearerToken returns the token of the Authorization header (RFC 6750 section 2.1), and whether
// there is one with the scheme Bearer. A proxy may read another of two headers, so the token of two
// is empty and thus invalid.
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
