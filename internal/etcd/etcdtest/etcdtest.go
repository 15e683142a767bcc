// Package etcdtest has a fake of etcd for tests.
package etcdtest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"jwt-auth-api/internal/etcd"
)

// A Server is a cluster of one node that keeps all changes in memory. It has the calls of etcd's
// JSON gateway that package etcd makes, without authentication.
type Server struct {
	*httptest.Server
	mu        sync.Mutex // protects the fields below
	woken     *sync.Cond // by changes, and by the end of watches
	fault     func(call string, executed bool) bool
	cluster   int
	revision  int64
	compacted int64     // changes up to this revision cannot be watched
	changes   []etcd.KV // all of the cluster, in order
}

// New returns a Server that runs until the test ends.
func New(t testing.TB) *Server {
	s := &Server{}
	s.woken = sync.NewCond(&s.mu)
	s.Fault(nil)
	s.Replace()
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.Close)
	return s
}

// Fault sets a function that is called before each call and, with executed, after each transaction.
// If it returns true, the connection is closed. A call is text: "range KEY", "txn KEY KEY " with
// the keys that it would change, or "watch ". The function may use the Server. If it is nil, all
// calls succeed.
func (s *Server) Fault(fault func(call string, executed bool) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault = fault; fault == nil {
		s.fault = func(string, bool) bool { return false }
	}
}

// Replace begins a cluster with another ID and without keys.
func (s *Server) Replace() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cluster, s.revision, s.compacted, s.changes = s.cluster+1, 1, 0, nil
	s.woken.Broadcast()
}

// Compact makes all changes so far unavailable to watches that begin later.
func (s *Server) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compacted = s.revision
}

// Put sets a key.
func (s *Server) Put(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.execute(request{Success: []request{{Put: &request{Key: []byte(key), Value: []byte(value)}}}})
}

type request struct {
	Key           []byte    `json:"key"`
	End           []byte    `json:"range_end"`
	Value         []byte    `json:"value"`
	Revision      int64     `json:"revision,string"`
	StartRevision int64     `json:"start_revision,string"`
	ModRevision   int64     `json:"mod_revision,string"`
	Compare       []request `json:"compare"`
	Success       []request `json:"success"`
	Put           *request  `json:"request_put"`
	Delete        *request  `json:"request_delete_range"`
	Create        *request  `json:"create_request"`
}

// matches reports whether a key is in the interval of the request.
func (r *request) matches(key string) bool {
	return key == string(r.Key) || key > string(r.Key) && key < string(r.End)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	var req request
	body, _ := io.ReadAll(r.Body) // up to the end, so that the context ends with the connection
	json.Unmarshal(body, &req)
	call := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/v3/"), "kv/") + " " + string(req.Key)
	for _, op := range req.Success {
		call += string(cmp.Or(op.Put, op.Delete).Key) + " "
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inject(call, false)
	switch r.URL.Path {
	case "/v3/kv/range":
		pairs := s.state(cmp.Or(req.Revision, s.revision))
		maps.DeleteFunc(pairs, func(key string, _ etcd.KV) bool { return !req.matches(key) })
		s.reply(w, object{"kvs": slices.Collect(maps.Values(pairs))})
	case "/v3/kv/txn":
		resp := s.execute(req)
		s.inject(call, true)
		s.reply(w, resp)
	case "/v3/watch":
		s.watch(w, r, req.Create)
	}
}

// inject calls fault without the lock.
func (s *Server) inject(call string, executed bool) {
	fault := s.fault
	s.mu.Unlock()
	abort := fault(call, executed)
	s.mu.Lock()
	if abort {
		panic(http.ErrAbortHandler)
	}
}

// object is an object in JSON.
type object = map[string]any

// reply writes a response.
func (s *Server) reply(w http.ResponseWriter, resp object) {
	resp["header"] = object{"cluster_id": fmt.Sprint(s.cluster), "revision": fmt.Sprint(s.revision)}
	json.NewEncoder(w).Encode(resp)
	w.(http.Flusher).Flush()
}

// state returns the pairs at a revision.
func (s *Server) state(revision int64) map[string]etcd.KV {
	pairs := map[string]etcd.KV{}
	for _, kv := range s.changes {
		if kv.ModRevision > revision {
			break
		}
		if pairs[string(kv.Key)] = kv; kv.Version == 0 {
			delete(pairs, string(kv.Key))
		}
	}
	return pairs
}

// execute executes a transaction.
func (s *Server) execute(req request) object {
	pairs := s.state(s.revision)
	for _, c := range req.Compare {
		if pairs[string(c.Key)].ModRevision != c.ModRevision {
			return object{}
		}
	}
	s.revision++
	for _, op := range req.Success {
		change := etcd.KV{Key: cmp.Or(op.Put, op.Delete).Key, ModRevision: s.revision}
		if old := pairs[string(change.Key)]; op.Put != nil {
			change.Value, change.Version = op.Put.Value, old.Version+1
			change.CreateRevision = cmp.Or(old.CreateRevision, s.revision)
		}
		s.changes = append(s.changes, change)
	}
	s.woken.Broadcast()
	return object{"succeeded": true}
}

// watch writes the changes from a revision on until the client leaves or the cluster is replaced.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, req *request) {
	defer context.AfterFunc(r.Context(), func() {
		s.mu.Lock() // The watch either waits, or checks its context later.
		defer s.mu.Unlock()
		s.woken.Broadcast()
	})()
	cluster, next := s.cluster, req.StartRevision
	if next <= s.compacted {
		s.reply(w, object{"compact_revision": fmt.Sprint(s.compacted), "canceled": true})
		return
	}
	s.reply(w, object{"created": true})
	for ; r.Context().Err() == nil && s.cluster == cluster; s.woken.Wait() {
		var events []object
		for _, kv := range s.changes {
			if kv.ModRevision >= next && req.matches(string(kv.Key)) {
				events = append(events, object{"kv": kv})
			}
		}
		next = s.revision + 1
		if len(events) > 0 {
			s.reply(w, object{"events": events})
		}
	}
}
