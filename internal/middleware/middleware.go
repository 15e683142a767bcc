// Package middleware has the handlers that a request passes on its way to its route, from the
// outermost to the innermost:
//
//	Recover(Log(CORS(Limit(mux))))
//
// Recover is outermost, so that every response and log line has a request id and a panic anywhere
// becomes a response. Log is outside CORS and Limit, so that rejected requests are logged too. CORS
// is outside Limit, so that a browser lets its page read why a request was rejected.
package middleware

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Fail function responds to a request with an error.
type Fail func(w http.ResponseWriter, r *http.Request, err error)

type idKey struct{} // context key of the request id

// RequestID returns the id of the request whose context is ctx, or "".
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(idKey{}).(string)
	return id
}

// A recorder records the status and the size of a response.
type recorder struct {
	http.ResponseWriter
	status int // 0 until the header is written
	bytes  int // size of the body so far
}

func (rec *recorder) WriteHeader(status int) {
	rec.status = cmp.Or(rec.status, status)
	rec.ResponseWriter.WriteHeader(status)
}

func (rec *recorder) Write(b []byte) (int, error) {
	rec.status = cmp.Or(rec.status, http.StatusOK)
	n, err := rec.ResponseWriter.Write(b)
	rec.bytes += n
	return n, err
}

// Unwrap is for [http.ResponseController].
func (rec *recorder) Unwrap() http.ResponseWriter { return rec.ResponseWriter }

// Recover gives each request an id, which the response has as X-Request-Id. If next panics, Recover
// responds with fail, or closes the connection if the response has begun. It also keeps browsers
// from guessing the type of a response.
func Recover(next http.Handler, log *slog.Logger, fail Fail) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := rand.Text()
		w.Header().Set("X-Request-Id", id)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		r = r.WithContext(context.WithValue(r.Context(), idKey{}, id))
		rec := &recorder{ResponseWriter: w}
		defer func() {
			switch p := recover(); {
			case p == nil:
			case p == http.ErrAbortHandler:
				panic(p)
			case rec.status != 0:
				log.Error("request failed", "reason", panicError(p), "request_id", id)
				panic(http.ErrAbortHandler)
			default:
				fail(rec, r, panicError(p))
			}
		}()
		next.ServeHTTP(rec, r)
	})
}

func panicError(p any) error { return fmt.Errorf("panic: %v\n%s", p, debug.Stack()) }

// Log logs a line for each request. It must be inside Recover. A request that panics before its
// response begins has the status 500. Successful requests of the route quiet are not logged. client
// returns the IP address of the client.
func Log(next http.Handler, log *slog.Logger, quiet string, client func(*http.Request) netip.Addr) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start, rec := time.Now(), w.(*recorder)
		defer func() {
			status := cmp.Or(rec.status, http.StatusInternalServerError)
			if status < 400 && r.Pattern == quiet {
				return
			}
			log.LogAttrs(r.Context(), Level(status), "request",
				slog.String("method", knownMethod(r.Method)), slog.String("route", r.Pattern), slog.Int("status", status),
				slog.Int("bytes", rec.bytes), slog.Duration("duration", time.Since(start)),
				slog.String("client", client(r).String()), slog.String("request_id", RequestID(r.Context())))
		}()
		next.ServeHTTP(w, r)
	})
}

// Level returns the level at which a response with a status is logged.
func Level(status int) slog.Level {
	if status >= 500 {
		return slog.LevelError
	}
	return slog.LevelInfo
}

// knownMethod returns a method for the log. A client may send any text as a method.
func knownMethod(method string) string {
	known := []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"}
	if !slices.Contains(known, method) {
		return "unknown"
	}
	return method
}

// A StatusError is an error that its HTTP status describes.
type StatusError int

func (e StatusError) Error() string { return http.StatusText(int(e)) }

// CORS lets pages of the origins read responses
// (https://fetch.spec.whatwg.org/#http-cors-protocol). The origin * matches every origin. The
// handler of OPTIONS calls [Preflight] for the rest of a preflight response.
func CORS(next http.Handler, origins []string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		origin := r.Header.Get("Origin")
		if origin != "" && (slices.Contains(origins, origin) || slices.Contains(origins, "*")) {
			h := w.Header()
			h.Set("Access-Control-Allow-Origin", origin)
			h.Set("Access-Control-Expose-Headers", "WWW-Authenticate, Retry-After, Link, X-Request-Id")
			h.Add("Vary", "Origin")
		}
		next.ServeHTTP(w, r)
	})
}

// Preflight responds to r and returns true if r is a preflight request of a listed origin.
func Preflight(w http.ResponseWriter, r *http.Request, methods string) bool {
	h := w.Header()
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" ||
		h.Get("Access-Control-Allow-Origin") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", methods)
	h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type")
	h.Set("Access-Control-Max-Age", "7200") // seconds, the maximum of Chromium
	w.WriteHeader(http.StatusNoContent)
	return true
}

// Limit bounds the body of each request to maxBody bytes and removes one trailing slash from its
// path. It calls fail with an [http.MaxBytesError] for a larger body, and with a [StatusError] for
// a path that [http.ServeMux] would redirect (404) and for a compressed body (415).
func Limit(next http.Handler, maxBody int64, fail Fail) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// RFC 9112 section 6.1: a request with Transfer-Encoding and Content-Length may hide a
		// second one, so its connection must close. net/http hides one of the two headers.
		if r.TransferEncoding != nil || !r.ProtoAtLeast(1, 1) {
			w.Header().Set("Connection", "close")
		}
		p := r.URL.EscapedPath()
		if len(p) > 1 && strings.HasSuffix(p, "/") {
			p = strings.TrimSuffix(p, "/")
			r.URL.Path, r.URL.RawPath = strings.TrimSuffix(r.URL.Path, "/"), strings.TrimSuffix(r.URL.RawPath, "/")
		}
		switch coding := strings.Join(r.Header["Content-Encoding"], ","); {
		case r.ContentLength > maxBody:
			w.Header().Set("Connection", "close") // Otherwise net/http waits for the body.
			fail(w, r, &http.MaxBytesError{Limit: maxBody})
		case !strings.HasPrefix(p, "/") || path.Clean(p) != p:
			fail(w, r, StatusError(http.StatusNotFound))
		case r.ContentLength != 0 && coding != "" && !strings.EqualFold(coding, "identity"):
			w.Header().Set("Accept-Encoding", "identity") // RFC 9110 section 12.5.3
			fail(w, r, StatusError(http.StatusUnsupportedMediaType))
		default:
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			next.ServeHTTP(w, r)
		}
	})
}

// ClientIP returns a function that returns the IP address of the client of a request: that of the
// connection or, if that is a trusted proxy, the last one in X-Forwarded-For that is not. A client
// can forge only those before it. The function warns once if another peer sends X-Forwarded-For,
// since all clients of a proxy that is not trusted count as one.
func ClientIP(trusted []netip.Prefix, log *slog.Logger) func(*http.Request) netip.Addr {
	isTrusted := func(ip netip.Addr) bool {
		return slices.ContainsFunc(trusted, func(p netip.Prefix) bool { return p.Contains(ip) })
	}
	var warning sync.Once
	return func(r *http.Request) netip.Addr {
		peer, _ := netip.ParseAddrPort(r.RemoteAddr)
		ip := peer.Addr().Unmap().WithZone("")
		forwarded := r.Header["X-Forwarded-For"]
		if len(forwarded) > 0 && !isTrusted(ip) {
			warning.Do(func() { log.Warn("X-Forwarded-For from a peer that is not a trusted proxy", "peer", ip.String()) })
		}
		hops := strings.Split(strings.Join(forwarded, ","), ",")
		for i := len(hops) - 1; i >= 0 && isTrusted(ip); i-- {
			next, err := parseHop(strings.TrimSpace(hops[i]))
			if err != nil {
				break
			}
			ip = next.Unmap().WithZone("")
		}
		return ip
	}
}

// parseHop parses an IP address, with or without a port.
func parseHop(hop string) (netip.Addr, error) {
	if withPort, err := netip.ParseAddrPort(hop); err == nil {
		return withPort.Addr(), nil
	}
	return netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(hop, "["), "]"))
}
