package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"jwt-auth-api/internal/testfile"
)

// A row of testdata/calls.json makes calls of one Client with the endpoints a and b.
//
// Each request gets the next of the replies. A reply has steps, separated by " ~ ": a status, lines
// of the body, a pause such as 1.5s, "hang" until the request is canceled, or "reset". H7 stands
// for the header of a response of cluster 14 at revision 7.
type row struct {
	Name     string
	User     string   // of the Client
	Timeout  int      // of each call in milliseconds, 8000 if 0
	Calls    []string // names of functions in calls
	Replies  []string
	Requests []string // endpoint, path, token and body of each, unless nil
	Want     []string // time and result of each call
	Warnings []string
}

var header = regexp.MustCompile(`\bH(\d+)`)

func expand(reply string) string {
	return header.ReplaceAllString(reply, `"header":{"cluster_id":"14","member_id":"9","revision":"$1","raft_term":"2"}`)
}

// A fake is a RoundTripper that replies as a row says.
type fake struct {
	replies, requests []string
	contexts          []context.Context // those of the requests
	open              int               // number of open bodies
}

func (f *fake) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	request := fmt.Sprintf("%s %s %q %s", r.URL.Host, r.URL.Path, r.Header["Authorization"], body)
	f.requests = append(f.requests, request)
	f.contexts = append(f.contexts, r.Context())
	if r.Method != "POST" || r.Header.Get("Content-Type") != "application/json" ||
		!slices.Equal(r.Header["Grpc-Metadata-Hasleader"], []string{"true"}) {
		return nil, fmt.Errorf("unexpected request: %s %v", r.Method, r.Header)
	}
	if len(f.replies) == 0 {
		return nil, errors.New("unexpected request")
	}
	s := &steps{f, r.Context(), strings.Split(expand(f.replies[0]), " ~ ")}
	f.replies = f.replies[1:]
	first := make([]byte, 8)
	n, err := s.Read(first)
	if err != nil {
		return nil, err
	}
	f.open++
	resp := &http.Response{Body: s}
	_, err = fmt.Sscan(string(first[:n]), &resp.StatusCode)
	return resp, err
}

// steps reads the steps of a reply.
type steps struct {
	fake *fake
	ctx  context.Context
	left []string
}

func (s *steps) Read(b []byte) (int, error) {
	if len(s.left) == 0 {
		return 0, io.EOF
	}
	step := s.left[0]
	wait, err := time.ParseDuration(step)
	switch {
	case step == "reset":
		return 0, errors.New("connection reset")
	case step == "hang":
		wait = time.Hour
	case err != nil:
		n := copy(b, step)
		if s.left[0] = step[n:]; s.left[0] == "" {
			s.left = s.left[1:]
		}
		return n, nil
	}
	select {
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	case <-time.After(wait):
		s.left = s.left[1:]
		return s.Read(b)
	}
}

func (s *steps) Close() error {
	s.fake.open--
	return nil
}

// calls are the calls that a row can make. They return the result.
var calls = map[string]func(ctx context.Context, c *Client) string{
	"read": func(ctx context.Context, c *Client) string { return printRange(c.Range(ctx, "a", "", 0)) },
	"scan": func(ctx context.Context, c *Client) string { return printRange(c.Range(ctx, "a", "b", 7)) },
	"commit": func(ctx context.Context, c *Client) string {
		return printCommit(c.Commit(ctx, Txn{
			Compare: map[string]int64{"k": 6, "a": 0},
			Put:     map[string][]byte{"k": []byte("v"), "a": nil},
			Delete:  []string{"d", "c"},
		}))
	},
	"commit blindly": func(ctx context.Context, c *Client) string {
		return printCommit(c.Commit(ctx, Txn{Put: map[string][]byte{"k": []byte("v")}}))
	},
	"watch": func(ctx context.Context, c *Client) string {
		var seen strings.Builder
		changed := func(kvs []KV) { seen.WriteString(printKVs(kvs) + " ") }
		err := c.Watch(ctx, "a", "b", 5, 5*time.Second, changed)
		return fmt.Sprintf("%s%v", &seen, err)
	},
}

func printRange(kvs []KV, revision int64, err error) string {
	return fmt.Sprintf("%s at %d: %v", printKVs(kvs), revision, err)
}

func printCommit(revision int64, err error) string { return fmt.Sprintf("at %d: %v", revision, err) }

func printKVs(kvs []KV) string {
	var texts []string
	for _, kv := range kvs {
		texts = append(texts, fmt.Sprintf("%s=%s %d %d %d", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version))
	}
	return "[" + strings.Join(texts, ", ") + "]"
}

func TestCalls(t *testing.T) {
	for _, row := range testfile.Read[[]row](t, "calls.json") {
		synctest.Test(t, func(t *testing.T) {
			f := &fake{replies: row.Replies}
			var got, warnings []string
			warn := func(msg string, args ...any) { warnings = append(warnings, fmt.Sprint(msg, ": ", args)) }
			c := newFake(f, row.User, warn)
			for _, name := range row.Calls {
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(cmp.Or(row.Timeout, 8000))*time.Millisecond)
				result := calls[name](ctx, c)
				got = append(got, fmt.Sprintf("%v %s", time.Since(start), result))
				active := func(ctx context.Context) bool { return ctx.Err() == nil }
				if f.open > 0 || slices.ContainsFunc(f.contexts, active) {
					t.Errorf("%s: got %d open bodies and %v, want none", row.Name, f.open, f.contexts)
				}
				cancel()
			}
			compare(t, row.Name+": results", got, row.Want)
			compare(t, row.Name+": warnings", warnings, row.Warnings)
			compare(t, row.Name+": replies left", f.replies, nil)
			if row.Requests != nil {
				compare(t, row.Name+": requests", f.requests, row.Requests)
			}
		})
	}
}

func newFake(transport http.RoundTripper, user string, warn func(string, ...any)) *Client {
	c := New(Config{[]string{"http://a", "http://b"}, user, func() string { return "secret" }, warn})
	c.transport = transport
	return c
}

func compare(t *testing.T, name string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got\n\t%s\nwant\n\t%s", name, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// TestConcurrentFailures checks that of two calls that fail in the same way, one logs in, one moves
// to the next endpoint, and one logs a warning.
func TestConcurrentFailures(t *testing.T) {
	f := &fake{replies: []string{`200 ~ {H7,"token":"new"}`}}
	warnings := 0
	c := newFake(f, "app", func(string, ...any) { warnings++ })
	for range 2 {
		if err := c.login(t.Context(), "http://a", ""); err != nil || c.token.Load() != "new" || len(f.requests) != 1 {
			t.Errorf("login: got %v, token %v, requests %q, want the new token and 1", err, c.token.Load(), f.requests)
		}
		if !c.failed(0, io.EOF) || c.endpoint.Load() != 1 || warnings != 1 {
			t.Errorf("failure: got endpoint %d and %d warnings, want 1 and 1", c.endpoint.Load(), warnings)
		}
	}
}

// TestNew makes calls with net/http, at an endpoint that supports HTTP/2: the first reply is lost,
// the next two come in chunks on one connection, also to a renewed Client, and then a redirect is
// not followed.
func TestNew(t *testing.T) {
	var requests, peers []string
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		requests = append(requests, r.Proto+" "+r.URL.Path+" "+r.Header.Get("Authorization"))
		peers = append(peers, r.RemoteAddr)
		switch len(requests) {
		case 1:
			panic(http.ErrAbortHandler)
		case 4:
			http.Redirect(w, r, "/other", http.StatusTemporaryRedirect)
		default:
			io.WriteString(w, expand(`{H7,"kvs":[`))
			w.(http.Flusher).Flush()
			io.WriteString(w, `{"key":"YQ==","value":"`+strings.Repeat("QUFB", 5000)+`"}]}`)
		}
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	c := New(Config{URLs: []string{server.URL}, Warn: func(string, ...any) {}})
	c.transport.(*http.Transport).TLSClientConfig = server.Client().Transport.(*http.Transport).TLSClientConfig
	c.token.Store("t1")
	for _, c := range []*Client{c, c.Renew()} {
		kvs, revision, err := c.Range(t.Context(), "a", "", 0)
		if err != nil || revision != 7 || len(kvs) != 1 || string(kvs[0].Value) != strings.Repeat("A", 15000) {
			t.Fatalf("got %d pairs at %d and %v, want 1 at 7", len(kvs), revision, err)
		}
	}
	if _, _, err := c.Range(t.Context(), "a", "", 0); err != nil {
		t.Errorf("redirect: got %v, want none after another request", err)
	}
	compare(t, "requests", requests, slices.Repeat([]string{"HTTP/1.1 /v3/kv/range t1"}, 5))
	if peers[1] != peers[2] || peers[2] != peers[3] {
		t.Errorf("got the connections %q, want one after the first", peers)
	}
}

// FuzzPrefix checks that an interval has exactly the keys with the prefix.
func FuzzPrefix(f *testing.F) {
	for _, key := range []string{"a/", "a/b", "a0", "a.", "a", "b", "", "a/\xff", "é"} {
		f.Add("a/", key)
		f.Add("é", key)
		f.Add("\xff\xfe", key)
	}
	f.Fuzz(func(t *testing.T, prefix, key string) {
		if prefix == "" || strings.HasSuffix(prefix, "\xff") {
			return
		}
		begin, end := Prefix(prefix)
		if got, want := begin <= key && key < end, strings.HasPrefix(key, prefix); got != want {
			t.Errorf("prefix %q, key %q: got %v in [%q,%q), want %v", prefix, key, got, begin, end, want)
		}
	})
}

// FuzzWatch cuts a body. The changes before the cut are the same, none is empty, and the revision
// to continue from is that after the last one.
func FuzzWatch(f *testing.F) {
	for _, row := range testfile.Read[[]row](f, "calls.json") {
		for _, reply := range row.Replies {
			_, body, _ := strings.Cut(expand(reply), " ~ ")
			body = strings.ReplaceAll(body, " ~ ", "\n")
			f.Add(body, uint(len(body)/2))
		}
	}
	f.Fuzz(func(t *testing.T, body string, cut uint) {
		whole := watchBody(t, body)
		part := watchBody(t, body[:cut%uint(len(body)+1)])
		if len(part) > len(whole) || !slices.Equal(part, whole[:len(part)]) {
			t.Errorf("got %q of a part, want the first of %q", part, whole)
		}
	})
}

// watchBody returns the changes of a watch that has body for its first response.
func watchBody(t *testing.T, body string) (changes []string) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{replies: []string{"200", `200 ~ {"result":{H9,"compact_revision":"6"}}`}}
		respond := func(r *http.Request) (*http.Response, error) {
			resp, err := f.RoundTrip(r)
			if len(f.requests) == 1 {
				resp.Body = io.NopCloser(strings.NewReader(body))
			}
			return resp, err
		}
		next := int64(5)
		c := newFake(roundTripper(respond), "", func(string, ...any) {})
		err := c.Watch(t.Context(), "a", "b", next, time.Hour, func(kvs []KV) {
			changes = append(changes, printKVs(kvs))
			next = kvs[len(kvs)-1].ModRevision + 1
		})
		want := fmt.Sprintf(`"start_revision":"%d"}}`, next)
		if err == nil || slices.Contains(changes, "[]") || len(f.requests) > 1 && !strings.HasSuffix(f.requests[1], want) {
			t.Errorf("%q: got %q, %v and requests %q, want an error and %s", body, changes, err, f.requests, want)
		}
	})
	return changes
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
