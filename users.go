package main

import (
	"context"
	"slices"
	"sync"

	"jwt-auth-api/internal/email"
)

// A user is the record of one account. Its slices are never modified in place, so copies may share
// them.
type user struct {
	id     string
	email  string // as email.Parse returns it
	name   string
	scopes []string
	hash   secret // of the password, in the PHC string format
}

// An apiError is an error whose text clients see.
type apiError string

func (e apiError) Error() string { return string(e) }

const (
	errEmailTaken  apiError = "email already registered"
	errUnknownUser apiError = "unknown user"
)

// users holds the records of all accounts in memory. It is safe for concurrent use. Callers get
// and pass copies.
type users struct {
	mu      sync.RWMutex   // protects the fields below
	records []*user        // in order of registration; replaced, never modified
	ids     map[string]int // index in records
	emails  map[string]int // index in records, by email.Key
}

func newUsers() *users {
	return &users{ids: make(map[string]int), emails: make(map[string]int)}
}

// add stores u, or returns errEmailTaken. The check and the insertion share one lock, so exactly
// one of several concurrent registrations succeeds.
func (s *users) add(ctx context.Context, u user) error {
	key := email.Key(u.email)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.emails[key]; taken {
		return errEmailTaken
	}
	s.emails[key] = len(s.records)
	s.ids[u.id] = len(s.records)
	s.records = append(s.records, &u)
	return nil
}

// byID returns the user with an id, or errUnknownUser.
func (s *users) byID(ctx context.Context, id string) (user, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.lookup(s.ids, id)
}

// byEmail returns the user with an email in any spelling, or errUnknownUser.
func (s *users) byEmail(ctx context.Context, address string) (user, error) {
	key := email.Key(address)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.lookup(s.emails, key)
}

// lookup is called with mu held.
func (s *users) lookup(index map[string]int, key string) (user, error) {
	i, ok := index[key]
	if !ok {
		return user{}, errUnknownUser
	}
	return *s.records[i], nil
}

// update replaces the record of the user with an id by one that change modified. It returns
// errUnknownUser, or the error of change. The id and the email never change.
func (s *users) update(ctx context.Context, id string, change func(*user) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, err := s.lookup(s.ids, id)
	if err != nil {
		return err
	}
	if err := change(&u); err != nil {
		return err
	}
	s.records[s.ids[id]] = &u
	return nil
}

// after returns up to limit users in order of registration: those after the user with an id, or
// the first ones if id is empty. It returns errUnknownUser if there is no such user.
func (s *users) after(ctx context.Context, id string, limit int) ([]user, error) {
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
	page := make([]user, 0, min(limit, len(s.records)-first))
	for _, u := range s.records[first : first+cap(page)] {
		page = append(page, *u)
	}
	return page, nil
}

// hasAdmin reports whether a user has the scope admin.
func (s *users) hasAdmin() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.ContainsFunc(s.records, func(u *user) bool { return slices.Contains(u.scopes, "admin") })
}
