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
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"jwt-auth-api/internal/email"
	"jwt-auth-api/internal/etcd"
	"jwt-auth-api/internal/journal"
)

// A store makes changes durable. The maps of users serve all lookups, whatever the store.
type store interface {
	// commit makes a change durable and applies it. It returns errEmailTaken, errLastAdmin,
	// errUnavailable, or errConflict if the record has another version than the one that the change
	// was made from.
	commit(ctx context.Context, c change) error

	// fetch applies the latest record of the user with an id or, if that is empty, with an email
	// key. It may be newer than that in the maps if there are other replicas of the service. It
	// returns errUnavailable if the store does not respond.
	fetch(ctx context.Context, id, emailKey string) error

	// check returns errUnavailable if the maps may lack changes of other replicas.
	check() error

	// close completes the pending changes.
	close() error
}

// errUnavailable means that the store does not respond or is closed, or that the maps may lack its
// changes.
const errUnavailable apiError = "busy, try again"

// A memoryStore keeps the records only in memory.
type memoryStore struct{ *users }

func (m memoryStore) commit(_ context.Context, c change) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.applyChange(c)
}

func (memoryStore) fetch(context.Context, string, string) error { return nil }
func (memoryStore) check() error                                { return nil }
func (memoryStore) close() error                                { return nil }

// A fileStore also writes the changes to a journal.
type fileStore struct {
	memoryStore
	journal *journal.Journal
	fatal   func(error) // ends the process; after a failed write the content of the disk is unknown
}

// openFile returns a store with the records of the journal at path, which it opens or creates.
func openFile(path string, s *users, warn func(string, ...any), fatal func(error)) (*fileStore, error) {
	replay := func(line []byte) error {
		var records []storedUser
		if err := json.Unmarshal(line, &records); err != nil {
			return err
		}
		for _, r := range records {
			u, err := r.record()
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

// snapshot returns the current records, including deleted ones, because older records of a deleted
// user may be replayed after the snapshot.
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

// commit applies a change and waits until it is on disk, unless the change has noWait. Other
// requests may see the change meanwhile.
func (f *fileStore) commit(_ context.Context, c change) error {
	f.mu.Lock()
	if err := f.applyChange(c); err != nil {
		f.mu.Unlock()
		return err
	}
	wait := f.journal.Append(encodeUser(*f.records[f.ids[c.user.ID]]))
	f.mu.Unlock()
	if c.noWait {
		time.AfterFunc(noWaitDelay, func() { f.finish(wait) })
		return nil
	}
	return f.finish(wait)
}

// finish waits until a change is on disk. It returns errUnavailable if the store is closed. If the
// write failed, it ends the process.
func (f *fileStore) finish(wait func() error) error {
	err := wait()
	if errors.Is(err, os.ErrClosed) {
		return errUnavailable
	}
	if err != nil {
		f.fatal(prefixed("APP_STORE", err))
	}
	return nil
}

func (f *fileStore) close() error { return f.journal.Close() }

const (
	storeTimeout = 8 * time.Second        // maximum time of a call, with all tries
	heartbeat    = 500 * time.Millisecond // interval of the heartbeats
	watchTimeout = 3 * heartbeat          // maximum time without a change before a watch moves to another endpoint
	maxStaleness = 10 * time.Second       // maximum age of the last heartbeat seen
)

// An etcdStore shares the records with other replicas through etcd, and watches for their changes.
// After a prefix, the key u/ID holds a record, a/KEY the id of the user with an email key, and b
// the latest heartbeat.
//
// Each replica puts a heartbeat twice a second. A watch reports changes in order, so a replica that
// sees its own heartbeat has seen all earlier changes.
type etcdStore struct {
	*users
	client  atomic.Pointer[etcd.Client]
	prefix  string
	replica string // name in the heartbeats
	log     *slog.Logger
	stop    context.CancelFunc
	seen    atomic.Int64 // time of the last heartbeat seen, in nanoseconds since the epoch
}

// openEtcd makes an etcdStore the store of s, and begins to load the records. It calls onLoad after
// each load. The store works until it is closed.
func openEtcd(s *users, cfg etcd.Config, prefix string, log *slog.Logger, onLoad func(context.Context) error) {
	ctx, stop := context.WithCancel(context.Background())
	e := &etcdStore{users: s, prefix: prefix, replica: newUUID(), log: log, stop: stop}
	e.client.Store(etcd.New(cfg))
	s.store = e
	go e.repeat(ctx, "heartbeat failed", e.beat)
	go e.repeat(ctx, "loading failed", func(ctx context.Context) error { return e.follow(ctx, onLoad) })
}

// repeat calls f until ctx is done. It logs the error of f unless the last call returned the same
// one, perhaps from another endpoint.
func (e *etcdStore) repeat(ctx context.Context, msg string, f func(context.Context) error) {
	for reason := ""; ctx.Err() == nil; time.Sleep(heartbeat) {
		err := f(ctx)
		text := fmt.Sprint(cmp.Or(errors.Unwrap(err), err))
		if err != nil && text != reason && ctx.Err() == nil {
			e.log.Warn(msg, "reason", err)
		}
		reason = text
	}
}

// follow loads the records, and applies changes until that is no longer possible.
func (e *etcdStore) follow(ctx context.Context, onLoad func(context.Context) error) error {
	client := e.client.Load().Renew()
	revision, err := e.load(ctx, client)
	if err == nil {
		err = onLoad(ctx)
	}
	if err != nil {
		return err
	}
	e.log.Info("records loaded")
	go e.beat(ctx) // The watch reports it at once. It must not wait for the write.
	begin, end := etcd.Prefix(e.prefix)
	err = client.Watch(ctx, begin, end, revision+1, watchTimeout, e.changed)
	if ctx.Err() == nil {
		e.log.Warn("loading records again", "reason", err)
	}
	return nil
}

// load replaces the maps with the records that client reads, makes client the one in use, and
// returns the revision of the records. It reads one interval for each first character of the ids,
// because etcd would scan the whole rest for each page of a limited range.
func (e *etcdStore) load(ctx context.Context, client *etcd.Client) (int64, error) {
	_, revision, err := client.Range(ctx, e.prefix+"b", "", 0)
	if err != nil {
		return 0, err
	}
	var loaded []user
	for c := range utf8.RuneSelf {
		begin, end := etcd.Prefix(e.prefix + "u/" + string(rune(c)))
		kvs, _, err := client.Range(ctx, begin, end, revision)
		if err != nil {
			return 0, err
		}
		for _, kv := range kvs {
			if u, err := e.decode(kv); err == nil {
				loaded = append(loaded, u)
			} else {
				e.log.Error("unreadable record", "reason", err)
			}
		}
	}
	slices.SortFunc(loaded, func(a, b user) int { return cmp.Compare(a.place, b.place) })
	fresh := newUsers()
	for _, u := range loaded {
		fresh.apply(u)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, u := range e.records { // changed while the records were read, unless in another cluster
		if u.Version > revision && client.Cluster() == e.client.Load().Cluster() {
			fresh.apply(*u)
		}
	}
	e.records, e.ids, e.emails = fresh.records, fresh.ids, fresh.emails
	e.client.Store(client)
	return revision, nil
}

// decode returns the record in the value of a key, or a deleted one if the key is deleted.
func (e *etcdStore) decode(kv etcd.KV) (user, error) {
	id := strings.TrimPrefix(string(kv.Key), e.prefix+"u/")
	if kv.Version == 0 {
		return user{ID: id, Deleted: true, Version: kv.ModRevision, place: kv.ModRevision}, nil
	}
	var r storedUser
	err := json.Unmarshal(kv.Value, &r)
	if err == nil {
		r.user, err = r.record()
	}
	if err == nil && r.ID != id {
		err = fmt.Errorf("record of user %s", r.ID)
	}
	r.Version, r.place = kv.ModRevision, kv.CreateRevision
	return r.user, prefixed("key "+string(kv.Key), err)
}

// changed applies changes that the watch reports.
func (e *etcdStore) changed(kvs []etcd.KV) {
	for _, kv := range kvs {
		value, own := strings.CutPrefix(string(kv.Value), e.replica)
		if at, err := time.Parse(time.RFC3339Nano, value); own && err == nil {
			e.seen.Store(at.UnixNano())
		}
		if !strings.HasPrefix(string(kv.Key), e.prefix+"u/") {
			continue
		}
		if err := e.applyKV(e.client.Load(), kv); err != nil {
			e.log.Error("unreadable record", "reason", err)
		}
	}
}

// applyKV applies the record of a key that client read, or returns an error if it is unreadable.
func (e *etcdStore) applyKV(client *etcd.Client, kv etcd.KV) error {
	u, err := e.decode(kv)
	if err == nil {
		e.applyFrom(client, u)
	}
	return err
}

// applyFrom applies a record that client read or wrote, unless the records have been loaded from
// another cluster since.
func (e *etcdStore) applyFrom(client *etcd.Client, u user) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if client.Cluster() == e.client.Load().Cluster() {
		e.apply(u)
	}
}

// beat puts a heartbeat.
func (e *etcdStore) beat(ctx context.Context) error {
	value := e.replica + time.Now().UTC().Format(time.RFC3339Nano)
	_, err := e.client.Load().Commit(ctx, etcd.Txn{
		Compare: map[string]int64{e.prefix + "\x00": 0}, // a key that never exists
		Put:     map[string][]byte{e.prefix + "b": []byte(value)},
	})
	if errors.Is(err, etcd.ErrCluster) { // The maps have the records of the old one.
		e.seen.Store(0)
	}
	return err
}

// commit makes a change with a transaction, if the keys have the revisions that it was made from.
func (e *etcdStore) commit(ctx context.Context, c change) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	key, owner := e.prefix+"u/"+c.user.ID, e.prefix+"a/"+email.Key(c.user.Email)
	c.user.Version = 0 // The revision of the key is the version.
	txn := etcd.Txn{Compare: map[string]int64{key: c.base}, Put: map[string][]byte{key: encodeUser(c.user)}}
	if c.base == 0 {
		txn.Compare[owner], txn.Put[owner] = 0, []byte(c.user.ID)
	} else if c.user.Deleted { // The record stays, so that a delayed try of its creation fails.
		txn.Put[key], txn.Delete = encodeUser(user{ID: c.user.ID, Deleted: true}), []string{owner}
	}
	e.mu.RLock()
	other, err := e.otherAdmin(c)
	e.mu.RUnlock()
	if err != nil {
		return err
	}
	if other.ID != "" {
		txn.Compare[e.prefix+"u/"+other.ID] = other.Version
	}
	client := e.client.Load()
	revision, err := client.Commit(ctx, txn)
	if errors.Is(err, etcd.ErrConflict) {
		return e.conflict(ctx, c, other.ID)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errUnavailable, err)
	}
	c.user.Version, c.user.place = revision, cmp.Or(c.user.place, revision)
	e.applyFrom(client, c.user)
	return nil
}

// conflict applies the current records of a change and of another admin, and returns why the change
// was not made. It returns nil if an earlier try made it, whose response was lost.
func (e *etcdStore) conflict(ctx context.Context, c change, other string) error {
	err := e.fetch(ctx, c.user.ID, "")
	if err == nil && other != "" {
		err = e.fetch(ctx, other, "")
	}
	if err != nil {
		return err
	}
	current, err := e.lookup(c.user.ID, "")
	version := current.Version
	current.Version = 0
	switch {
	case bytes.Equal(encodeUser(current), encodeUser(c.user)), c.user.Deleted && err != nil,
		c.base == 0 && current.Email == c.user.Email: // changed since
		return nil
	case c.base == 0:
		return errEmailTaken
	case version == c.base && other == "": // A retry would not help.
		return fmt.Errorf("%w: etcd lacks version %d of user %s", errUnavailable, version, c.user.ID)
	}
	return errConflict
}

func (e *etcdStore) fetch(ctx context.Context, id, emailKey string) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	client := e.client.Load()
	if id == "" {
		owner, _, err := client.Range(ctx, e.prefix+"a/"+emailKey, "", 0)
		if err != nil {
			return fmt.Errorf("%w: %w", errUnavailable, err)
		}
		if len(owner) == 0 {
			return nil
		}
		id = string(owner[0].Value)
	}
	kvs, revision, err := client.Range(ctx, e.prefix+"u/"+id, "", 0)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnavailable, err)
	}
	if len(kvs) > 0 {
		return e.applyKV(client, kvs[0])
	}
	if _, err := e.lookup(id, ""); err == nil {
		return e.applyKV(client, etcd.KV{Key: []byte(e.prefix + "u/" + id), ModRevision: revision}) // deleted
	}
	return nil
}

func (e *etcdStore) check() error {
	if age := time.Since(time.Unix(0, e.seen.Load())).Abs(); age > maxStaleness { // The clock may be set back.
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

// A storedUser is a user as stores keep it, with the hash, which encoding/json omits from user.
type storedUser struct {
	Format int `json:"v"`
	user
	Hash string `json:"hash,omitempty"`
}

// encodeUser returns the record in JSON.
func encodeUser(u user) []byte {
	encoded, _ := json.Marshal(storedUser{storedFormat, u, u.hash.reveal()}) // never fails
	return encoded
}

// record returns the user. It returns an error if a newer version of the program wrote it.
func (r storedUser) record() (user, error) {
	if r.Format != storedFormat {
		return user{}, fmt.Errorf("record of user %s has format %d, this program knows %d", r.ID, r.Format, storedFormat)
	}
	r.user.hash = newSecret(r.Hash)
	return r.user, nil
}
