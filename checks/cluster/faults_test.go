package cluster

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"jwt-auth-api/checks/service"
)

var long = flag.Duration("long", 0, "how long to repeat the faults")

// settle is how long the load goes on after each fault.
const settle = time.Second

// noSync has etcd leave its files to the system, which does not crash here. So other programs that use
// the disk do not slow the cluster down.
const noSync = "--unsafe-no-fsync"

// rounds calls f once, or as long as the flag demands.
func rounds(f func()) {
	for begin := time.Now(); ; {
		if f(); time.Since(begin) >= *long {
			return
		}
	}
}

// TestNodeFaults breaks nodes of etcd while clients use three replicas.
func TestNodeFaults(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "", noSync)
	l, stop := startLoad(t, startReplicas(t, c))
	rounds(func() {
		time.Sleep(settle)
		t.Log("the leader is killed")
		n := c.leader()
		c.kill(n)
		l.recovered(5*time.Second, 0, 1, 2)
		c.start(n, "new")
		c.ready()
		time.Sleep(settle)

		t.Log("the leader is stopped")
		n = c.leader()
		n.cmd.Process.Signal(syscall.SIGSTOP)
		l.recovered(5*time.Second, 0, 1, 2)
		n.cmd.Process.Signal(syscall.SIGCONT)
		c.ready()
		time.Sleep(settle)

		t.Log("the leader is lost with its disk")
		n = c.leader()
		c.kill(n)
		os.RemoveAll(n.dir)
		l.recovered(5*time.Second, 0, 1, 2)
		c.replace(n)
		c.ready()
		time.Sleep(settle)

		t.Log("all nodes are killed")
		for _, n := range c.nodes {
			c.kill(n)
		}
		time.Sleep(settle)
		for _, n := range c.nodes {
			c.start(n, "new")
		}
		c.ready()
		l.recovered(5*time.Second, 0, 1, 2)
		time.Sleep(settle)
	})
	stop()
	l.check()
}

// TestReplicaFaults cuts a replica off from etcd, and kills one, while clients use all three.
func TestReplicaFaults(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "", noSync)
	var gate sync.RWMutex
	var proxies []string
	for _, url := range c.urls() {
		proxies = append(proxies, forward(t, url, &gate))
	}
	replicas := make([]*service.Process, 3)
	var urls []string
	for i := range replicas {
		nodes := c.urls()
		if i == 2 {
			nodes = proxies
		}
		replicas[i] = run(t, nodes)
		urls = append(urls, replicas[i].URL)
	}
	healthy(t, 10*time.Second, urls...)
	pair := want(t, "registration", register(urls[0], "cut@example.com", password), 201)
	token := pair.text("access_token")
	l, stop := startLoad(t, urls)
	rounds(func() {
		time.Sleep(settle)
		t.Log("replica 2 is cut off")
		l.cut[2].Store(true)
		gate.Lock()
		cutOff(t, urls[2], token, c.compact)
		l.recovered(5*time.Second, 0, 1)
		fresh := register(urls[0], fmt.Sprint("fresh", time.Now().Unix(), "@example.com"), password)
		gate.Unlock()
		healed := time.Now()
		healthy(t, 5*time.Second, urls[2])
		l.cut[2].Store(false)
		want(t, "a user registered meanwhile", get(urls[2]+"/me", fresh.text("access_token")), 200)
		l.recovered(5*time.Second-time.Since(healed), 2)
		time.Sleep(settle)

		t.Log("replica 1 is killed")
		l.down[1].Store(true)
		replicas[1].Kill()
		l.recovered(5*time.Second, 0, 2)
		replicas[1] = run(t, c.urls(), "APP_ADDR="+strings.TrimPrefix(urls[1], "http://"))
		healthy(t, 5*time.Second, urls[1])
		l.down[1].Store(false)
		l.recovered(5*time.Second, 0, 1, 2)
		time.Sleep(settle)
	})
	stop()
	l.check()
}

// cutOff checks a replica that has just been cut off from etcd. It calls compact when the replica
// has missed changes.
func cutOff(t *testing.T, url, token string, compact func()) {
	begin := time.Now()
	var all sync.WaitGroup
	for what, write := range map[string]func() reply{
		"name":         func() reply { return patch(url+"/me", token, map[string]any{"name": "Eve"}) },
		"registration": func() reply { return register(url, "late@example.com", password) },
		"login":        func() reply { return login(url, "cut@example.com", password) },
		"unknown user": func() reply { return login(url, "nobody@example.com", password) },
	} {
		all.Go(func() {
			r := write()
			if r.status != http.StatusServiceUnavailable || r.retry == "" || r.took > 9*time.Second {
				t.Errorf("%s while cut off: got %d, Retry-After %q after %s, want 503 within 9 s", what, r.status, r.retry, r.took)
			}
		})
	}
	for get(url+"/healthz", "").status == http.StatusOK {
		if r := get(url+"/me", token); r.status != http.StatusOK || r.took > time.Second {
			t.Errorf("/me while cut off: got %d after %s, want 200", r.status, r.took)
		}
		if time.Since(begin) > 12*time.Second {
			t.Errorf("/healthz: got 200 12 s after the cut, want 503")
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("/healthz: 503 after %s", time.Since(begin).Round(time.Millisecond))
	all.Wait()
	want(t, "/me while cut off", get(url+"/me", token), 200)
	compact()
}
