package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	client "jwt-auth-api/internal/etcd"
	"jwt-auth-api/internal/etcd/etcdtest"
)

// These tests run replicas with a fake of etcd. The others run in checks/cluster.

// startReplica returns a server with a store in etcd, once it has loaded the records.
func startReplica(t testing.TB, etcd *etcdtest.Server, settings ...string) *liveServer {
	s := startServer(t, append(settings, "APP_STORE=etcd:"+etcd.URL)...)
	t.Cleanup(func() { s.users.store.close() })
	await(t, "the records", func() bool { return s.users.store.check() == nil })
	return s
}

// await waits until a condition is true.
func await(t testing.TB, name string, condition func() bool) {
	t.Helper()
	for deadline := time.After(10 * time.Second); !condition(); {
		select {
		case <-deadline:
			t.Fatalf("got no %s within 10 s, want it", name)
		case <-time.After(time.Millisecond):
		}
	}
}

// unwatched ends the watches. Until the test calls resume, replicas see only what they read.
func unwatched(etcd *etcdtest.Server) (resume func()) {
	etcd.Fault(func(call string, _ bool) bool { return strings.HasPrefix(call, "watch") })
	etcd.CloseClientConnections()
	return func() { etcd.Fault(nil) }
}

// TestReplicas changes users at two replicas that do not see each other's changes, except at the
// end.
func TestReplicas(t *testing.T) {
	etcd := etcdtest.New(t)
	a, b := startReplica(t, etcd), startReplica(t, etcd)
	addUsers(t, a, 3)
	old := mustUpdate(t, a.server, "id 1", func(u *user) { u.hash = a.passwords.hash("before") })
	await(t, "change", func() bool { u, _ := b.users.lookup("id 1", ""); return u.hash.reveal() == old.hash.reveal() })
	resume := unwatched(etcd)
	status := func(s *liveServer, request, token string) int {
		return s.Send(t, request, []string{"Authorization: Bearer " + token}, "").Status
	}
	token, admin := a.begin(t, "id 0").AccessToken, b.begin(t, "admin-0").AccessToken
	equal(t, "a session of the other", status(b, "GET /me", token), 200)
	equal(t, "a logout", status(b, "POST /auth/logout", token), 204)
	equal(t, "a logout that is not seen", status(a, "GET /me", token), 200)

	begun := b.begin(t, "id 0")
	u, _ := b.users.lookup("id 0", "")
	equal(t, "the end of a session of the other", a.endSession(t.Context(), "id 0", u.Sessions[0].ID), nil)
	equal(t, "an ended session", status(b, "GET /me", begun.AccessToken), 200)
	mustUpdate(t, a.server, "id 1", func(u *user) { u.hash = a.passwords.hash("changed-at-a") })
	_, _, err := b.auth.login(t.Context(), loopback, "1@example.com", "changed-at-a", "")
	equal(t, "a password that the other changed", err, nil)

	later := user{ID: newUUID(), Email: "later@example.com", Name: "Later", Scopes: []string{"me", "admin"}}
	equal(t, "a user", a.users.add(t.Context(), later), nil)
	equal(t, "a user of the other", status(b, "GET /admin/users/"+later.ID, admin), 200)
	equal(t, "a taken email", b.users.add(t.Context(), user{ID: "x", Email: "LATER@example.com"}), error(errEmailTaken))
	equal(t, "a taken id", b.users.add(t.Context(), user{ID: later.ID, Email: "x@example.com"}), error(errEmailTaken))
	u, err = b.users.byEmail(t.Context(), "LATER@example.com")
	equal(t, "the owner", fmt.Sprint(u.ID, err), later.ID+"<nil>")

	calls := 0
	mustUpdate(t, a.server, "id 1", func(u *user) { u.Name = "a" })
	u = mustUpdate(t, b.server, "id 1", func(u *user) { u.Name += "b"; calls++ })
	equal(t, "a conflict", fmt.Sprint(u.Name, calls), "ab2")

	resume()
	await(t, "logout", func() bool { u, _ := a.users.lookup("id 0", ""); return len(u.Sessions) == 0 })
	await(t, "change", func() bool { u, _ := a.users.lookup("id 1", ""); return u.Name == "ab" })
	equal(t, "a logout that is seen", status(a, "GET /me", token), 401)
	equal(t, "records", storedText(t, startReplica(t, etcd).users), storedText(t, a.users))
}

// TestReplicasDelete deletes users at two replicas that do not see each other's changes.
func TestReplicasDelete(t *testing.T) {
	etcd := etcdtest.New(t)
	a, b := startReplica(t, etcd), startReplica(t, etcd)
	addUsers(t, a, 3)
	await(t, "user", func() bool { _, err := b.users.lookup("id 2", ""); return err == nil })
	unwatched(etcd)
	remove := func(u *user) error { u.Deleted = true; return nil }
	mustUpdate(t, a.server, "id 2", func(u *user) { u.Deleted = true })
	_, err := b.users.update(t.Context(), "id 2", func(u *user) error { u.Name = "b"; return nil })
	equal(t, "a deleted user", err, error(errUnknownUser))
	equal(t, "a free email", b.users.add(t.Context(), user{ID: "again", Email: "2@example.com"}), nil)
	u, err := a.users.byEmail(t.Context(), "2@example.com")
	equal(t, "its new owner", fmt.Sprint(u.ID, err), "again<nil>")
	mustUpdate(t, b.server, "again", func(u *user) { u.Deleted = true })
	_, err = a.users.refetch(t.Context(), "again", "")
	equal(t, "a user deleted elsewhere", err, error(errUnknownUser))
	_, err = a.users.lookup("", "2@example.com")
	equal(t, "the email of a user deleted elsewhere", err, error(errUnknownUser))

	equal(t, "a user", b.users.add(t.Context(), user{ID: "short", Email: "short@example.com"}), nil)
	_, err = a.users.byEmail(t.Context(), "short@example.com")
	equal(t, "its owner", err, nil)
	mustUpdate(t, b.server, "short", func(u *user) { u.Deleted = true })
	_, err = a.auth.register(t.Context(), user{ID: newUUID(), Email: "short@example.com"}, "secret123", "")
	equal(t, "an email that was free elsewhere", err, nil)

	later := user{ID: newUUID(), Email: "later@example.com", Scopes: []string{"admin"}}
	equal(t, "an admin", a.users.add(t.Context(), later), nil)
	_, err = b.users.byID(t.Context(), later.ID)
	equal(t, "an admin of the other", err, nil)
	_, err = a.users.update(t.Context(), later.ID, remove)
	equal(t, "an admin who leaves", err, nil)
	_, err = b.users.update(t.Context(), "admin-0", remove)
	equal(t, "the last admin, after another one that is deleted", err, error(errLastAdmin))
}

// loseResponse closes the connection after the next transaction that changes a key, and calls
// meanwhile before that.
func loseResponse(etcd *etcdtest.Server, key string, meanwhile func()) {
	etcd.Fault(func(call string, executed bool) bool {
		lost := executed && strings.HasPrefix(call, "txn") && strings.Contains(call, "jwt-auth-api/"+key)
		if lost {
			etcd.Fault(nil)
			meanwhile()
		}
		return lost
	})
}

// TestLostResponses loses the responses to changes of users.
func TestLostResponses(t *testing.T) {
	etcd := etcdtest.New(t)
	a, b := startReplica(t, etcd), startReplica(t, etcd)
	nothing, rename := func() {}, func() { mustUpdate(t, b.server, "u3", func(u *user) { u.Name += "b" }) }
	for _, row := range []struct {
		id        string
		meanwhile func()
		want      string
	}{{"u1", nothing, "a1"}, {"u3", rename, "baba2"}} {
		u, calls := user{ID: row.id, Email: "u1@example.com"}, 0
		loseResponse(etcd, "a/", row.meanwhile)
		equal(t, "a new user", a.users.add(t.Context(), u), nil)
		loseResponse(etcd, "u/", row.meanwhile)
		mustUpdate(t, a.server, row.id, func(u *user) { u.Name += "a"; calls++ })
		u, _ = a.users.lookup(row.id, "")
		equal(t, "changes", fmt.Sprint(u.Name, calls), row.want)
		loseResponse(etcd, "u/", nothing)
		mustUpdate(t, a.server, row.id, func(u *user) { u.Deleted = true })
		_, err := a.users.lookup(row.id, "")
		equal(t, "a deleted user", err, error(errUnknownUser))
		_, err = client.New(client.Config{URLs: []string{etcd.URL}}).Commit(t.Context(),
			client.Txn{Compare: map[string]int64{"jwt-auth-api/u/" + row.id: 0, "jwt-auth-api/a/u1@example.com": 0}})
		equal(t, "an earlier try of the creation, executed late", errors.Is(err, client.ErrConflict), true)
	}
	loseResponse(etcd, "b ", nothing)
	heartbeats(t, a)
	heartbeats(t, b)
}

// TestLostRetries loses responses after which the record is another, or cannot be read.
func TestLostRetries(t *testing.T) {
	etcd := etcdtest.New(t)
	a, b := startReplica(t, etcd), startReplica(t, etcd)
	u2 := user{ID: "u2", Email: "u2@example.com", hash: a.passwords.hash("secret123")}
	equal(t, "a user", a.users.add(t.Context(), u2), nil)
	loseResponse(etcd, "u/", func() { mustUpdate(t, b.server, "u2", func(u *user) { u.Name = "b" }) })
	err := a.changePassword(t.Context(), loopback, identity{user: u2, claims: claims{issuedAt: 1}}, "secret123", "secret124")
	equal(t, "a password", err, nil)
	loseResponse(etcd, "u/", func() { etcd.Fault(func(call string, _ bool) bool { return strings.HasPrefix(call, "range") }) })
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = a.users.update(ctx, "u2", func(u *user) error { u.Name = "a"; return nil })
	equal(t, "a lost change that cannot be found", errors.Is(err, errUnavailable), true)
	etcd.Fault(nil)
	e := a.users.store.(*etcdStore)
	e.applyFrom(e.client.Load(), user{ID: "u2", Email: "u2@example.com", Version: math.MaxInt64})
	_, err = a.users.update(t.Context(), "u2", func(u *user) error { u.Name = "a"; return nil })
	equal(t, "a version that etcd lacks", errors.Is(err, errUnavailable), true)
}

// heartbeats waits for three, of which the last began after the call.
func heartbeats(t *testing.T, s *liveServer) {
	for range 3 {
		s.users.store.(*etcdStore).seen.Store(0)
		await(t, "heartbeat", func() bool { return s.users.store.check() == nil })
	}
}

// TestReload loads the records again after a compaction, and those of a new cluster.
func TestReload(t *testing.T) {
	etcd := etcdtest.New(t)
	a, b := startReplica(t, etcd), startReplica(t, etcd)
	addUsers(t, a, 3)
	logged := func(line string) func() bool {
		return func() bool { return strings.Contains(b.textLog.String(), line) }
	}
	etcd.Put("jwt-auth-api/u/u9", `{"v":2,"id":"u9"}`)
	await(t, "log", logged(`unreadable record" reason="key jwt-auth-api/u/u9: record of user u9 has format 2, `))
	_, err := b.users.byID(t.Context(), "u9")
	equal(t, "a newer format", errText(err), "key jwt-auth-api/u/u9: record of user u9 has format 2, this program knows 1")
	etcd.Put("jwt-auth-api/u/u8", `{"v":1,"id":"id 1"}`)
	await(t, "log", logged(`unreadable record" reason="key jwt-auth-api/u/u8: record of user id 1"`))
	etcd.Put("jwt-auth-api/u/u7", "?")
	await(t, "log", logged(`unreadable record" reason="key jwt-auth-api/u/u7: invalid character '?'`))
	etcd.Put("jwt-auth-api/u/u9", `{"v":1,"id":"u9"}`)
	await(t, "record", func() bool { _, err := b.users.lookup("u9", ""); return err == nil })

	equal(t, "close", a.users.store.close(), nil) // Only b loads again.
	unwatched(etcd)
	mustUpdate(t, a.server, "id 1", func(u *user) { u.Deleted = true })
	mustUpdate(t, a.server, "id 0", func(u *user) { u.Name = "a" })
	etcd.Compact()
	once := sync.Once{}
	etcd.Fault(func(call string, _ bool) bool {
		if call == "range jwt-auth-api/u/8" {
			once.Do(func() {
				mustUpdate(t, a.server, "id 2", func(u *user) { u.Name = "a" }) // the first change that the watch reports
				b.users.add(t.Context(), user{ID: "00", Email: "00@example.com"})
				etcd.Fault(func(call string, _ bool) bool { return !strings.HasPrefix(call, "range") })
			})
		}
		return strings.Contains(call, "jwt-auth-api/b ") && strings.HasPrefix(call, "txn")
	})
	await(t, "log", logged(`loading records again" reason="etcd at `+etcd.URL+`: revision compacted"`))
	await(t, "new name", func() bool { u, _ := b.users.lookup("id 0", ""); return u.Name == "a" })
	list, _ := b.users.after("", 9)
	equal(t, "users", userIDs(list), "admin-0 id 0 id 2 u9 00")
	etcd.Fault(nil)
	await(t, "change during the load", func() bool { u, _ := b.users.lookup("id 2", ""); return u.Name == "a" })
	resume := unwatched(etcd)
	mustUpdate(t, b.server, "id 0", func(u *user) { u.Name = "b" })
	etcd.Compact()
	resume()
	await(t, "second line", func() bool { return strings.Count(b.textLog.String(), "revision compacted") == 2 })
}

// TestNewCluster replaces the cluster of a replica.
func TestNewCluster(t *testing.T) {
	etcd := etcdtest.New(t)
	b := startReplica(t, etcd)
	addUsers(t, b, 3)
	etcd.Replace()
	etcd.Put("jwt-auth-api/u/u9", `{"v":2,"id":"u9"}`)
	await(t, "admin", func() bool { list, _ := b.users.after("", 9); return userIDs(list) == "admin-0" })
	etcd.Put("jwt-auth-api/u/u9", `{"v":1,"id":"u9"}`)
	await(t, "user", func() bool { list, _ := b.users.after("", 9); return userIDs(list) == "u9 admin-0" })
	mustUpdate(t, b.server, "u9", func(u *user) { u.Name = "b" })
	_, err := b.users.store.(*etcdStore).client.Load().Commit(t.Context(), client.Txn{
		Compare: map[string]int64{"jwt-auth-api/": 0}, Delete: []string{"jwt-auth-api/u/u9"}})
	equal(t, "a key that is deleted by hand", err, nil)
	await(t, "deletion", func() bool { _, err := b.users.lookup("u9", ""); return err == errUnknownUser })
	etcd.Put("jwt-auth-api/", "a key that another service may have")
	heartbeats(t, b)
}

// TestApplyFrom applies records of two clusters.
func TestApplyFrom(t *testing.T) {
	e := &etcdStore{users: newUsers()}
	current, other := client.New(client.Config{}), client.New(client.Config{URLs: []string{etcdtest.New(t).URL}})
	if _, _, err := other.Range(t.Context(), "k", "", 0); err != nil {
		t.Fatal(err)
	}
	e.client.Store(current)
	e.applyFrom(current, user{ID: "u1", Email: "1@example.com", Version: 9, Name: "current"})
	e.applyFrom(other, user{ID: "u1", Email: "1@example.com", Version: 10, Name: "from another cluster"})
	list, _ := e.after("", 9)
	equal(t, "records", join(list, func(u user) string { return u.ID + " " + u.Name }), "u1 current")
}

// TestEtcdDown starts a replica without etcd, which then starts.
func TestEtcdDown(t *testing.T) {
	etcd := etcdtest.New(t)
	etcd.Fault(func(string, bool) bool { return true })
	s := startServer(t, "APP_STORE=etcd:"+etcd.URL)
	defer func() { s.users.store.close() }()
	token := s.tokens.issuePair(user{ID: "admin-0", Scopes: []string{"admin"}}, session{ID: "s", Expires: math.MaxInt32}, "")
	for request, body := range map[string]string{"GET /healthz": "", "GET /me": "", "POST /auth/login": loginBody} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		method, path, _ := strings.Cut(request, " ")
		r, w := httptest.NewRequestWithContext(ctx, method, path, strings.NewReader(body)), httptest.NewRecorder()
		r.Header = http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + token.AccessToken}}
		s.handler().ServeHTTP(w, r)
		cancel()
		got := fmt.Sprint(w.Code, w.Header()["Retry-After"], w.Body)
		equal(t, request, strings.HasPrefix(got, `503 [1] {"detail":"busy, try again"`), true)
	}
	etcd.Fault(nil)
	await(t, "records", func() bool { return s.Send(t, "GET /healthz", nil, "").Status == 200 })
	equal(t, "the admin", s.users.hasAdmin(), true)
	etcd.Fault(func(string, bool) bool { return true })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := s.users.add(ctx, user{ID: "u1", Email: "u1@example.com"})
	equal(t, "a change", errors.Is(err, errUnavailable), true)
	etcd.Fault(func(call string, _ bool) bool { return strings.HasPrefix(call, "txn jwt-auth-api/b") })
	reader := startServer(t, "APP_STORE=etcd:"+etcd.URL)
	defer func() { reader.users.store.close() }()
	await(t, "load", func() bool { return strings.Contains(reader.textLog.String(), "records loaded") })
	mustUpdate(t, s.server, "admin-0", func(u *user) { u.Name = "Ada" })
	await(t, "change", func() bool { u, _ := reader.users.lookup("admin-0", ""); return u.Name == "Ada" })
	equal(t, "a replica that cannot write", errors.Is(reader.users.store.check(), errUnavailable), true)
}

// TestHeartbeat checks heartbeats of several times.
func TestHeartbeat(t *testing.T) {
	for age, want := range map[time.Duration]bool{9 * time.Second: true, 10 * time.Second: false, -time.Hour: false} {
		e := &etcdStore{}
		e.seen.Store(time.Now().Add(-age).UnixNano())
		equal(t, age.String(), e.check() == nil, want)
	}
	other := &etcdStore{prefix: "p/", replica: "1 "}
	for _, value := range []string{"2 2026-11-24T12:00:00Z", "2026-11-24T12:00:00Z"} {
		other.changed([]client.KV{{Key: []byte("p/b"), Value: []byte(value)}})
	}
	equal(t, "the heartbeat of another replica", other.seen.Load(), 0)
	other.changed([]client.KV{{Key: []byte("p/b"), Value: []byte("1 2026-11-24T12:00:01Z")}})
	equal(t, "its own heartbeat", other.seen.Load(), 1795521601e9)

	etcd := etcdtest.New(t)
	other.client.Store(client.New(client.Config{URLs: []string{etcd.URL}}))
	equal(t, "a heartbeat", other.beat(t.Context()), nil)
	other.seen.Store(time.Now().UnixNano())
	etcd.Replace()
	equal(t, "a heartbeat in a new cluster", errors.Is(other.beat(t.Context()), client.ErrCluster), true)
	equal(t, "records of the old cluster", errors.Is(other.check(), errUnavailable), true)
}

// TestRepeat repeats a function that fails.
func TestRepeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		e := &etcdStore{log: slog.New(slog.NewTextHandler(&log, nil))}
		ctx, cancel := context.WithCancel(t.Context())
		wrapped := fmt.Errorf("etcd at another endpoint: %w", errConflict)
		errs, start := []error{errConflict, wrapped, nil, errConflict, errLastAdmin, nil, errEmailTaken}, time.Now()
		e.repeat(ctx, "oops", func(context.Context) error {
			err := errs[0]
			if errs = errs[1:]; len(errs) == 0 {
				cancel()
			}
			return err
		})
		lines := regexp.MustCompile(`time=\S+ `).ReplaceAllString(log.String(), "")
		equal(t, "lines", lines, `level=WARN msg=oops reason="the record has changed"`+"\n"+
			`level=WARN msg=oops reason="the record has changed"`+"\n"+`level=WARN msg=oops reason="the last admin"`+"\n")
		equal(t, "time", time.Since(start), 7*heartbeat)
	})
}

// A brokenStore does not respond.
type brokenStore struct {
	store
	stale bool // whether check fails too
}

func (brokenStore) commit(context.Context, change) error        { return errUnavailable }
func (brokenStore) fetch(context.Context, string, string) error { return errUnavailable }

func (s brokenStore) check() error {
	if s.stale {
		return errUnavailable
	}
	return nil
}

// TestBrokenStore checks that every request that needs the store gets a 503.
func TestBrokenStore(t *testing.T) {
	s := startServer(t)
	pair, working := s.begin(t, "admin-0"), s.users.store
	own := "DELETE /me/sessions/" + s.users.records[0].Sessions[0].ID
	for _, row := range [][2]string{
		{"POST /auth/register", registerBody},
		{"POST /auth/login", loginBody},
		{"POST /auth/login", `{"username":"admin@example.com","password":"wrong-password"}`},
		{"POST /auth/login", `{"username":"nobody@example.com","password":"secret123"}`},
		{"POST /auth/refresh", `{"refresh_token":"` + pair.RefreshToken + `"}`},
		{"POST /auth/logout", ""},
		{"POST /auth/revoke", `{"token":"` + pair.AccessToken + `"}`},
		{"POST /auth/password", `{"current_password":"admin-password","new_password":"secret123"}`},
		{"PATCH /me", `{"name":"A"}`},
		{own, ""},
		{own + "9", ""},
		{"GET /admin/users", ""},
		{"DELETE /admin/users/admin-0/sessions", ""},
		{"GET /healthz", ""},
	} {
		s.users.store = brokenStore{working, strings.HasPrefix(row[0], "GET")}
		resp := s.Send(t, row[0], []string{jsonType, "Authorization: Bearer " + pair.AccessToken}, row[1])
		equal(t, fmt.Sprint(row), fmt.Sprint(resp.Status, resp.Header["Retry-After"]), "503 [1]")
	}
}
