// Package cluster tests replicas of the service that share their users through a real cluster of
// etcd.
package cluster

import (
	"bytes"
	"crypto/rand"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"jwt-auth-api/checks/service"
)

const (
	debianEtcd = "/usr/bin/etcd" // the oldest version that must work
	password   = "correct-horse"
	recovery   = 5 * time.Second // bounds how long a replica can't write after a fault
	maxMemory  = 200             // bounds the memory of a replica, in MiB
)

var long = flag.Duration("long", 0, "how long to repeat the faults, with all setups")

func TestCluster(t *testing.T) {
	for i, setup := range []struct{ name, path, tokens string }{
		{"current etcd with TLS", currentEtcd(), "jwt,sign-method=HS256,priv-key=KEY,ttl=1s"},
		{"etcd 3.4", debianEtcd, ""},
		{"current etcd", currentEtcd(), ""},
		{"etcd 3.4 with TLS", debianEtcd, "simple"},
	} {
		if i >= 2 && *long == 0 {
			break
		}
		t.Run(setup.name, func(t *testing.T) {
			c := startCluster(t, setup.path, setup.tokens, "--unsafe-no-fsync") // The system does not crash.
			c.proxy(2)
			c.runAll()
			c.sameLists(1)
			c.emails()
			c.tokensEverywhere()
			c.logoutEverywhere()
			c.demotions()
			l := c.startLoad()
			begin := time.Now()
			l.faults(setup.name)
			for time.Since(begin) < *long {
				l.faults(setup.name)
			}
			l.check()
			c.restore()
		})
	}
}

// runAll runs three replicas at the same moment.
func (c *cluster) runAll() {
	c.t.Helper()
	atOnce(3, func(i int) {
		c.run(i)
		c.urls[i] = c.replicas[i].URL
	})
	for i := range 3 {
		c.healthy(i, 10*time.Second)
	}
}

// admin returns an access token of the admin.
func (c *cluster) admin() string {
	c.t.Helper()
	return want(c.t, "login of the admin", login(c.urls[0], "admin@example.com", "admin-password"), 200).Access
}

// list returns the users that a replica knows.
func (c *cluster) list(i int, token string) []byte {
	c.t.Helper()
	return want(c.t, "list of users", get(c.urls[i]+"/admin/users", token), 200).body
}

// sameLists waits until all replicas have the same users in the same order, and checks how many.
func (c *cluster) sameLists(n int) {
	c.t.Helper()
	token := c.admin()
	await(c.t, time.Second, "the lists of users are the same", func() bool {
		first := c.list(0, token)
		return bytes.Equal(first, c.list(1, token)) && bytes.Equal(first, c.list(2, token))
	})
	if got := bytes.Count(c.list(0, token), []byte(`"id"`)); got != n && n > 0 {
		c.t.Errorf("users: got %d, want %d", got, n)
	}
}

// register registers an email at a replica.
func (c *cluster) register(i int, email string) reply {
	c.t.Helper()
	return want(c.t, "registration", register(c.urls[i], email, password), 201)
}

func (c *cluster) emails() {
	statuses := make([]int, 90)
	atOnce(len(statuses), func(i int) {
		statuses[i] = register(c.urls[i%3], fmt.Sprintf("ada%d@example.com", i/3), password).status
	})
	for three := range slices.Chunk(statuses, 3) {
		if slices.Sort(three); !slices.Equal(three, []int{201, 409, 409}) {
			c.t.Errorf("registrations of one email: got %v, want one 201", three)
		}
	}
	c.sameLists(31)
}

func (c *cluster) tokensEverywhere() {
	for i := range 10 {
		one, two, three := c.urls[i%3], c.urls[(i+1)%3], c.urls[(i+2)%3]
		email := fmt.Sprintf("bob%d@example.com", i)
		pair := c.register(i%3, email)
		want(c.t, "/me elsewhere", get(two+"/me", pair.Access), 200)
		pair = want(c.t, "refresh elsewhere", refresh(three, pair.Refresh), 200)
		want(c.t, "refresh there again", refresh(two, pair.Refresh), 200)
		pair = want(c.t, "login elsewhere", login(three, email, password), 200)
		want(c.t, "new password", changePassword(one, pair.Access, password, password+"2"), 204)
		want(c.t, "login with the old password", login(two, email, password), 401)
		want(c.t, "login with the new password", login(three, email, password+"2"), 200)
	}
}

func (c *cluster) logoutEverywhere() {
	var pairs []reply
	for i, url := range c.urls {
		pairs = append(pairs, c.register(i, fmt.Sprintf("carol%d@example.com", i)))
		want(c.t, "logout", post(url+"/auth/logout", pairs[i].Access, object{}), 204)
		for _, url := range c.urls {
			await(c.t, time.Second, "the session has ended", func() bool {
				return get(url+"/me", pairs[i].Access).status == 401
			})
			want(c.t, "refresh after logout", refresh(url, pairs[i].Refresh), 401)
		}
	}
	for begin := time.Now(); time.Since(begin) < time.Second; {
		for i := range 9 {
			want(c.t, "/me after logout", get(c.urls[i%3]+"/me", pairs[i/3].Access), 401)
		}
	}
}

// demotions has twenty admins take the scope from themselves through two replicas at the same
// moment.
func (c *cluster) demotions() {
	setScopes := func(i int, token, id string, scopes ...string) reply {
		return patch(c.urls[i%2]+"/admin/users/"+id, token, object{"scopes": scopes})
	}
	tokens, ids, statuses := []string{c.admin()}, []string{"admin-0"}, make([]int, 20)
	for i := range 19 {
		pair := c.register(i%2, fmt.Sprintf("admin%d@example.com", i))
		ids = append(ids, get(c.urls[0]+"/me", pair.Access).ID)
		want(c.t, "promotion", setScopes(0, tokens[0], ids[i+1], "me", "admin"), 200)
		tokens = append(tokens, want(c.t, "refresh", refresh(c.urls[i%2], pair.Refresh), 200).Access)
	}
	atOnce(20, func(i int) { statuses[i] = setScopes(i, tokens[i], ids[i], "me").status })
	last := slices.Index(statuses, 409)
	if slices.Sort(statuses); !slices.Equal(statuses, append(slices.Repeat([]int{200}, 19), 409)) {
		c.t.Fatalf("demotions: got %v, want one 409 and otherwise 200", statuses)
	}
	want(c.t, "promotion", setScopes(0, tokens[last], "admin-0", "me", "admin"), 200)
}

// faults injects each fault once. A short run injects those whose short is part of the setup.
func (l *load) faults(setup string) {
	const settle = time.Second / 2
	var n *node // the leader
	all := []int{0, 1, 2}
	for _, f := range []struct {
		name, short string
		cut, down   []int // replicas that may lack changes made elsewhere, or fail to respond
		happen      func()
	}{
		{"all nodes are stopped in a flood", "3.4", all, nil, l.stopInFlood},
		{"a replica is cut off", "", []int{2}, nil, l.cutOff},
		{"the leader is killed", "", nil, nil,
			func() { signal(syscall.SIGKILL, n); l.recovered(all...); l.start(n) }},
		{"the leader is stopped", "", nil, nil,
			func() { signal(syscall.SIGSTOP, n); l.recovered(all...); signal(syscall.SIGCONT, n) }},
		{"the leader loses its disk", "current", nil, nil,
			func() { signal(syscall.SIGKILL, n); os.RemoveAll(n.dir); l.recovered(all...); l.replace(n) }},
		{"all nodes are killed", "current", all, nil,
			func() { signal(syscall.SIGKILL, l.nodes...); time.Sleep(settle); l.start(l.nodes...) }},
		{"a new user of etcd invalidates all tokens", "TLS", nil, nil,
			func() { l.gateway("/v3/auth/user/add", object{"name": rand.Text(), "password": "secret"}) }},
		{"a replica is killed", "current", nil, []int{1}, func() {
			l.replicas[1].Kill()
			l.recovered(0, 2)
			l.run(1, "APP_ADDR="+strings.TrimPrefix(l.urls[1], "http://"))
		}},
	} {
		if *long == 0 && !strings.Contains(setup, f.short) {
			continue
		}
		time.Sleep(settle)
		l.t.Log(f.name)
		n = l.leader()
		for i := range all {
			l.cut[i].Store(slices.Contains(f.cut, i))
			l.down[i].Store(slices.Contains(f.down, i))
		}
		f.happen()
		l.ready()
		l.recovered(all...)
	}
}

// cutOff cuts replica 2 off for a while and checks it, and meanwhile compacts etcd's history.
func (l *load) cutOff() {
	url, email, admin := l.urls[2], rand.Text()+"@example.com", l.admin()
	token := l.cluster.register(2, email).Access
	signal(syscall.SIGSTOP, l.proxies...)
	var writes sync.WaitGroup
	for what, write := range map[string]func() reply{
		"name":         func() reply { return patch(url+"/me", token, object{"name": "Eve"}) },
		"registration": func() reply { return register(url, rand.Text()+"@example.com", password) },
		"login":        func() reply { return login(url, email, password) },
		"unknown user": func() reply { return login(url, "nobody@example.com", password) },
	} {
		writes.Go(func() {
			if r := write(); r.status != 503 || r.retry == "" || r.took > 9*time.Second {
				l.t.Errorf("%s while cut off: got %d, retry after %q in %s, want 503 within 9 s", what, r.status, r.retry, r.took)
			}
		})
	}
	await(l.t, 12*time.Second, "/healthz of the replica is 503", func() bool {
		if r := get(url+"/me", token); r.status != 200 || r.took > time.Second {
			l.t.Errorf("/me while cut off: got %d after %s, want 200 within 1 s", r.status, r.took)
		}
		return get(url+"/healthz", "").status == 503
	})
	writes.Wait()
	want(l.t, "/me while cut off", get(url+"/me", token), 200)
	want(l.t, "list of users while cut off", get(url+"/admin/users", admin), 503)
	revision := l.gateway("/v3/kv/range", object{"key": []byte("a")}).Header.Revision
	l.gateway("/v3/kv/compaction", object{"revision": revision, "physical": true})
	l.recovered(0, 1)
	fresh := l.cluster.register(0, rand.Text()+"@example.com").Access
	signal(syscall.SIGCONT, l.proxies...)
	l.recovered(2)
	want(l.t, "/me of a user who registered meanwhile", get(url+"/me", fresh), 200)
}

// stopInFlood stops all nodes while many clients send requests, and checks the replicas' memory.
func (l *load) stopInFlood() {
	pair := l.cluster.register(0, rand.Text()+"@example.com")
	requests := []func(url string) reply{
		func(url string) reply { return register(url, rand.Text()+"@example.com", password) },
		func(url string) reply { return refresh(url, pair.Refresh) },
		func(url string) reply { return changePassword(url, pair.Access, password, password) },
		func(url string) reply { return get(url+"/me", l.stranger.Access) },
	}
	time.AfterFunc(time.Second, func() {
		l.t.Logf("memory of a replica in a flood: %d MiB", l.peak())
		signal(syscall.SIGSTOP, l.nodes...)
	})
	end := time.Now().Add(10 * time.Second) // The requests of a replica wait 8 s for etcd.
	time.AfterFunc(time.Until(end), func() { signal(syscall.SIGCONT, l.nodes...) })
	atOnce(3*64, func(i int) {
		for time.Now().Before(end) {
			if r := requests[i/3%4](l.urls[i%3]); r.status == 503 && r.retry != "" {
				time.Sleep(time.Second)
			} else if r.status >= 500 || r.status == 0 {
				l.t.Errorf("request %d in a flood: got %d %v, want no error but 503", i/3%4, r.status, r.err)
			}
		}
	})
	peak := l.peak()
	l.t.Logf("memory of a replica in a flood without etcd: %d MiB", peak)
	if peak == 0 || peak > maxMemory {
		l.t.Errorf("memory of a replica in a flood without etcd: got %d MiB, want at most %d", peak, maxMemory)
	}
}

// restore replaces the disks of all nodes by earlier copies. The replicas must serve what they
// hold.
func (c *cluster) restore() {
	old := c.register(0, "old@example.com").Access
	signal(syscall.SIGKILL, c.nodes...)
	backup := c.t.TempDir()
	for _, n := range c.nodes {
		must(0, os.CopyFS(filepath.Join(backup, n.name), os.DirFS(n.dir)))
	}
	c.start(c.nodes...)
	c.ready()
	for range 30 { // A restored cluster has a lower revision.
		want(c.t, "a new name", patch(c.urls[0]+"/me", old, object{"name": "Eve"}), 200)
	}
	lost := c.register(0, "lost@example.com").Access
	signal(syscall.SIGKILL, c.nodes...)
	for _, n := range c.nodes {
		n.dir = filepath.Join(backup, n.name)
	}
	c.start(c.nodes...)
	c.ready()
	for i, url := range c.urls {
		await(c.t, recovery, fmt.Sprintf("replica %d serves the backup", i), func() bool {
			return get(url+"/me", lost).status == 401 && get(url+"/me", old).Name == "Ada"
		})
		c.healthy(i, recovery)
	}
	c.register(1, "lost@example.com")
	c.sameLists(0)
}

// BenchmarkRefresh measures the refreshes of 64 clients, with the file store and through replicas.
func BenchmarkRefresh(b *testing.B) {
	file := service.Run(b, "APP_ARGON2=m=19456,t=2,p=1", "APP_THROTTLE=off", "APP_STORE=file:"+b.TempDir()+"/store")
	c := startCluster(b, currentEtcd(), "")
	c.runAll()
	b.Run("file", func(b *testing.B) { refreshes(b, file.URL) })
	b.Run("replicas=1", func(b *testing.B) { refreshes(b, c.urls[0]) })
	b.Run("replicas=3", func(b *testing.B) { refreshes(b, c.urls...) })
}

func refreshes(b *testing.B, urls ...string) {
	tokens := make([]string, 64)
	for i := range tokens {
		r := register(urls[i%len(urls)], rand.Text()+"@example.com", password)
		tokens[i] = want(b, "registration", r, 201).Refresh
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	atOnce(len(tokens), func(i int) {
		for n := i; left.Add(-1) >= 0; n++ {
			r := refresh(urls[n%len(urls)], tokens[i])
			if tokens[i] = r.Refresh; r.status != 200 {
				b.Errorf("refresh: got %d %s %v, want 200", r.status, r.body, r.err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "refreshes/s")
}
