// Package cluster tests replicas of the service that share their users through a real cluster of etcd.
package cluster

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"jwt-auth-api/checks/service"
)

// debianEtcd is the oldest version that must work.
const debianEtcd = "/usr/bin/etcd"

const password = "correct-horse"

func TestReplicas(t *testing.T) {
	for name, path := range map[string]string{"current etcd": "", "etcd 3.4": debianEtcd} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, path)
			urls := startReplicas(t, c)
			t.Run("start on an empty store", func(t *testing.T) { oneAdmin(t, urls) })
			t.Run("emails", func(t *testing.T) { emails(t, urls) })
			t.Run("tokens", func(t *testing.T) { tokensEverywhere(t, urls) })
			t.Run("logout", func(t *testing.T) { logoutEverywhere(t, urls) })
			t.Run("admins", func(t *testing.T) { demotions(t, urls) })
		})
	}
}

// startReplicas runs three replicas at the same moment.
func startReplicas(t testing.TB, c *cluster, env ...string) []string {
	t.Helper()
	urls := make([]string, 3)
	atOnce(len(urls), func(i int) { urls[i] = run(t, c.urls(), env...).URL })
	healthy(t, 10*time.Second, urls...)
	return urls
}

// atOnce calls f for 0 to n-1 at the same moment.
func atOnce(n int, f func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { f(i) })
	}
	all.Wait()
}

func admin(t testing.TB, url string) (token string) {
	t.Helper()
	return want(t, "login of the admin", login(url, "admin@example.com", "admin-password"), 200).text("access_token")
}

// list returns the users that a replica knows.
func list(t testing.TB, url, token string) []map[string]any {
	t.Helper()
	return want(t, "list of users", get(url+"/admin/users", token), 200).list
}

func oneAdmin(t *testing.T, urls []string) {
	for _, url := range urls {
		if users := list(t, url, admin(t, url)); len(users) != 1 {
			t.Errorf("users: got %v, want the admin", users)
		}
	}
}

func emails(t *testing.T, urls []string) {
	for batch := range 3 {
		statuses := make([]int, 30)
		atOnce(len(statuses), func(i int) {
			address := fmt.Sprintf("ada%d@example.com", 10*batch+i/3)
			statuses[i] = register(urls[i%3], address, password).status
		})
		for three := range slices.Chunk(statuses, 3) {
			if slices.Sort(three); !slices.Equal(three, []int{201, 409, 409}) {
				t.Errorf("registrations of one email: got %v, want one 201", three)
			}
		}
	}
	token := admin(t, urls[0])
	for _, url := range urls {
		await(t, time.Second, "all users are at "+url, func() bool { return len(list(t, url, token)) == 31 })
	}
}

func tokensEverywhere(t *testing.T, urls []string) {
	for i := range 10 {
		a, b, c := urls[i%3], urls[(i+1)%3], urls[(i+2)%3]
		address := fmt.Sprintf("bob%d@example.com", i)
		pair := want(t, "registration", register(a, address, password), 201)
		want(t, "/me elsewhere", get(b+"/me", pair.text("access_token")), 200)
		pair = want(t, "refresh elsewhere", refresh(c, pair.text("refresh_token")), 200)
		want(t, "refresh there again", refresh(b, pair.text("refresh_token")), 200)
		pair = want(t, "login elsewhere", login(c, address, password), 200)
		change := map[string]any{"current_password": password, "new_password": password + "2"}
		want(t, "new password", post(a+"/auth/password", pair.text("access_token"), change), 204)
		want(t, "login with the old password", login(b, address, password), 401)
		want(t, "login with the new password", login(c, address, password+"2"), 200)
	}
}

func logoutEverywhere(t *testing.T, urls []string) {
	for i := range 3 {
		address := fmt.Sprintf("carol%d@example.com", i)
		pair := want(t, "registration", register(urls[i], address, password), 201)
		token := pair.text("access_token")
		want(t, "logout", post(urls[i]+"/auth/logout", token, nil), 204)
		ended := time.Now()
		for _, url := range urls {
			await(t, time.Second, "the session has ended at "+url, func() bool { return get(url+"/me", token).status == 401 })
			want(t, "refresh after logout", refresh(url, pair.text("refresh_token")), 401)
		}
		for time.Since(ended) < time.Second {
			for _, url := range urls {
				want(t, "/me after logout", get(url+"/me", token), 401)
			}
		}
	}
}

// demotions has twenty admins take the scope from themselves through two replicas at the same moment.
func demotions(t *testing.T, urls []string) {
	first := admin(t, urls[0])
	tokens, ids := []string{first}, []string{"admin-0"}
	for i := range 19 {
		address := fmt.Sprintf("admin%d@example.com", i)
		pair := want(t, "registration", register(urls[i%2], address, password), 201)
		id := want(t, "/me", get(urls[0]+"/me", pair.text("access_token")), 200).text("id")
		want(t, "promotion", setScopes(urls[0], first, id, "me", "admin"), 200)
		tokens = append(tokens, want(t, "refresh", refresh(urls[i%2], pair.text("refresh_token")), 200).text("access_token"))
		ids = append(ids, id)
	}
	statuses := make([]int, len(ids))
	atOnce(len(ids), func(i int) { statuses[i] = setScopes(urls[i%2], tokens[i], ids[i], "me").status })
	slices.Sort(statuses)
	if want := append(slices.Repeat([]int{200}, 19), 409); !slices.Equal(statuses, want) {
		t.Errorf("demotions: got %v, want %v", statuses, want)
	}
}

func setScopes(url, token, id string, scopes ...string) reply {
	return patch(url+"/admin/users/"+id, token, map[string]any{"scopes": scopes})
}

// TestAuthentication uses a cluster that requires passwords, with tokens that expire between two
// heartbeats, and at last all at once.
func TestAuthentication(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "", "--auth-token-ttl", "1")
	prefix := base64.StdEncoding.EncodeToString([]byte("app/"))
	end := base64.StdEncoding.EncodeToString([]byte("app0"))
	c.must("/v3/auth/user/add", map[string]any{"name": "root", "password": "root-password"})
	c.must("/v3/auth/user/grant", map[string]any{"user": "root", "role": "root"})
	c.must("/v3/auth/role/add", map[string]any{"name": "app"})
	c.must("/v3/auth/role/grant", map[string]any{"name": "app",
		"perm": map[string]any{"permType": "READWRITE", "key": prefix, "range_end": end}})
	c.must("/v3/auth/user/add", map[string]any{"name": "app", "password": "app-password"})
	c.must("/v3/auth/user/grant", map[string]any{"user": "app", "role": "app"})
	c.must("/v3/auth/enable", map[string]any{})
	urls := startReplicas(t, c, "APP_STORE_USER=app", "APP_STORE_PASSWORD=app-password", "APP_STORE_PREFIX=app/")
	pair := want(t, "registration", register(urls[0], "ada@example.com", password), 201)
	for i := range 4 {
		time.Sleep(1200 * time.Millisecond)
		if i == 2 { // Changes to etcd's users invalidate all tokens.
			root := c.must("/v3/auth/authenticate", map[string]any{"name": "root", "password": "root-password"})
			token, user := root["token"].(string), map[string]any{"name": "other", "password": "other-password"}
			want(t, "new user of etcd", call("POST", c.nodes[0].client+"/v3/auth/user/add", token, user, clientTimeout), 200)
		}
		for _, url := range urls {
			want(t, "/healthz", get(url+"/healthz", ""), 200)
			pair = want(t, "refresh", refresh(url, pair.text("refresh_token")), 200)
		}
	}
}

// BenchmarkRefresh measures the refreshes of 64 clients, with the file store and through replicas.
func BenchmarkRefresh(b *testing.B) {
	file := service.Run(b, "APP_ARGON2=m=19456,t=2,p=1", "APP_THROTTLE=off", "APP_STORE=file:"+b.TempDir()+"/store")
	urls := startReplicas(b, startCluster(b, ""))
	b.Run("file", func(b *testing.B) { refreshes(b, []string{file.URL}) })
	b.Run("replicas=1", func(b *testing.B) { refreshes(b, urls[:1]) })
	b.Run("replicas=3", func(b *testing.B) { refreshes(b, urls) })
}

func refreshes(b *testing.B, urls []string) {
	tokens := make([]string, 64)
	for i := range tokens {
		address := fmt.Sprintf("%s@example.com", strings.ToLower(rand.Text()))
		tokens[i] = want(b, "registration", register(urls[i%len(urls)], address, password), 201).text("refresh_token")
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	atOnce(len(tokens), func(i int) {
		for n := i; left.Add(-1) >= 0; n++ {
			r := refresh(urls[n%len(urls)], tokens[i])
			if tokens[i] = r.text("refresh_token"); r.status != http.StatusOK {
				b.Errorf("refresh: got %d %v", r.status, r.body)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "refreshes/s")
}
