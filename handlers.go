package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"jwt-auth-api/docs"
	"jwt-auth-api/internal/admission"
	"jwt-auth-api/internal/email"
	"jwt-auth-api/internal/input"
	"jwt-auth-api/internal/middleware"
	"jwt-auth-api/internal/respond"
)

// A server holds what the handlers share.
type server struct {
	auth
	errors   respond.Errors
	clientIP func(*http.Request) netip.Addr
	origins  []string // origins of pages that may read responses
	log      *slog.Logger
	docs     bool // whether /docs and /openapi.json are served
}

type (
	handler = respond.HandlerFunc
	methods = map[string]handler
)

// A route is a path with the handler of each of its methods.
type route struct {
	path    string
	methods methods
}

// routes returns the operations of the API. The wrapper of a handler names what its
// operation requires.
func (s *server) routes() []route {
	user := s.requireUser
	admin := func(next handler) handler {
		return s.requireScope("admin", func(w http.ResponseWriter, r *http.Request) error {
			if err := s.users.store.check(); err != nil {
				return err
			}
			return next(w, r)
		})
	}
	target := func(next userHandler) handler { return admin(s.pathUser(next)) }
	return []route{
		{"/auth/register", methods{"POST": s.register}},
		{"/auth/login", methods{"POST": respond.OAuth(s.login)}},
		{"/auth/refresh", methods{"POST": respond.OAuth(s.refresh)}},
		{"/auth/logout", methods{"POST": user(s.logout)}},
		{"/auth/revoke", methods{"POST": s.revoke}},
		{"/auth/password", methods{"POST": user(s.password)}},
		{"/me", methods{"GET": user(s.me), "PATCH": user(s.patchMe)}},
		{"/me/sessions", methods{"GET": user(s.listSessions)}},
		{"/me/sessions/{id}", methods{"DELETE": user(s.deleteSession)}},
		{"/admin/users", methods{"GET": admin(s.listUsers)}},
		{"/admin/users/{id}", methods{
			"GET": target(s.getUser), "PATCH": target(s.patchUser), "DELETE": target(s.deleteUser),
		}},
		{"/admin/users/{id}/sessions", methods{"DELETE": target(s.deleteSessions)}},
		{"/healthz", methods{"GET": s.health}},
	}
}

const maxBody = 16 << 10 // bytes

// handler returns the service's handler, wrapped in middleware. ServeMux also routes HEAD to the
// handler of GET.
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	for _, route := range s.routes() {
		for method, h := range route.methods {
			mux.Handle(method+" "+route.path, s.errors.Handle(h))
		}
		mux.Handle(route.path, s.errors.Handle(methodNotAllowed(slices.Sorted(maps.Keys(route.methods)))))
	}
	if s.docs {
		for path, h := range docs.Handlers() {
			mux.Handle("GET "+path, h)
			mux.Handle(path, s.errors.Handle(methodNotAllowed([]string{"GET"})))
		}
	}
	mux.Handle("/", s.errors.Handle(func(http.ResponseWriter, *http.Request) error {
		return middleware.StatusError(http.StatusNotFound)
	}))
	h := middleware.Limit(mux, maxBody, s.errors.Fail)
	h = middleware.CORS(h, s.origins)
	h = middleware.Log(h, s.log, "GET /healthz", s.clientIP)
	return middleware.Recover(h, s.log, s.errors.Fail)
}

// methodNotAllowed returns the handler of a path for all methods but the allowed ones.
func methodNotAllowed(allowed []string) handler {
	list := strings.Join(allowed, ", ")
	return func(w http.ResponseWriter, r *http.Request) error {
		if middleware.Preflight(w, r, list) {
			return nil
		}
		w.Header().Set("Allow", list)
		return middleware.StatusError(http.StatusMethodNotAllowed)
	}
}

const errUserNotFound apiError = "user not found"

// responses is the table of the errors that clients see.
func responses() []respond.Row {
	return []respond.Row{
		{Err: errNotAuthenticated, Status: http.StatusUnauthorized},
		{Err: errInvalidToken, Status: http.StatusUnauthorized, Event: "token rejected"},
		{Err: errIncorrectPassword, Status: http.StatusForbidden},
		{Err: errBadCredentials, Status: http.StatusUnauthorized},
		{Err: errInvalidRefresh, Status: http.StatusUnauthorized, Event: "token rejected"},
		{Err: errTokenType, Status: http.StatusUnauthorized, Event: "token rejected"},
		{Err: errUnknownUser, Status: http.StatusUnauthorized, Event: "token rejected"},
		{Err: errDisabled, Status: http.StatusForbidden},
		{Err: missingScope("admin"), Status: http.StatusForbidden, Event: "scope missing"},
		{Err: errUserNotFound, Status: http.StatusNotFound},
		{Err: errSessionNotFound, Status: http.StatusNotFound},
		{Err: errEmailTaken, Status: http.StatusConflict},
		{Err: errLastAdmin, Status: http.StatusConflict},
		{Err: admission.ErrBusy, Status: http.StatusServiceUnavailable},
		{Err: errUnavailable, Status: http.StatusServiceUnavailable, Event: "store unavailable"},
	}
}

// event logs an event of a request.
func (s *server) event(r *http.Request, level slog.Level, msg string, args ...any) {
	s.log.Log(r.Context(), level, msg, append(args, "request_id", middleware.RequestID(r.Context()))...)
}

// Lengths in code points.
const (
	minPassword, maxPassword = 8, 128
	minName, maxName         = 1, 100
	maxScopes, maxScope      = 32, 64
)

// register creates an account and responds with its first token pair.
func (s *server) register(w http.ResponseWriter, r *http.Request) error {
	in := input.ReadJSON(r)
	address, err := email.Parse(in.Required("email"))
	if err != nil {
		in.Fault("value_error", "email", "value is not a valid email address: "+err.Error(),
			map[string]any{"reason": err.Error()})
	}
	password, name := in.Text("password", minPassword, maxPassword), in.Text("name", minName, maxName)
	if err := in.Err(); err != nil {
		return err
	}
	u := user{ID: newUUID(), Email: address, Name: name, Scopes: []string{"me"}}
	begun, err := s.auth.register(r.Context(), u, password, r.UserAgent())
	if err != nil {
		return err
	}
	s.event(r, slog.LevelInfo, "registered", "user", u.ID)
	return respond.JSON(w, http.StatusCreated, s.tokens.issuePair(u, begun, ""))
}

// login exchanges a password (RFC 6749 section 4.3.2) or, for clients with one token URL, a
// refresh token (section 6) for a token pair.
func (s *server) login(w http.ResponseWriter, r *http.Request) error {
	in := input.ReadForm(r)
	if in.Optional("grant_type") == "refresh_token" {
		return s.exchange(w, r, in)
	}
	in.Pattern("grant_type", "password")
	address, password, scope := in.Required("username"), in.Required("password"), in.Optional("scope")
	if err := in.Err(); err != nil {
		return err
	}
	u, begun, err := s.auth.login(r.Context(), s.clientIP(r), address, password, r.UserAgent())
	if err != nil {
		// The log names the account, never the email, which may be a password typed into the wrong field.
		owner, _ := s.users.lookup("", email.Key(address))
		s.event(r, slog.LevelInfo, "login failed", "user", owner.ID, "reason", err)
		return err
	}
	s.event(r, slog.LevelInfo, "login", "user", u.ID)
	return respond.JSON(w, http.StatusOK, s.tokens.issuePair(u, begun, scope))
}

// refresh exchanges a refresh token, in JSON or in the form of RFC 6749 section 6.
func (s *server) refresh(w http.ResponseWriter, r *http.Request) error {
	in := input.Read(r)
	in.Pattern("grant_type", "refresh_token")
	return s.exchange(w, r, in)
}

// exchange responds with a new token pair for a refresh token. The pair has the user's current
// scopes.
func (s *server) exchange(w http.ResponseWriter, r *http.Request, in *input.Input) error {
	token, scope := in.Required("refresh_token"), in.Optional("scope")
	if err := in.Err(); err != nil {
		return err
	}
	u, current, verdict, err := s.auth.refresh(r.Context(), token, r.UserAgent())
	switch verdict {
	case reuse:
		s.event(r, slog.LevelWarn, "refresh token reused", "user", u.ID, "session", current.ID)
	case forgive:
		s.event(r, slog.LevelWarn, "refresh forgiven", "user", u.ID, "session", current.ID)
	}
	if err != nil {
		return err
	}
	return respond.JSON(w, http.StatusOK, s.tokens.issuePair(u, current, scope))
}

// logout ends the caller's session, the others, or all of them.
func (s *server) logout(w http.ResponseWriter, r *http.Request) error {
	in, which := input.ReadOptionalJSON(r), "local"
	if in.Has("scope") {
		which = in.Enum("scope", "local", "others", "global")
	}
	if err := in.Err(); err != nil {
		return err
	}
	id := caller(r.Context())
	if err := s.auth.logout(r.Context(), id.user.ID, id.claims.session, which); err != nil {
		return err
	}
	s.event(r, slog.LevelInfo, "logged out", "user", id.user.ID, "scope", which)
	return respond.NoContent(w)
}

// revoke ends the session of a token (RFC 7009). An invalid token needs no revocation.
func (s *server) revoke(w http.ResponseWriter, r *http.Request) error {
	in := input.Read(r)
	token := in.Required("token")
	if err := in.Err(); err != nil {
		return err
	}
	id, err := s.auth.revoke(r.Context(), token)
	if err != nil {
		return err
	}
	if id != "" {
		s.event(r, slog.LevelInfo, "session ended", "user", id)
	}
	return respond.JSON(w, http.StatusOK, struct{}{})
}

// password changes the password of the caller.
func (s *server) password(w http.ResponseWriter, r *http.Request) error {
	in := input.ReadJSON(r)
	current, next := in.Required("current_password"), in.Text("new_password", minPassword, maxPassword)
	if err := in.Err(); err != nil {
		return err
	}
	id := caller(r.Context())
	if err := s.changePassword(r.Context(), s.clientIP(r), id, current, next); err != nil {
		s.event(r, slog.LevelInfo, "password not changed", "user", id.user.ID, "reason", err)
		return err
	}
	s.event(r, slog.LevelInfo, "password changed", "user", id.user.ID)
	return respond.NoContent(w)
}

// A userView is a user as clients see it.
type userView struct {
	ID       string   `json:"id"`
	Email    string   `json:"email"`
	Name     string   `json:"name"`
	Scopes   []string `json:"scopes"`
	Disabled bool     `json:"disabled,omitempty"`
}

func viewOf(u user) userView { return userView{u.ID, u.Email, u.Name, u.Scopes, u.Disabled} }

// me responds with the caller.
func (s *server) me(w http.ResponseWriter, r *http.Request) error {
	return respond.JSON(w, http.StatusOK, viewOf(caller(r.Context()).user))
}

// patchMe changes the name of the caller.
func (s *server) patchMe(w http.ResponseWriter, r *http.Request) error {
	in := input.ReadJSON(r)
	name := in.Text("name", minName, maxName)
	if err := in.Err(); err != nil {
		return err
	}
	u, err := s.users.update(r.Context(), caller(r.Context()).user.ID, func(u *user) error { u.Name = name; return nil })
	if err != nil {
		return err
	}
	s.event(r, slog.LevelInfo, "user changed", "user", u.ID, "by", u.ID, "fields", "name")
	return respond.JSON(w, http.StatusOK, viewOf(u))
}

// A sessionView is a session as clients see it.
type sessionView struct {
	ID         string    `json:"id"`
	CreatedAt  time.Time `json:"created_at"`
	LastUsedAt time.Time `json:"last_used_at"`
	UserAgent  string    `json:"user_agent"`
	Current    bool      `json:"current"`
}

// listSessions responds with the sessions of the caller, the newest first.
func (s *server) listSessions(w http.ResponseWriter, r *http.Request) error {
	id, now := caller(r.Context()), s.tokens.now().Unix()
	views := []sessionView{}
	for _, one := range slices.Backward(id.user.Sessions) {
		if one.Expires > now {
			created, used := time.Unix(one.Created, 0).UTC(), time.Unix(one.lastUsed(), 0).UTC()
			views = append(views, sessionView{one.ID, created, used, one.UserAgent, one.ID == id.claims.session})
		}
	}
	return respond.JSON(w, http.StatusOK, views)
}

// deleteSession ends a session of the caller.
func (s *server) deleteSession(w http.ResponseWriter, r *http.Request) error {
	id := caller(r.Context()).user.ID
	if err := s.endSession(r.Context(), id, r.PathValue("id")); err != nil {
		return err
	}
	s.event(r, slog.LevelInfo, "session ended", "user", id)
	return respond.NoContent(w)
}

const (
	maxLimit   = 1000 // maximum of ?limit=
	streamPage = 256  // users
)

// listUsers responds with the users in order of registration: with ?limit= a page and a link to the
// next one (RFC 8288), otherwise all.
func (s *server) listUsers(w http.ResponseWriter, r *http.Request) error {
	in := input.Query(r.URL.RawQuery, "after", "limit")
	after, limit := in.Optional("after"), streamPage
	limited := in.Has("limit")
	if limited {
		limit = in.Int("limit", 1, maxLimit)
	}
	page, err := s.users.after(after, limit+1)
	if err != nil || in.Has("after") && after == "" {
		in.Fault("value_error", "after", "no user has this id", nil)
	}
	if err := in.Err(); err != nil {
		return err
	}
	if limited && len(page) > limit {
		page = page[:limit]
		w.Header().Set("Link", fmt.Sprintf(`</admin/users?limit=%d&after=%s>; rel="next"`, limit, page[limit-1].ID))
	}
	n := 0
	respond.Array(w, func(yield func([]userView) bool) {
		for len(page) > 0 {
			views := make([]userView, len(page))
			for i, u := range page {
				views[i] = viewOf(u)
			}
			if n += len(page); !yield(views) || limited || r.Method == http.MethodHead {
				return
			}
			page, _ = s.users.after(page[len(page)-1].ID, streamPage) // A listed user keeps its place.
		}
	})
	if r.Method != http.MethodHead {
		s.event(r, slog.LevelInfo, "users listed", "by", caller(r.Context()).user.ID, "users", n)
	}
	return nil
}

// A userHandler handles a request for the user whose id is in the path.
type userHandler func(w http.ResponseWriter, r *http.Request, u user) error

// pathUser wraps next so that it responds with 404 if there is no such user.
func (s *server) pathUser(next userHandler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		u, err := s.users.byID(r.Context(), r.PathValue("id"))
		if err == nil {
			err = next(w, r, u)
		}
		if errors.Is(err, errUnknownUser) {
			return errUserNotFound
		}
		return err
	}
}

// getUser responds with a user.
func (s *server) getUser(w http.ResponseWriter, r *http.Request, u user) error {
	return respond.JSON(w, http.StatusOK, viewOf(u))
}

// patchUser changes all fields that the body has, or none.
func (s *server) patchUser(w http.ResponseWriter, r *http.Request, u user) error {
	in, edit := input.ReadJSON(r), user{}
	password := ""
	if in.Has("name") {
		edit.Name = in.Text("name", minName, maxName)
	}
	if in.Has("scopes") {
		edit.Scopes = in.Tokens("scopes", maxScopes, maxScope)
	}
	if in.Has("disabled") {
		edit.Disabled = in.Bool("disabled")
	}
	if in.Has("password") {
		password = in.Text("password", minPassword, maxPassword)
	}
	if err := in.Err(); err != nil {
		return err
	}
	if password != "" {
		hash, err := s.hashPassword(r.Context(), password)
		if err != nil {
			return err
		}
		edit.hash = hash
	}
	fields := []string{"name", "scopes", "disabled", "password"}
	fields = slices.DeleteFunc(fields, func(field string) bool { return !in.Has(field) })
	if len(fields) == 0 {
		return respond.JSON(w, http.StatusOK, viewOf(u))
	}
	u, err := s.users.update(r.Context(), u.ID, func(u *user) error {
		u.edit(edit, fields, s.tokens.now().Unix())
		return nil
	})
	if err != nil {
		return err
	}
	by := caller(r.Context()).user.ID
	s.event(r, slog.LevelInfo, "user changed", "user", u.ID, "by", by, "fields", strings.Join(fields, ","))
	return respond.JSON(w, http.StatusOK, viewOf(u))
}

// deleteUser deletes a user.
func (s *server) deleteUser(w http.ResponseWriter, r *http.Request, u user) error {
	if _, err := s.users.update(r.Context(), u.ID, func(u *user) error { u.Deleted = true; return nil }); err != nil {
		return err
	}
	s.event(r, slog.LevelInfo, "user deleted", "user", u.ID, "by", caller(r.Context()).user.ID)
	return respond.NoContent(w)
}

// deleteSessions ends all sessions of a user.
func (s *server) deleteSessions(w http.ResponseWriter, r *http.Request, u user) error {
	if err := s.auth.logout(r.Context(), u.ID, "", "global"); err != nil {
		return err
	}
	s.event(r, slog.LevelInfo, "sessions ended", "user", u.ID, "by", caller(r.Context()).user.ID)
	return respond.NoContent(w)
}

// health responds with 503 while the store cannot vouch for the records.
func (s *server) health(w http.ResponseWriter, r *http.Request) error {
	if err := s.users.store.check(); err != nil {
		return err
	}
	return respond.JSON(w, http.StatusOK, map[string]string{"status": "ok"})
}
