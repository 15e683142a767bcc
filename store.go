package main

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"

	"jwt-auth-api/internal/journal"
)

// A store makes changes last. The maps of users serve all lookups, whatever the store.
type store interface {
	// commit makes a change last and applies it. It returns errEmailTaken, errLastAdmin, or
	// errConflict if the record has another version than the one that the change was made from.
	commit(ctx context.Context, c change) error

	// close makes pending changes last.
	close() error
}

// A memoryStore keeps the records only in memory.
type memoryStore struct{ *users }

func (m memoryStore) commit(_ context.Context, c change) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.accept(c)
}

func (memoryStore) close() error { return nil }

// A fileStore also writes the changes to a journal.
type fileStore struct {
	*users
	journal *journal.Journal
	fatal   func(error) // ends the process: after a failed write nobody knows what is on the disk
}

// openFile returns a store with the records of the journal at path, which it creates if it is missing.
func openFile(path string, s *users, warn func(string, ...any), fatal func(error)) (*fileStore, error) {
	replay := func(line []byte) error {
		var records []storedUser
		if err := json.Unmarshal(line, &records); err != nil {
			return err
		}
		for _, r := range records {
			u, err := r.user()
			if err != nil {
				return err
			}
			s.apply(u)
		}
		return nil
	}
	f := &fileStore{users: s, fatal: fatal}
	var err error
	f.journal, err = journal.Open(path, replay, f.snapshot, warn)
	return f, err
}

// snapshot returns the records at this moment, also the deleted ones: older records of them may be
// replayed after it.
func (f *fileStore) snapshot() iter.Seq[[]byte] {
	f.mu.RLock()
	defer f.mu.RUnlock()
	records := slices.Clone(f.records)
	return func(yield func([]byte) bool) {
		for _, u := range records {
			if !yield(encodeUser(*u)) {
				return
			}
		}
	}
}

// commit applies a change before it is on the disk: a client may see it early, but its own request is
// not acknowledged before. A change with noWait is acknowledged at once.
func (f *fileStore) commit(_ context.Context, c change) error {
	c.user.version = c.base + 1
	record := encodeUser(c.user)
	f.mu.Lock()
	if err := f.accept(c); err != nil {
		f.mu.Unlock()
		return err
	}
	batch := f.journal.Append(record)
	f.mu.Unlock()
	wait := func() {
		if err := f.journal.Wait(batch); err != nil {
			f.fatal(err)
		}
	}
	if c.noWait {
		go wait()
	} else {
		wait()
	}
	return nil
}

func (f *fileStore) close() error { return f.journal.Close() }

// storedFormat is the version of storedUser. A change that older versions would misread raises it.
const storedFormat = 1

// A storedUser is a user as stores keep it. A user itself is no JSON type: its hash would be ********.
type storedUser struct {
	Format   int             `json:"v"`
	ID       string          `json:"id"`
	Email    string          `json:"email,omitempty"`
	Name     string          `json:"name,omitempty"`
	Scopes   []string        `json:"scopes"`
	Hash     string          `json:"hash,omitempty"`
	Disabled bool            `json:"disabled,omitempty"`
	Deleted  bool            `json:"deleted,omitempty"`
	Since    int64           `json:"since,omitempty"`
	Sessions []storedSession `json:"sessions,omitempty"`
	Version  int64           `json:"version"`
}

type storedSession struct {
	ID        string `json:"id"`
	UserAgent string `json:"user_agent,omitempty"`
	Gen       int64  `json:"gen"`
	Created   int64  `json:"created"`
	Rotated   int64  `json:"rotated"`
	Forgiven  int64  `json:"forgiven,omitempty"`
	Expires   int64  `json:"expires"`
	Adopted   bool   `json:"adopted,omitempty"`
}

// encodeUser returns the record in JSON.
func encodeUser(u user) []byte {
	r := storedUser{storedFormat, u.id, u.email, u.name, u.scopes, u.hash.reveal(), u.disabled, u.deleted, u.since,
		nil, u.version}
	for _, s := range u.sessions {
		r.Sessions = append(r.Sessions,
			storedSession{s.id, s.userAgent, s.gen, s.created, s.rotated, s.forgiven, s.expires, s.adopted})
	}
	encoded, _ := json.Marshal(r) // never fails
	return encoded
}

// user returns the record. It returns an error if a newer version of the program wrote it.
func (r storedUser) user() (user, error) {
	if r.Format != storedFormat {
		return user{}, fmt.Errorf("record of user %s has format %d, this program knows %d", r.ID, r.Format, storedFormat)
	}
	u := user{r.ID, r.Email, r.Name, r.Scopes, newSecret(r.Hash), r.Disabled, r.Deleted, r.Since, nil, r.Version}
	for _, s := range r.Sessions {
		u.sessions = append(u.sessions,
			session{s.ID, s.UserAgent, s.Gen, s.Created, s.Rotated, s.Forgiven, s.Expires, s.Adopted})
	}
	return u, nil
}
