package cluster

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"jwt-auth-api/checks/service"
)

// must returns v. It panics if the machine lacks something that the tests need.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// currentEtcd builds the version of etcd that etcd/go.mod names, once, and returns its path.
var currentEtcd = sync.OnceValue(func() string {
	path := filepath.Join(filepath.Dir(must(os.Executable())), "etcd")
	build := exec.Command("go", "build", "-C", "etcd", "-o", path, "go.etcd.io/etcd/server/v3")
	build.Stderr = os.Stderr
	must(0, build.Run())
	return path
})

// A cluster is three nodes of etcd, and three replicas of the service.
type cluster struct {
	t        testing.TB
	path     string   // path of etcd's binary
	args     []string // additional arguments of the nodes
	secure   bool     // etcd requires authentication
	nodes    []*node
	proxies  []*node
	replicas [3]*service.Process
	urls     []string    // URLs of the replicas
	stores   [3][]string // URLs of the nodes, for each replica
	env      []string    // additional settings of the replicas
}

// A node is one process of etcd. Its addresses never change.
type node struct {
	name, dir    string
	client, peer string // URLs
	state        string // of the cluster when the node joined it
	cmd          *exec.Cmd
}

// startCluster runs nodes until the test ends. With a value of etcd's flag --auth-token, they have
// TLS and authentication. KEY in it becomes the path of a key.
func startCluster(t testing.TB, path, tokens string, args ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, path: path, args: args, urls: make([]string, 3)}
	scheme := "http://"
	if tokens != "" {
		scheme = "https://"
		cert, key := certificate(t)
		c.args = append(args, "--cert-file", cert, "--key-file", key, "--bcrypt-cost", "4",
			"--auth-token", strings.ReplaceAll(tokens, "KEY", key), "--auth-token-ttl", "1")
		c.env = []string{"SSL_CERT_FILE=" + cert, "APP_STORE_PREFIX=app/", "APP_STORE_USER=app", "APP_STORE_PASSWORD=secret"}
	}
	for i := range 3 {
		n := &node{fmt.Sprint("n", i), t.TempDir(), scheme + freeAddr(), "http://" + freeAddr(), "new", nil}
		c.nodes = append(c.nodes, n)
		for i := range c.stores {
			c.stores[i] = append(c.stores[i], n.client)
		}
	}
	t.Cleanup(func() { signal(syscall.SIGKILL, append(c.nodes, c.proxies...)...) })
	c.start(c.nodes...)
	c.ready()
	if tokens != "" {
		c.requireAuthentication()
	}
	return c
}

// freeAddr returns an address of 127.0.0.1 that was free a moment ago.
func freeAddr() string {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	return l.Addr().String()
}

// certificate returns the paths of the certificate that net/http/httptest has for 127.0.0.1, which
// is its own authority, and of its key.
func certificate(t testing.TB) (cert, key string) {
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	pair := server.TLS.Certificates[0]
	write := func(kind string, der []byte) string {
		path := filepath.Join(t.TempDir(), "pem")
		must(0, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	der := must(x509.MarshalPKCS8PrivateKey(pair.PrivateKey))
	return write("CERTIFICATE", pair.Certificate[0]), write("PRIVATE KEY", der)
}

func (c *cluster) start(nodes ...*node) {
	var members []string
	for _, n := range c.nodes {
		members = append(members, n.name+"="+n.peer)
	}
	for _, n := range nodes {
		c.runNode(n, append([]string{"--name", n.name, "--data-dir", n.dir,
			"--listen-client-urls", n.client, "--advertise-client-urls", n.client,
			"--listen-peer-urls", n.peer, "--initial-advertise-peer-urls", n.peer,
			"--initial-cluster", strings.Join(members, ","), "--initial-cluster-state", n.state,
			"--pre-vote", "--logger", "zap", "--log-level", "fatal"}, c.args...)...)
	}
}

func (c *cluster) runNode(n *node, args ...string) {
	n.cmd = exec.Command(c.path, args...)
	n.cmd.Stderr = c.t.Output()
	must(0, n.cmd.Start())
}

// signal sends a signal to nodes. SIGKILL ends them as a crash does.
func signal(s syscall.Signal, nodes ...*node) {
	for _, n := range nodes {
		n.cmd.Process.Signal(s)
		if s == syscall.SIGKILL {
			n.cmd.Wait()
		}
	}
}

// ready waits until every node takes part in the cluster.
func (c *cluster) ready() {
	c.t.Helper()
	for _, n := range c.nodes {
		await(c.t, 20*time.Second, n.name+" is ready", func() bool {
			return call("GET", n.client+"/health", "", nil).status == 200
		})
	}
}

// gateway sends a request to the JSON gateway of the first node that accepts it.
func (c *cluster) gateway(path string, body object) (r reply) {
	c.t.Helper()
	await(c.t, 20*time.Second, path, func() bool {
		return slices.ContainsFunc(c.nodes, func(n *node) bool {
			token := ""
			if c.secure {
				token = call("POST", n.client+"/v3/auth/authenticate", "", object{"name": "root", "password": "secret"}).Token
			}
			r = call("POST", n.client+path, token, body)
			return r.status == 200
		})
	})
	return r
}

// requireAuthentication has etcd require it. The replicas' user may use only the keys of their
// prefix.
func (c *cluster) requireAuthentication() {
	keys := object{"permType": "READWRITE", "key": []byte("app/"), "range_end": []byte("app0")}
	c.gateway("/v3/auth/role/add", object{"name": "app"})
	c.gateway("/v3/auth/role/grant", object{"name": "app", "perm": keys})
	for _, name := range []string{"root", "app"} {
		c.gateway("/v3/auth/user/add", object{"name": name, "password": "secret"})
		c.gateway("/v3/auth/user/grant", object{"user": name, "role": name})
	}
	c.gateway("/v3/auth/enable", object{})
	c.secure = true
}

func (c *cluster) leader() (leader *node) {
	c.t.Helper()
	await(c.t, 20*time.Second, "there is a leader", func() bool {
		for _, n := range c.nodes {
			if bytes.Contains(call("GET", n.client+"/metrics", "", nil).body, []byte("\netcd_server_is_leader 1\n")) {
				leader = n
			}
		}
		return leader != nil
	})
	return leader
}

// replace gives a node that has lost its disk a new place in the cluster.
func (c *cluster) replace(n *node) {
	for _, m := range c.gateway("/v3/cluster/member/list", object{}).Members {
		if m.Name == n.name {
			c.gateway("/v3/cluster/member/remove", object{"ID": m.ID})
		}
	}
	c.gateway("/v3/cluster/member/add", object{"peerURLs": []string{n.peer}})
	n.state = "existing"
	c.start(n)
}

// proxy has a replica reach etcd through TCP proxies, which the program etcd has too. While they
// are stopped, nothing gets through, as in a network that loses all packets.
func (c *cluster) proxy(replica int) {
	for i, url := range c.stores[replica] {
		scheme, target, _ := strings.Cut(url, "//")
		addr := freeAddr()
		c.stores[replica][i] = scheme + "//" + addr
		n := &node{}
		c.proxies = append(c.proxies, n)
		c.runNode(n, "gateway", "start", "--listen-addr", addr, "--endpoints", target, "--retry-delay", "100ms")
	}
}

const secret = "0123456789abcdef0123456789abcdef"

// run runs a replica.
func (c *cluster) run(i int, env ...string) {
	c.replicas[i] = service.Run(c.t, slices.Concat([]string{"APP_JWT_SECRET=" + secret, "APP_ARGON2=m=19456,t=2,p=1",
		"APP_THROTTLE=off", "APP_ACCESS_TTL_MINUTES=1440", "APP_STORE=etcd:" + strings.Join(c.stores[i], ",")},
		c.env, env)...)
}

// healthy waits until a replica is.
func (c *cluster) healthy(i int, within time.Duration) {
	c.t.Helper()
	what := fmt.Sprintf("replica %d is healthy", i)
	await(c.t, within, what, func() bool { return get(c.urls[i]+"/healthz", "").status == 200 })
}

// peak returns the most memory that one of the replicas has taken, in MiB.
func (c *cluster) peak() (mib int) {
	for _, p := range c.replicas {
		_, text, _ := strings.Cut(string(must(os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID())))), "VmHWM:")
		kib := 0
		must(fmt.Sscan(text, &kib))
		mib = max(mib, kib/1024)
	}
	return mib
}

// atOnce calls f for 0 to n-1 at the same moment.
func atOnce(n int, f func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { f(i) })
	}
	all.Wait()
}

// await polls a condition until it holds. The test fails if that takes too long.
func await(t testing.TB, within time.Duration, what string, holds func() bool) {
	t.Helper()
	begin := time.Now()
	for !holds() {
		if time.Since(begin) > within {
			t.Fatalf("%s: not within %s", what, within)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("%s: after %s", what, time.Since(begin).Round(time.Millisecond))
}

// A reply is the response to a request. It has the members of the bodies of the service and of
// etcd.
type reply struct {
	status int // 0: none
	retry  string
	body   []byte
	err    error
	took   time.Duration

	ID, Name, Token string
	Access          string `json:"access_token"`
	Refresh         string `json:"refresh_token"`
	Header          struct{ Revision string }
	Members         []struct{ ID, Name string }
}

type object = map[string]any

var client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
	MaxIdleConnsPerHost: 256, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}

// call sends a request with a JSON body.
func call(method, url, authorization string, body any) (r reply) {
	begin := time.Now()
	req := must(http.NewRequest(method, url, bytes.NewReader(must(json.Marshal(body)))))
	req.Header.Set("Content-Type", "application/json")
	if authorization != "" { // etcd 3.4 rejects an empty one
		req.Header.Set("Authorization", authorization)
	}
	resp, err := client.Do(req)
	if err == nil {
		defer resp.Body.Close()
		if r.body, err = io.ReadAll(resp.Body); err == nil {
			json.Unmarshal(r.body, &r)
			r.status, r.retry = resp.StatusCode, resp.Header.Get("Retry-After")
		}
	}
	r.err, r.took = err, time.Since(begin)
	return r
}

func get(url, token string) reply                { return call("GET", url, "Bearer "+token, nil) }
func post(url, token string, body object) reply  { return call("POST", url, "Bearer "+token, body) }
func patch(url, token string, body object) reply { return call("PATCH", url, "Bearer "+token, body) }

func register(url, email, password string) reply {
	return post(url+"/auth/register", "", object{"email": email, "password": password, "name": "Ada"})
}

func login(url, email, password string) reply {
	return post(url+"/auth/login", "", object{"username": email, "password": password})
}

func refresh(url, token string) reply {
	return post(url+"/auth/refresh", "", object{"refresh_token": token})
}

func changePassword(url, token, from, to string) reply {
	return post(url+"/auth/password", token, object{"current_password": from, "new_password": to})
}

// want fails the test if a reply has another status.
func want(t testing.TB, what string, r reply, status int) reply {
	t.Helper()
	if r.status != status {
		t.Fatalf("%s: got %d %s %v after %s, want %d", what, r.status, r.body, r.err, r.took, status)
	}
	return r
}
