package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"jwt-auth-api/docs"
	"jwt-auth-api/internal/email"
	"jwt-auth-api/internal/input"
	"jwt-auth-api/internal/middleware"
	"jwt-auth-api/internal/throttle"
)

// A server is what the handlers share.
type server struct {
	auth
	clientIP func(*http.Request) netip.Addr
	origins  []string // of pages that may read responses
	log      *slog.Logger
	logKey   secret // of the hashes of emails in the log
	docs     bool   // whether /docs and /openapi.json are served
}

// A handlerFunc responds to a request, or returns the error that fail responds with.
type handlerFunc func(w http.ResponseWriter, r *http.Request) error

// A route is a path with the handler of each of its methods.
type route struct {
	path    string
	methods map[string]handlerFunc
}

// routes returns the operations of the API. What an operation requires is the wrapper of its handler.
func (s *server) routes() []route {
	type m = map[string]handlerFunc
	return []route{
		{"/auth/register", m{"POST": s.register}},
		{"/auth/login", m{"POST": oauth(s.login)}},
		{"/auth/refresh", m{"POST": oauth(s.refresh)}},
		{"/me", m{"GET": s.requireUser(s.me)}},
		{"/admin/users", m{"GET": s.requireScope("admin", s.listUsers)}},
		{"/healthz", m{"GET": s.health}},
	}
}

// docsRoutes returns the pages that describe the API.
func (s *server) docsRoutes() []route {
	type m = map[string]handlerFunc
	return []route{
		{"/docs", m{"GET": page("index.html", "text/html; charset=utf-8")}},
		{"/docs/docs.css", m{"GET": page("docs.css", "text/css; charset=utf-8")}},
		{"/docs/docs.js", m{"GET": page("docs.js", "text/javascript; charset=utf-8")}},
		{"/openapi.json", m{"GET": page("openapi.json", "application/json")}},
	}
}

const maxBody = 16 << 10 // bytes

// handler returns the service. ServeMux also routes HEAD to the handler of GET.
func (s *server) handler() http.Handler {
	routes := s.routes()
	if s.docs {
		routes = append(routes, s.docsRoutes()...)
	}
	mux := http.NewServeMux()
	for _, route := range routes {
		for method, h := range route.methods {
			mux.Handle(method+" "+route.path, s.handle(h))
		}
		mux.Handle(route.path, s.handle(methodNotAllowed(slices.Sorted(maps.Keys(route.methods)))))
	}
	mux.Handle("/", s.handle(func(http.ResponseWriter, *http.Request) error {
		return middleware.StatusError(http.StatusNotFound)
	}))
	h := middleware.Limit(mux, maxBody, s.fail)
	h = middleware.CORS(h, s.origins)
	h = middleware.Log(h, s.log, "GET /healthz", s.clientIP)
	return middleware.Recover(h, s.log, s.fail)
}

// Lengths in code points.
const (
	minPassword, maxPassword = 8, 128
	minName, maxName         = 1, 100
)

// register creates an account and responds with its first token pair.
func (s *server) register(w http.ResponseWriter, r *http.Request) error {
	in, err := input.ReadJSON(r)
	if err != nil {
		return err
	}
	u := user{id: newUUID(), scopes: []string{"me"}}
	u.email = emailField(in, "email")
	password := in.Text("password", minPassword, maxPassword)
	u.name = in.Text("name", minName, maxName)
	if err := in.Err(); err != nil {
		return err
	}
	if err := s.addUser(r.Context(), u, password); err != nil {
		return err
	}
	s.event(r.Context(), "registered", "user", u.id)
	return writeJSON(w, http.StatusCreated, s.tokens.issuePair(u))
}

// emailField returns the email in a field of a body.
func emailField(in *input.Input, name string) string {
	address, err := email.Parse(in.Required(name))
	if err != nil {
		in.Fault("value_error", name, "value is not a valid email address: "+err.Error(), map[string]any{"reason": err.Error()})
	}
	return address
}

// addUser hashes password and stores u. It looks the email up first, to save the hash if it is taken.
func (s *server) addUser(ctx context.Context, u user, password string) error {
	release, err := s.passwords.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	if _, err := s.users.byEmail(ctx, u.email); err == nil {
		return errEmailTaken
	}
	u.hash = s.passwords.hash(password)
	return s.users.add(ctx, u)
}

// login exchanges a password (RFC 6749 section 4.3.2) or, for clients with one token URL, a refresh
// token (section 6) for a token pair.
func (s *server) login(w http.ResponseWriter, r *http.Request) error {
	in, err := input.ReadForm(r)
	if err != nil {
		return err
	}
	if in.Optional("grant_type") == "refresh_token" {
		return s.exchange(w, r, in)
	}
	if in.Has("grant_type") {
		in.Pattern("grant_type", "password")
	}
	address, password := in.Required("username"), in.Required("password")
	in.Optional("scope")
	if err := in.Err(); err != nil {
		return err
	}
	u, err := s.checkPassword(r.Context(), s.clientIP(r), address, password)
	if err != nil {
		s.event(r.Context(), "login failed", "email_hash", s.emailHash(address), "reason", err)
		return err
	}
	s.event(r.Context(), "login", "user", u.id)
	return writeJSON(w, http.StatusOK, s.pair(u, in))
}

// pair returns a token pair, with the scopes if the client asked for others (RFC 6749 section 5.1).
func (s *server) pair(u user, in *input.Input) tokenPair {
	pair := s.tokens.issuePair(u)
	requested := strings.Fields(in.Optional("scope"))
	slices.Sort(requested)
	if len(requested) > 0 && !slices.Equal(slices.Compact(requested), slices.Sorted(slices.Values(u.scopes))) {
		pair.Scope = strings.Join(u.scopes, " ")
	}
	return pair
}

// emailHash returns a keyed hash of an email for the log. The email of a failed login is not logged
// itself: it may be a password in the wrong field.
func (s *server) emailHash(address string) string {
	mac := hmac.New(sha256.New, []byte(s.logKey.reveal()))
	mac.Write([]byte(email.Key(address)))
	return hex.EncodeToString(mac.Sum(nil)[:8])
}

// refresh exchanges a refresh token, in JSON or in the form of RFC 6749 section 6.
func (s *server) refresh(w http.ResponseWriter, r *http.Request) error {
	in, err := input.Read(r)
	if err != nil {
		return err
	}
	if input.IsForm(r) { // RFC 6749 section 6 requires it.
		in.Pattern("grant_type", "refresh_token")
	}
	return s.exchange(w, r, in)
}

// exchange responds with a new token pair for a refresh token. The pair has the scopes that the user
// has now.
func (s *server) exchange(w http.ResponseWriter, r *http.Request, in *input.Input) error {
	token := in.Required("refresh_token")
	in.Optional("scope")
	if err := in.Err(); err != nil {
		return err
	}
	u, err := s.checkRefresh(r.Context(), token)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, s.pair(u, in))
}

// A userView is a user as clients see it.
type userView struct {
	ID     string   `json:"id"`
	Email  string   `json:"email"`
	Name   string   `json:"name"`
	Scopes []string `json:"scopes"`
}

func viewOf(u user) userView { return userView{u.id, u.email, u.name, u.scopes} }

// me responds with the caller.
func (s *server) me(w http.ResponseWriter, r *http.Request) error {
	return writeJSON(w, http.StatusOK, viewOf(caller(r.Context()).user))
}

const (
	maxLimit    = 1000             // users, of ?limit=
	streamPage  = 256              // users written at once
	pageTimeout = 10 * time.Second // for the client to read streamPage users
)

// listUsers responds with the users in order of registration: with ?limit= a page and a link to the
// next one (RFC 8288), otherwise all.
func (s *server) listUsers(w http.ResponseWriter, r *http.Request) error {
	in := input.Query(r.URL.RawQuery, "after", "limit")
	after, limit := in.Optional("after"), streamPage
	if in.Has("limit") {
		limit = in.Int("limit", 1, maxLimit)
	}
	page, err := s.users.after(r.Context(), after, limit+1)
	if errors.Is(err, errUnknownUser) || in.Has("after") && after == "" {
		in.Fault("value_error", "after", "no user has this id", nil)
	} else if err != nil {
		return err
	}
	if err := in.Err(); err != nil {
		return err
	}
	if in.Has("limit") && len(page) > limit {
		page = page[:limit]
		w.Header().Set("Link", fmt.Sprintf(`</admin/users?limit=%d&after=%s>; rel="next"`, limit, page[limit-1].id))
	}
	setJSON(w)
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	n := s.writeUsers(w, r.Context(), page, !in.Has("limit"))
	s.event(r.Context(), "users listed", "by", caller(r.Context()).user.id, "users", n)
	return nil
}

// writeUsers writes a page, or with all set also the pages after it, as a JSON array, and returns the
// number of users. It never holds more than a page in memory. It stops when the client does not read.
func (s *server) writeUsers(w http.ResponseWriter, ctx context.Context, page []user, all bool) (n int) {
	control := http.NewResponseController(w)
	buf := []byte("[")
	for len(page) > 0 {
		for _, u := range page {
			if n++; n > 1 {
				buf = append(buf, ',')
			}
			encoded, _ := json.Marshal(viewOf(u)) // never fails
			buf = append(buf, encoded...)
		}
		control.SetWriteDeadline(time.Now().Add(pageTimeout))
		if _, err := w.Write(buf); err != nil {
			return n
		}
		if buf = buf[:0]; !all {
			break
		}
		page, _ = s.users.after(ctx, page[len(page)-1].id, streamPage) // A listed user keeps its place.
	}
	w.Write(append(buf, ']'))
	return n
}

func (s *server) health(w http.ResponseWriter, r *http.Request) error {
	return writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

// page returns a handler of a page that describes the API.
func page(name, contentType string) handlerFunc {
	serve := docs.Handler(name, contentType)
	return func(w http.ResponseWriter, r *http.Request) error {
		serve(w, r)
		return nil
	}
}

// methodNotAllowed returns the handler of a path for all other methods.
func methodNotAllowed(allowed []string) handlerFunc {
	methods := strings.Join(allowed, ", ")
	return func(w http.ResponseWriter, r *http.Request) error {
		if middleware.Preflight(w, r, methods) {
			return nil
		}
		w.Header().Set("Allow", methods)
		return middleware.StatusError(http.StatusMethodNotAllowed)
	}
}

// responses lists the responses to errors. The detail of a response is the text of the error listed.
// An error that wraps it adds the cause, which is logged if the row names an event. The first match
// counts.
var responses = []struct {
	err    error
	status int
	event  string
}{
	{errNotAuthenticated, http.StatusUnauthorized, ""},
	{errInvalidToken, http.StatusUnauthorized, "token rejected"},
	{errBadCredentials, http.StatusUnauthorized, ""},
	{errInvalidRefresh, http.StatusUnauthorized, "token rejected"},
	{errTokenType, http.StatusUnauthorized, "token rejected"},
	{errUnknownUser, http.StatusUnauthorized, "token rejected"},
	{errEmailTaken, http.StatusConflict, ""},
	{errBusy, http.StatusServiceUnavailable, ""},
}

// A response is the response to an error.
type response struct {
	status     int
	detail     any    // text, or the faults of a 422
	event      string // logged with the error, if not empty
	retryAfter time.Duration
}

// responseTo returns the response to err. An error that it does not know is a fault of the service.
func responseTo(err error) response {
	if faults, ok := errors.AsType[input.Faults](err); ok {
		return response{status: http.StatusUnprocessableEntity, detail: faults}
	}
	if status, ok := errors.AsType[middleware.StatusError](err); ok {
		return response{status: int(status), detail: status.Error()}
	}
	if body, ok := errors.AsType[input.BodyError](err); ok {
		return response{status: http.StatusBadRequest, detail: body.Error()}
	}
	if scope, ok := errors.AsType[scopeError](err); ok {
		return response{status: http.StatusForbidden, detail: scope.Error(), event: "scope missing"}
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
	for _, row := range responses {
		if errors.Is(err, row.err) {
			return response{row.status, row.err.Error(), row.event, time.Second}
		}
	}
	return response{status: http.StatusInternalServerError, detail: "Internal Server Error", event: "request failed"}
}

// fail responds with err. Every 401 has a challenge (RFC 9110 section 15.5.2).
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	resp := responseTo(err)
	if resp.event != "" {
		s.log.Log(r.Context(), middleware.Level(resp.status), resp.event, "reason", err, "request_id", middleware.RequestID(r.Context()))
	}
	h := w.Header()
	if resp.status == http.StatusUnauthorized && h.Get("WWW-Authenticate") == "" {
		h.Set("WWW-Authenticate", "Bearer")
	}
	if resp.status == http.StatusTooManyRequests || resp.status == http.StatusServiceUnavailable {
		h.Set("Retry-After", strconv.Itoa(int((resp.retryAfter+time.Second-1)/time.Second)))
	}
	body := map[string]any{"detail": resp.detail}
	if _, ok := errors.AsType[oauthError](err); ok {
		body["error"] = oauthCode(resp)
	}
	writeJSON(w, resp.status, body)
}

// An oauthError is an error of a token endpoint.
type oauthError struct{ error }

func (e oauthError) Unwrap() error { return e.error }

// oauth wraps next so that its errors have a code that OAuth2 clients know.
func oauth(next handlerFunc) handlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := next(w, r); err != nil {
			return oauthError{err}
		}
		return nil
	}
}

// oauthCode returns the error code of RFC 6749 section 5.2 or, for errors that clients should retry,
// section 4.1.2.1.
func oauthCode(resp response) string {
	faults, _ := resp.detail.(input.Faults)
	isGrantType := func(f input.Fault) bool { return f.Type == "string_pattern_mismatch" } // the only field with a pattern
	switch {
	case resp.status == http.StatusUnauthorized, resp.status == http.StatusForbidden:
		return "invalid_grant"
	case resp.status == http.StatusTooManyRequests, resp.status >= 500:
		return "temporarily_unavailable"
	case slices.ContainsFunc(faults, isGrantType):
		return "unsupported_grant_type"
	}
	return "invalid_request"
}

// handle returns a handler that responds with the error of h.
func (s *server) handle(h handlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			s.fail(w, r, err)
		}
	})
}

// event logs an event of a request.
func (s *server) event(ctx context.Context, msg string, args ...any) {
	s.log.InfoContext(ctx, msg, append(args, "request_id", middleware.RequestID(ctx))...)
}

// setJSON sets the headers of a response in JSON, which is never cached (RFC 6749 section 5.1).
func setJSON(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
}

// writeJSON responds with v. The client is gone if it cannot be written.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	setJSON(w)
	w.WriteHeader(status)
	w.Write(body)
	return nil
}
