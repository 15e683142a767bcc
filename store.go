package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"jwt-auth-api/internal/email"
	"jwt-auth-api/internal/etcd"
	"jwt-auth-api/internal/journal"
)

// A store makes changes last. The maps of users serve all lookups, whatever the store.
type store interface {
	// commit makes a change last and applies it. It returns errEmailTaken, errLastAdmin, or
	// errConflict if the record has another version than the one that the change was made from.
	commit(ctx context.Context, c change) error

	// fetch applies the latest record of the user with an id or, if that is empty, with an email key.
	// It may be newer than that in the maps if there are other replicas of the service.
	fetch(ctx context.Context, id, key string) error

	// check returns errUnavailable if the maps may lack changes of other replicas.
	check() error

	// close makes pending changes last.
	close() error
}

// errUnavailable means that the store does not respond.
const errUnavailable apiError = "busy, try again"

// A memoryStore keeps the records only in memory.
type memoryStore struct{ *users }

func (m memoryStore) commit(_ context.Context, c change) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.accept(c)
}

func (memoryStore) fetch(context.Context, string, string) error { return nil }
func (memoryStore) check() error                                { return nil }
func (memoryStore) close() error                                { return nil }

// A fileStore also writes the changes to a journal.
type fileStore struct {
	memoryStore
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
	defer debug.SetGCPercent(debug.SetGCPercent(25)) // The replay leaves much garbage.
	f := &fileStore{memoryStore: memoryStore{s}, fatal: fatal}
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

// noWaitDelay is the time until a change with noWait is written, so that many share a sync.
const noWaitDelay = 10 * time.Millisecond

// commit applies a change before it is on the disk: a client may see it early, but its own request is
// not acknowledged before. A change with noWait is acknowledged at once.
func (f *fileStore) commit(_ context.Context, c change) error {
	if c.user.deleted {
		c.user = user{id: c.user.id, deleted: true}
	}
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
		time.AfterFunc(noWaitDelay, wait)
	} else {
		wait()
	}
	return nil
}

func (f *fileStore) close() error { return f.journal.Close() }

const (
	storeTimeout = 8 * time.Second        // of a call, with all of its tries
	heartbeat    = 500 * time.Millisecond // between two heartbeats
	maxSilence   = 3 * heartbeat          // of a watch; bounds how late a logout is effective after a fault
	maxStaleness = 10 * time.Second       // without a heartbeat
)

// An etcdStore shares the records with other replicas through etcd. It watches their changes, so that
// the maps follow. Keys begin with a prefix: u/ID holds a record, a/EMAIL KEY the id of its user.
//
// Each replica also changes b/REPLICA twice a second. Events are in order, so when it sees its own
// change, it has seen all changes before.
type etcdStore struct {
	*users
	config  etcd.Config
	client  atomic.Pointer[etcd.Client]
	prefix  string
	replica string // key of the heartbeat
	log     *slog.Logger
	stop    context.CancelFunc
	seen    atomic.Int64 // when the last heartbeat was seen, in nanoseconds since the epoch
}

// openEtcd makes an etcdStore the store of s, and begins to load the records. It calls loaded when it
// has, each time.
func openEtcd(ctx context.Context, s *users, cfg etcd.Config, prefix string, log *slog.Logger,
	loaded func(context.Context) error) {
	e := &etcdStore{users: s, config: cfg, prefix: prefix, replica: prefix + "b/" + newUUID(), log: log}
	e.client.Store(etcd.New(cfg))
	s.store = e
	ctx, e.stop = context.WithCancel(ctx)
	go e.beat(ctx)
	go func() {
		var err error
		for ctx.Err() == nil {
			if err = e.follow(ctx, loaded, errors.Is(err, etcd.ErrCluster)); ctx.Err() == nil {
				log.Warn("records are loaded again", "reason", err)
				sleep(ctx, heartbeat)
			}
		}
	}()
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// follow loads the records, and applies changes until that is no longer possible. In a new cluster, the
// revisions have begun again.
func (e *etcdStore) follow(ctx context.Context, loaded func(context.Context) error, newCluster bool) error {
	client := etcd.New(e.config)
	e.client.Store(client)
	revision, err := e.load(ctx, client, newCluster)
	if err != nil && newCluster {
		return fmt.Errorf("%w: %w", etcd.ErrCluster, err) // The maps still have the old records.
	} else if err != nil {
		return err
	}
	if err := loaded(ctx); err != nil {
		return err
	}
	e.seen.Store(time.Now().UnixNano())
	begin, end := etcd.Prefix(e.prefix)
	next := revision + 1
	for ctx.Err() == nil && !errors.Is(err, etcd.ErrCompacted) && !errors.Is(err, etcd.ErrCluster) {
		next, err = client.Watch(ctx, begin, end, next, maxSilence, e.changed)
		sleep(ctx, 100*time.Millisecond)
	}
	return err
}

// load replaces the maps by the records at the current revision, which it returns. It reads them by the
// first two digits of the ids, because etcd scans all keys for a limit.
func (e *etcdStore) load(ctx context.Context, client *etcd.Client, newCluster bool) (int64, error) {
	_, revision, err := client.Range(ctx, e.replica, "", 0)
	if err != nil {
		return 0, err
	}
	type created struct {
		user
		revision int64
	}
	var loaded []created
	begin, end := etcd.Prefix(e.prefix + "u/")
	bounds := []string{begin}
	for i := range 256 {
		bounds = append(bounds, fmt.Sprintf("%s%02x", begin, i))
	}
	bounds = append(bounds, end)
	for i := range len(bounds) - 1 {
		kvs, _, err := client.Range(ctx, bounds[i], bounds[i+1], revision)
		if err != nil {
			return 0, err
		}
		for _, kv := range kvs {
			u, err := e.decode(kv)
			if err != nil {
				return 0, err
			}
			loaded = append(loaded, created{u, kv.CreateRevision})
		}
	}
	slices.SortFunc(loaded, func(a, b created) int { return cmp.Compare(a.revision, b.revision) })
	fresh := newUsers()
	for _, u := range loaded {
		fresh.apply(u.user)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, u := range e.records {
		if u.version > revision && !newCluster { // changed while the records were read
			fresh.apply(*u)
		}
	}
	e.records, e.ids, e.emails = fresh.records, fresh.ids, fresh.emails
	return revision, nil
}

// decode returns the record in the value of a key, or a deleted one if the key is deleted.
func (e *etcdStore) decode(kv etcd.KV) (user, error) {
	id := strings.TrimPrefix(string(kv.Key), e.prefix+"u/")
	if kv.Version == 0 {
		return user{id: id, deleted: true, version: kv.ModRevision}, nil
	}
	u, err := decodeUser(kv.Value)
	if err != nil {
		return user{}, fmt.Errorf("key %s: %w", kv.Key, err)
	}
	u.version = kv.ModRevision
	return u, nil
}

// changed applies changes that the watch reports.
func (e *etcdStore) changed(kvs []etcd.KV) {
	for _, kv := range kvs {
		if string(kv.Key) == e.replica {
			e.seen.Store(time.Now().UnixNano())
		}
		if !strings.HasPrefix(string(kv.Key), e.prefix+"u/") {
			continue
		}
		if err := e.applyKV(kv); err != nil {
			e.log.Error("unreadable record", "reason", err)
		}
	}
}

// applyKV applies the record of a key. It returns an error if the record is unreadable.
func (e *etcdStore) applyKV(kv etcd.KV) error {
	u, err := e.decode(kv)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.apply(u)
	return nil
}

// beat changes the key of the replica until ctx is done.
func (e *etcdStore) beat(ctx context.Context) {
	revision := int64(0)
	for ctx.Err() == nil {
		next, current, err := e.client.Load().Commit(ctx, etcd.Txn{
			Compare: map[string]int64{e.replica: revision},
			Put:     map[string][]byte{e.replica: []byte(time.Now().UTC().Format(time.RFC3339))},
		})
		switch {
		case err == nil:
			revision = next
			sleep(ctx, heartbeat)
		case !errors.Is(err, etcd.ErrConflict):
			sleep(ctx, heartbeat)
		case len(current) > 0:
			revision = current[0].ModRevision
		default:
			revision = 0
		}
	}
}

// commit makes a change with one transaction, which etcd makes only if the keys are at the revisions
// that the change was made from.
func (e *etcdStore) commit(ctx context.Context, c change) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	key, owner := e.prefix+"u/"+c.user.id, e.prefix+"a/"+email.Key(c.user.email)
	c.user.version = 0 // The revision of the key is the version.
	record := encodeUser(c.user)
	txn := etcd.Txn{Compare: map[string]int64{key: c.base}, Put: map[string][]byte{key: record}}
	if c.base == 0 {
		txn.Compare[owner], txn.Put[owner] = 0, []byte(c.user.id)
	} else if c.user.deleted {
		txn.Put, txn.Delete = nil, []string{key, owner}
	}
	e.mu.RLock()
	other, err := e.witness(c)
	e.mu.RUnlock()
	if err != nil {
		return err
	}
	if other.id != "" {
		txn.Compare[e.prefix+"u/"+other.id] = other.version
	}
	revision, current, err := e.client.Load().Commit(ctx, txn)
	if err != nil && !errors.Is(err, etcd.ErrConflict) {
		return fmt.Errorf("%w: %w", errUnavailable, err)
	}
	if err == nil {
		c.user.version = revision
		e.mu.Lock()
		defer e.mu.Unlock()
		e.apply(c.user)
		return nil
	}
	found, err := e.applyCurrent(txn, current, owner, revision)
	switch {
	case err != nil:
		return err
	case bytes.Equal(found[key], record), c.user.deleted && found[key] == nil,
		c.base == 0 && string(found[owner]) == c.user.id: // made by an earlier try, whose response was lost
		return nil
	case c.base == 0 && found[owner] != nil:
		return errEmailTaken
	}
	return errConflict
}

// applyCurrent applies the current records of the keys that a transaction compared, and returns their
// values.
func (e *etcdStore) applyCurrent(txn etcd.Txn, current []etcd.KV, owner string, revision int64) (
	map[string][]byte, error) {
	found := map[string][]byte{}
	for _, kv := range current {
		if found[string(kv.Key)] = kv.Value; string(kv.Key) == owner {
			continue
		}
		if err := e.applyKV(kv); err != nil {
			return nil, err
		}
	}
	for key, base := range txn.Compare {
		if base != 0 && found[key] == nil {
			e.applyKV(etcd.KV{Key: []byte(key), ModRevision: revision}) // deleted
		}
	}
	return found, nil
}

func (e *etcdStore) fetch(ctx context.Context, id, key string) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	client := e.client.Load()
	if id == "" {
		owner, _, err := client.Range(ctx, e.prefix+"a/"+key, "", 0)
		if err != nil || len(owner) == 0 {
			return unavailable(err)
		}
		id = string(owner[0].Value)
	}
	kvs, revision, err := client.Range(ctx, e.prefix+"u/"+id, "", 0)
	if err != nil {
		return unavailable(err)
	}
	if len(kvs) > 0 {
		return e.applyKV(kvs[0])
	}
	if _, err := e.lookup(id, ""); err == nil {
		e.applyKV(etcd.KV{Key: []byte(e.prefix + "u/" + id), ModRevision: revision}) // deleted
	}
	return nil
}

func unavailable(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", errUnavailable, err)
}

func (e *etcdStore) check() error {
	if age := time.Since(time.Unix(0, e.seen.Load())); age > maxStaleness {
		return fmt.Errorf("%w: no heartbeat seen within %s", errUnavailable, maxStaleness)
	}
	return nil
}

func (e *etcdStore) close() error {
	e.stop()
	return nil
}

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

// decodeUser is the inverse of encodeUser.
func decodeUser(encoded []byte) (user, error) {
	var r storedUser
	if err := json.Unmarshal(encoded, &r); err != nil {
		return user{}, err
	}
	return r.user()
}
