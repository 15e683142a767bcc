package cluster

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"jwt-auth-api/checks/service"
)

// currentEtcd builds the version of etcd that etcd/go.mod names, once, and returns its path.
var currentEtcd = sync.OnceValues(func() (string, error) {
	test, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(test), "etcd")
	build := exec.Command("go", "build", "-C", "etcd", "-o", path, "go.etcd.io/etcd/server/v3")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// A cluster is three nodes of etcd.
type cluster struct {
	t     testing.TB
	path  string
	args  []string // additional ones of each node
	nodes []*node
}

// A node is one process of etcd. Its addresses never change.
type node struct {
	name, dir    string
	client, peer string // URLs
	cmd          *exec.Cmd
}

// startCluster runs a cluster until the test ends. An empty path is the current etcd.
func startCluster(t testing.TB, path string, args ...string) *cluster {
	t.Helper()
	if path == "" {
		var err error
		if path, err = currentEtcd(); err != nil {
			t.Fatal(err)
		}
	}
	c := &cluster{t: t, path: path, args: args}
	for i := range 3 {
		n := &node{name: fmt.Sprint("n", i), dir: t.TempDir(), client: freeURL(t), peer: freeURL(t)}
		c.nodes = append(c.nodes, n)
	}
	for _, n := range c.nodes {
		c.start(n, "new")
		t.Cleanup(func() { c.kill(n) })
	}
	c.ready()
	return c
}

// freeURL returns a URL at a port of 127.0.0.1 that was free a moment ago.
func freeURL(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

func (c *cluster) start(n *node, state string) {
	c.t.Helper()
	var members []string
	for _, n := range c.nodes {
		members = append(members, n.name+"="+n.peer)
	}
	n.cmd = exec.Command(c.path, append([]string{"--name", n.name, "--data-dir", n.dir,
		"--listen-client-urls", n.client, "--advertise-client-urls", n.client,
		"--listen-peer-urls", n.peer, "--initial-advertise-peer-urls", n.peer,
		"--initial-cluster", strings.Join(members, ","), "--initial-cluster-state", state,
		"--logger", "zap", "--log-level", "fatal"}, c.args...)...)
	n.cmd.Stderr = c.t.Output()
	if err := n.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
}

// kill ends a node as a crash does.
func (c *cluster) kill(n *node) {
	n.cmd.Process.Kill()
	n.cmd.Wait()
}

// ready waits until every node serves linearizable reads.
func (c *cluster) ready() {
	c.t.Helper()
	for _, n := range c.nodes {
		await(c.t, 20*time.Second, n.name+" is ready", func() bool {
			status, _ := n.post("/v3/kv/range", map[string]any{"key": "YQ=="})
			return status == http.StatusOK || status == http.StatusBadRequest // authentication is required
		})
	}
}

// post sends a request to the JSON gateway of a node, with a short time-out.
func (n *node) post(path string, body any) (int, map[string]any) {
	r := call("POST", n.client+path, "", body, 2*time.Second)
	return r.status, r.body
}

// must sends a request to the gateway of the first node that accepts it.
func (c *cluster) must(path string, body any) (response map[string]any) {
	c.t.Helper()
	await(c.t, 20*time.Second, path, func() bool {
		return slices.ContainsFunc(c.nodes, func(n *node) bool {
			status, r := n.post(path, body)
			response = r
			return status == http.StatusOK
		})
	})
	return response
}

// leader returns the leader.
func (c *cluster) leader() (leader *node) {
	c.t.Helper()
	await(c.t, 20*time.Second, "there is a leader", func() bool {
		for _, n := range c.nodes {
			_, r := n.post("/v3/maintenance/status", nil)
			if header, ok := r["header"].(map[string]any); ok && r["leader"] == header["member_id"] {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

// urls returns the addresses of the nodes for clients.
func (c *cluster) urls() (urls []string) {
	for _, n := range c.nodes {
		urls = append(urls, n.client)
	}
	return urls
}

// replace gives a node that has lost its disk a new place in the cluster.
func (c *cluster) replace(n *node) {
	c.t.Helper()
	members, _ := c.must("/v3/cluster/member/list", nil)["members"].([]any)
	for _, m := range members {
		if m := m.(map[string]any); m["name"] == n.name {
			c.must("/v3/cluster/member/remove", map[string]any{"ID": m["ID"]})
		}
	}
	c.must("/v3/cluster/member/add", map[string]any{"peerURLs": []string{n.peer}})
	c.start(n, "existing")
}

// compact removes etcd's history.
func (c *cluster) compact() {
	c.t.Helper()
	header := c.must("/v3/kv/range", map[string]any{"key": "YQ=="})["header"].(map[string]any)
	c.must("/v3/kv/compaction", map[string]any{"revision": header["revision"], "physical": true})
}

// forward forwards TCP connections to a URL until the test ends, and returns the proxy's URL. While
// the gate is locked, nothing gets through, as in a network that loses all packets. What was sent
// meanwhile arrives later.
func forward(t testing.TB, target string, gate *sync.RWMutex) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	pipe := func(to, from net.Conn) {
		defer to.Close()
		for buf := make([]byte, 64<<10); ; {
			n, err := from.Read(buf)
			gate.RLock()
			if n > 0 {
				_, err = to.Write(buf[:n])
			}
			gate.RUnlock()
			if err != nil {
				return
			}
		}
	}
	go func() {
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				gate.RLock()
				up, err := net.Dial("tcp", strings.TrimPrefix(target, "http://"))
				gate.RUnlock()
				if err != nil {
					down.Close()
					return
				}
				go pipe(up, down)
				pipe(down, up)
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

const secret = "0123456789abcdef0123456789abcdef"

// run runs a replica that uses the given URLs of etcd.
func run(t testing.TB, urls []string, env ...string) *service.Process {
	t.Helper()
	return service.Run(t, slices.Concat([]string{"APP_JWT_SECRET=" + secret, "APP_ARGON2=m=19456,t=2,p=1",
		"APP_THROTTLE=off", "APP_STORE=etcd:" + strings.Join(urls, ",")}, env)...)
}

// healthy waits until a replica is.
func healthy(t testing.TB, within time.Duration, urls ...string) {
	t.Helper()
	for _, url := range urls {
		await(t, within, url+" is healthy", func() bool { return get(url+"/healthz", "").status == http.StatusOK })
	}
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

// A reply is the response to a request.
type reply struct {
	status int // 0: none
	body   map[string]any
	list   []map[string]any // if the body is an array
	retry  string
	err    error
	took   time.Duration
}

func (r reply) text(name string) string {
	text, _ := r.body[name].(string)
	return text
}

var transport = &http.Transport{MaxIdleConnsPerHost: 256}

// call sends a request with a form, or with a JSON body.
func call(method, address, authorization string, body any, timeout time.Duration) (r reply) {
	begin := time.Now()
	defer func() { r.took = time.Since(begin) }()
	contentType := "application/json"
	text, _ := json.Marshal(body)
	switch form := body.(type) {
	case nil:
		text = []byte("{}")
	case url.Values:
		contentType, text = "application/x-www-form-urlencoded", []byte(form.Encode())
	}
	req, err := http.NewRequest(method, address, bytes.NewReader(text))
	if err != nil {
		return reply{err: err}
	}
	req.Header = http.Header{"Content-Type": {contentType}}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := (&http.Client{Transport: transport, Timeout: timeout}).Do(req)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	if text, err = io.ReadAll(resp.Body); err != nil {
		return reply{err: err}
	}
	r.status, r.retry = resp.StatusCode, resp.Header.Get("Retry-After")
	if bytes.HasPrefix(text, []byte("[")) {
		json.Unmarshal(text, &r.list)
	} else {
		json.Unmarshal(text, &r.body)
	}
	return r
}

const clientTimeout = 20 * time.Second

func get(url, token string) reply { return call("GET", url, bearer(token), nil, clientTimeout) }
func post(url, token string, body any) reply {
	return call("POST", url, bearer(token), body, clientTimeout)
}
func patch(url, token string, body any) reply {
	return call("PATCH", url, bearer(token), body, clientTimeout)
}

func bearer(token string) string {
	if token == "" {
		return ""
	}
	return "Bearer " + token
}

func register(url, address, password string) reply {
	return post(url+"/auth/register", "", map[string]any{"email": address, "password": password, "name": "Ada"})
}

func login(base, address, password string) reply {
	return post(base+"/auth/login", "", url.Values{"username": {address}, "password": {password}})
}

func refresh(url, token string) reply {
	return post(url+"/auth/refresh", "", map[string]any{"refresh_token": token})
}

// want fails the test if a reply has another status.
func want(t testing.TB, what string, r reply, status int) reply {
	t.Helper()
	if r.status != status {
		t.Fatalf("%s: got %d %v %v after %s, want %d", what, r.status, r.body, r.err, r.took, status)
	}
	return r
}

// gen returns the generation of a refresh token.
func gen(token string) int {
	payload, _ := base64.RawURLEncoding.DecodeString(strings.Split(token+"..", ".")[1])
	var claims struct{ Gen int }
	json.Unmarshal(payload, &claims)
	return claims.Gen
}
