package respond

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"jwt-auth-api/internal/input"
	"jwt-auth-api/internal/middleware"
	"jwt-auth-api/internal/throttle"
)

// text returns the status, the header, sorted by name, and the body of a response.
func text(w *httptest.ResponseRecorder) string {
	return fmt.Sprint(w.Code, " ", w.Header(), " ", w.Body)
}

func equal(t *testing.T, name, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

const plainHeader = "map[Cache-Control:[no-store] Content-Type:[application/json]]"

// TestJSON writes no header before it knows that there is a body.
func TestJSON(t *testing.T) {
	e := Errors{Log: slog.New(slog.DiscardHandler)}
	for want, v := range map[string]any{
		`201 {"a":"é","b":[]}`: map[string]any{"b": []string{}, "a": "é"},
		`500 {"detail":"Internal Server Error","error":"temporarily_unavailable"}`: func() {},
	} {
		w := httptest.NewRecorder()
		h := e.Handle(OAuth(func(w http.ResponseWriter, r *http.Request) error { return JSON(w, http.StatusCreated, v) }))
		h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		equal(t, "JSON", text(w), strings.Replace(want, " ", " "+plainHeader+" ", 1))
	}
	w := httptest.NewRecorder()
	equal(t, "no content", fmt.Sprint(NoContent(w), " ", text(w)), "<nil> 204 map[] ")
}

// A slowWriter records when it must have written, and fails after a number of writes.
type slowWriter struct {
	*httptest.ResponseRecorder
	writes    int
	start     time.Time
	deadlines []time.Duration // after start
}

func (w *slowWriter) SetWriteDeadline(deadline time.Time) error {
	w.deadlines = append(w.deadlines, deadline.Sub(w.start))
	return nil
}

func (w *slowWriter) Write(b []byte) (int, error) {
	if w.writes--; w.writes < 0 {
		return 0, errors.ErrUnsupported
	}
	return w.ResponseRecorder.Write(b)
}

// TestArray produces a page each second, by a clock that jumps ahead.
func TestArray(t *testing.T) {
	for _, row := range []struct {
		name   string
		pages  [][]string
		writes int // that succeed
		want   string
	}{
		{"no page", nil, 9, `[] after 0 pages []`},
		{"an empty page", [][]string{{}}, 9, `[] after 1 pages [11s]`},
		{"a page", [][]string{{"a", "<"}}, 9, `["a","\u003c"] after 1 pages [11s]`},
		{"three pages", [][]string{{"a"}, {"b", "c"}, {"d"}}, 9, `["a","b","c","d"] after 3 pages [11s 12s 13s]`},
		{"a client that stops", [][]string{{"a"}, {"b"}, {"c"}}, 2, `["a" after 2 pages [11s 12s]`},
	} {
		synctest.Test(t, func(t *testing.T) {
			w, n := &slowWriter{httptest.NewRecorder(), row.writes, time.Now(), nil}, 0
			Array(w, func(yield func([]string) bool) {
				for _, page := range row.pages {
					<-time.After(time.Second)
					if n++; !yield(page) {
						return
					}
				}
			})
			got := fmt.Sprint(text(w.ResponseRecorder), " after ", n, " pages ", w.deadlines)
			equal(t, row.name, got, "200 "+plainHeader+" "+row.want)
		})
	}
}

var (
	errToken = errors.New("invalid token")
	errScope = errors.New("missing scope")
	errTaken = errors.New("taken")
	errBusy  = errors.New("busy")
)

// because returns an error that wraps err and a cause.
func because(err error) error { return fmt.Errorf("%w: %w", err, errors.New("the cause")) }

// TestErrors responds to each error twice, the second time at a token endpoint, whose responses
// have a code. The third column is the challenge that the handler sets.
func TestErrors(t *testing.T) {
	var log bytes.Buffer
	e := Errors{Log: slog.New(slog.NewTextHandler(&log, nil)), Table: []Row{
		{errToken, http.StatusUnauthorized, "token rejected"},
		{errScope, http.StatusForbidden, ""},
		{errTaken, http.StatusConflict, ""},
		{errBusy, http.StatusServiceUnavailable, "queue full"},
	}}
	missing, mismatch := input.Fault{Type: "missing"}, input.Fault{Type: "string_pattern_mismatch"}
	const missingJSON = `{"type":"missing","loc":null,"msg":""}`
	const mismatchJSON = `{"type":"string_pattern_mismatch","loc":null,"msg":""}`
	for _, row := range []struct {
		name                               string
		err                                error
		challenge, want, detail, code, log string
	}{
		{"faults", because(input.Faults{missing, missing}), "", "422 [] []", "[" + missingJSON + "," + missingJSON + "]",
			"invalid_request", ""},
		{"the fault of another grant", input.Faults{missing, mismatch}, "", "422 [] []",
			"[" + missingJSON + "," + mismatchJSON + "]", "unsupported_grant_type", ""},
		{"a status", because(middleware.StatusError(404)), "", "404 [] []", `"Not Found"`, "invalid_request", ""},
		{"a broken body", because(input.ErrMultipart), "", "400 [] []", `"Invalid multipart data."`, "invalid_request", ""},
		{"a large body", because(&http.MaxBytesError{}), "", "413 [] []", `"Content Too Large"`, "invalid_request", ""},
		{"a late body", because(os.ErrDeadlineExceeded), "", "408 [] []", `"Request Timeout"`, "invalid_request", ""},
		{"a wait of whole seconds", because(&throttle.Error{RetryAfter: 2 * time.Second}), "", "429 [] [2]",
			`"too many attempts"`, "temporarily_unavailable", ""},
		{"a wait of a nanosecond more", &throttle.Error{RetryAfter: 2*time.Second + 1}, "", "429 [] [3]",
			`"too many attempts"`, "temporarily_unavailable", ""},
		{"a row with an event", because(errToken), "", "401 [Bearer] []", `"invalid token"`, "invalid_grant",
			`level=INFO msg="token rejected" reason="invalid token: the cause" request_id=ID`},
		{"a challenge of the handler", errToken, "Bearer x", "401 [Bearer x] []", `"invalid token"`, "invalid_grant",
			`level=INFO msg="token rejected" reason="invalid token" request_id=ID`},
		{"two rows", fmt.Errorf("%w: %w", errTaken, errScope), "", "403 [] []", `"missing scope"`, "invalid_grant", ""},
		{"a row that lets the client try again", errBusy, "", "503 [] [1]", `"busy"`, "temporarily_unavailable",
			`level=ERROR msg="queue full" reason=busy request_id=ID`},
		{"an unknown error", because(errors.ErrUnsupported), "", "500 [] []", `"Internal Server Error"`,
			"temporarily_unavailable",
			`level=ERROR msg="request failed" reason="unsupported operation: the cause" request_id=ID`},
	} {
		handler := func(w http.ResponseWriter, r *http.Request) error {
			if row.challenge != "" {
				w.Header().Set("WWW-Authenticate", row.challenge)
			}
			return row.err
		}
		for body, h := range map[string]HandlerFunc{
			fmt.Sprintf(`{"detail":%s}`, row.detail):                      handler,
			fmt.Sprintf(`{"detail":%s,"error":%q}`, row.detail, row.code): OAuth(handler),
		} {
			log.Reset()
			w := httptest.NewRecorder()
			middleware.Recover(e.Handle(h), e.Log, e.Fail).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			header := w.Header()
			got := fmt.Sprint(w.Code, " ", header["Www-Authenticate"], " ", header["Retry-After"], " ", w.Body)
			equal(t, row.name, got, row.want+" "+body)
			_, logged, _ := strings.Cut(strings.ReplaceAll(log.String(), header.Get("X-Request-Id"), "ID"), " ")
			equal(t, row.name+", log", strings.TrimSpace(logged), row.log) // without the time
		}
	}
}
