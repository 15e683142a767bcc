package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"jwt-auth-api/internal/email"
)

// An apiError is an error whose text clients see.
type apiError string

func (e apiError) Error() string { return string(e) }

const (
	errEmailTaken  apiError = "email already registered"
	errUnknownUser apiError = "unknown user"
	errLastAdmin   apiError = "the last admin"
)

// A secret is a string that fmt, log/slog and encoding/json print as ********. It holds a pointer
// because fmt prints unexported fields without calling their methods.
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
func (s secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// A user is the record of one account. Its slices are never modified in place, so copies may share
// them. Times are in seconds since the epoch. Stores keep the exported fields and the hash.
type user struct {
	ID       string    `json:"id"`
	Email    string    `json:"email,omitempty"` // as email.Parse returns it
	Name     string    `json:"name,omitempty"`
	Scopes   []string  `json:"scopes"`
	Disabled bool      `json:"disabled,omitempty"`
	Deleted  bool      `json:"deleted,omitempty"`  // the record only keeps the place in the order of registration
	Since    int64     `json:"since,omitempty"`    // tokens without a session issued up to then are invalid; 0: none
	Sessions []session `json:"sessions,omitempty"` // in the order in which they began
	Version  int64     `json:"version"`            // of the record, from 1; 0: not stored yet
	hash     secret    // PHC string
	place    int64     // in the order of registration among those of other replicas; 0: the order of apply
}

// maxSessions bounds the sessions of a user.
const maxSessions = 20

// A session is the record of one login. It holds no token.
type session struct {
	ID        string `json:"id"`
	UserAgent string `json:"user_agent,omitempty"`
	Gen       int64  `json:"gen"` // generation of the latest refresh token
	Created   int64  `json:"created"`
	Rotated   int64  `json:"rotated"`            // when Gen last changed
	Forgiven  int64  `json:"forgiven,omitempty"` // when a late retry was last forgiven; 0: never
	Expires   int64  `json:"expires"`
	Adopted   bool   `json:"adopted,omitempty"` // began with a refresh token of the original, whose jti is the id
}

// maxUserAgent bounds the User-Agent that a session keeps, in code points.
const maxUserAgent = 200

// newSession returns a session that begins now and lasts for ttl.
func newSession(id, userAgent string, now time.Time, ttl time.Duration) session {
	agent := []rune(strings.ToValidUTF8(userAgent, "\uFFFD"))
	return session{
		ID:        id,
		UserAgent: string(agent[:min(len(agent), maxUserAgent)]),
		Created:   now.Unix(),
		Rotated:   now.Unix(),
		Expires:   now.Add(ttl).Unix(),
	}
}

// lastUsed returns the time of the last login or refresh.
func (s session) lastUsed() int64 { return max(s.Created, s.Rotated, s.Forgiven) }

// sessionIndex returns the index of the unexpired session with an id, or -1.
func (u *user) sessionIndex(id string, now int64) int {
	return slices.IndexFunc(u.Sessions, func(s session) bool { return s.ID == id && s.Expires > now })
}

// beginSession adds a session, unless it has begun. If there are too many, it ends the least
// recently used one.
func (u *user) beginSession(s session) {
	now := s.Created
	u.endSessions(now, func(session) bool { return false })
	if u.sessionIndex(s.ID, now) >= 0 {
		return
	}
	if len(u.Sessions) >= maxSessions {
		oldest := slices.MinFunc(u.Sessions, func(a, b session) int { return cmp.Compare(a.lastUsed(), b.lastUsed()) })
		u.endSessions(now, func(s session) bool { return s.ID == oldest.ID })
	}
	u.Sessions = append(u.Sessions, s)
}

// endSessions removes the sessions that match, and those that have expired. If a matching one began
// with a token of the original, since becomes now, so that the token does not begin it again.
func (u *user) endSessions(now int64, match func(session) bool) {
	u.Sessions = slices.DeleteFunc(slices.Clone(u.Sessions), func(s session) bool {
		ends := s.Expires > now && match(s)
		if ends && s.Adopted {
			u.Since = now
		}
		return ends || s.Expires <= now
	})
}

// accepts reports whether the record allows a valid token: its session exists or, if it is a token
// of the original, it was issued after since.
func (u *user) accepts(c claims, now int64) bool {
	if u.sessionIndex(c.sessionID(), now) >= 0 {
		return true
	}
	return c.session == "" && !u.Disabled && (u.Since == 0 || c.issuedAt > float64(u.Since))
}

// edit copies fields from another record. A new password or disabled ends all sessions.
func (u *user) edit(from user, fields []string, now int64) {
	for _, field := range fields {
		switch field {
		case "name":
			u.Name = from.Name
		case "scopes":
			u.Scopes = from.Scopes
		case "disabled":
			u.Disabled = from.Disabled
		case "password":
			u.hash = from.hash
		}
	}
	if u.Disabled || slices.Contains(fields, "password") {
		u.Since, u.Sessions = now, nil
	}
}

// isAdmin reports whether u counts as one of the admins.
func (u *user) isAdmin() bool {
	return !u.Deleted && !u.Disabled && slices.Contains(u.Scopes, "admin")
}

// Bounds of the retries of a refresh, in seconds.
const (
	retryWindow     = 60          // time for a retry after a rotation (two tabs, or a lost response)
	forgiveInterval = 6 * 60 * 60 // minimum time between late retries (a phone that slept after a lost response)
)

// A verdict is the outcome of using a refresh token.
type verdict int

const (
	rotate  verdict = iota // a pair of a new generation
	retry                  // a pair of the current generation
	forgive                // the same, and the next late retry within forgiveInterval is a reuse
	reuse                  // the session ends: the token was used twice
)

// judge returns the verdict on a refresh token of generation gen. A generation ahead of the
// session's means that the last write was lost.
func (s session) judge(gen, now int64) verdict {
	switch behind := s.Gen - gen; {
	case behind <= 0:
		return rotate
	case behind > 1:
		return reuse
	case now-max(s.Rotated, s.Forgiven) <= retryWindow:
		return retry
	case s.Forgiven == 0 || now-s.Forgiven > forgiveInterval:
		return forgive
	}
	return reuse
}

// users holds the records of all accounts in memory. It is safe for concurrent use. Callers get
// and pass copies.
type users struct {
	store store // set before the first use

	mu      sync.RWMutex   // protects the fields below
	records []*user        // in order of registration; replaced, never modified
	ids     map[string]int // index in records
	emails  map[string]int // index in records, by email.Key
}

// newUsers returns users that are kept only in memory.
func newUsers() *users {
	s := &users{ids: make(map[string]int), emails: make(map[string]int)}
	s.store = memoryStore{s}
	return s
}

// byID returns the user with an id, or errUnknownUser.
func (s *users) byID(ctx context.Context, id string) (user, error) { return s.find(ctx, id, "") }

// byEmail returns the user with an email in any spelling, or errUnknownUser.
func (s *users) byEmail(ctx context.Context, address string) (user, error) {
	return s.find(ctx, "", email.Key(address))
}

// find returns the user with an id or, if that is empty, with an email key. If the maps lack it, it
// fetches the record from the store.
func (s *users) find(ctx context.Context, id, emailKey string) (user, error) {
	u, err := s.lookup(id, emailKey)
	if err == nil {
		return u, nil
	}
	return s.refetch(ctx, id, emailKey)
}

// refetch is find with the latest record of the store.
func (s *users) refetch(ctx context.Context, id, emailKey string) (user, error) {
	if err := s.store.fetch(ctx, id, emailKey); err != nil {
		return user{}, err
	}
	return s.lookup(id, emailKey)
}

// lookup returns the user with an id or, if that is empty, with an email key, from the maps only.
func (s *users) lookup(id, emailKey string) (user, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	i, ok := s.ids[id]
	if id == "" {
		i, ok = s.emails[emailKey]
	}
	if !ok || s.records[i].Deleted {
		return user{}, errUnknownUser
	}
	return *s.records[i], nil
}

// after returns up to limit users in order of registration: those after the user with an id, or the
// first ones if id is empty. A deleted user keeps its place. It returns errUnknownUser if it knows
// no such user.
func (s *users) after(id string, limit int) ([]user, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	first := 0
	if id != "" {
		i, ok := s.ids[id]
		if !ok {
			return nil, errUnknownUser
		}
		first = i + 1
	}
	var page []user
	for _, u := range s.records[first:] {
		if len(page) == limit {
			break
		}
		if !u.Deleted {
			page = append(page, *u)
		}
	}
	return page, nil
}

// admin returns an enabled user with the scope admin other than the one with an id, or false. It is
// called with mu held.
func (s *users) admin(except string) (user, bool) {
	for _, u := range s.records {
		if u.isAdmin() && u.ID != except {
			return *u, true
		}
	}
	return user{}, false
}

// hasAdmin reports whether an enabled user has the scope admin.
func (s *users) hasAdmin() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.admin("")
	return ok
}

// add stores a new user, or returns errEmailTaken.
func (s *users) add(ctx context.Context, u user) error {
	return s.store.commit(ctx, change{user: u})
}

var (
	errConflict  = errors.New("the record has changed")
	errUnchanged = errors.New("nothing to write")
	errNoWait    = errors.New("the change may be lost in a crash")
)

// update calls modify with a copy of the record of the user with an id, and commits the result. If
// the record has changed meanwhile, it starts again, so modify must be idempotent. If modify
// returns errUnchanged, update writes nothing. If it returns errNoWait, update does not wait until
// the change is safe. It returns other errors of modify. modify must not change the id or the
// email.
func (s *users) update(ctx context.Context, id string, modify func(*user) error) (user, error) {
	for {
		u, err := s.byID(ctx, id)
		if err != nil {
			return user{}, err
		}
		base := u.Version
		err = modify(&u)
		if err == nil || err == errNoWait {
			if err = s.store.commit(ctx, change{u, base, err == errNoWait}); err != errConflict {
				return u, err
			}
			continue
		}
		latest, fetchErr := s.refetch(ctx, id, "")
		switch {
		case fetchErr != nil:
			return user{}, fetchErr
		case latest.Version != base: // err is about an old record
		case err == errUnchanged:
			return latest, nil
		default:
			return user{}, err
		}
	}
}

// A change is the new record of a user.
type change struct {
	user   user
	base   int64 // version that it was made from; 0: the id and the email must be unused
	noWait bool
}

// applyChange checks a change and applies it. Both share one lock, so exactly one of several
// concurrent changes to a record succeeds. It returns errEmailTaken, errLastAdmin if no other admin
// would be left, or errConflict if the record has another version. It is called with mu held.
func (s *users) applyChange(c change) error {
	if c.base == 0 {
		_, idTaken := s.ids[c.user.ID]
		_, emailTaken := s.emails[email.Key(c.user.Email)]
		if idTaken || emailTaken {
			return errEmailTaken
		}
	} else if old := s.records[s.ids[c.user.ID]]; old.Version != c.base {
		return errConflict
	} else if _, err := s.otherAdmin(c); err != nil {
		return err
	}
	c.user.Version = c.base + 1
	s.apply(c.user)
	return nil
}

// otherAdmin returns another admin if a change takes one away, or errLastAdmin if there is none.
// Otherwise it returns the zero user. It is called with mu held.
func (s *users) otherAdmin(c change) (user, error) {
	i, known := s.ids[c.user.ID]
	if !known || !s.records[i].isAdmin() || c.user.isAdmin() {
		return user{}, nil
	}
	other, ok := s.admin(c.user.ID)
	if !ok {
		return user{}, errLastAdmin
	}
	return other, nil
}

// apply replaces a record unless the present one is as new. It is the only function that modifies
// the maps. It is called with mu held.
func (s *users) apply(u user) {
	i, known := s.ids[u.ID]
	if !known {
		i = len(s.records)
		s.records = append(s.records, nil)
		for ; i > 0 && s.records[i-1].place > u.place; i-- { // registered at another replica, and seen earlier
			later := s.records[i-1]
			s.records[i], s.ids[later.ID] = later, i
			if key := email.Key(later.Email); !later.Deleted && s.emails[key] == i-1 {
				s.emails[key] = i
			}
		}
		s.records[i], s.ids[u.ID] = &user{}, i
	}
	old := s.records[i]
	if u.Version <= old.Version {
		return
	}
	if u.Deleted {
		if key := email.Key(old.Email); s.emails[key] == i { // otherwise a later user has it
			delete(s.emails, key)
		}
		u = user{ID: u.ID, Version: u.Version, Deleted: true, place: cmp.Or(old.place, u.place)}
	} else if key := email.Key(u.Email); s.emails[key] <= i {
		s.emails[key] = i
	}
	s.records[i] = &u
}
