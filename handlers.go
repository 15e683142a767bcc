package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A handlerFunc answers a request, or returns the error that fail turns into an answer. An error that is no httpError
// is a fault of ours.
type handlerFunc func(w http.ResponseWriter, r *http.Request) error

// A route is one operation of the API.
type route struct {
	method  string
	path    string
	handler handlerFunc
}

// routes names every operation. What it needs stands beside it, as the wrapper of its handler.
func (s *server) routes() []route {
	return []route{
		{"POST", "/auth/register", s.register},
		{"POST", "/auth/login", s.login},
		{"POST", "/auth/refresh", s.refresh},
		{"GET", "/me", s.requireUser(s.me)},
		{"GET", "/admin/users", s.requireScope("admin", s.listUsers)},
		{"GET", "/healthz", s.health},
	}
}

// docsRoutes names the pages that describe the API, if they are to be served.
func (s *server) docsRoutes() []route {
	if !s.docs {
		return nil
	}
	return []route{
		{"GET", "/docs", serveFile("docs/index.html", "text/html; charset=utf-8")},
		{"GET", "/docs/docs.css", serveFile("docs/docs.css", "text/css; charset=utf-8")},
		{"GET", "/docs/docs.js", serveFile("docs/docs.js", "text/javascript; charset=utf-8")},
		{"GET", "/openapi.json", serveFile("docs/openapi.json", "application/json")},
	}
}

// handler returns the whole service. HEAD is answered wherever GET is (RFC 9110 9.3.2).
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	for _, route := range append(s.routes(), s.docsRoutes()...) {
		mux.HandleFunc(route.method+" "+route.path, s.handle(route.handler))
		mux.HandleFunc(route.path, s.handle(methodNotAllowed(route.method)))
	}
	mux.HandleFunc("/", s.handle(notFound))
	return s.observe(s.admitRequest(mux))
}

// Lengths of what people choose, in code points.
const (
	minPassword, maxPassword = 8, 128
	minName, maxName         = 1, 100
)

// register makes an account and answers with a first token pair.
func (s *server) register(w http.ResponseWriter, r *http.Request) error {
	in, err := s.readJSON(w, r)
	if err != nil {
		return err
	}
	u := user{
		id:     newUUID(),
		email:  in.address("email"),
		scopes: "me",
	}
	password := in.text("password", minPassword, maxPassword)
	u.name = in.text("name", minName, maxName)
	if err := in.err(); err != nil {
		return err
	}
	if err := s.addUser(r.Context(), u, password); err != nil {
		return err
	}
	s.event(w, r, "registered", slog.String("user", u.id))
	return writeJSON(w, http.StatusCreated, s.tokens.issuePair(u))
}

// addUser hashes the password and stores the user. That the address is free is looked at when it is the request's turn
// to hash, which spares those who come too late the hash, and again when the user is stored, which decides.
func (s *server) addUser(ctx context.Context, u user, password string) error {
	release, err := s.passwords.admit(ctx)
	if err != nil {
		return err
	}
	defer release()
	if _, taken := s.users.withAddress(u.email); taken {
		return errAddressTaken
	}
	u.hash = s.passwords.hash(password)
	return s.users.add(u)
}

// login takes the form of OAuth2's password grant (RFC 6749 4.3.2). It takes a refresh token as well (RFC 6749 6), for
// client libraries that know of one token URL.
func (s *server) login(w http.ResponseWriter, r *http.Request) error {
	in, err := s.readForm(w, r)
	if err != nil {
		return err
	}
	if in.optional("grant_type") == "refresh_token" {
		return s.refreshPair(w, r, in)
	}
	if _, given := in.values["grant_type"]; given {
		in.pattern("grant_type", "password")
	}
	address, password := in.required("username"), in.required("password")
	if err := in.err(); err != nil {
		return err
	}
	u, err := s.checkPassword(r.Context(), clientAddress(r, s.proxies), address, password)
	if err != nil {
		answer := answerFor(err)
		if answer.status == http.StatusInternalServerError {
			return err
		}
		return answer.audit("login refused", err, s.addressHash(address))
	}
	s.event(w, r, "login", slog.String("user", u.id))
	return writeJSON(w, http.StatusOK, s.tokens.issuePair(u))
}

// refresh takes a refresh token, as JSON or as OAuth2's form (RFC 6749 6).
func (s *server) refresh(w http.ResponseWriter, r *http.Request) error {
	if !isForm(mediaType(r.Header)) {
		in, err := s.readJSON(w, r)
		if err != nil {
			return err
		}
		return s.refreshPair(w, r, in)
	}
	in, err := s.readForm(w, r)
	if err != nil {
		return err
	}
	in.pattern("grant_type", "refresh_token")
	return s.refreshPair(w, r, in)
}

// refreshPair answers with a new token pair for the input's refresh token. The new pair has the scopes that the user
// has now.
func (s *server) refreshPair(w http.ResponseWriter, r *http.Request, in *input) error {
	token := in.required("refresh_token")
	if err := in.err(); err != nil {
		return err
	}
	c, err := s.tokens.verify(token, refreshToken)
	if errors.Is(err, errTokenType) {
		return errWrongTokenType.audit("token refused", err)
	}
	if err != nil {
		return errBadRefreshToken.audit("token refused", err)
	}
	u, ok := s.users.withID(c.subject)
	if !ok {
		return errNoSuchUser.audit("token refused", errUnknownUser)
	}
	return writeJSON(w, http.StatusOK, s.tokens.issuePair(u))
}

// me answers with the current user.
func (s *server) me(w http.ResponseWriter, r *http.Request) error {
	return writeBody(w, http.StatusOK, appendUser(make([]byte, 0, 128), currentUser(r.Context())))
}

const (
	// usersPage is how many users are copied, encoded and written at once.
	usersPage = 256

	// pageTimeout is what a client has to take a page: one that reads gets a list of any length, one that stalls none.
	pageTimeout = 10 * time.Second

	maxLimit = 1000 // of ?limit=
)

// listUsers answers with the users in the order of registration: all, or as many as ?limit= says, from the one after
// ?after= on, with a link to the rest (RFC 8288). They go out page by page: neither are they all in memory as JSON, nor
// is the store held up while a client reads.
func (s *server) listUsers(w http.ResponseWriter, r *http.Request) error {
	from, end, more, err := s.listRange(r.URL)
	if err != nil {
		return err
	}
	if more {
		w.Header().Set("Link", s.nextLink(end, end-from))
	}
	setJSON(w)
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		s.event(w, r, "admin list read", slog.String("user", currentUser(r.Context()).id), slog.Int("users", end-from))
		s.writeUsers(w, from, end)
	}
	return nil
}

// nextLink returns the link to what comes after the users up to a place, as many again. No id has what a URL escapes.
func (s *server) nextLink(end, limit int) string {
	last := make([]user, 1)
	s.users.page(last, end-1)
	return fmt.Sprintf(`</admin/users?limit=%d&after=%s>; rel="next"`, limit, last[0].id)
}

// writeUsers writes the users between two places as a JSON array. It ends early if the client is gone.
func (s *server) writeUsers(w http.ResponseWriter, from, end int) {
	control := http.NewResponseController(w)
	page := make([]user, min(usersPage, end-from))
	buf := []byte{'['}
	for first := from; from < end; {
		n := s.users.page(page[:min(len(page), end-from)], from)
		for i, u := range page[:n] {
			if from+i > first {
				buf = append(buf, ',')
			}
			buf = appendUser(buf, u)
		}
		from += n
		control.SetWriteDeadline(time.Now().Add(pageTimeout))
		if _, err := w.Write(buf); err != nil {
			return
		}
		buf = buf[:0]
	}
	w.Write(append(buf, ']'))
}

// listRange returns which users a request asks for, by their places in the order of registration, and whether there are
// more behind them.
func (s *server) listRange(u *url.URL) (from, end int, more bool, err error) {
	in := newInput("query")
	for name, value := range parameters(u.RawQuery) {
		if name == "after" || name == "limit" {
			in.addParameter(name, value, jsonString)
		}
	}
	if _, ok := in.values["after"]; ok {
		from = s.placeAfter(in)
	}
	all := s.users.count()
	end = all
	if _, ok := in.values["limit"]; ok {
		end = min(all, from+in.number("limit", 1, maxLimit))
	}
	return from, end, end < all, in.err()
}

// placeAfter returns the place after that of the user whose id is the parameter after.
func (s *server) placeAfter(in *input) int {
	id, ok := in.take("after")
	if !ok {
		return 0
	}
	place, ok := s.users.position(id)
	if !ok {
		in.addFault("value_error", "after", "no user has this id", nil)
	}
	return place + 1
}

func (s *server) health(w http.ResponseWriter, r *http.Request) error {
	return writeBody(w, http.StatusOK, []byte(`{"status":"ok"}`))
}

//go:embed docs/index.html docs/docs.css docs/docs.js docs/openapi.json
var docsFiles embed.FS

// docsPolicy lets the page run its own script and style, and talk to this service alone. Where people type passwords no
// markup may come from a string: trusted types make the browser itself refuse it.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// serveFile answers with a file of docs. Of conditional requests it knows If-None-Match: what a reload sends.
func serveFile(name, contentType string) handlerFunc {
	content, err := docsFiles.ReadFile(name)
	if err != nil {
		panic(err) // The file is embedded.
	}
	sum := sha256.Sum256(content)
	tag := `"` + hex.EncodeToString(sum[:16]) + `"`
	return func(w http.ResponseWriter, r *http.Request) error {
		h := w.Header()
		h.Set("Cache-Control", "no-cache")
		h.Set("Content-Security-Policy", docsPolicy)
		h.Set("ETag", tag)
		h.Set("Referrer-Policy", "no-referrer")
		if matchesTag(r.Header.Values("If-None-Match"), tag) {
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
		h.Set("Content-Type", contentType)
		h.Set("Content-Length", strconv.Itoa(len(content)))
		w.Write(content)
		return nil
	}
}

// matchesTag reports whether an If-None-Match has the tag. The comparison is weak (RFC 9110 13.1.2): a proxy that
// compresses the answer makes the tag weak.
func matchesTag(fields []string, tag string) bool {
	for listed := range strings.SplitSeq(strings.Join(fields, ","), ",") {
		listed = strings.TrimSpace(listed)
		if listed == "*" || strings.TrimPrefix(listed, "W/") == tag {
			return true
		}
	}
	return false
}

func notFound(w http.ResponseWriter, r *http.Request) error {
	return errNotFound
}

func methodNotAllowed(allow string) handlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Allow", allow)
		return errMethodNotAllowed
	}
}

// An httpError is an error and its answer.
type httpError struct {
	status       int
	detail       any           // what the client is told: a sentence, or a list of faults
	authenticate string        // WWW-Authenticate, if any
	retryAfter   time.Duration // Retry-After, if any
	event        string        // what the log is told beside, if anything
	cause        error         // the reason that the log is given
	attrs        []slog.Attr
}

// Every 401 has a challenge (RFC 9110 15.5.2).
var (
	errBodyBroken       = &httpError{status: http.StatusBadRequest, detail: "There was an error parsing the body"}
	errNoBoundary       = &httpError{status: http.StatusBadRequest, detail: "Missing boundary in multipart."}
	errMultipart        = &httpError{status: http.StatusBadRequest, detail: "Invalid multipart data."}
	errNotAuthenticated = &httpError{status: http.StatusUnauthorized, detail: "Not authenticated", authenticate: "Bearer"}
	errBadToken         = &httpError{status: http.StatusUnauthorized, detail: "Could not validate credentials"}
	errBadLogin         = &httpError{status: http.StatusUnauthorized, detail: "incorrect email or password", authenticate: "Bearer"}
	errBadRefreshToken  = &httpError{status: http.StatusUnauthorized, detail: "invalid refresh token", authenticate: "Bearer"}
	errWrongTokenType   = &httpError{status: http.StatusUnauthorized, detail: "wrong token type", authenticate: "Bearer"}
	errNoSuchUser       = &httpError{status: http.StatusUnauthorized, detail: "unknown user", authenticate: "Bearer"}
	errForbidden        = &httpError{status: http.StatusForbidden}
	errNotFound         = &httpError{status: http.StatusNotFound, detail: "Not Found"}
	errMethodNotAllowed = &httpError{status: http.StatusMethodNotAllowed, detail: "Method Not Allowed"}
	errBodyTimeout      = &httpError{status: http.StatusRequestTimeout, detail: "Request Timeout"}
	errConflict         = &httpError{status: http.StatusConflict, detail: "email already registered"}
	errBodyTooLarge     = &httpError{status: http.StatusRequestEntityTooLarge, detail: "Content Too Large"}
	errInternal         = &httpError{status: http.StatusInternalServerError, detail: "Internal Server Error"}
	errTooManyAttempts  = &httpError{status: http.StatusTooManyRequests, detail: "too many attempts"}
	errOverload         = &httpError{status: http.StatusServiceUnavailable, detail: "busy, try again", retryAfter: time.Second}
)

func (e *httpError) Error() string { return fmt.Sprintf("%d: %v", e.status, e.detail) }

// audit returns the error with an event for the log.
func (e httpError) audit(event string, cause error, attrs ...slog.Attr) *httpError {
	e.event, e.cause, e.attrs = event, cause, attrs
	return &e
}

// challenge returns the error with the challenge of a bearer token that is not enough (RFC 6750 3).
func (e httpError) challenge(scope, code string) *httpError {
	e.authenticate = "Bearer "
	if scope != "" {
		e.authenticate += `scope="` + scope + `", `
	}
	e.authenticate += `error="` + code + `"`
	return &e
}

// answerFor returns the answer to an error. One that no line here names is a fault of ours.
func answerFor(err error) *httpError {
	var known *httpError
	var throttled *throttledError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &throttled):
		answer := *errTooManyAttempts
		answer.retryAfter = throttled.wait
		return &answer
	case errors.Is(err, errMismatch), errors.Is(err, errUnknownAddress):
		return errBadLogin
	case errors.Is(err, errAddressTaken):
		return errConflict
	case errors.Is(err, errBusy), errors.Is(err, context.Canceled):
		return errOverload
	}
	return errInternal.audit("request failed", err)
}

// handle turns the error of a handler into an answer.
func (s *server) handle(h handlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			s.fail(w, r, answerFor(err))
		}
	}
}

// fail answers with an error.
func (s *server) fail(w http.ResponseWriter, r *http.Request, e *httpError) {
	if e.event != "" {
		attrs := append(e.attrs, slog.String("reason", e.cause.Error()), requestID(w))
		s.log.LogAttrs(r.Context(), levelOf(e.status), e.event, attrs...)
	}
	h := w.Header()
	if e.authenticate != "" {
		h.Set("WWW-Authenticate", e.authenticate)
	}
	if e.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((e.retryAfter+time.Second-1)/time.Second)))
	}
	writeJSON(w, e.status, map[string]any{"detail": e.detail})
}

// maxBody is how much of a body is read, in bytes.
const maxBody = 64 << 10

// admitRequest answers what is wrong with a request whatever its route. ServeMux would redirect an unclean path, with a
// body in HTML: here it is a path like any other that is not there.
func (s *server) admitRequest(mux http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Whoever doesn't read a body closes the connection, or net/http would wait for the rest before it answers.
		if r.ContentLength != 0 {
			w.Header().Set("Connection", "close")
		}
		p := r.URL.EscapedPath()
		switch {
		case r.ContentLength > maxBody:
			s.fail(w, r, errBodyTooLarge)
		case p == "" || p[0] != '/' || path.Clean(p) != p:
			s.fail(w, r, errNotFound)
		default:
			mux.ServeHTTP(w, r)
		}
	})
}

// A recorder notes what an answer was.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int
}

func (rec *recorder) WriteHeader(status int) {
	if rec.status == 0 {
		rec.status = status
	}
	rec.ResponseWriter.WriteHeader(status)
}

func (rec *recorder) Write(b []byte) (int, error) {
	if rec.status == 0 {
		rec.status = http.StatusOK
	}
	n, err := rec.ResponseWriter.Write(b)
	rec.bytes += n
	return n, err
}

// Unwrap is for http.ResponseController.
func (rec *recorder) Unwrap() http.ResponseWriter { return rec.ResponseWriter }

// observe gives every request its id, logs it, and turns a panic into a 500.
func (s *server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rec := &recorder{ResponseWriter: w}
		h := w.Header()
		h["X-Request-Id"] = []string{rand.Text()}
		h["X-Content-Type-Options"] = noSniff
		defer func() {
			aborted := s.recovered(rec, r, recover())
			s.logRequest(rec, r, start)
			if aborted {
				panic(http.ErrAbortHandler)
			}
		}()
		next.ServeHTTP(rec, r)
	})
}

// recovered logs a panic with its stack and answers it, or reports that the answer has begun and can only be aborted.
func (s *server) recovered(rec *recorder, r *http.Request, p any) (aborted bool) {
	if p == nil || p == http.ErrAbortHandler {
		return p != nil
	}
	s.log.LogAttrs(r.Context(), slog.LevelError, "panic", requestID(rec),
		slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
	if rec.status != 0 {
		return true
	}
	rec.Header().Del("Content-Length")
	s.fail(rec, r, errInternal)
	return false
}

func (s *server) logRequest(rec *recorder, r *http.Request, start time.Time) {
	if r.Method == http.MethodHead {
		rec.bytes = 0 // net/http keeps the body back.
	}
	now := time.Now()
	s.log.request(requestLine{
		time:      now,
		level:     levelOf(rec.status),
		method:    knownMethod(r.Method),
		route:     r.Pattern,
		status:    rec.status,
		bytes:     rec.bytes,
		duration:  now.Sub(start),
		client:    clientAddress(r, s.proxies),
		requestID: rec.Header()["X-Request-Id"][0],
	})
}

// levelOf returns how much an answer concerns the owner of the service.
func levelOf(status int) slog.Level {
	if status >= 500 {
		return slog.LevelError
	}
	return slog.LevelInfo
}

// knownMethod returns a method for the log. One that HTTP doesn't have may be anything, of any length.
func knownMethod(method string) string {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE":
		return method
	}
	return "unknown"
}

// event logs something that the owner of the service wants to know of.
func (s *server) event(w http.ResponseWriter, r *http.Request, event string, attrs ...slog.Attr) {
	s.log.LogAttrs(r.Context(), slog.LevelInfo, event, append(attrs, requestID(w))...)
}

func requestID(w http.ResponseWriter) slog.Attr {
	return slog.String("request_id", w.Header()["X-Request-Id"][0])
}

// An input is what a request says, member by member, with the faults found in it so far.
type input struct {
	place  string // body or query
	values map[string]jsonValue
	faults []fault
}

func newInput(place string) *input {
	return &input{place: place, values: make(map[string]jsonValue)}
}

// A fault is one entry of a 422, in the form of the original's library, pydantic, but for the input, which is not
// echoed: it may be a password.
type fault struct {
	Type string         `json:"type"`
	Loc  []any          `json:"loc"`
	Msg  string         `json:"msg"`
	Ctx  map[string]any `json:"ctx,omitempty"`
}

// err returns the faults found, if any.
func (in *input) err() error {
	if in.faults == nil {
		return nil
	}
	return unprocessable(in.faults...)
}

func unprocessable(faults ...fault) error {
	return &httpError{status: http.StatusUnprocessableEntity, detail: faults}
}

func (in *input) addFault(kind, name, msg string, ctx map[string]any) {
	in.faults = append(in.faults, fault{kind, []any{in.place, name}, msg, ctx})
}

// required returns a string that must be there.
func (in *input) required(name string) string {
	text, _ := in.take(name)
	return text
}

// take returns a string that must be there, or notes the fault.
func (in *input) take(name string) (text string, ok bool) {
	v, ok := in.values[name]
	switch {
	case !ok:
		in.addFault("missing", name, "Field required", nil)
	case v.kind == givenTwice: // The fault is noted.
	case v.kind == brokenText:
		in.addFault("string_unicode", name, "Input should be a valid string, unable to parse raw data as a unicode string", nil)
	case v.kind != jsonString:
		in.addFault("string_type", name, "Input should be a valid string", nil)
	default:
		return v.text, true
	}
	return "", false
}

// optional returns a string that may be missing, which is the same as an empty one.
func (in *input) optional(name string) string {
	if v := in.values[name]; v.kind == jsonString {
		return v.text
	}
	return ""
}

// pattern notes a fault if a string is not the one that is expected.
func (in *input) pattern(name, want string) {
	if text, ok := in.take(name); ok && text != want {
		pattern := "^" + want + "$"
		in.addFault("string_pattern_mismatch", name, "String should match pattern '"+pattern+"'", map[string]any{"pattern": pattern})
	}
}

// text returns a string whose length in code points is within the bounds.
func (in *input) text(name string, least, most int) string {
	text, ok := in.take(name)
	n := utf8.RuneCountInString(text)
	switch {
	case !ok:
	case n < least:
		characters := "characters"
		if least == 1 {
			characters = "character"
		}
		in.addFault("string_too_short", name, fmt.Sprintf("String should have at least %d %s", least, characters), map[string]any{"min_length": least})
	case n > most:
		in.addFault("string_too_long", name, fmt.Sprintf("String should have at most %d characters", most), map[string]any{"max_length": most})
	}
	return text
}

// number returns a whole number within the bounds.
func (in *input) number(name string, least, most int) int {
	text, ok := in.take(name)
	n, err := strconv.Atoi(text)
	switch {
	case !ok:
	case err != nil:
		in.addFault("int_parsing", name, "Input should be a valid integer, unable to parse string as an integer", nil)
	case n < least:
		in.addFault("greater_than_equal", name, fmt.Sprintf("Input should be greater than or equal to %d", least), map[string]any{"ge": least})
	case n > most:
		in.addFault("less_than_equal", name, fmt.Sprintf("Input should be less than or equal to %d", most), map[string]any{"le": most})
	}
	return n
}

// address returns an e-mail address as it is kept.
func (in *input) address(name string) string {
	text, ok := in.take(name)
	if !ok {
		return ""
	}
	address, err := parseAddress(text)
	if err != nil {
		in.addFault("value_error", name, "value is not a valid email address: "+err.Error(), map[string]any{"reason": err.Error()})
	}
	return address
}

const (
	// smallBody is what every body may take at once, in bytes: more than any good request has.
	smallBody = 4 << 10

	// maxLargeBodies is how many bodies may be larger at the same time.
	maxLargeBodies = 128
)

// readBody returns the whole body, which has its time from the server's ReadTimeout.
func (s *server) readBody(w http.ResponseWriter, r *http.Request) (string, error) {
	reader := http.MaxBytesReader(nil, r.Body, maxBody)
	body, err := io.ReadAll(io.LimitReader(reader, smallBody+1))
	if len(body) > smallBody {
		select {
		case s.largeBodies <- struct{}{}:
			defer func() { <-s.largeBodies }()
		default:
			return "", errOverload
		}
		var rest []byte
		rest, err = io.ReadAll(reader)
		body = append(body, rest...)
	}
	if err != nil {
		return "", bodyError(err)
	}
	// RFC 9112 6.1: after a request with both Transfer-Encoding and Content-Length, or with the former in HTTP/1.0, the
	// connection MUST be closed. net/http hides one of the two, so that every such request is the last of its connection.
	if r.TransferEncoding == nil && r.ProtoAtLeast(1, 1) {
		w.Header().Del("Connection")
	}
	return string(body), nil
}

// bodyError returns the answer to an error in reading a body.
func bodyError(err error) error {
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return errBodyTooLarge
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errBodyTimeout
	}
	return errBodyBroken
}

// mediaType returns the media type of the body, in lower case and without parameters.
func mediaType(h http.Header) string {
	media, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	return strings.ToLower(strings.TrimSpace(media))
}

// isJSON reports whether the media type is of JSON (RFC 8259 11, and RFC 6839 3.1 for the suffix).
func isJSON(media string) bool {
	subtype, ok := strings.CutPrefix(media, "application/")
	return ok && (subtype == "json" || strings.HasSuffix(subtype, "+json"))
}

const (
	formURLEncoded = "application/x-www-form-urlencoded"
	formMultipart  = "multipart/form-data"
)

func isForm(media string) bool {
	return media == formURLEncoded || media == formMultipart
}

// readJSON reads a body that is one JSON object.
func (s *server) readJSON(w http.ResponseWriter, r *http.Request) (*input, error) {
	body, err := s.readBody(w, r)
	if err != nil {
		return nil, err
	}
	if body == "" {
		return nil, unprocessable(fault{"missing", []any{"body"}, "Field required", nil})
	}
	if !isJSON(mediaType(r.Header)) {
		return nil, unprocessable(notAnObject)
	}
	return parseJSON(body)
}

var notAnObject = fault{"model_attributes_type", []any{"body"}, "Input should be a valid dictionary or object to extract fields from", nil}

// parseJSON reads the members of an object. A byte order mark is skipped (RFC 8259 8.1), as the original does.
func parseJSON(body string) (*input, error) {
	in := newInput("body")
	err := readObject(strings.TrimPrefix(body, "\uFEFF"), func(name string, v jsonValue) error {
		in.values[name] = v
		return nil
	})
	if syntax, ok := errors.AsType[*jsonError](err); ok {
		return nil, unprocessable(fault{"json_invalid", []any{"body", syntax.pos}, "JSON decode error", map[string]any{"error": syntax.msg}})
	}
	if err != nil {
		return nil, unprocessable(notAnObject)
	}
	return in, nil
}

// Kinds of a parameter's value beside jsonString.
const (
	brokenText jsonKind = 0xff - iota // not UTF-8
	fileUpload
	givenTwice
)

// knownParameters are those of forms and queries that a fault may name. Another name could be a password in the wrong
// place.
var knownParameters = []string{"grant_type", "username", "password", "scope", "client_id", "client_secret", "refresh_token", "after", "limit"}

// readForm reads a body that is a form. One of another media type has no parameters, and the query string never is a
// form: both are for caches and logs to keep.
func (s *server) readForm(w http.ResponseWriter, r *http.Request) (*input, error) {
	body, err := s.readBody(w, r)
	if err != nil {
		return nil, err
	}
	in := newInput("body")
	switch mediaType(r.Header) {
	case formURLEncoded:
		in.addURLEncoded(body)
	case formMultipart:
		err = in.addMultipart(body, r.Header.Get("Content-Type"))
	}
	// RFC 6749 3.2: "Parameters sent without a value MUST be treated as if they were omitted".
	maps.DeleteFunc(in.values, func(_ string, v jsonValue) bool { return v == jsonValue{kind: jsonString} })
	return in, err
}

// addParameter takes one parameter. RFC 6749 3.2: parameters "MUST NOT be included more than once".
func (in *input) addParameter(name, value string, kind jsonKind) {
	if first, twice := in.values[name]; twice {
		if kind = givenTwice; first.kind != kind {
			loc := []any{in.place}
			if slices.Contains(knownParameters, name) {
				loc = append(loc, name)
			}
			in.faults = append(in.faults, fault{"value_error", loc, "Parameter given twice", nil})
		}
	}
	if kind == jsonString && !utf8.ValidString(value) {
		kind = brokenText
	}
	in.values[name] = jsonValue{kind, value}
}

// addURLEncoded takes the parameters of application/x-www-form-urlencoded.
func (in *input) addURLEncoded(body string) {
	for name, value := range parameters(body) {
		in.addParameter(name, value, jsonString)
	}
}

// parameters yields the names and values of application/x-www-form-urlencoded as the URL Standard and the original parse
// it: net/url drops what has a semicolon, or a percent sign that begins no escape, both of which curl -d sends as they are.
func parameters(text string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for pair := range strings.SplitSeq(text, "&") {
			name, value, _ := strings.Cut(pair, "=")
			if pair != "" && !yield(unescape(name), unescape(value)) {
				return
			}
		}
	}
}

// unescape decodes what stands percent-encoded, and the plus sign, which is a space.
func unescape(s string) string {
	decoded := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '+' {
			c = ' '
		}
		if c == '%' && i+2 < len(s) {
			if b, err := hex.DecodeString(s[i+1 : i+3]); err == nil {
				c = b[0]
				i += 2
			}
		}
		decoded = append(decoded, c)
	}
	return string(decoded)
}

// addMultipart takes the parameters of multipart/form-data (RFC 7578). A file is no value of a parameter.
func (in *input) addMultipart(body, contentType string) error {
	_, params, _ := mime.ParseMediaType(contentType)
	if params["boundary"] == "" {
		return errNoBoundary
	}
	if body == "" {
		return nil
	}
	parts := multipart.NewReader(strings.NewReader(body), params["boundary"])
	for {
		part, err := parts.NextRawPart()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return errMultipart
		}
		value, err := io.ReadAll(part)
		if err != nil || part.FormName() == "" {
			return errMultipart
		}
		kind := jsonString
		_, params, _ := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
		if _, file := params["filename"]; file {
			kind = fileUpload
		}
		in.addParameter(part.FormName(), string(value), kind)
	}
}

// writeJSON answers with a value as JSON.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return err
	}
	return writeBody(w, status, bytes.TrimSuffix(body.Bytes(), []byte("\n")))
}

// writeBody answers with JSON. An error in writing it is the client's, who is gone.
func writeBody(w http.ResponseWriter, status int, body []byte) error {
	setJSON(w)
	w.WriteHeader(status)
	w.Write(body)
	return nil
}

// Values of headers that are on nearly every answer, under names in their canonical form. Nobody changes a value in
// place, so that all answers can share them.
var (
	noSniff  = []string{"nosniff"}
	noStore  = []string{"no-store"}
	jsonType = []string{"application/json"}
)

// setJSON sets the headers of every answer in JSON: none is for a cache (RFC 6749 5.1).
func setJSON(w http.ResponseWriter) {
	h := w.Header()
	h["Content-Type"] = jsonType
	h["Cache-Control"] = noStore
}

// appendUser appends what the world sees of a user.
func appendUser(dst []byte, u user) []byte {
	dst = append(dst, `{"id":`...)
	dst = appendJSONString(dst, u.id)
	dst = append(dst, `,"email":`...)
	dst = appendJSONString(dst, u.email)
	dst = append(dst, `,"name":`...)
	dst = appendJSONString(dst, u.name)
	dst = append(dst, `,"scopes":`...)
	var scopes [4]string
	dst = appendJSONStrings(dst, u.scopes.appendTo(scopes[:0]))
	return append(dst, '}')
}
