// Package docs serves the page that describes the API and the OpenAPI description that it draws.
package docs

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"fmt"
	"net/http"
	"time"
)

//go:embed index.html docs.css docs.js openapi.json
var files embed.FS

// policy lets the page run only its own script and style, and connect only to this service. Trusted
// types keep strings from becoming markup on a page where people type passwords.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// Handlers returns the handlers of GET by path.
func Handlers() map[string]http.Handler {
	return map[string]http.Handler{
		"/docs":          handler("index.html", "text/html; charset=utf-8"),
		"/docs/docs.css": handler("docs.css", "text/css; charset=utf-8"),
		"/docs/docs.js":  handler("docs.js", "text/javascript; charset=utf-8"),
		"/openapi.json":  handler("openapi.json", "application/json"),
	}
}

// handler returns a handler that serves a file of this directory.
func handler(name, contentType string) http.HandlerFunc {
	content, _ := files.ReadFile(name) // The file is embedded.
	etag := fmt.Sprintf(`"%x"`, sha256.Sum256(content))
	return func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-cache")
		h.Set("Content-Security-Policy", policy)
		h.Set("Content-Type", contentType)
		h.Set("ETag", etag)
		h.Set("Referrer-Policy", "no-referrer")
		r.Header.Del("Range") // The files are small.
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(content))
	}
}
