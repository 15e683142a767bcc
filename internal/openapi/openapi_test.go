package openapi

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"jwt-auth-api/internal/testfile"
)

func load(t *testing.T) Description {
	t.Helper()
	d, err := Load("testdata/description.json")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestLoad(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "broken.json")
	if err := os.WriteFile(broken, []byte(`{"paths":{}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{broken, filepath.Join(t.TempDir(), "missing.json")} {
		if d, err := Load(file); err == nil {
			t.Errorf("%s: got %v, want an error", file, d)
		}
	}
}

func TestOperations(t *testing.T) {
	want := []string{"delete /users/{id}/sessions", "get /users/me", "get /users/{id}", "post /login"}
	if got := load(t).Operations(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestCheck checks responses that differ from their description in one thing each.
func TestCheck(t *testing.T) {
	d := load(t)
	const user, wait = "Content-Type: application/json; charset=utf-8\nCache-Control: no-store", "Content-Type: application/json\nRetry-After: "
	for _, row := range []struct {
		name, request string
		status        int
		header, body  string
		want          string // part of the error, or empty
	}{
		{"a described response", "GET /users/me", 200, user, `{"id":"1"}`, ""},
		{"a method that is not described", "HEAD /users/me", 200, "", "", ""},
		{"a method in lower case", "get /users/me", 405, "", "", ""},
		{"a path that is not described", "GET /nope", 404, "", "", ""},
		{"a path below a described one", "GET /users/me/x", 404, "", "", ""},
		{"an empty parameter of a path", "GET /users/", 418, "", "", ""},
		{"a path with a query", "GET /users/me?limit=1", 418, user, `{"id":"1"}`, `status: got 418, want one of ["200"]`},
		{"a path that matches a template", "GET /users/abc", 404, "Content-Type: application/json", `"not found"`, ""},
		{"another response to a template", "GET /users/abc", 200, user, `{"id":"1"}`, `status: got 200, want one of ["404"]`},
		{"no content", "DELETE /users/abc/sessions", 204, "", "", ""},
		{"a body where none is described", "DELETE /users/abc/sessions", 204, "", "{}", `Content-Type: got "" and the body "{}"`},
		{"no body where one is described", "GET /users/me", 200, "Cache-Control: no-store", "", `Content-Type: got ""`},
		{"a missing header that is required", "GET /users/me", 200, "Content-Type: application/json", `{"id":"1"}`, "Cache-Control: got none, want one"},
		{"a header with another value", "GET /users/me", 200, strings.Replace(user, "no-store", "public", 1), `{"id":"1"}`, "Cache-Control: got public"},
		{"a header in two lines", "GET /users/me", 200, user + "\nCache-Control: x", `{"id":"1"}`, "Cache-Control: got no-store, x"},
		{"an optional header", "GET /users/me", 200, user + "\nLink: 12", `{"id":"1"}`, ""},
		{"an optional header with a wrong value", "GET /users/me", 200, user + "\nLink: 1", `{"id":"1"}`, "Link: got 1, want minLength 2"},
		{"another media type", "GET /users/me", 200, strings.Replace(user, "json", "xml", 1), `{"id":"1"}`, `Content-Type: got "application/xml"`},
		{"a body that is not JSON", "GET /users/me", 200, user, `{"id":"1"}]`, "want JSON"},
		{"a body with an additional property", "GET /users/me", 200, user, `{"id":"1","hash":"x"}`, "body.hash: got x, want no such value"},
		{"a body without a required property", "GET /users/me", 200, user, `{}`, "body: got map[], want required [id]"},
		{"two faults", "GET /users/me", 200, "Content-Type: application/json", `{}`, "Cache-Control: got none, want one\nbody: got"},
		{"a header that is an integer", "POST /login", 429, wait + "1", "{}", ""},
		{"an integer below the minimum", "POST /login", 429, wait + "0", "{}", "Retry-After: got 0, want minimum 1"},
		{"a header that should be an integer", "POST /login", 429, wait + "Sun", "{}", "Retry-After: got Sun, want type integer"},
	} {
		header := http.Header{}
		for line := range strings.Lines(row.header) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			header.Add(name, value)
		}
		err := d.Check(row.request, row.status, header, row.body)
		if (err == nil) != (row.want == "") || !strings.Contains(fmt.Sprint(err), row.want) {
			t.Errorf("%s: got %v, want %q", row.name, err, row.want)
		}
	}
}

func TestSchemas(t *testing.T) {
	type row struct {
		Name             string
		Schema           any
		Accepts, Rejects []any
	}
	d := load(t)
	for _, row := range testfile.Read[[]row](t, "schemas.json") {
		for _, value := range row.Accepts {
			if err := d.fits("value", row.Schema, value); err != nil {
				t.Errorf("%s: got %v, want %v to be accepted", row.Name, err, value)
			}
		}
		for _, value := range row.Rejects {
			if d.fits("value", row.Schema, value) == nil {
				t.Errorf("%s: got no error, want %v to be rejected", row.Name, value)
			}
		}
		if err := (Description{"components": d["components"], "schema": row.Schema}).Sound(); err != nil {
			t.Errorf("%s: Sound: got %v, want nil", row.Name, err)
		}
	}
}

func TestSound(t *testing.T) {
	if err := load(t).Sound(); err != nil {
		t.Errorf("testdata/description.json: got %v, want nil", err)
	}
	type row struct {
		Name        string
		Description Description
		Want        []string
	}
	for _, row := range testfile.Read[[]row](t, "unsound.json") {
		got := strings.Split(fmt.Sprint(row.Description.Sound()), "\n")
		if !slices.EqualFunc(got, row.Want, strings.Contains) {
			t.Errorf("%s: got %q, want %q", row.Name, got, row.Want)
		}
	}
}

func TestExamples(t *testing.T) {
	d := load(t)
	var got []string
	for _, ex := range d.Examples("post /login") {
		got = append(got, fmt.Sprint(ex.Request, " ", ex.Media, " ", ex.Name, " ", ex.Values, " ", ex.Status, " ", ex.Response))
		ex.Values["username"] = "changed"
	}
	want := []string{
		"POST /login application/json no-answer map[] 204 <nil>",
		"POST /login application/x-www-form-urlencoded guess map[password:c username:a] 401 map[detail:no]",
		"POST /login application/x-www-form-urlencoded user map[password:b username:a] 200 map[id:1]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got := d.Examples("post /login")[2].Values["username"]; got != "a" {
		t.Errorf("an example after its copy was changed: got %v, want a", got)
	}
	if got := d.Examples("get /users/me"); len(got) != 0 {
		t.Errorf("an operation without a body: got %v, want no examples", got)
	}
}
