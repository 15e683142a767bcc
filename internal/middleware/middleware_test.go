package middleware

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// play is a handler that runs the commands in the query: a status, flush, wait, panic, abort, or else
// a text to write.
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

// A shortWriter writes at most 3 bytes at once.
type shortWriter struct{ *httptest.ResponseRecorder }

func (w shortWriter) Write(b []byte) (int, error) {
	return w.ResponseRecorder.Write(b[:min(3, len(b))])
}

// request returns the response to a request that passes Recover and Log on its way to play, with what
// was logged and what it panicked with.
func request(method, path, commands string) (w *httptest.ResponseRecorder, logged string, panicked any) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	mux := http.NewServeMux()
	mux.HandleFunc("/p/", play)
	client := func(*http.Request) netip.Addr { return netip.MustParseAddr("192.0.2.1") }
	fail := func(w http.ResponseWriter, r *http.Request, err error) {
		w.Header().Set("Failure", fmt.Sprintf("reason=%q request_id=%s\n", err, RequestID(r.Context())))
	}
	r := httptest.NewRequest(method, path, nil)
	r.URL.RawQuery = commands
	w = httptest.NewRecorder()
	defer func() { logged, panicked = out.String(), recover() }()
	Recover(Log(mux, log, client), log, fail).ServeHTTP(shortWriter{w}, r)
	return w, "", nil
}

func TestRecover(t *testing.T) {
	stack := regexp.MustCompile(`reason="panic: oops\\ngoroutine .*middleware_test\.go:.*" request_id=(\w+)\n$`)
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
		m := stack.FindStringSubmatch(failure + event)
		if (row.failure || row.event) && (m == nil || m[1] != id) || row.event && !strings.Contains(event, ` level=ERROR msg="request failed" `) {
			t.Errorf("%s: got %q, want an error with the stack and the id %s", row.name, failure+event, id)
		}
	}
}

func TestLog(t *testing.T) {
	for _, row := range []struct{ name, method, path, commands, want string }{
		{"a body", "POST", "/p/1", "ab c", "INFO method=POST route=/p/ status=200 bytes=3 duration=0s"},
		{"a body that is not written", "GET", "/p/", "abcd", "INFO method=GET route=/p/ status=200 bytes=3 duration=0s"},
		{"two statuses", "GET", "/p/", "404 503", "INFO method=GET route=/p/ status=404 bytes=0 duration=0s"},
		{"a status after the body", "GET", "/p/", "a 503", "INFO method=GET route=/p/ status=200 bytes=1 duration=0s"},
		{"a client's error", "GET", "/p/", "499", "INFO method=GET route=/p/ status=499 bytes=0 duration=0s"},
		{"an error", "GET", "/p/", "wait 500", "ERROR method=GET route=/p/ status=500 bytes=0 duration=5s"},
		{"a panic", "GET", "/p/", "panic", "ERROR method=GET route=/p/ status=500 bytes=0 duration=0s"},
		{"a panic after the status", "GET", "/p/", "201 panic", "INFO method=GET route=/p/ status=201 bytes=0 duration=0s"},
		{"another case", "get", "/p/", "a", "INFO method=unknown route=/p/ status=200 bytes=1 duration=0s"},
		{"another method", "Sup3rS3cret", "/", "", `INFO method=unknown route="" status=404 bytes=3 duration=0s`},
	} {
		synctest.Test(t, func(t *testing.T) {
			w, logged, _ := request(row.method, row.path, row.commands)
			got := regexp.MustCompile(`^time=\S+ level=(\w+ )msg=request `).ReplaceAllString(logged, "$1")
			want := row.want + " client=192.0.2.1 request_id=" + w.Header().Get("X-Request-Id") + "\n"
			if !strings.HasPrefix(got, want) {
				t.Errorf("%s: got %s, want %s", row.name, got, want)
			}
		})
	}
	if w, _, _ := request("GET", "/p/", "200 flush"); !w.Flushed {
		t.Error("flush: got no flush of the response, want one")
	}
}

func TestKnownMethod(t *testing.T) {
	for method := range strings.FieldsSeq("GET HEAD POST PUT PATCH DELETE CONNECT OPTIONS TRACE") {
		if got := knownMethod(method); got != method {
			t.Errorf("%s: got %s, want the same", method, got)
		}
	}
}

func TestLimit(t *testing.T) {
	const notFound, tooLarge = "404", "&http.MaxBytesError{Limit:4}"
	for _, row := range []struct {
		name, path, body string
		chunked          bool
		minor            int // of HTTP/1
		want             string
		close            bool
	}{
		{"the root", "/", "", false, 1, "", false},
		{"an escaped slash and dots", "/a%2F/%2E%2E", "", false, 1, "", false},
		{"a slash at the end", "/a/", "", false, 1, notFound, false},
		{"two slashes", "/a//b", "", false, 1, notFound, false},
		{"a dot", "/./a", "", false, 1, notFound, false},
		{"no path", "", "", false, 1, notFound, false},
		{"no slash in front", "*", "", false, 1, notFound, false},
		{"the largest body", "/a", "abcd", false, 1, "abcd", false},
		{"a larger body", "/a", "abcde", false, 1, tooLarge, true},
		{"a larger body with another path", "/a/", "abcde", false, 1, tooLarge, true},
		{"the largest body in chunks", "/a", "abcd", true, 1, "abcd", true},
		{"a larger body in chunks", "/a", "abcde", true, 1, tooLarge, true},
		{"HTTP/1.0", "/a", "a", false, 0, "a", true},
	} {
		r := httptest.NewRequest("POST", "/", strings.NewReader(row.body))
		r.URL.Path, r.URL.RawPath = strings.NewReplacer("%2F", "/", "%2E", ".").Replace(row.path), row.path
		if r.ProtoMinor = row.minor; row.chunked {
			r.ContentLength, r.TransferEncoding = -1, []string{"chunked"}
		}
		got := ""
		fail := func(_ http.ResponseWriter, _ *http.Request, err error) { got = fmt.Sprintf("%#v", err) }
		w := httptest.NewRecorder()
		Limit(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if got = string(body); err != nil {
				fail(w, r, err)
			}
		}), 4, fail).ServeHTTP(w, r)
		if connection := w.Header().Get("Connection"); got != row.want || (connection == "close") != row.close {
			t.Errorf("%s: got %s and Connection: %q, want %s and close: %t", row.name, got, connection, row.want, row.close)
		}
	}
}

func TestClientIP(t *testing.T) {
	var rows []struct {
		Name               string
		Proxies, Forwarded []string
		Peer, Want         string
	}
	text, err := os.ReadFile("testdata/client_ip.json")
	if err == nil {
		err = json.Unmarshal(text, &rows)
	}
	if err != nil || len(rows) == 0 {
		t.Fatalf("testdata/client_ip.json: got %d rows and %v, want rows", len(rows), err)
	}
	for _, row := range rows {
		var proxies []netip.Prefix
		for _, proxy := range row.Proxies {
			proxies = append(proxies, netip.MustParsePrefix(proxy))
		}
		r := &http.Request{RemoteAddr: row.Peer, Header: http.Header{"X-Forwarded-For": row.Forwarded}}
		if got := ClientIP(r, proxies).String(); got != row.Want {
			t.Errorf("%s: got %s, want %s", row.Name, got, row.Want)
		}
	}
}

// FuzzClientIP compares ClientIP with a function that reads X-Forwarded-For from its other end.
func FuzzClientIP(f *testing.F) {
	for _, header := range []string{"192.0.2.1", "x, 192.0.2.1", "192.0.2.1, 10.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0", ",,"} {
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
			ip, _ := netip.ParseAddr(strings.TrimSpace(hop))
			if ip = ip.Unmap().WithZone(""); !want.IsValid() || !trusted(ip) {
				want = ip
			}
		}
		if !want.IsValid() || !trusted(peer) {
			want = peer
		}
		r := &http.Request{RemoteAddr: remote, Header: http.Header{"X-Forwarded-For": {header}}}
		if got := ClientIP(r, proxies); got != want {
			t.Errorf("%q from %q: got %v, want %v", header, remote, got, want)
		}
	})
}
