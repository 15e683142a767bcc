// Package respond writes JSON responses, and turns errors into them by one table.
package respond

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strconv"
	"time"

	"jwt-auth-api/internal/input"
	"jwt-auth-api/internal/middleware"
	"jwt-auth-api/internal/throttle"
)

// JSON responds with v. Responses may have tokens, so they are never cached (RFC 6749 section 5.1).
func JSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	writeHeader(w, status)
	w.Write(body) // An error means that the client is gone.
	return nil
}

func writeHeader(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
}

// NoContent responds with 204.
func NoContent(w http.ResponseWriter) error {
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// pageTimeout bounds how long a client may take to read a page of an array.
const pageTimeout = 10 * time.Second

// Array responds with a JSON array whose elements come in pages, none of which is empty. It holds
// one page in memory, and stops when the client does not read.
func Array[T any](w http.ResponseWriter, pages iter.Seq[[]T]) {
	control := http.NewResponseController(w)
	writeHeader(w, http.StatusOK)
	w.Write([]byte("["))
	separator := ""
	for page := range pages {
		elements, _ := json.Marshal(page)
		control.SetWriteDeadline(time.Now().Add(pageTimeout))
		if _, err := fmt.Fprintf(w, "%s%s", separator, elements[1:len(elements)-1]); err != nil {
			return
		}
		separator = ","
	}
	w.Write([]byte("]"))
}

// A Row of the table is the response to an error. The detail of the response is the text of Err. An
// error that wraps Err adds the cause, which is only logged, and only if the row names an Event.
type Row struct {
	Err    error
	Status int
	Event  string
}

// Errors responds to requests with errors.
type Errors struct {
	Log   *slog.Logger
	Table []Row // the first match counts
}

// A HandlerFunc responds to a request, or returns the error to respond with.
type HandlerFunc func(w http.ResponseWriter, r *http.Request) error

// Handle returns a handler that responds with the error of h.
func (e *Errors) Handle(h HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			e.Fail(w, r, err)
		}
	})
}

// A response is the response to an error.
type response struct {
	status     int
	detail     any    // text, or the faults of a 422
	event      string // logged with the error, if not empty
	retryAfter time.Duration
}

// responseTo returns the response to err. Any other error is a 500.
func (e *Errors) responseTo(err error) response {
	if faults, ok := errors.AsType[input.Faults](err); ok {
		return response{status: http.StatusUnprocessableEntity, detail: faults}
	}
	if status, ok := errors.AsType[middleware.StatusError](err); ok {
		return response{status: int(status), detail: status.Error()}
	}
	if body, ok := errors.AsType[input.BodyError](err); ok {
		return response{status: http.StatusBadRequest, detail: body.Error()}
	}
	if throttled, ok := errors.AsType[*throttle.Error](err); ok {
		return response{http.StatusTooManyRequests, throttled.Error(), "", throttled.RetryAfter}
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return response{status: http.StatusRequestEntityTooLarge, detail: "Content Too Large"}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return response{status: http.StatusRequestTimeout, detail: "Request Timeout"}
	}
	for _, row := range e.Table {
		if errors.Is(err, row.Err) {
			return response{row.Status, row.Err.Error(), row.Event, time.Second}
		}
	}
	return response{status: http.StatusInternalServerError, detail: "Internal Server Error", event: "request failed"}
}

// Fail responds with err. Every 401 has a challenge (RFC 9110 section 15.5.2).
func (e *Errors) Fail(w http.ResponseWriter, r *http.Request, err error) {
	resp := e.responseTo(err)
	if resp.event != "" {
		e.Log.Log(r.Context(), middleware.Level(resp.status), resp.event, "reason", err,
			"request_id", middleware.RequestID(r.Context()))
	}
	h := w.Header()
	if resp.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", cmp.Or(h.Get("WWW-Authenticate"), "Bearer"))
	}
	if resp.status == http.StatusTooManyRequests || resp.status == http.StatusServiceUnavailable {
		h.Set("Retry-After", strconv.Itoa(int((resp.retryAfter+time.Second-1)/time.Second)))
	}
	body := map[string]any{"detail": resp.detail}
	if _, ok := errors.AsType[oauthError](err); ok {
		body["error"] = oauthCode(resp)
	}
	JSON(w, resp.status, body)
}

// An oauthError is an error of a token endpoint.
type oauthError struct{ error }

func (e oauthError) Unwrap() error { return e.error }

// OAuth wraps h so that its errors have a code that OAuth2 clients know, in the member error.
func OAuth(h HandlerFunc) HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := h(w, r); err != nil {
			return oauthError{err}
		}
		return nil
	}
}

// oauthCode returns the error code of RFC 6749 section 5.2 or, if the client should try again, of
// section 4.1.2.1.
func oauthCode(resp response) string {
	faults, _ := resp.detail.(input.Faults)
	unsupported := func(f input.Fault) bool { return f.Type == "string_pattern_mismatch" } // only grant_type has a pattern
	switch {
	case resp.status == http.StatusUnauthorized, resp.status == http.StatusForbidden:
		return "invalid_grant"
	case resp.status == http.StatusTooManyRequests, resp.status >= http.StatusInternalServerError:
		return "temporarily_unavailable"
	case slices.ContainsFunc(faults, unsupported):
		return "unsupported_grant_type"
	}
	return "invalid_request"
}
