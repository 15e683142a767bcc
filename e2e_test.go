package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"jwt-auth-api/internal/etcd/etcdtest"
	"jwt-auth-api/internal/openapi"
	"jwt-auth-api/internal/phc"
	"jwt-auth-api/internal/testfile"
	"jwt-auth-api/internal/webscript"
)

// These tests run the service as a whole, over HTTP and as a process. The scripts in testdata/*.txt
// and the walkthrough in README.md specify the API. Each response is compared with
// docs/openapi.json, and the log of each server is checked.

// liveSecret signs the tokens of the servers that these tests start, and freshSecret those of a
// few.
const (
	liveSecret  = documentedSecret
	freshSecret = "a-fresh-secret-of-the-year-2027-with-at-least-32-bytes"
)

// liveStart is the time on the clock of a server until a test advances it.
var liveStart = time.Unix(1795503214, 0).UTC()

// A liveServer is a server with a clock that a test advances, and with a log in both formats.
type liveServer struct {
	*server
	described        openapi.Description
	advanced         atomic.Int64 // a time.Duration
	textLog, jsonLog lockedBuffer
	url              string // of a started server
	transport        http.Transport

	mu   sync.Mutex      // protects the fields below
	ids  map[string]int  // lines that the log must have, by X-Request-Id
	sent map[string]bool // passwords
}

// newLiveServer returns a server with settings (NAME=value) besides the secret and the defaults. At
// the end of the test it checks the log.
func newLiveServer(t testing.TB, settings ...string) *liveServer {
	t.Helper()
	cfg, warnings, err := loadConfig(append([]string{"APP_JWT_SECRET=" + liveSecret}, settings...))
	if err != nil || len(warnings) > 1 { // one about the documented secret
		t.Fatal(err, warnings)
	}
	cfg.argon2 = phc.Params{Memory: 64, Time: 1, Threads: 1}
	s := &liveServer{ids: map[string]int{}, sent: map[string]bool{documentedPassword: true}}
	text, json := newLogger("text", &s.textLog).Handler(), newLogger("json", &s.jsonLog).Handler()
	if s.described, err = openapi.Load("docs/openapi.json"); err == nil {
		s.server, err = newServer(t.Context(), cfg, s.now, slog.New(slog.NewMultiHandler(text, json)), func(err error) { t.Error(err) })
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.checkLog(t) })
	return s
}

// startServer returns a server that serves on a port of loopback until the test ends.
func startServer(t testing.TB, settings ...string) *liveServer {
	t.Helper()
	s := newLiveServer(t, settings...)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.url = "http://" + listener.Addr().String()
	s.serveOn(t, listener)
	t.Cleanup(s.transport.CloseIdleConnections)
	return s
}

// serveOn serves on listener until the test ends or cancel is called.
func (s *liveServer) serveOn(t testing.TB, listener net.Listener) (cancel func(), ended <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.serve(ctx, listener); err != nil {
			t.Errorf("serve: got %v, want no error", err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return cancel, done
}

func (s *liveServer) now() time.Time { return liveStart.Add(time.Duration(s.advanced.Load())) }

// Advance advances the clock.
func (s *liveServer) Advance(d time.Duration) { s.advanced.Add(int64(d)) }

// Sign returns a token of header and claims as they are, with a valid signature.
func (s *liveServer) Sign(header, claims string) string {
	return signed(liveSecret, b64(header)+"."+b64(claims))
}

// sentPassword matches the passwords in a body, JSON or a form. Shorter ones may be in a log by
// chance.
var sentPassword = regexp.MustCompile(`password(?:"\s*:\s*"|=)([^"&\s]{8,})`)

// Send sends a request such as "GET /me" and checks what every response must have. With a header
// Transfer-Encoding it sends the body in chunks.
func (s *liveServer) Send(t testing.TB, request string, header []string, body string) (got webscript.Response) {
	t.Helper()
	method, path, _ := strings.Cut(request, " ")
	req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Add(name, value)
	}
	if req.Header.Get("Transfer-Encoding") != "" {
		req.ContentLength = -1
	}
	resp, err := s.transport.RoundTrip(req)
	if err != nil {
		t.Errorf("%s: %v", request, err)
		return got
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	got = webscript.Response{Status: resp.StatusCode, Header: resp.Header, Body: string(content)}
	if err = errors.Join(err, s.described.Check(request, got.Status, got.Header, got.Body)); err != nil {
		t.Errorf("%s: %v", request, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range sentPassword.FindAllStringSubmatch(body, -1) {
		s.sent[m[1]] = true
	}
	id, nosniff := resp.Header.Get("X-Request-Id"), resp.Header["X-Content-Type-Options"]
	if _, seen := s.ids[id]; id == "" || seen || !slices.Equal(nosniff, []string{"nosniff"}) {
		t.Errorf("%s: got X-Request-Id: %q and X-Content-Type-Options: %q, want a new id and nosniff", request, id, nosniff)
	}
	s.ids[id] = 1
	if strings.Contains(request, " /healthz") && got.Status == http.StatusOK {
		s.ids[id] = 0
	}
	return got
}

// logLine matches a line of a log, its message and its request id.
var logLine = map[string]*regexp.Regexp{
	"text": regexp.MustCompile(`^time=\S+ level=(?:INFO|WARN|ERROR) msg=(\w+|"[\w ;:-]+")` +
		`(?: [a-z_]+=(?:[^\s"=]*|"(?:[^"\\]|\\.)*"))*?(?: request_id=(\w+))?\n$`),
	"json": regexp.MustCompile(`^{"time":"[^"]+","level":"(?:INFO|WARN|ERROR)","msg":("[\w ;:-]+")` +
		`(?:,"[a-z_]+":(?:\d+|"(?:[^"\\]|\\.)*"))*?(?:,"request_id":"(\w+)")?}\n$`),
}

// checkLog fails unless the log has one line for each request but successful health checks, and
// each line is well-formed and contains no secret, password, hash or token.
func (s *liveServer) checkLog(t testing.TB) {
	s.mu.Lock()
	defer s.mu.Unlock()
	private := slices.AppendSeq([]string{liveSecret, freshSecret, "$argon2id$", "eyJ"}, maps.Keys(s.sent))
	for format, log := range map[string]string{"text": s.textLog.String(), "json": s.jsonLog.String()} {
		requests := map[string]int{}
		for line := range strings.Lines(log) {
			m := logLine[format].FindStringSubmatch(line)
			leaked := slices.IndexFunc(private, func(text string) bool { return strings.Contains(line, text) })
			if m == nil || leaked >= 0 {
				t.Errorf("%s log: got %q, want a well-formed line without any of %q", format, line, private)
			} else if strings.Trim(m[1], `"`) == "request" {
				requests[m[2]]++
			}
		}
		for id, want := range s.ids {
			if requests[id] != want {
				t.Errorf("%s log: got %d lines of the request %s, want %d", format, requests[id], id, want)
			}
		}
	}
}

// A lockedBuffer is a bytes.Buffer that is safe for concurrent use.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("testdata/*.txt: got no script, want at least one (%v)", err)
	}
	for store, start := range map[string]func(t *testing.T, settings []string) webscript.Server{
		"memory": func(t *testing.T, settings []string) webscript.Server { return startServer(t, settings...) },
		"file":   startWithFile,
		"etcd": func(t *testing.T, settings []string) webscript.Server {
			return startReplica(t, etcdtest.New(t), settings...)
		},
	} {
		for _, file := range files {
			t.Run(store+"/"+filepath.Base(file), func(t *testing.T) { webscript.Run(t, file, start) })
		}
	}
}

func TestWalkthrough(t *testing.T) { webscript.Walkthrough(t, "README.md", startServer(t)) }

// operations returns the operations of the routes, such as "get /me", in their order.
func operations() (list []string) {
	for _, route := range new(server).routes() {
		for _, method := range slices.Sorted(maps.Keys(route.methods)) {
			list = append(list, strings.ToLower(method)+" "+route.path)
		}
	}
	return list
}

func TestEveryRouteIsDescribed(t *testing.T) {
	d := newLiveServer(t).described
	equal(t, "the description is sound", d.Sound(), nil)
	equal(t, "the routes", fmt.Sprint(d.Operations()), fmt.Sprint(slices.Sorted(slices.Values(operations()))))
}

// TestDescribedExamples sends the examples of requests in the order of the routes, so that the user
// is registered before the login. Each has the tokens of a new session. An error is the example
// word for word.
func TestDescribedExamples(t *testing.T) {
	s, sent := startServer(t), 0
	for _, operation := range operations() {
		for _, ex := range s.described.Examples(operation) {
			id := "admin-0"
			if ex.Values["current_password"] != nil { // of the user
				u, _ := s.users.byEmail(t.Context(), "user@example.com")
				id = u.ID
			}
			pair, form := s.begin(t, id), url.Values{}
			for name, value := range ex.Values {
				if strings.HasPrefix(fmt.Sprint(value), "eyJ") {
					ex.Values[name] = pair.RefreshToken
				}
				form.Set(name, fmt.Sprint(ex.Values[name]))
			}
			body := []byte(form.Encode())
			if ex.Media == "application/json" {
				body, _ = json.Marshal(ex.Values) // never fails
			}
			header := []string{"Content-Type: " + ex.Media, "Authorization: Bearer " + pair.AccessToken}
			got := s.Send(t, strings.Replace(ex.Request, "{id}", "admin-0", 1), header, string(body))
			want := got.Body
			if got.Status >= 400 {
				text, _ := json.Marshal(ex.Response) // never fails
				want = string(text)
			}
			if sent++; strconv.Itoa(got.Status) != ex.Status || got.Body != want {
				t.Errorf("%s, example %s: got %d %s, want %s %s", ex.Request, ex.Name, got.Status, got.Body, ex.Status, want)
			}
		}
	}
	if sent == 0 {
		t.Error("docs/openapi.json: got no example, want some")
	}
}

// TestRequirements sends each operation without a token, with invalid ones, and with tokens that
// have the scope or lack it. The requests have no body, and an id of no user in the path: the
// caller is checked first.
func TestRequirements(t *testing.T) {
	public := strings.Fields("/auth/register /auth/login /auth/refresh /auth/revoke /healthz")
	s := startServer(t)
	addUsers(t, s, 1)
	for _, operation := range operations() {
		method, path, _ := strings.Cut(operation, " ")
		request := strings.ToUpper(method) + " " + strings.Replace(path, "{id}", "nobody", 1)
		unknown, invalid, lacking := "401 Bearer", `401 Bearer error="invalid_token"`, "passes"
		if strings.HasPrefix(path, "/admin/") {
			invalid = `401 Bearer scope="admin", error="invalid_token"`
			lacking = `403 Bearer scope="admin", error="insufficient_scope"`
		} else if slices.Contains(public, path) {
			unknown, invalid = "passes", "passes"
		}
		admin := s.begin(t, "admin-0")
		c, _ := s.tokens.verify(admin.AccessToken, accessToken)
		c.scopes = []string{"me"}
		for _, row := range [][2]string{
			{"X: y", unknown},
			{"Authorization: Basic abc", unknown},
			{"Authorization: Bearer abc", invalid},
			{"Authorization: Bearer " + admin.RefreshToken, invalid},
			{"Authorization: Bearer " + s.tokens.keys[0].sign(c.appendJSON(nil)), lacking},
			{"Authorization: Bearer " + s.begin(t, "id 0").AccessToken, lacking},
			{"Authorization: Bearer " + s.begin(t, "admin-0").AccessToken, "passes"},
		} {
			resp := s.Send(t, request, row[:1], "")
			got := fmt.Sprint(resp.Status, " ", resp.Header.Get("WWW-Authenticate"))
			if resp.Status != http.StatusUnauthorized && resp.Status != http.StatusForbidden {
				got = "passes"
			}
			if got != row[1] {
				t.Errorf("%s with %s: got %s, want %s", request, row[0], got, row[1])
			}
		}
	}
}

// TestMethods sends each method to each path, with a trailing slash and without one.
func TestMethods(t *testing.T) {
	s := startServer(t)
	for _, route := range s.routes() {
		allowed := slices.Sorted(maps.Keys(route.methods))
		for _, method := range strings.Fields("GET HEAD POST PUT PATCH DELETE OPTIONS TRACE get") {
			for _, slash := range []string{"", "/"} {
				want := strings.Join(allowed, ", ")
				if slices.Contains(allowed, strings.Replace(method, "HEAD", "GET", 1)) {
					want = ""
				}
				request := method + " " + strings.Replace(route.path, "{id}", "nobody", 1) + slash
				resp := s.Send(t, request, nil, "")
				allow := resp.Header.Get("Allow")
				if allow != want || (resp.Status == 405) != (want != "") || resp.Status == 404 {
					t.Errorf("%s: got %d and Allow: %s, want Allow: %s", request, resp.Status, allow, want)
				}
			}
		}
	}
}

const jsonType = "Content-Type: application/json"

// TestRegisterAtOnce sends twenty registrations of one email at once, to one server or to two
// replicas.
func TestRegisterAtOnce(t *testing.T) {
	etcd := etcdtest.New(t)
	for _, servers := range [][]*liveServer{{startServer(t)}, {startReplica(t, etcd), startReplica(t, etcd)}} {
		var wg sync.WaitGroup
		statuses := make([]int, 20)
		for i := range statuses {
			s := servers[i%len(servers)]
			wg.Go(func() { statuses[i] = s.Send(t, "POST /auth/register", []string{jsonType}, registerBody).Status })
		}
		wg.Wait()
		slices.Sort(statuses)
		equal(t, "statuses", fmt.Sprint(statuses), "[201"+strings.Repeat(" 409", 19)+"]")
	}
}

// logValues replaces the names in testdata/log.json.
func logValues() *strings.Replacer {
	token := func(sub, scope, typ, more string) string {
		const format = `{"sub":%q,"scopes":[%q],"type":%q,"exp":1795504114,"iss":"jwt-auth-api"%s}`
		return signed(liveSecret, b64(plainHeader)+"."+b64(fmt.Sprintf(format, sub, scope, typ, more)))
	}
	admin := token("admin-0", "admin", "access", `,"sid":"admin"`)
	return strings.NewReplacer(
		"ADMIN", admin,
		"FORGED", admin[:len(admin)-1]+"!",
		"NONE", signed(liveSecret, b64(`{"alg":"none","typ":"JWT"}`)+"."+b64("{}")),
		"LESS", token("admin-0", "me", "access", `,"sid":"admin"`),
		"GONE", token("nobody", "admin", "refresh", ""),
		"LEAVER", token("admin-0", "admin", "access", `,"sid":"leaver"`),
		"REVOKED", token("other", "me", "access", `,"sid":"revoked"`),
		"SLEPT", token("other", "me", "refresh", `,"sid":"slept","gen":1`),
		"REUSED", token("other", "me", "refresh", `,"sid":"reused","gen":0`),
		"TOOLARGE", strings.Repeat("x", maxBody+1),
		"FORGERY", "x%22%0D%0Atime=2026-01-01T00:00:00Z%20level=ERROR%20msg=forged%20%22")
}

// TestLog sends requests and compares the lines in the log that have the id of each. Some requests
// have line breaks, quotes and what looks like an attribute wherever a client can send them.
func TestLog(t *testing.T) {
	type row struct {
		Request, Body string
		Header, Want  []string
		Status        int
	}
	s := startServer(t, "APP_TRUSTED_PROXIES=127.0.0.0/8")
	sessions := func(ids ...string) (list []session) {
		for _, id := range ids {
			list = append(list, session{ID: id, Gen: 2, Expires: liveStart.Unix() + 1})
		}
		return list
	}
	s.users.records[0].Sessions = sessions("admin", "leaver", "ended")
	other := user{ID: "other", Email: "other@example.com", Name: "Other", Scopes: []string{"me"}}
	other.Sessions = sessions("revoked", "slept", "reused")
	s.users.add(t.Context(), other)
	for range 10 {
		s.Send(t, "POST /auth/login", []string{jsonType}, `{"username":"throttled@example.com","password":"wrong-password"}`)
	}
	values := logValues()
	for _, row := range testfile.Read[[]row](t, "log.json") {
		for i, line := range row.Header {
			row.Header[i] = values.Replace(line)
		}
		resp := s.Send(t, values.Replace(row.Request), row.Header, values.Replace(row.Body))
		if got := s.logOf(resp.Header.Get("X-Request-Id")); resp.Status != row.Status || !slices.Equal(got, row.Want) {
			t.Errorf("%s: got %d and the log %q, want %d and %q", row.Request, resp.Status, got, row.Status, row.Want)
		}
	}
	for _, private := range []string{"@", ".com", "my-own-password", "User Name", "forged", "ERROR", "Sup3rS3cret"} {
		if strings.Contains(s.textLog.String(), private) {
			t.Errorf("got %s in the log, want no email, no name and no forgery", private)
		}
	}
}

var (
	logNoise = regexp.MustCompile(`^time=\S+ level=| bytes=\d+ duration=\S+| request_id=\w+\n$`)
	logUUID  = regexp.MustCompile(`\w{8}-\w{4}-4\w{3}-\w{4}-\w{12}`)
)

// logOf returns the lines of the log about the request with an id, or about any request if id is
// empty.
func (s *liveServer) logOf(id string) (lines []string) {
	for line := range strings.Lines(s.textLog.String()) {
		if strings.Contains(line, " request_id="+id) {
			line = strings.NewReplacer(" msg=", " ", `"`, "").Replace(logNoise.ReplaceAllString(line, ""))
			lines = append(lines, logUUID.ReplaceAllString(line, "<uuid>"))
		}
	}
	return lines
}

// A pipeListener accepts connections in memory, which use the clock of a synctest bubble.
type pipeListener chan net.Conn

func (l pipeListener) Accept() (net.Conn, error) {
	if conn, open := <-l; open {
		return conn, nil
	}
	return nil, net.ErrClosed
}

func (l pipeListener) Close() error {
	close(l)
	return nil
}

func (l pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l pipeListener) dial(t *testing.T) net.Conn {
	client, server := net.Pipe()
	t.Cleanup(func() { client.Close() })
	l <- server
	return client
}

// serveInMemory serves in a synctest bubble until the test ends.
func serveInMemory(t *testing.T) (*liveServer, pipeListener) {
	s, listener := newLiveServer(t), make(pipeListener)
	s.serveOn(t, listener)
	return s, listener
}

// ask sends a request and returns the response as "200 body", or the reason that there is none.
func ask(conn net.Conn, request string) string {
	go io.WriteString(conn, request)
	response, _ := readResponse(bufio.NewReader(conn))
	return response
}

func readResponse(conn *bufio.Reader) (response string, header http.Header) {
	resp, err := http.ReadResponse(conn, nil)
	if err != nil {
		return err.Error(), nil
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error(), nil
	}
	if resp.Close { // http.ReadResponse removes it.
		resp.Header.Set("Connection", "close")
	}
	return fmt.Sprint(resp.StatusCode, " ", string(body)), resp.Header
}

// get returns a GET request with header lines that each end in CRLF.
func get(path, header string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: x\r\n" + header + "\r\n"
}

const (
	chunked = "Transfer-Encoding: chunked"
	expects = "\r\nExpect: 100-continue"
)

// length returns the header of a body of n bytes.
func length(n int) string { return fmt.Sprint("Content-Length: ", n) }

// post returns a POST request of JSON, with a header that says how long its body is.
func post(path, header, body string) string {
	return "POST " + path + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + header + "\r\n\r\n" + body
}

const (
	healthy  = `200 {"status":"ok"}`
	missing  = `422 {"detail":[{"type":"missing",`
	notFound = `404 {"detail":"Not Found"}`
	tooLarge = `413 {"detail":"Content Too Large"`
	late     = `408 {"detail":"Request Timeout"`
	broken   = `400 {"detail":"There was an error parsing the body"`
	busy     = `503 {"detail":"busy, try again"`

	loginBody    = `{"username":"admin@example.com","password":"admin-password"}`
	registerBody = `{"email":"new@example.com","password":"secret123","name":"N"}`
)

var (
	getHealth = get("/healthz", "")
	postLogin = post("/auth/login", length(len(loginBody)), loginBody)
)

// TestStalledClients has clients that send something, and then nothing more or a byte a second.
func TestStalledClients(t *testing.T) {
	refresh := post("/auth/refresh", length(20), "")
	rows := []struct {
		name, sends, want string
		drips             bool
		responds, closes  time.Duration // in seconds
	}{
		{"sends nothing", "", "unexpected EOF", false, 5, 5},
		{"stalls in the first line", "GET /healthz", "400 400 Bad Request", false, 5, 5},
		{"stalls in the header", refresh[:len(refresh)-2], "unexpected EOF", false, 5, 5},
		{"drips the header", refresh[:len(refresh)-2] + "X: ", "unexpected EOF", true, 5, 5},
		{"stalls in the body", refresh + "{", late, false, 10, 10},
		{"drips the body", refresh + "{", late, true, 10, 10},
		{"stalls in a chunk", post("/auth/refresh", chunked, "5\r\n{"), late, false, 10, 10},
		{"stalls in a body for an unknown path", post("/nope", length(20), "{"), notFound, false, 10, 10},
		{"stalls before a body that is too large", post("/auth/refresh", length(16<<10+1), ""), tooLarge, false, 0, 10},
		{"waits for 100 Continue", post("/nope", length(16<<10+1)+expects, ""), tooLarge, false, 0, 10},
		{"sends no second request", getHealth, healthy, false, 0, 120},
	}
	synctest.Test(t, func(t *testing.T) {
		_, listener := serveInMemory(t)
		start := time.Now()
		for _, row := range rows {
			conn := listener.dial(t)
			go func() {
				io.WriteString(conn, row.sends)
				for n := 0; row.drips && n < 18; n++ {
					<-time.After(time.Second)
					io.WriteString(conn, " ")
				}
			}()
			go func() {
				reader := bufio.NewReader(conn)
				got, header := readResponse(reader)
				if took := time.Since(start); !strings.HasPrefix(got, row.want) || took != row.responds*time.Second {
					t.Errorf("%s: got %s after %v, want %s after %d s", row.name, got, took, row.want, row.responds)
				}
				if close := header.Get("Connection") == "close"; header != nil && close != (row.sends != getHealth) {
					t.Errorf("%s: got Connection: close: %t, want it unless all was sent", row.name, close)
				}
				reader.ReadByte() // Waits for the end.
				// net/http gives the client half a second to read a response.
				if took := time.Since(start) - row.closes*time.Second; took < 0 || took > time.Second {
					t.Errorf("%s: got the end %v later, want it after %d s", row.name, took, row.closes)
				}
			}()
		}
		<-time.After(3 * time.Minute)
	})
}

// TestConnections counts the responses to requests on one connection, to see where the server
// closes it.
func TestConnections(t *testing.T) {
	const chunks = "2\r\n{}\r\n0\r\n\r\n"
	largest := "{}" + strings.Repeat(" ", 16<<10-2)
	header := "X: " + strings.Repeat("x", 16<<10-len(getHealth)-5)
	s := startServer(t)
	for _, row := range []struct {
		name, requests string
		want           []string
	}{
		{"two requests", getHealth + getHealth, []string{healthy, healthy}},
		{"a body", post("/auth/refresh", length(2), "{}") + getHealth, []string{missing, healthy}},
		{"a body for an unknown path", post("/nope", length(2), "{}") + getHealth, []string{notFound, healthy}},
		{"OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n" + getHealth, []string{notFound, healthy}},
		{"a URL without a path", get("http://x", "") + getHealth, []string{notFound, healthy}},
		{"CONNECT", "CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n" + getHealth, []string{notFound, healthy}},
		{"chunks", post("/auth/refresh", chunked, chunks) + getHealth, []string{missing}},
		{"both lengths", post("/auth/refresh", length(2)+"\r\n"+chunked, chunks) + getHealth, []string{missing}},
		{"HTTP/1.0", "GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + getHealth, []string{healthy}},
		{"the largest body", post("/auth/refresh", length(len(largest)), largest) + getHealth, []string{missing, healthy}},
		{"a larger body", post("/auth/refresh", length(len(largest)+1), largest+" ") + getHealth, []string{tooLarge}},
		{"a body that breaks off", post("/auth/refresh", length(20), "{"), []string{broken}},
		{"a chunk that breaks off", post("/auth/refresh", chunked, "5\r\n{"), []string{broken}},
		{"the largest header", get("/healthz", header+"\r\n"), []string{healthy}},
		{"a larger header", get("/healthz", header+"x\r\n"), []string{"431 "}},
		{"no request", "hello\r\n\r\n" + getHealth, []string{"400 400 Bad Request"}},
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		go func() {
			io.WriteString(conn, row.requests)
			conn.(*net.TCPConn).CloseWrite()
		}()
		reader := bufio.NewReader(conn)
		var got []string
		for response, header := readResponse(reader); header != nil; response, header = readResponse(reader) {
			got = append(got, response)
		}
		if !slices.EqualFunc(got, row.want, strings.HasPrefix) {
			t.Errorf("%s: got %q, want %q", row.name, got, row.want)
		}
	}
}

// TestBusy sends requests that need a hash while the only slot is taken. Other requests do not
// wait.
func TestBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, listener := serveInMemory(t)
		s.occupy()
		pair, start := s.begin(t, "admin-0"), time.Now()
		bearer := "\r\nAuthorization: Bearer " + pair.AccessToken
		send := func(method, path, body string) string {
			return method + strings.TrimPrefix(post(path, length(len(body))+bearer, body), "POST")
		}
		var wg sync.WaitGroup
		for _, request := range []string{
			postLogin,
			send("POST", "/auth/register", registerBody),
			send("POST", "/auth/password", `{"current_password":"admin-password","new_password":"secret123"}`),
			send("PATCH", "/admin/users/admin-0", `{"name":"N","password":"secret123"}`),
		} {
			conn := listener.dial(t)
			wg.Go(func() {
				go io.WriteString(conn, request)
				got, header := readResponse(bufio.NewReader(conn))
				wait, took := header.Get("Retry-After"), time.Since(start)
				if !strings.HasPrefix(got, busy) || wait != "1" || took != 5*time.Second {
					t.Errorf("%s: got %s and Retry-After: %s after %v, want %s and 1 after 5s", request, got, wait, took, busy)
				}
			})
		}
		synctest.Wait()
		for _, request := range []string{
			getHealth,
			get("/me/sessions", bearer[2:]+"\r\n"),
			get("/admin/users", bearer[2:]+"\r\n"),
			send("PATCH", "/me", `{"name":"N"}`),
			send("POST", "/auth/refresh", fmt.Sprintf(`{"refresh_token":%q}`, pair.RefreshToken)),
			send("POST", "/auth/revoke", fmt.Sprintf(`{"token":%q}`, pair.RefreshToken)),
		} {
			if got := ask(listener.dial(t), request); !strings.HasPrefix(got, "200 ") || time.Since(start) != 0 {
				t.Errorf("%s: got %s after %v, want 200 at once", request, got, time.Since(start))
			}
		}
		wg.Wait()
	})
}

// begin begins a session of the user with an id, and returns its tokens.
func (s *liveServer) begin(t *testing.T, id string) tokenPair {
	t.Helper()
	begun := newSession(newUUID(), "", s.tokens.now(), s.tokens.refreshTTL)
	u, err := s.users.update(t.Context(), id, func(u *user) error { u.beginSession(begun); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return s.tokens.issuePair(u, begun, "")
}

// occupy takes the only slot for hashes.
func (s *liveServer) occupy() (release func()) {
	s.passwords = newPasswords(s.passwords.params, 1)
	release, _ = s.passwords.Acquire(context.Background()) // The slot is free.
	return release
}

// TestLateBody sends the body of a login at the end of the time for a request. The wait for a slot,
// and the time to read the response, come on top.
func TestLateBody(t *testing.T) {
	for _, row := range []struct {
		name             string
		body, slot, read time.Duration
		want             string
	}{
		{"in time", 9 * time.Second, 13 * time.Second, 29 * time.Second, `200 {"access_token":"`},
		{"a late body", 11 * time.Second, 0, 12 * time.Second, late},
		{"a late slot", 9 * time.Second, 15 * time.Second, 15 * time.Second, busy},
		{"a response that is read late", 9 * time.Second, 13 * time.Second, 31 * time.Second, "unexpected EOF"},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, listener := serveInMemory(t)
			release := s.occupy()
			conn := listener.dial(t)
			io.WriteString(conn, strings.TrimSuffix(postLogin, loginBody))
			time.AfterFunc(row.body, func() { io.WriteString(conn, loginBody) })
			time.AfterFunc(row.slot, release)
			<-time.After(row.read)
			if got, _ := readResponse(bufio.NewReader(conn)); !strings.HasPrefix(got, row.want) {
				t.Errorf("%s: got %s, want %s", row.name, got, row.want)
			}
		})
	}
}

// TestListStreams has clients read a list for longer than a response may take.
func TestListStreams(t *testing.T) {
	for _, row := range []struct {
		name  string
		pause time.Duration // after each 16 KiB; a page has about 32 KiB
		whole bool
	}{
		{"reads slowly", 4 * time.Second, true},
		{"pauses for longer than a page may take", 11 * time.Second, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, listener := serveInMemory(t)
			addUsers(t, s, 20_000)
			conn, start := listener.dial(t), time.Now()
			io.WriteString(conn, get("/admin/users", "Authorization: Bearer "+s.begin(t, "admin-0").AccessToken+"\r\n"))
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			var body bytes.Buffer
			for err == nil {
				_, err = io.CopyN(&body, resp.Body, 16<<10)
				<-time.After(row.pause)
			}
			var list []struct{ ID string }
			err = json.Unmarshal(body.Bytes(), &list) // fails for a part of a list
			whole := err == nil && len(list) == 20_001 && list[20_000].ID == "id 19999"
			if took := time.Since(start); whole != row.whole || (took > time.Minute) != row.whole {
				t.Errorf("%s: got %d users after %v (%v), want all: %t", row.name, len(list), took, err, row.whole)
			}
		})
	}
}

// A pageWriter records the number of users in each write, which returns err.
type pageWriter struct {
	*httptest.ResponseRecorder
	err   error
	pages []int
}

func (w *pageWriter) Write(b []byte) (int, error) {
	if n := bytes.Count(b, []byte(`"id"`)); n > 0 {
		w.pages = append(w.pages, n)
	}
	n, _ := w.ResponseRecorder.Write(b)
	return n, w.err
}

// TestListPages lists users to a client that reads, and to one that is gone.
func TestListPages(t *testing.T) {
	for _, row := range []struct {
		query string
		users int
		pages []int
	}{
		{"", 257, []int{257}},
		{"", 258, []int{257, 1}},
		{"", 514, []int{257, 256, 1}},
		{"?limit=1", 2, []int{1}},
		{"?limit=1000", 1001, []int{1000}},
	} {
		s := newLiveServer(t)
		addUsers(t, s, row.users-1)
		r := httptest.NewRequest("GET", "/admin/users"+row.query, nil)
		r.Header.Set("Authorization", "Bearer "+s.begin(t, "admin-0").AccessToken)
		reads := &pageWriter{httptest.NewRecorder(), nil, nil}
		gone := &pageWriter{httptest.NewRecorder(), net.ErrClosed, nil}
		s.handler().ServeHTTP(reads, r)
		s.handler().ServeHTTP(gone, r)
		if !slices.Equal(reads.pages, row.pages) || !slices.Equal(gone.pages, row.pages[:1]) {
			t.Errorf("%d users%s: got writes of %d users, and of %d to a client that is gone, want %d and the first",
				row.users, row.query, reads.pages, gone.pages, row.pages)
		}
	}
}

// addUsers adds n users who cannot log in.
func addUsers(t *testing.T, s *liveServer, n int) {
	for i := range n {
		u := user{ID: fmt.Sprint("id ", i), Email: fmt.Sprint(i, "@example.com"), Scopes: []string{"me"}}
		u.Name = strings.Repeat("n", 50)
		s.users.add(t.Context(), u)
	}
}

// TestShutdown shuts down during a request. A login waits for a slot, which is freed after some
// time.
func TestShutdown(t *testing.T) {
	for _, row := range []struct {
		name, request    string
		slot, took       time.Duration
		response, logged string
	}{
		{"it gets a slot", postLogin, 3 * time.Second, 3 * time.Second, `200 {"access_token":"`, " status=200 "},
		{"it waits too long", postLogin, time.Hour, 5 * time.Second, busy, " status=503 "},
		{"its client leaves", postLogin, 0, 0, "io: read/write on closed pipe", " status=503 "},
		{"nobody reads", getHealth, time.Hour, 10 * time.Second, "unexpected EOF", `level=WARN msg="requests aborted" `},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, listener := newLiveServer(t), make(pipeListener)
			release := s.occupy()
			cancel, ended := s.serveOn(t, listener)
			idle, conn := listener.dial(t), listener.dial(t)
			ask(idle, getHealth)
			io.WriteString(conn, row.request)
			synctest.Wait()
			start := time.Now()
			cancel()
			synctest.Wait()
			if _, open := <-listener; open {
				t.Errorf("%s: got an open listener, want it closed", row.name)
			}
			if _, err := idle.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("%s: a connection without a request: got %v, want it closed", row.name, err)
			}
			switch {
			case row.slot == 0:
				conn.Close()
			case row.request == getHealth:
				<-ended
			default:
				time.AfterFunc(row.slot, release)
			}
			if got, _ := readResponse(bufio.NewReader(conn)); !strings.HasPrefix(got, row.response) {
				t.Errorf("%s: got %s, want %s", row.name, got, row.response)
			}
			<-ended
			took := time.Since(start)
			synctest.Wait()
			if log := s.textLog.String(); took < row.took || took > row.took+time.Second || !strings.Contains(log, row.logged) {
				t.Errorf("%s: got the end after %v and the log %s, want %v and %s", row.name, took, log, row.took, row.logged)
			}
		})
	}
}

// TestFaults breaks the server so that a request fails or panics, before or after its response
// began. The next request gets its response.
func TestFaults(t *testing.T) {
	const (
		failed = `500 {"detail":"Internal Server Error"`
		login  = "INFO login failed user=admin-0 reason="
		bearer = "Authorization: Bearer TOKEN\r\n"
		hash   = "password hash: must be argon2id, version 19"
		panics = "ERROR request failed reason=panic: runtime error: invalid memory address or nil pointer dereference"
	)
	for _, row := range []struct {
		name, request string
		breaks        func(t *testing.T, s *liveServer)
		want          string
		logged        []string
	}{
		{"a full queue", postLogin, func(t *testing.T, s *liveServer) {
			s.occupy()
			for range 64 {
				go s.passwords.Acquire(t.Context())
			}
			synctest.Wait()
		}, busy,
			[]string{login + "busy, try again", "ERROR request method=POST route=POST /auth/login status=503 "}},
		{"a malformed hash", postLogin, func(t *testing.T, s *liveServer) {
			s.users.records[0].hash = newSecret("none")
		}, failed, []string{login + hash, "ERROR request failed reason=" + hash, "ERROR request method=POST "}},
		{"a panic", get("/me", bearer), func(t *testing.T, s *liveServer) { s.tokens = nil }, failed,
			[]string{"ERROR request method=GET route=GET /me status=500 ", panics}},
		{"a panic after the response began", get("/admin/users", bearer), func(t *testing.T, s *liveServer) {
			addUsers(t, s, streamPage)
			s.users.records = append(s.users.records, nil)
		}, "unexpected EOF", []string{"INFO request method=GET route=GET /admin/users status=200 ", panics}},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, listener := serveInMemory(t)
			request := strings.Replace(row.request, "TOKEN", s.begin(t, "admin-0").AccessToken, 1)
			row.breaks(t, s)
			for _, exchange := range [][2]string{{request, row.want}, {getHealth, healthy}} {
				if got := ask(listener.dial(t), exchange[0]); !strings.HasPrefix(got, exchange[1]) {
					t.Errorf("%s: %s: got %s, want %s", row.name, exchange[0], got, exchange[1])
				}
			}
			if got := s.logOf(""); !slices.EqualFunc(got, row.logged, strings.HasPrefix) {
				t.Errorf("%s: got the log %q, want %q", row.name, got, row.logged)
			}
		})
	}
}

// A failingListener fails to accept connections.
type failingListener struct {
	pipeListener
	errs chan error
}

func (l failingListener) Accept() (net.Conn, error) { return nil, <-l.errs }

// TestServeFails checks the error of a closed listener, and that the log has the messages of
// net/http.
func TestServeFails(t *testing.T) {
	s, errs := newLiveServer(t), make(chan error, 2)
	errs <- &net.OpError{Op: "accept", Err: syscall.EMFILE}
	errs <- net.ErrClosed
	err := s.serve(t.Context(), failingListener{make(pipeListener), errs})
	if !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want %v", err, net.ErrClosed)
	}
	if want := `level=WARN msg="http: Accept error: `; !strings.Contains(s.textLog.String(), want) {
		t.Errorf("got %s, want %s", s.textLog.String(), want)
	}
}

var runEnviron = []string{"APP_JWT_SECRET=" + freshSecret, "APP_ADMIN_EMAIL=", "APP_ADDR=127.0.0.1:0"}

// TestRun runs the service with a context that is done.
func TestRun(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := taken.Addr().String()
	inUse := "APP_ADDR: listen tcp " + addr + ": bind: address already in use"
	const noSecret = "APP_JWT_SECRET: missing; generate one with: openssl rand -hex 32"
	long := "APP_" + strings.Repeat("X", 4<<20) // a line that logwriter drops
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, row := range []struct {
		name          string
		args, environ []string
		dotenv, want  string
		logged        string // a regular expression
	}{
		{"no fault", nil, append(runEnviron, "APP_NAME=hunter2"), "", "<nil>",
			`.*level=WARN msg="suspicious setting" reason="unknown setting APP_NAME"\n.*msg=listening addr=127\.0\.0\.1:\d+\n.*msg="shutting down"\n`},
		{"a log in JSON", nil, append(runEnviron, "APP_LOG=json"), "", "<nil>", `{.*"listening".*}\n{.*"shutting down".*}\n`},
		{"an argument", []string{"-port=80"}, runEnviron, "",
			"unexpected argument; settings are environment variables, see README.md", ""},
		{"two faults", nil, []string{"APP_LOG=x"}, "", noSecret + "\nAPP_LOG: must be text or json", ""},
		{"a port in use", nil, append(runEnviron, "APP_ADDR="+addr), "", inUse, ""},
		{"a port in use, from .env", nil, runEnviron[:2], "APP_ADDR=" + addr, inUse, ""},
		{"an unknown setting in .env", nil, runEnviron, "APP_SECRET=hunter2", ".env line 1: unknown setting APP_SECRET", ""},
		{"long lines", nil, []string{long, long + "="}, "", noSecret, `.*level=WARN msg="log lines dropped" lines=2\n`},
	} {
		t.Chdir(t.TempDir())
		if err := os.WriteFile(".env", []byte(row.dotenv), 0o600); err != nil {
			t.Fatal(err)
		}
		var log lockedBuffer
		got := fmt.Sprint(run(ctx, row.args, row.environ, &log))
		if !regexp.MustCompile("^"+row.logged+"$").MatchString(log.String()) || got != row.want {
			t.Errorf("%s: got %s and the log %s, want %s and %s", row.name, got, log.String(), row.want, row.logged)
		}
	}
}

// asProgram is an environment variable with which the test binary runs main, or a constant server.
const asProgram = "JWT_AUTH_API_TEST_RUNS_MAIN"

func TestMain(m *testing.M) {
	switch os.Getenv(asProgram) {
	case "":
		m.Run()
	case "constant":
		http.ListenAndServe(os.Getenv("APP_ADDR"), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, strings.Repeat("x", 86)) // as long as the response of /me
		}))
	default:
		main()
		os.Exit(0)
	}
}

// startProgram runs main in a process, and returns it with its log. FILE_BLOCKS in environ limits
// the size of the files that it writes.
func startProgram(t *testing.T, environ ...string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `${FILE_BLOCKS:+ulimit -f $FILE_BLOCKS}; exec "$0"`, self)
	cmd.Dir = t.TempDir()
	cmd.Env = append(environ, asProgram+"=1", "GOCOVERDIR="+cmd.Dir)
	stderr, err := cmd.StderrPipe()
	if err = errors.Join(err, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(stderr)
}

// listens returns the address in the log of a program that starts.
func listens(t *testing.T, log *bufio.Reader) string {
	t.Helper()
	for {
		line, err := log.ReadString('\n')
		if _, addr, found := strings.Cut(strings.TrimSpace(line), " msg=listening addr="); found {
			return addr
		}
		if err != nil {
			t.Fatalf("got the log %q and %v, want an address", line, err)
		}
	}
}

// interrupt sends the program the header of a request and then, when it waits for the body, a
// signal.
func interrupt(t *testing.T, cmd *exec.Cmd, log *bufio.Reader, signal os.Signal) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", listens(t, log))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	reader := bufio.NewReader(conn)
	io.WriteString(conn, post("/auth/refresh", length(2)+expects, ""))
	proceed, _ := readResponse(reader)
	cmd.Process.Signal(signal)
	if line, err := log.ReadString('\n'); proceed != "100 " || !strings.Contains(line, ` msg="shutting down"`) {
		t.Fatalf("got %s, and the log %q and %v, want 100 and shutting down", proceed, line, err)
	}
	return conn, reader
}

// TestSignals ends the program during a request, which gets its response. The program has memory
// for fewer hashes than cores.
func TestSignals(t *testing.T) {
	for _, signal := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		cmd, log := startProgram(t, append(runEnviron, "GOMAXPROCS=8", "GOMEMLIMIT=256MiB")...)
		conn, reader := interrupt(t, cmd, log, signal)
		io.WriteString(conn, "{}")
		got, _ := readResponse(reader)
		io.Copy(io.Discard, log)
		if err := cmd.Wait(); err != nil || !strings.HasPrefix(got, missing) {
			t.Errorf("%v: got %s and %v, want %s and the exit status 0", signal, got, err, missing)
		}
	}
}

// TestSecondSignal sends two signals during a request that the program would wait for.
func TestSecondSignal(t *testing.T) {
	cmd, log := startProgram(t, runEnviron...)
	interrupt(t, cmd, log, syscall.SIGTERM)
	start, ended := time.Now(), make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for tick, running := time.Tick(time.Millisecond), true; running; {
		cmd.Process.Signal(syscall.SIGTERM) // The program may still handle the first one.
		select {
		case <-ended:
			running = false
		case <-tick:
		}
	}
	status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if took := time.Since(start); !status.Signaled() || status.Signal() != syscall.SIGTERM || took > 5*time.Second {
		t.Errorf("got %v after %v, want the end by the signal at once", cmd.ProcessState, took)
	}
}

func TestExit(t *testing.T) {
	cmd, log := startProgram(t)
	output, _ := io.ReadAll(log)
	const want = "APP_JWT_SECRET: missing; generate one with: openssl rand -hex 32\n"
	if err := cmd.Wait(); string(output) != want || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("without a secret: got %q and %v, want %q and the exit status 1", output, err, want)
	}
}

// openUsers returns the users in the file at path, which is open until the test ends.
func openUsers(t testing.TB, path string) (*users, *fileStore) {
	t.Helper()
	s := newUsers()
	f, err := openFile(path, s, func(string, ...any) {}, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.close() })
	s.store = f
	return s, f
}

// openCopy returns the users in a copy of the file at path.
func openCopy(t testing.TB, path string) *users {
	t.Helper()
	text, _ := os.ReadFile(path)
	path = filepath.Join(t.TempDir(), "users.jsonl")
	os.WriteFile(path, text, 0o600)
	s, f := openUsers(t, path)
	f.close()
	return s
}

// storedText returns the records in order as a store keeps them.
func storedText(t testing.TB, s *users) string {
	list, _ := s.after("", math.MaxInt)
	return join(list, func(u user) string { return string(encodeUser(u)) })
}

// A checkedStore checks that the changes that do not wait are the rotations.
type checkedStore struct {
	store
	users *users
	t     *testing.T
}

func (s checkedStore) commit(ctx context.Context, c change) error {
	former, _ := s.users.byID(ctx, c.user.ID)
	gens, rest := regexp.MustCompile(`"gen":\d+`), regexp.MustCompile(`"(gen|rotated|expires)":\d+`)
	from, to := string(encodeUser(former)), string(encodeUser(c.user))
	rotates := fmt.Sprint(gens.FindAllString(from, -1)) != fmt.Sprint(gens.FindAllString(to, -1)) &&
		rest.ReplaceAllString(from, "") == rest.ReplaceAllString(to, "")
	if c.noWait != rotates {
		s.t.Errorf("got noWait: %t, want %t for a change from %s to %s", c.noWait, rotates, from, to)
	}
	return s.store.commit(ctx, c)
}

// startWithFile returns a server with a file, which in the end has what the server has.
func startWithFile(t *testing.T, settings []string) webscript.Server {
	path := filepath.Join(t.TempDir(), "users.jsonl")
	s := startServer(t, append(settings, "APP_STORE=file:"+path)...)
	s.users.store = checkedStore{s.users.store, s.users, t}
	t.Cleanup(func() {
		equal(t, "close", s.users.store.close(), nil)
		equal(t, "the file", storedText(t, openCopy(t, path)), storedText(t, s.users))
	})
	return s
}

// TestStoredUser has every field of a record.
func TestStoredUser(t *testing.T) {
	const text = `{"v":1,"id":"u1","email":"u1@example.com","name":"\"N\"\n","scopes":["me"],"disabled":true,` +
		`"deleted":true,"since":1,"sessions":[{"id":"s1","user_agent":"curl","gen":2,"created":3,"rotated":4,` +
		`"forgiven":5,"expires":6,"adopted":true}],"version":7,"hash":"$h"}`
	want := user{"u1", "u1@example.com", "\"N\"\n", []string{"me"}, true, true, 1,
		[]session{{"s1", "curl", 2, 3, 4, 5, 6, true}}, 7, newSecret("$h"), 8}
	for _, v := range []reflect.Value{reflect.ValueOf(want), reflect.ValueOf(want.Sessions[0])} {
		for i := range v.NumField() {
			equal(t, v.Type().Field(i).Name+" is left out", v.Field(i).IsZero(), false)
		}
	}
	var record storedUser
	err := json.Unmarshal([]byte(text), &record)
	got, err2 := record.record()
	got.place = 8 // the only field that is not kept
	if err != nil || err2 != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v and %v, want %+v", got, err, err2, want)
	}
	equal(t, "the record", string(encodeUser(want)), text)
	equal(t, "no fields", string(encodeUser(user{Sessions: []session{{}}})), `{"v":1,"id":"","scopes":null,`+
		`"sessions":[{"id":"","gen":0,"created":0,"rotated":0,"expires":0}],"version":0}`)
}

// TestFileStore opens a file again, before and after the compaction.
func TestFileStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users.jsonl")
	s, f := openUsers(t, path)
	for _, id := range []string{"u0", "u1", "u2", "u9"} {
		equal(t, id, s.add(t.Context(), user{ID: id, Email: id + "@example.com"}), nil)
	}
	for _, id := range []string{"u2", "u0", "u2"} {
		s.update(t.Context(), id, func(u *user) error { u.Name, u.Deleted = u.Name+id, id == "u0"; return errNoWait })
	}
	equal(t, "a free email", s.add(t.Context(), user{ID: "u3", Email: "u0@example.com"}), nil)
	equal(t, "a taken email", s.add(t.Context(), user{ID: "u4", Email: "u9@example.com"}), error(errEmailTaken))
	equal(t, "close", f.close(), nil)
	text, _ := os.ReadFile(path)
	equal(t, "records with the email of the deleted user", strings.Count(string(text), "u0@example.com"), 2)
	for range 2 {
		again, f := openUsers(t, path)
		f.close()
		text, _ := os.ReadFile(path)
		equal(t, "records", storedText(t, again), storedText(t, s))
		deleted := regexp.MustCompile(`{"v":1,"id":"u0"[^}]*}`).FindString(string(text))
		equal(t, "a deleted user", deleted, `{"v":1,"id":"u0","scopes":null,"deleted":true,"version":2}`)
	}
	equal(t, "a write after close", s.add(t.Context(), user{ID: "u5"}), error(errUnavailable))
}

// TestNoWait makes a change that is written 10 ms later.
func TestNoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "users.jsonl")
		s, _ := openUsers(t, path)
		s.add(t.Context(), user{ID: "u1"})
		s.update(t.Context(), "u1", func(u *user) error { u.Name = "Ada"; return errNoWait })
		written := func(pause time.Duration) bool {
			time.Sleep(pause)
			synctest.Wait()
			text, _ := os.ReadFile(path)
			return strings.Contains(string(text), "Ada")
		}
		equal(t, "written after 9 ms", written(9*time.Millisecond), false)
		equal(t, "written after 10 ms", written(time.Millisecond), true)
	})
}

// TestOldChanges applies a snapshot with the owner of an email, and then changes of former owners.
func TestOldChanges(t *testing.T) {
	const email = "u@example.com"
	s, owner, deleted := newUsers(), user{ID: "owner", Email: email, Version: 1}, user{ID: "u2", Version: 3, Deleted: true}
	for _, u := range []user{{ID: "u0", Email: email, Version: 1}, {ID: "u1", Email: email, Version: 1}, deleted, owner,
		{ID: "u0", Email: email, Version: 2}, {ID: "u0", Version: 3, Deleted: true},
		{ID: "u1", Version: 2, Deleted: true}, {ID: "u2", Email: email, Version: 2}, deleted, owner} {
		s.apply(u)
	}
	u, err := s.byEmail(t.Context(), email)
	equal(t, "the owner", fmt.Sprint(u.ID, err), "owner<nil>")
}

// TestPlaces applies users in another order than that of their places. A deleted one keeps its
// place, and the email of u6, whose deletion is missing, belongs to u7.
func TestPlaces(t *testing.T) {
	s := newUsers()
	emails := map[int64]string{6: "u7@example.com"}
	s.apply(user{ID: "u8", Version: 2, Deleted: true, place: 8})
	for _, place := range []int64{3, 5, 7, 1, 6, 4, 2} {
		id := fmt.Sprint("u", place)
		s.apply(user{ID: id, Email: cmp.Or(emails[place], id+"@example.com"), Version: 1, place: place})
		if place == 5 {
			s.apply(user{ID: id, Version: 2, Deleted: true})
		}
	}
	list, err := s.after("", 9)
	equal(t, "users", fmt.Sprint(userIDs(list), err), "u1 u2 u3 u4 u6 u7<nil>")
	owners := join(list, func(u user) string { owner, _ := s.byEmail(t.Context(), u.Email); return owner.ID })
	equal(t, "the owners of their emails", owners, "u1 u2 u3 u4 u7 u7")
	list, err = s.after("u5", 9)
	equal(t, "users after the deleted one", fmt.Sprint(userIDs(list), err), "u6 u7<nil>")
	list, err = s.after("u8", 9)
	equal(t, "users after one that was loaded as deleted", fmt.Sprint(userIDs(list), err), "<nil>")
}

// TestAdminStays starts a server again with another admin in the settings, who is not created.
func TestAdminStays(t *testing.T) {
	store := "APP_STORE=file:" + filepath.Join(t.TempDir(), "users.jsonl")
	first := newLiveServer(t, store, "APP_ADMIN_PASSWORD=first-password")
	first.users.store.close()
	second := newLiveServer(t, store, "APP_ADMIN_PASSWORD=second-password", "APP_ADMIN_EMAIL=second@example.com")
	second.users.store.close()
	equal(t, "the password", second.passwords.verify("first-password", second.users.records[0].hash), nil)
	equal(t, "the records", storedText(t, second.users), storedText(t, first.users))
}

// fileEnviron returns the environment of a program with a file.
func fileEnviron(path string, more ...string) []string {
	return append([]string{runEnviron[0], "APP_ADDR=127.0.0.1:0", "APP_ARGON2=m=19456,t=2,p=1", "APP_THROTTLE=off",
		"APP_STORE=file:" + path}, more...)
}

// TestStoreErrors runs the service with stores that it refuses.
func TestStoreErrors(t *testing.T) {
	dir := t.TempDir()
	for name, record := range map[string]string{
		"users": `{"v":1,"id":"u1","email":"admin@example.com","version":1}`,
		"newer": `{"v":2,"id":"u1"}`, "older": `{"id":"u1"}`, "other": `"u1"`,
	} {
		_, f := openUsers(t, filepath.Join(dir, name))
		f.journal.Append([]byte(record))
		f.close()
	}
	text, _ := os.ReadFile(filepath.Join(dir, "users"))
	os.WriteFile(filepath.Join(dir, "damaged"), bytes.Replace(text, []byte("["), []byte("{"), 1), 0o600)
	os.Mkdir(filepath.Join(dir, "dir"), 0o700)
	openUsers(t, filepath.Join(dir, "used")) // also compacts it
	for _, row := range [][2]string{
		{"DIR/used", "APP_STORE: journal: DIR/used is in use by another process"},
		{"DIR/none/users", "APP_STORE: journal: open DIR/none: no such file or directory"},
		{"DIR/dir", "APP_STORE: journal: DIR/dir is not a regular file"},
		{"/sys/users", "APP_STORE: journal: open /sys/users.lock: permission denied"}, // also for root
		{"DIR/damaged", "APP_STORE: journal: line 1 is damaged"},
		{"DIR/newer", "APP_STORE: journal: line 3: record of user u1 has format 2, this program knows 1"},
		{"DIR/older", "APP_STORE: journal: line 3: record of user u1 has format 0, this program knows 1"},
		{"DIR/other", "APP_STORE: journal: line 3: json: cannot unmarshal string into Go value of type main.storedUser"},
		{"DIR/users", "APP_ADMIN_EMAIL: email already registered"},
	} {
		err := run(t.Context(), nil, fileEnviron(strings.Replace(row[0], "DIR", dir, 1)), io.Discard)
		got := strings.NewReplacer(dir, "DIR", "read-only file system", "permission denied").Replace(errText(err))
		equal(t, row[0], got, row[1])
	}
}

// TestAdminTaken starts the program with the email of a user in etcd for the admin, which it learns
// after the start.
func TestAdminTaken(t *testing.T) {
	etcd := etcdtest.New(t)
	etcd.Put("jwt-auth-api/u/u1", `{"v":1,"id":"u1","email":"admin@example.com"}`)
	etcd.Put("jwt-auth-api/a/admin@example.com", "u1")
	cmd, log := startProgram(t, fileEnviron("", "APP_STORE=etcd:"+etcd.URL)...)
	output, _ := io.ReadAll(log)
	cmd.Wait()
	got := regexp.MustCompile("(?m)^time=.*\n").ReplaceAllString(string(output), "")
	equal(t, "exit", fmt.Sprint(got, cmd.ProcessState.ExitCode()), "APP_ADMIN_EMAIL: email already registered\n1")
}

// A known is what the service knows of an account, or zero if there is none. The session is empty
// if there is none, and ? if its tokens were not received.
type known struct{ name, password, session string }

// An account has one client, which sends one request after another.
type account struct {
	email   string
	asked   known     // with the change of the last request
	pair    tokenPair // the last one that was received
	checked tokenPair // the pair at the last check

	mu     sync.Mutex // protects the field below
	stored known      // with the last change that was acknowledged
}

// claims returns those of the refresh token.
func (a *account) claims() claims {
	c, _ := tokensAt(time.Now(), freshSecret).verify(a.pair.RefreshToken, refreshToken)
	return c
}

// next chooses the next request, and sets what it asks for.
func (a *account) next() (request string, fields map[string]string) {
	fresh, n := newUUID(), rand.N(100)
	a.asked = a.stored
	switch {
	case a.stored == known{}:
		a.asked = known{fresh, fresh, "?"}
		return "POST /auth/register", map[string]string{"email": a.email, "password": fresh, "name": fresh}
	case a.stored.session == "":
		a.asked.session = "?"
		return "POST /auth/login", map[string]string{"username": a.email, "password": a.stored.password}
	case n == 0:
		a.asked.session = ""
		return "POST /auth/logout", map[string]string{}
	case n == 1:
		a.asked.password = fresh
		return "POST /auth/password", map[string]string{"current_password": a.stored.password, "new_password": fresh}
	case n < 20:
		a.asked.name = strings.Repeat("\U0001D11E", 64) + fresh
		return "PATCH /me", map[string]string{"name": a.asked.name}
	}
	return "POST /auth/refresh", map[string]string{"refresh_token": a.pair.RefreshToken}
}

const firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"

// send sends a request, and reports whether it was acknowledged.
func (a *account) send(t testing.TB, client *http.Client, url, request string, fields map[string]string) bool {
	body, _ := json.Marshal(fields) // never fails
	method, path, _ := strings.Cut(request, " ")
	req, _ := http.NewRequest(method, url+path, bytes.NewReader(body)) // never fails
	req.Header = http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + a.pair.AccessToken},
		"User-Agent": {firefox}}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		t.Errorf("%s: got %d %s, want success", request, resp.StatusCode, content)
	}
	json.Unmarshal(content, &a.pair) // Fails without a body. Other bodies have none of the members.
	return err == nil && resp.StatusCode < 300
}

// run sends requests until one is not acknowledged.
func (a *account) run(t *testing.T, client *http.Client, url string) {
	for request, fields := a.next(); a.send(t, client, url, request, fields); request, fields = a.next() {
		a.mu.Lock()
		if a.stored = a.asked; a.stored.session == "?" {
			a.stored.session = a.claims().session
		}
		a.mu.Unlock()
	}
}

// check compares the account with the file, which has what was acknowledged and possibly the last
// request. It may lack rotations. If the program exited, it has all that was acknowledged, and no
// more.
func (a *account) check(t *testing.T, s *users, exited bool) {
	u, _ := s.byEmail(t.Context(), a.email)
	got, c := known{name: u.Name, session: sessionIDs(u)}, a.claims()
	for _, password := range []string{a.stored.password, a.asked.password} {
		if got.password != password && new(passwords).verify(password, u.hash) == nil {
			got.password = password
		}
	}
	for _, s := range u.Sessions { // If nothing was refreshed since, a rotation may be lost since the last check.
		if s.ID == c.session && (s.Gen > c.gen+1 || exited && s.Gen != c.gen && a.pair != a.checked) {
			t.Errorf("%s: got generation %d in the file, want that of the tokens, %d", a.email, s.Gen, c.gen)
		}
	}
	if a.asked.session == "?" && len(u.Sessions) == 1 {
		a.asked.session = got.session
	}
	if got != a.stored && (exited || got != a.asked) {
		t.Errorf("%s: got %q in the file, want %q or, unless it exited, %q", a.email, got, a.stored, a.asked)
	}
	a.stored, a.checked = got, a.pair
}

// crashes are rounds of a program on one file, with eight clients.
type crashes struct {
	path     string
	clients  [8]*account
	accounts []*account // also former ones
}

// round starts the program and the clients, ends it with a signal unless that is nil, and compares
// the file with what the clients know. It returns the exit status, and the log except for requests.
func (c *crashes) round(t *testing.T, signal os.Signal, more ...string) string {
	cmd, output := startProgram(t, fileEnviron(c.path, more...)...)
	url, logged := "http://"+listens(t, output), make(chan string)
	go func() {
		text, _ := io.ReadAll(output)
		logged <- regexp.MustCompile(`(?m)^time=\S+ level=INFO .*\n|^.*\z`).ReplaceAllString(string(text), "")
	}()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: len(c.clients)}}
	defer client.CloseIdleConnections()
	var wg sync.WaitGroup
	for i, a := range c.clients {
		if a == nil || rand.N(3) == 0 || a.stored.session != "" && a.stored.session != a.claims().session {
			a = &account{email: fmt.Sprintf("%d@example.com", len(c.accounts))}
			c.clients[i], c.accounts = a, append(c.accounts, a)
		}
		wg.Go(func() { a.run(t, client, url) })
	}
	if signal != nil {
		<-time.After(rand.N(time.Second / 2))
		users := c.registered()
		s := openCopy(t, c.path)
		for _, a := range users {
			_, err := s.byEmail(t.Context(), a.email)
			equal(t, a.email+" in a copy from then", err, nil)
		}
		<-time.After(rand.N(time.Second / 4))
		cmd.Process.Signal(signal)
	}
	wg.Wait()
	log := <-logged
	cmd.Wait()
	s := openCopy(t, c.path)
	for _, a := range c.clients {
		wg.Go(func() { a.check(t, s, cmd.ProcessState.Success()) })
	}
	wg.Wait()
	equal(t, "users besides the admin", len(s.records)-1, len(c.registered()))
	return fmt.Sprint(cmd.ProcessState, "\n", log)
}

// registered returns the accounts that exist.
func (c *crashes) registered() []*account {
	return slices.DeleteFunc(slices.Clone(c.accounts), func(a *account) bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.stored == known{}
	})
}

var rounds = flag.Int("rounds", 20, "how often TestCrash ends the program")

// TestCrash kills the program while clients use it, again and again, and lets it exit every fifth
// time. The clients go on with the tokens that they have. In the end the file reaches a limit of
// its size.
func TestCrash(t *testing.T) {
	c := &crashes{path: filepath.Join(t.TempDir(), "users.jsonl")}
	for i := range *rounds {
		if i%5 < 4 {
			equal(t, "killed", c.round(t, os.Kill), "signal: killed\n")
		} else {
			equal(t, "terminated", c.round(t, syscall.SIGTERM), "exit status 0\n")
		}
	}
	got := strings.Replace(c.round(t, nil, "FILE_BLOCKS=2000"), ".new", "", 1)
	equal(t, "a full disk", got, "exit status 1\nAPP_STORE: write "+c.path+": file too large\n")
	t.Logf("%d accounts", len(c.accounts))
}

// benchClients returns 32 clients of a server with the users in a file, or in memory if path is
// empty. A call has each send n requests.
func benchClients(b *testing.B, path, request string, n int) func() {
	cfg := partsConfig()
	cfg.throttle, cfg.storePath, cfg.argon2 = false, path, owaspMinimum
	server := httptest.NewServer(serverOf(b, cfg).handler())
	b.Cleanup(server.Close)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}}
	accounts := make([]account, 32)
	send := func(request string, n int) {
		var wg sync.WaitGroup
		for i := range accounts {
			wg.Go(func() {
				a, email := &accounts[i], fmt.Sprint(i, "@example.com")
				for sent := 0; sent < n && a.send(b, client, server.URL, request, map[string]string{"email": email, "name": "N",
					"username": email, "password": "secret123", "refresh_token": a.pair.RefreshToken}); sent++ {
				}
			})
		}
		wg.Wait()
	}
	send("POST /auth/register", 1)
	return func() { send(request, n) }
}

// BenchmarkFile has clients send requests to a server with memory and to one with a file by turns.
// It reports the requests a second with a file, also as a part of those with memory.
func BenchmarkFile(b *testing.B) {
	for request, n := range map[string]int{"POST /auth/refresh": 100, "POST /auth/login": 1} {
		b.Run(request, func(b *testing.B) {
			path, took := filepath.Join(b.TempDir(), "users.jsonl"), [2]time.Duration{}
			turns := []func(){benchClients(b, "", request, n), benchClients(b, path, request, n)}
			for b.Loop() {
				for i, turn := range turns {
					start := time.Now()
					turn()
					took[i] += time.Since(start)
				}
			}
			b.ReportMetric(float64(32*n*b.N)/took[1].Seconds(), "requests/s")
			b.ReportMetric(float64(took[0])/float64(took[1]), "file/memory")
		})
	}
}

// processorTime returns the processor time of a process in ticks of the kernel, on Linux.
func processorTime(pid int) (ticks float64) {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	for _, field := range strings.Fields(string(stat))[13:15] { // utime and stime
		n, _ := strconv.ParseFloat(field, 64)
		ticks += n
	}
	return ticks
}

// BenchmarkServe has 32 clients send GET /me over loopback, by turns to the program with its log in
// a file and to a server of net/http with a constant response, each in a process. It reports the
// processor time of the program as a multiple of that of the other.
func BenchmarkServe(b *testing.B) {
	var urls [2]string
	var pids [2]int
	for i, as := range []string{"constant", "program"} {
		log, _ := os.Create(filepath.Join(b.TempDir(), "log"))
		listener, _ := net.Listen("tcp", "127.0.0.1:0")
		addr := listener.Addr().String()
		listener.Close()
		cmd := exec.Command(os.Args[0])
		cmd.Env, cmd.Stderr = []string{runEnviron[0], "APP_ADDR=" + addr, asProgram + "=" + as}, log
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { cmd.Process.Kill() })
		urls[i], pids[i] = "http://"+addr, cmd.Process.Pid
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}}
	form, pair := url.Values{"username": {"admin@example.com"}, "password": {documentedPassword}}, tokenPair{}
	await(b, "login", func() bool {
		resp, err := client.PostForm(urls[1]+"/auth/login", form)
		return err == nil && json.NewDecoder(resp.Body).Decode(&pair) == nil
	})
	var ticks [2]float64
	for b.Loop() {
		for i, url := range urls {
			before := processorTime(pids[i])
			var wg sync.WaitGroup
			for range 32 {
				wg.Go(func() { getMe(b, client, url, pair.AccessToken, 1000) })
			}
			wg.Wait()
			ticks[i] += processorTime(pids[i]) - before
		}
	}
	b.ReportMetric(ticks[1]/ticks[0], "program/constant")
}

func getMe(b *testing.B, client *http.Client, url, token string, times int) {
	for range times {
		r, _ := http.NewRequest("GET", url+"/me", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(r)
		if err != nil || resp.StatusCode != 200 {
			b.Errorf("got %v and %v, want 200", resp, err)
			return
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

// BenchmarkReplay opens a file of a million users with a session each, which also compacts it.
func BenchmarkReplay(b *testing.B) {
	path, s := filepath.Join(b.TempDir(), "users.jsonl"), filled(b, 1_000_000)
	for _, u := range s.records {
		u.hash = newSecret("$argon2id$v=19$m=65536,t=3,p=4$" + strings.Repeat("x", 66))
		u.Sessions = []session{{ID: newUUID(), UserAgent: firefox}}
	}
	f, err := openFile(path, s, nil, nil)
	for b.Loop() {
		f.close()
		s = newUsers()
		f, err = openFile(path, s, nil, nil)
	}
	equal(b, "users", fmt.Sprint(len(s.records), err), "1000000 <nil>")
	f.close()
}
