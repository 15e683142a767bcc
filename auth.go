package main

import (
	"cmp"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"

	"jwt-auth-api/internal/admission"
	"jwt-auth-api/internal/email"
	"jwt-auth-api/internal/phc"
	"jwt-auth-api/internal/respond"
	"jwt-auth-api/internal/throttle"
)

const saltLen, hashLen = 16, 32 // bytes, of new hashes (RFC 9106 section 4)

// derive computes a hash of length bytes with the parameters and the salt of h.
func derive(password string, h phc.Hash, length int) []byte {
	return argon2.IDKey([]byte(password), h.Salt, h.Time, h.Memory, h.Threads, uint32(length))
}

var errMismatch = errors.New("wrong password")

// passwords hashes and verifies passwords. Each hash takes the memory of its parameters and as many
// cores as it has lanes, so requests acquire a slot of the queue first.
type passwords struct {
	*admission.Queue
	params phc.Params
	decoy  secret // a hash with params that no password matches
}

// newPasswords returns passwords that run up to slots hashes at once.
func newPasswords(params phc.Params, slots int) *passwords {
	decoy := phc.Hash{Params: params, Salt: randomBytes(saltLen), Sum: randomBytes(hashLen)}
	return &passwords{admission.New(slots), params, newSecret(decoy.String())}
}

// hash returns the encoded hash of password with a new salt.
func (p *passwords) hash(password string) secret {
	h := phc.Hash{Params: p.params, Salt: randomBytes(saltLen)}
	h.Sum = derive(password, h, hashLen)
	return newSecret(h.String())
}

// verify returns nil if password matches encoded, errMismatch if it does not, or another error if
// encoded is malformed.
func (p *passwords) verify(password string, encoded secret) error {
	h, err := phc.Parse(encoded.reveal())
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(derive(password, h, len(h.Sum)), h.Sum) != 1 {
		return errMismatch
	}
	return nil
}

// needsRehash reports whether encoded differs in its parameters from a new hash.
func (p *passwords) needsRehash(encoded secret) bool {
	h, err := phc.Parse(encoded.reveal())
	return err != nil || h.Params != p.params || len(h.Salt) != saltLen || len(h.Sum) != hashLen
}

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
	AccessToken  string  `json:"access_token"`
	RefreshToken string  `json:"refresh_token"`
	TokenType    string  `json:"token_type"`
	ExpiresIn    int64   `json:"expires_in"`      // lifetime of the access token, in seconds
	Scope        *string `json:"scope,omitempty"` // nil if the client asked for these, or for none; may be ""
}

// issuePair returns a token pair for the current generation of a session. The pair names its scopes
// if the client asked for others (RFC 6749 section 5.1).
func (t *tokens) issuePair(u user, s session, asked string) tokenPair {
	now := t.now().Unix()
	expiry := min(now+int64(t.accessTTL/time.Second), s.Expires)
	pair := tokenPair{
		AccessToken:  t.issue(u, s, accessToken, expiry),
		RefreshToken: t.issue(u, s, refreshToken, s.Expires),
		TokenType:    "bearer",
		ExpiresIn:    expiry - now,
	}
	scopes := slices.Sorted(strings.FieldsSeq(asked))
	if len(scopes) > 0 && !slices.Equal(slices.Compact(scopes), slices.Sorted(slices.Values(u.Scopes))) {
		pair.Scope = new(strings.Join(u.Scopes, " "))
	}
	return pair
}

// issue returns a signed token of type typ that expires at a time in seconds since the epoch.
func (t *tokens) issue(u user, s session, typ string, expiry int64) string {
	c := claims{
		subject:  u.ID,
		scopes:   u.Scopes,
		typ:      typ,
		id:       newUUID(),
		issuedAt: float64(t.now().Unix()),
		expiry:   float64(expiry),
		issuer:   t.issuer,
		session:  s.ID,
		gen:      s.Gen,
	}
	var buf [512]byte
	return t.keys[0].sign(c.appendJSON(buf[:0]))
}

// verify returns the claims of a token that is valid now. It returns errTokenType if the token is
// valid except for its type, which is not typ.
func (t *tokens) verify(token, typ string) (claims, error) {
	payload, err := "", errSignature
	for _, key := range t.keys {
		if payload, err = key.verify(token); !errors.Is(err, errSignature) {
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

// auth identifies callers, by password at login and by token afterwards.
type auth struct {
	users     *users
	passwords *passwords
	tokens    *tokens
	throttle  *throttle.Throttle // nil if off
}

const (
	errBadCredentials    apiError = "incorrect email or password"
	errIncorrectPassword apiError = "incorrect password"
	errDisabled          apiError = "account disabled"
	errNotAuthenticated  apiError = "Not authenticated"
	errInvalidToken      apiError = "Could not validate credentials"
	errInvalidRefresh    apiError = "invalid refresh token"
	errSessionNotFound   apiError = "session not found"
)

// missingScope returns the error of a caller without a scope.
func missingScope(scope string) apiError { return apiError("Missing required scope: " + scope) }

// register stores a new user with a password, and begins their first session. It checks the
// email first, so that a taken one costs no hash.
func (a *auth) register(ctx context.Context, u user, password, userAgent string) (session, error) {
	owner, err := a.users.byEmail(ctx, u.Email)
	if err == nil { // unless deleted at another replica
		_, err = a.users.refetch(ctx, owner.ID, "")
	}
	if err != errUnknownUser {
		return session{}, cmp.Or[error](err, errEmailTaken)
	}
	hash, err := a.hashPassword(ctx, password)
	if err != nil {
		return session{}, err
	}
	s := newSession(newUUID(), userAgent, a.tokens.now(), a.tokens.refreshTTL)
	u.hash, u.Sessions = hash, []session{s}
	return s, a.users.add(ctx, u)
}

// hashPassword returns the hash of a password. It returns admission.ErrBusy if too many hashes are
// queued.
func (a *auth) hashPassword(ctx context.Context, password string) (secret, error) {
	release, err := a.passwords.Acquire(ctx)
	if err != nil {
		return secret{}, err
	}
	defer release()
	return a.passwords.hash(password), nil
}

// login begins a session of the user with this email and password. It returns the errors of
// checkPassword, or errDisabled.
func (a *auth) login(ctx context.Context, client netip.Addr, address, password, agent string) (user, session, error) {
	s := newSession(newUUID(), agent, a.tokens.now(), a.tokens.refreshTTL)
	u, err := a.checkPassword(ctx, client, "", email.Key(address), password, password, func(u *user) error {
		if u.Disabled {
			return errDisabled
		}
		u.beginSession(s)
		return nil
	})
	return u, s, err
}

// changePassword sets the password of a caller who knows the current one. It ends all sessions but
// the caller's. It returns the errors of checkPassword, with errIncorrectPassword for
// errBadCredentials.
func (a *auth) changePassword(ctx context.Context, client netip.Addr, id identity, current, next string) error {
	account := email.Key(id.user.Email)
	_, err := a.checkPassword(ctx, client, id.user.ID, account, current, next, func(u *user) error {
		now := a.tokens.now().Unix()
		if !u.accepts(id.claims, now) {
			return errInvalidToken
		}
		u.endSessions(now, func(s session) bool { return s.ID != id.claims.session })
		u.Since = now
		return nil
	})
	if errors.Is(err, errBadCredentials) {
		return fmt.Errorf("%w: %w", errIncorrectPassword, err)
	}
	return err
}

// checkPassword verifies the password of the user with an id or, if that is empty, with the email
// key account. Then it calls modify with the record, and stores the record with the hash of next,
// which may be the same password. It returns errBadCredentials if there is no such user or the
// password is wrong, a *throttle.Error if the client must wait, and admission.ErrBusy if too many
// hashes are queued.
//
// The throttle is checked before the wait for a slot, and again after it, because earlier requests
// may have failed meanwhile. So a burst exceeds a limit by fewer guesses than hashes run at once.
func (a *auth) checkPassword(ctx context.Context, client netip.Addr, id, account, password, next string,
	modify func(*user) error) (user, error) {
	if err := a.throttle.Check(account, client); err != nil {
		return user{}, err
	}
	release, err := a.passwords.Acquire(ctx)
	if err != nil {
		return user{}, err
	}
	defer release()
	if err := a.throttle.Check(account, client); err != nil {
		return user{}, err
	}
	u, err := user{}, errHashChanged
	for err == errHashChanged || err == errUnknownUser { // changed or deleted meanwhile
		u, err = a.replacePassword(ctx, id, account, password, next, modify)
	}
	if errors.Is(err, errBadCredentials) {
		a.throttle.Failed(account, client)
	} else if err == nil {
		a.throttle.Succeeded(account, client)
	}
	return u, err
}

var errHashChanged = errors.New("the password has changed")

// replacePassword is checkPassword without the throttle. The caller has acquired a slot. An unknown
// email takes the same time as a wrong password, since the password is then compared with the
// decoy. A hash with old parameters is replaced, because only a login reveals the password.
func (a *auth) replacePassword(ctx context.Context, id, account, password, next string, modify func(*user) error) (
	user, error) {
	u, err := a.users.find(ctx, id, account)
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
		latest, fetchErr := a.users.refetch(ctx, u.ID, "") // Another replica may have changed the password.
		if fetchErr != nil && !errors.Is(fetchErr, errUnknownUser) {
			return user{}, fetchErr
		}
		if latest.hash.reveal() != u.hash.reveal() {
			return user{}, errHashChanged
		}
		return user{}, fmt.Errorf("%w: %w", errBadCredentials, err)
	case err != nil:
		return user{}, err
	}
	hash := u.hash
	if next != password || a.passwords.needsRehash(hash) {
		hash = a.passwords.hash(next)
	}
	return a.users.update(ctx, u.ID, func(latest *user) error {
		switch now := latest.hash.reveal(); {
		case now != u.hash.reveal() && now == hash.reveal():
			return errUnchanged // An earlier call has made the change.
		case now != u.hash.reveal():
			return errHashChanged
		}
		latest.hash = hash
		return modify(latest)
	})
}

// refresh exchanges a refresh token and returns the session with its current generation. It returns
// errInvalidRefresh, errTokenType or errUnknownUser. The verdict is for the log.
func (a *auth) refresh(ctx context.Context, token, userAgent string) (u user, s session, v verdict, err error) {
	c, err := a.tokens.verify(token, refreshToken)
	if errors.Is(err, errTokenType) {
		return u, s, v, err
	}
	if err != nil {
		return u, s, v, fmt.Errorf("%w: %w", errInvalidRefresh, err)
	}
	fresh := newSession(c.id, userAgent, a.tokens.now(), a.tokens.refreshTTL)
	now := fresh.Created
	u, err = a.users.update(ctx, c.subject, func(u *user) error {
		s, v = session{}, rotate // A call before a conflict may have set them.
		i := u.sessionIndex(c.sessionID(), now)
		if i < 0 && c.session == "" && c.id != "" && u.accepts(c, now) { // a token of the original
			fresh.Expires, fresh.Adopted = int64(c.expiry), true
			u.beginSession(fresh)
			i = len(u.Sessions) - 1
		}
		if i < 0 {
			return fmt.Errorf("%w: the session has ended", errInvalidRefresh)
		}
		s = u.Sessions[i]
		v = s.judge(c.gen, now)
		var written error
		switch v {
		case rotate:
			s.Gen, s.Rotated = c.gen+1, now
			// An adopted session must not end before the original's token, which would begin it again.
			if end := now + int64(a.tokens.refreshTTL/time.Second); !s.Adopted || end > s.Expires {
				s.Expires = end
			}
			if c.session != "" {
				written = errNoWait // judge makes up for a lost rotation.
			}
		case retry:
			return errUnchanged
		case forgive:
			s.Forgiven = now
		case reuse:
			u.endSessions(now, func(other session) bool { return other.ID == s.ID })
			return nil
		}
		u.Sessions = slices.Clone(u.Sessions)
		u.Sessions[i] = s
		return written
	})
	if err == nil && v == reuse {
		return u, s, v, fmt.Errorf("%w: refresh token reused", errInvalidRefresh)
	}
	return u, s, v, err
}

// logout ends sessions of a user: the session own (local), the others, or all (global). It also
// invalidates tokens without a session, unless it ends only own.
func (a *auth) logout(ctx context.Context, userID, own, which string) error {
	now := a.tokens.now().Unix()
	_, err := a.users.update(ctx, userID, func(u *user) error {
		if which != "local" || own == "" {
			u.Since = now
		}
		u.endSessions(now, func(s session) bool { return which == "global" || (s.ID == own) == (which == "local") })
		return nil
	})
	return err
}

// endSession ends a session of a user. It returns errSessionNotFound if none has the id.
func (a *auth) endSession(ctx context.Context, userID, sessionID string) error {
	now := a.tokens.now().Unix()
	_, err := a.users.update(ctx, userID, func(u *user) error {
		if u.sessionIndex(sessionID, now) < 0 {
			return errSessionNotFound
		}
		u.endSessions(now, func(s session) bool { return s.ID == sessionID })
		return nil
	})
	return err
}

// revoke ends the session of a token of either type (RFC 7009). It returns the id of the user, or
// "" if the token is invalid.
func (a *auth) revoke(ctx context.Context, token string) (userID string, err error) {
	c, err := a.tokens.verify(token, refreshToken)
	if err != nil && !(errors.Is(err, errTokenType) && c.typ == accessToken) {
		return "", nil
	}
	now := a.tokens.now().Unix()
	_, err = a.users.update(ctx, c.subject, func(u *user) error {
		if userID = ""; !u.accepts(c, now) {
			return errUnchanged
		}
		if userID = u.ID; c.session == "" {
			u.Since = now
		}
		u.endSessions(now, func(s session) bool { return s.ID == c.sessionID() })
		return nil
	})
	if errors.Is(err, errUnknownUser) {
		err = nil
	}
	return userID, err
}

// An identity is the caller of a request.
type identity struct {
	user   user
	claims claims
}

type identityKey struct{} // context key of the identity

// caller returns the identity that requireUser or requireScope put into the context of a request.
func caller(ctx context.Context) identity {
	return ctx.Value(identityKey{}).(identity)
}

// requireUser wraps next so that it requires a valid access token.
func (a *auth) requireUser(next respond.HandlerFunc) respond.HandlerFunc {
	return a.requireScope("", next)
}

// requireScope wraps next so that it requires a valid access token with a scope, or any valid
// access token if scope is empty. A 401 means that the caller is unknown, a 403 that the caller is
// known and lacks the scope. Both carry a challenge (RFC 6750 section 3).
func (a *auth) requireScope(scope string, next respond.HandlerFunc) respond.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		id, err := a.identify(r.Context(), r.Header)
		switch {
		case err != nil:
		case scope != "" && !id.hasScope(scope):
			w.Header().Set("WWW-Authenticate", challenge(scope, "insufficient_scope"))
			return fmt.Errorf("user %s: %w", id.user.ID, missingScope(scope))
		default:
			err = next(w, r.WithContext(context.WithValue(r.Context(), identityKey{}, id)))
		}
		if errors.Is(err, errUnknownUser) {
			err = fmt.Errorf("%w: %w", errInvalidToken, err)
		}
		if errors.Is(err, errInvalidToken) {
			w.Header().Set("WWW-Authenticate", challenge(scope, "invalid_token"))
		}
		return err
	}
}

// challenge returns a WWW-Authenticate header with an error code.
func challenge(scope, code string) string {
	if scope != "" {
		scope = fmt.Sprintf("scope=%q, ", scope)
	}
	return fmt.Sprintf("Bearer %serror=%q", scope, code)
}

// hasScope reports whether the token has a scope and the stored user still has it.
func (id identity) hasScope(scope string) bool {
	return slices.Contains(id.claims.scopes, scope) && slices.Contains(id.user.Scopes, scope)
}

// identify returns the bearer of the access token in a request's header. It returns
// errNotAuthenticated if there is no token, and errInvalidToken or errUnknownUser if it is invalid.
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
	now := a.tokens.now().Unix()
	if err == nil && !u.accepts(c, now) { // unless another replica knows more
		u, err = a.users.refetch(ctx, c.subject, "")
	}
	if err == nil && !u.accepts(c, now) {
		err = fmt.Errorf("%w: the session has ended", errInvalidToken)
	}
	return identity{u, c}, err
}

// bearerToken returns the token of the Authorization header (RFC 6750 section 2.1), and whether
// there is one with the scheme Bearer. A proxy may read another of two headers, so the token of two
// is empty and thus invalid.
func bearerToken(h http.Header) (token string, ok bool) {
	scheme, token, _ := strings.Cut(h.Get("Authorization"), " ")
	if len(h["Authorization"]) > 1 {
		token = ""
	}
	return strings.TrimLeft(token, " "), strings.EqualFold(scheme, "Bearer")
}
