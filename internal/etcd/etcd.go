// Package etcd is a client of etcd, a store of keys and values that survives the loss of a machine.
// It uses etcd's JSON gateway, so that net/http and encoding/json are enough.
//
// Every change gives the store a new revision. A transaction compares the revision of the last
// change of a key, so it can require that no other client has changed the key since it was read. To
// keep a copy of part of the store, call Range, and then Watch from the next revision.
package etcd

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	tryTimeout  = time.Second            // maximum time of a request to an endpoint
	scanTimeout = 30 * time.Second       // maximum time of a request to an endpoint for an interval
	retryPause  = 100 * time.Millisecond // pause after a failure of an endpoint
)

var (
	// ErrConflict reports that a comparison of a transaction failed.
	ErrConflict = errors.New("a key has another revision")
	// ErrCompacted reports that etcd lacks the revision. The caller must read all keys again.
	ErrCompacted = errors.New("revision compacted")
	// ErrCluster reports a response from a cluster other than that of the first response, or from
	// the same cluster restored to an earlier revision. Revisions before and after are not
	// comparable. The caller must read all keys again, with the Client that [Client.Renew] returns.
	ErrCluster = errors.New("cluster replaced")
)

// A Config has the settings of a Client.
type Config struct {
	URLs     []string                      // endpoints, such as https://10.0.0.1:2379
	User     string                        // empty if etcd requires no authentication
	Password func() string                 // of User
	Warn     func(msg string, args ...any) // logs the failure of an endpoint, as slog.Warn does
}

// A Client is a client of a cluster. It uses one endpoint until that fails, and then the next. It
// is safe for concurrent use.
type Client struct {
	cfg       Config
	transport http.RoundTripper
	endpoint  atomic.Int64 // number of the endpoint in use, modulo the number of endpoints
	failing   atomic.Bool  // whether no request has succeeded since the last warning
	cluster   atomic.Value // ID of the cluster, a string
	revision  atomic.Int64 // latest revision seen
	token     atomic.Value // token of the last login, a string
	loggingIn sync.Mutex   // held during a login
}

// New returns a Client. It does not connect yet.
func New(cfg Config) *Client {
	// A Transport with a DialContext uses HTTP/1.1, so that a watch has a connection to itself.
	c := &Client{cfg: cfg, transport: &http.Transport{
		DialContext:         (&net.Dialer{Timeout: tryTimeout}).DialContext,
		TLSHandshakeTimeout: tryTimeout,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     time.Minute,
	}}
	c.token.Store("")
	return c
}

// Renew returns a Client with the settings, connections and token of c that accepts any cluster.
func (c *Client) Renew() *Client {
	n := &Client{cfg: c.cfg, transport: c.transport}
	n.token.Store(c.token.Load())
	return n
}

// A KV is a key with its value.
type KV struct {
	Key            []byte `json:"key"`
	Value          []byte `json:"value"`
	CreateRevision int64  `json:"create_revision,string"`
	ModRevision    int64  `json:"mod_revision,string"` // revision of the last change
	Version        int64  `json:"version,string"`      // number of changes, or 0 if the key was deleted
}

// Prefix returns the interval of the keys that begin with p. p must not be empty or end in 0xff.
func Prefix(p string) (begin, end string) {
	b := []byte(p)
	b[len(b)-1]++
	return p, string(b)
}

// Range returns the pairs with begin <= key < end, or the pair of begin if end is empty, and the
// revision of the store. The pairs are those of a past revision, or the current ones if revision is
// 0, with every change that was acknowledged before. All are held in memory, so the caller should
// split a large interval. Range tries other endpoints until ctx is done.
func (c *Client) Range(ctx context.Context, begin, end string, revision int64) ([]KV, int64, error) {
	timeout := tryTimeout
	if end != "" {
		timeout = scanTimeout
	}
	req := request{Key: []byte(begin), End: []byte(end), Revision: revision}
	resp, err := c.unary(ctx, timeout, "/v3/kv/range", req)
	return resp.KVs, resp.Header.Revision, err
}

// A Txn is a transaction. If each key of Compare has that ModRevision, where 0 means that it does
// not exist, the keys of Put are set and those of Delete deleted, with one revision for all.
type Txn struct {
	Compare map[string]int64
	Put     map[string][]byte
	Delete  []string
}

// Commit executes t, which must compare a key, and returns its revision, or [ErrConflict] if a
// comparison failed.
//
// Commit sends t to other endpoints until ctx is done. If a response is lost, the next try may
// conflict with the first, so after ErrConflict the caller must check whether the current pairs are
// those of Put. After any other error, t may or may not have been executed, and may still be.
func (c *Client) Commit(ctx context.Context, t Txn) (revision int64, err error) {
	if len(t.Compare) == 0 {
		return 0, errors.New("transaction without a comparison")
	}
	var req request
	for _, key := range slices.Sorted(maps.Keys(t.Compare)) {
		req.Compare = append(req.Compare, request{Target: "MOD", Key: []byte(key), ModRevision: t.Compare[key]})
	}
	for _, key := range slices.Sorted(maps.Keys(t.Put)) {
		req.Success = append(req.Success, request{Put: &request{Key: []byte(key), Value: t.Put[key]}})
	}
	for _, key := range t.Delete {
		req.Success = append(req.Success, request{Delete: &request{Key: []byte(key)}})
	}
	resp, err := c.unary(ctx, tryTimeout, "/v3/kv/txn", req)
	if err == nil && !resp.Succeeded {
		err = ErrConflict
	}
	return resp.Header.Revision, err
}

// Watch calls changed with the changes from a revision on of keys with begin <= key < end. Each
// call has all changes of one or more revisions, in order. Watch continues at other endpoints until
// ctx is done or changes are no longer available. Then it returns [ErrCompacted] or [ErrCluster].
//
// An endpoint that has stopped looks like one without changes. So Watch moves to the next endpoint
// if one reports no change for the duration idle. The caller must change a key more often.
func (c *Client) Watch(ctx context.Context, begin, end string, revision int64, idle time.Duration,
	changed func([]KV)) error {
	req := request{Create: &request{Key: []byte(begin), End: []byte(end), StartRevision: revision}}
	return c.call(ctx, idle, "/v3/watch", req, func(r response) {
		var kvs []KV
		for _, e := range r.Events {
			kvs = append(kvs, e.KV)
			req.Create.StartRevision = e.KV.ModRevision + 1 // the revision of the header may be ahead of the events
		}
		c.revision.Store(max(c.revision.Load(), req.Create.StartRevision-1))
		if len(kvs) > 0 {
			changed(kvs)
		}
	})
}

// Cluster returns the ID of the cluster, or "" before the first response and after ErrCluster.
func (c *Client) Cluster() string {
	id, _ := c.cluster.Load().(string)
	return id
}
