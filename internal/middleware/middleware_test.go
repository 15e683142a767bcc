package middleware

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"jwt-auth-api/internal/testfile"
)

// play is a handler that runs the commands in the query: a status, flush, wait, panic, abort, or
// else a text to write.
func play(w http.ResponseWriter, r *http.Request) {
	for _, command := range strings.Fields(r.URL.RawQuery) {
		status, err := strconv.Atoi(command)
		switch {
		case err == nil:
			w.WriteHeader(status)
		case command == "flush":
			http.NewResponseController(w).Flush()
		case command == "wait":
			<-time.After(5 * time.Second)
		case command == "panic":
			panic("oops")
		case command == "abort":
			panic(http.ErrAbortHandler)
		default:
			io.WriteString(w, strings.Trim(command, `"`))
		}
	}
}

// request returns the response to a request that passes Recover and Log on its way to play, with
// what was logged and what it panicked with.
func request(method, path, commands string) (w *httptest.ResponseRecorder, logged string, panicked any) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	mux := http.NewServeMux()
	mux.HandleFunc("/p/", play)
	mux.HandleFunc("/quiet", play)
	client := func(*http.Request) netip.Addr { return netip.MustParseAddr("192.0.2.1") }
	fail := func(w http.ResponseWriter, r *http.Request, err error) {
		w.Header().Set("Failure", fmt.Sprintf("reason=%q request_id=%s\n", err, RequestID(r.Context())))
	}
	r := httptest.NewRequest(method, path, nil)
	r.URL.RawQuery = commands
	w = httptest.NewRecorder()
	defer func() { logged, panicked = out.String(), recover() }()
	Recover(Log(mux, log, "/quiet", client), log, fail).ServeHTTP(w, r)
	return w, "", nil
}

func TestRecover(t *testing.T) {
	stack := regexp.MustCompile(`^(?:time=\S+)?reason="panic: oops\\ngoroutine .*middleware_test\.go:.*" request_id=(\w+)\n$`)
	ids := map[string]bool{RequestID(context.Background()): true}
	for _, row := range []struct {
		name, commands string
		failure, event bool // whether the panic is given to fail, or logged
		panicked       any
	}{
		{"no panic", "a", false, false, nil},
		{"a panic", "panic", true, false, nil},
		{"a panic after the status", "201 panic", false, true, http.ErrAbortHandler},
		{"a panic after the body began", `"" panic`, false, true, http.ErrAbortHandler},
		{"an abort", "abort", false, false, http.ErrAbortHandler},
	} {
		w, logged, panicked := request("GET", "/p/", row.commands)
		id, failure := w.Header().Get("X-Request-Id"), w.Header().Get("Failure")
		if nosniff := w.Header().Get("X-Content-Type-Options"); ids[id] || nosniff != "nosniff" {
			t.Errorf("%s: got the id %q and %q, want a new id and nosniff", row.name, id, nosniff)
		}
		ids[id] = true
		_, event, _ := strings.Cut(logged, "request_id="+id+"\n") // after the line of Log
		if (failure != "") != row.failure || (event != "") != row.event || panicked != row.panicked {
			t.Errorf("%s: got the failure %q, the event %q and the panic %v, want %t, %t and %v",
				row.name, failure, event, panicked, row.failure, row.event, row.panicked)
		}
		event = strings.Replace(event, ` level=ERROR msg="request failed" `, "", 1)
		if m := stack.FindStringSubmatch(failure + event); failure+event != "" && (m == nil || m[1] != id) {
			t.Errorf("%s: got %q, want an error with the stack and the id %s", row.name, failure+event, id)
		}
	}
}

func TestLog(t *testing.T) {
	for _, row := range []struct{ name, method, path, commands, want string }{
		{"a body", "POST", "/p/1", "ab c", "INFO method=POST route=/p/ status=200 bytes=3 duration=0s"},
		{"two statuses", "GET", "/p/", "404 503", "INFO method=GET route=/p/ status=404 bytes=0 duration=0s"},
		{"a status after the body", "GET", "/p/", "a 503", "INFO method=GET route=/p/ status=200 bytes=1 duration=0s"},
		{"a client's error", "GET", "/p/", "499", "INFO method=GET route=/p/ status=499 bytes=0 duration=0s"},
		{"an error", "GET", "/p/", "wait 500", "ERROR method=GET route=/p/ status=500 bytes=0 duration=5s"},
		{"a panic", "GET", "/p/", "panic", "ERROR method=GET route=/p/ status=500 bytes=0 duration=0s"},
		{"a panic after the status", "GET", "/p/", "201 panic", "INFO method=GET route=/p/ status=201 bytes=0 duration=0s"},
		{"a success of the quiet route", "GET", "/quiet", "399", ""},
		{"an error of the quiet route", "GET", "/quiet", "400", "INFO method=GET route=/quiet status=400 bytes=0 duration=0s"},
		{"another case", "get", "/p/", "a", "INFO method=unknown route=/p/ status=200 bytes=1 duration=0s"},
		{"another method", "Sup3rS3cret", "/", "", `INFO method=unknown route="" status=404 bytes=19 duration=0s`},
	} {
		synctest.Test(t, func(t *testing.T) {
			w, logged, _ := request(row.method, row.path, row.commands)
			got := regexp.MustCompile(`^time=\S+ level=(\w+ )msg=request `).ReplaceAllString(logged, "$1")
			want := row.want + " client=192.0.2.1 request_id=" + w.Header().Get("X-Request-Id") + "\n"
			if !strings.HasPrefix(got, want) && got != row.want {
				t.Errorf("%s: got %s, want %s", row.name, got, want)
			}
		})
	}
	if w, _, _ := request("GET", "/p/", "201 flush"); !w.Flushed || w.Code != 201 {
		t.Errorf("flush: got %d and flushed: %t, want 201 and true", w.Code, w.Flushed)
	}
}

func TestKnownMethod(t *testing.T) {
	for method := range strings.FieldsSeq("GET HEAD POST PUT PATCH DELETE CONNECT OPTIONS TRACE") {
		if got := knownMethod(method); got != method {
			t.Errorf("%s: got %s, want the same", method, got)
		}
	}
}

func TestCORS(t *testing.T) {
	const a, b = "https://a.example", "https://b.example"
	exposed := []string{
		"Access-Control-Expose-Headers: WWW-Authenticate, Retry-After, Link, X-Request-Id", "Vary: Accept, Origin",
	}
	allowed := append([]string{"Access-Control-Allow-Origin: " + b}, exposed...)
	preflight := append([]string{
		"Access-Control-Allow-Headers: Authorization, Content-Type", "Access-Control-Allow-Methods: GET, PUT",
		"Access-Control-Allow-Origin: " + b, exposed[0], "Access-Control-Max-Age: 7200",
	}, exposed[1])
	for _, row := range []struct {
		name, origins, method, origin, requested string
		status                                   int
		want                                     []string
	}{
		{"no origin", "*", "GET", "", "", 405, nil},
		{"no listed origin", "", "GET", b, "", 405, nil},
		{"another origin", a, "GET", b, "", 405, nil},
		{"a listed origin", a + " " + b, "GET", b, "", 405, allowed},
		{"every origin", "*", "GET", b, "", 405, allowed},
		{"a preflight request", b, "OPTIONS", b, "PUT", 204, preflight},
		{"a preflight request of another origin", a, "OPTIONS", b, "PUT", 405, nil},
		{"OPTIONS that is no preflight request", b, "OPTIONS", b, "", 405, allowed},
		{"another method than OPTIONS", b, "POST", b, "PUT", 405, allowed},
	} {
		r, w := httptest.NewRequest(row.method, "/", nil), httptest.NewRecorder()
		r.Header.Set("Origin", row.origin)
		r.Header.Set("Access-Control-Request-Method", row.requested)
		w.Header().Set("Vary", "Accept")
		CORS(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !Preflight(w, r, "GET, PUT") {
				w.WriteHeader(405)
				io.WriteString(w, "next")
			}
		}), strings.Fields(row.origins)).ServeHTTP(w, r)
		var got []string
		for _, name := range slices.Sorted(maps.Keys(w.Header())) {
			got = append(got, name+": "+strings.Join(w.Header()[name], ", "))
		}
		if row.want == nil {
			row.want = []string{"Vary: Accept"}
		}
		if next := w.Body.Len() > 0; w.Code != row.status || next != (row.status == 405) || !slices.Equal(got, row.want) {
			t.Errorf("%s: got %d and %q, want %d and %q", row.name, w.Code, got, row.status, row.want)
		}
	}
}

func TestLimit(t *testing.T) {
	const notFound, tooLarge = "404 Not Found", "&http.MaxBytesError{Limit:4} http: request body too large"
	for _, row := range []struct {
		name, path, body, coding string
		framing                  string // chunked, HTTP/1.0, or empty for a Content-Length
		want                     string
		header                   string // Connection, and Accept-Encoding
	}{
		{"the root", "/", "", "", "", "/ ", ""},
		{"an escaped slash and dots", "/a%2F/%2E%2E", "", "", "", "/a%2F/%2E%2E ", ""},
		{"a slash at the end of the root", "//", "", "", "", "/ ", ""},
		{"a slash at the end", "/a/", "", "", "", "/a ", ""},
		{"an escaped slash, and a slash at the end", "/a%2Fb/", "", "", "", "/a%2Fb ", ""},
		{"an escaped slash at the end", "/a%2F", "", "", "", "/a%2F ", ""},
		{"two slashes at the end", "/a//", "", "", "", notFound, ""},
		{"a dot", "/./a", "", "", "", notFound, ""},
		{"no path", "", "", "", "", notFound, ""},
		{"no slash in front", "*", "", "", "", notFound, ""},
		{"the largest body", "/a", "abcd", "", "", "/a abcd", ""},
		{"a larger body", "/a", "abcde", "", "", tooLarge, "close"},
		{"a larger body with another path", "//a", "abcde", "gzip", "", tooLarge, "close"},
		{"the largest body in chunks", "/a", "abcd", "", "chunked", "/a abcd", "close"},
		{"a larger body in chunks", "/a", "abcde", "", "chunked", tooLarge, "close"},
		{"HTTP/1.0", "/a", "a", "", "HTTP/1.0", "/a a", "close"},
		{"a compressed body", "/a", "a", "gzip", "", "415 Unsupported Media Type", "identity"},
		{"a compressed body with another path", "//a", "a", "gzip", "", notFound, ""},
		{"a coding without a body", "/a", "", "gzip", "", "/a ", ""},
		{"a body that is not compressed", "/a", "a", "Identity", "", "/a a", ""},
	} {
		r, w := httptest.NewRequest("POST", "/", strings.NewReader(row.body)), httptest.NewRecorder()
		r.Header.Set("Content-Encoding", row.coding)
		r.URL.Path, r.URL.RawPath = strings.NewReplacer("%2F", "/", "%2E", ".").Replace(row.path), row.path
		switch row.framing {
		case "chunked":
			r.ContentLength, r.TransferEncoding = -1, []string{"chunked"}
		case "HTTP/1.0":
			r.ProtoMinor = 0
		}
		got := ""
		fail := func(_ http.ResponseWriter, _ *http.Request, err error) { got = fmt.Sprintf("%#v %v", err, err) }
		Limit(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if got = r.URL.EscapedPath() + " " + string(body); err != nil {
				fail(w, r, err)
			}
		}), 4, fail).ServeHTTP(w, r)
		header := w.Header().Get("Connection") + w.Header().Get("Accept-Encoding")
		if got != row.want || header != row.header {
			t.Errorf("%s: got %s and %q, want %s and %q", row.name, got, header, row.want, row.header)
		}
	}
}

func TestClientIP(t *testing.T) {
	type row struct {
		Name               string
		Proxies, Forwarded []string
		Peer, Want         string
		Warnings           int
	}
	for _, row := range testfile.Read[[]row](t, "client_ip.json") {
		var proxies []netip.Prefix
		for _, proxy := range row.Proxies {
			proxies = append(proxies, netip.MustParsePrefix(proxy))
		}
		var log bytes.Buffer
		clientIP := ClientIP(proxies, slog.New(slog.NewTextHandler(&log, nil)))
		r := &http.Request{RemoteAddr: row.Peer, Header: http.Header{"X-Forwarded-For": row.Forwarded}}
		got := clientIP(r).String()
		again, warnings := clientIP(r).String(), strings.Count(log.String(), "level=WARN")
		if got != row.Want || again != got || warnings != row.Warnings {
			t.Errorf("%s: got %s, %s and the log %s, want %s and %d lines", row.Name, got, again, &log, row.Want, row.Warnings)
		}
	}
}

// FuzzClientIP compares ClientIP with a function that reads X-Forwarded-For from its other end.
func FuzzClientIP(f *testing.F) {
	for _, header := range []string{"x, 192.0.2.1", "192.0.2.1, 10.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0", "[::1]:80"} {
		f.Add(header, "10.0.0.9:1")
	}
	f.Add("192.0.2.1", "192.0.2.9:1")
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8")}
	trusted := func(ip netip.Addr) bool {
		return slices.ContainsFunc(proxies, func(p netip.Prefix) bool { return p.Contains(ip) })
	}
	f.Fuzz(func(t *testing.T, header, remote string) {
		addrPort, _ := netip.ParseAddrPort(remote)
		peer := addrPort.Addr().Unmap().WithZone("")
		var want netip.Addr // the client if all later hops are trusted; the zero Addr if it is the next hop
		for hop := range strings.SplitSeq(header, ",") {
			ip, _ := parseHop(strings.TrimSpace(hop))
			if ip = ip.Unmap().WithZone(""); !want.IsValid() || !trusted(ip) {
				want = ip
			}
		}
		if !want.IsValid() || !trusted(peer) {
			want = peer
		}
		r := &http.Request{RemoteAddr: remote, Header: http.Header{"X-Forwarded-For": {header}}}
		if got := ClientIP(proxies, slog.New(slog.DiscardHandler))(r); got != want {
			t.Errorf("%q from %q: got %v, want %v", header, remote, got, want)
		}
	})
}
