package webscript

import (
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// A fake is a server that returns what it has received.
type fake struct {
	settings []string
	clock    time.Duration
	requests []string
}

func (f *fake) Advance(d time.Duration) { f.clock += d }

func (f *fake) Sign(header, claims string) string { return header + "." + claims + ".signature" }

func (f *fake) Send(t testing.TB, request string, header []string, body string) Response {
	f.requests = append(f.requests, request)
	switch _, path, _ := strings.Cut(request, " "); path {
	case "/empty":
		return Response{200, nil, ""}
	case "/count":
		return Response{200, nil, fmt.Sprint(len(f.requests), "-1")}
	case "/text":
		return Response{200, http.Header{"Etag": {""}}, body}
	}
	out, err := json.Marshal(map[string]any{
		"request": request, "header": append([]string{}, header...), "body": body,
		"clock": f.clock.String(), "settings": append([]string{}, f.settings...),
	})
	if err != nil {
		t.Fatal(err)
	}
	return Response{200, http.Header{"Content-Type": {"application/json"}, "Vary": {"Accept", "Cookie"}}, string(out)}
}

func TestRun(t *testing.T) {
	Run(t, "testdata/pass.txt", func(t *testing.T, settings []string) Server { return &fake{settings: settings} })
}

func TestWalkthrough(t *testing.T) {
	f := &fake{}
	Walkthrough(t, "testdata/README.md", f)
	want := []string{"GET /me", "POST /me", "POST /text", "PUT /me", "POST /me", "GET /empty"}
	if !slices.Equal(f.requests, want) {
		t.Errorf("got the requests %q, want %q", f.requests, want)
	}
}

// A recorder records failures, where the test would fail.
type recorder struct {
	testing.TB
	failures []string
}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format+" (fatal)", args...)
	runtime.Goexit()
}

// record returns the failures of a test.
func record(test func(t testing.TB)) []string {
	r := &recorder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		test(r)
	}()
	<-done
	return r.failures
}

// checkFailures fails unless each wanted text is part of one failure, in order.
func checkFailures(t *testing.T, name string, got, want []string) {
	t.Helper()
	if !slices.EqualFunc(got, want, strings.Contains) {
		t.Errorf("%s: got the failures %q, want %q", name, got, want)
	}
}

// TestScriptFails runs scripts with one mistake, or one difference from the response.
func TestScriptFails(t *testing.T) {
	const text = "> GET /text\n>\n> a\n"
	for _, row := range []struct {
		name, script string
		want         []string
	}{
		{"another status", "> GET /\n< 201\n", []string{"file:1: GET /: status\n\tgot  200\n\twant 201"}},
		{"another value of a header", "#\n\n> GET /\n< 200\n< Vary: Accept\n", []string{"file:3: GET /: Vary\n\tgot  Accept, Cookie\n\twant Accept"}},
		{"a missing header", "> GET /\n< 200\n< Allow: GET\n", []string{"GET /: Allow\n\tgot  \n\twant GET"}},
		{"a header that must be absent and is empty", text + "< 200\n< !ETag\n", []string{`ETag: got [""]`}},
		{"a header without a value", "> GET /\n< 200\n< Vary\n", []string{`got "Vary", want Name: value or !Name (fatal)`}},
		{"an absent header with a value", "> GET /\n< 200\n< !Vary: Accept\n", []string{`got "!Vary: Accept", want`}},
		{"the beginning of the body", "> GET /text\n>\n> ab\n< 200\n<\n< a\n", []string{"got  ab"}},
		{"the end of the body", "> GET /text\n>\n> ab\n< 200\n<\n< b\n", []string{"got  ab"}},
		{"a character that is special in a pattern", text + "< 200\n<\n< .\n", []string{"want ."}},
		{"a body where none must be", text + "< 200\n<\n< (empty)\n", []string{"body\n\tgot  a\n\twant "}},
		{"no body where one must be", "> GET /empty\n< 200\n<\n< a\n", []string{"body\n\tgot  \n\twant a"}},
		{"another JSON value", "> GET /text\n>\n> {\"b\":1,\"a\":2}\n< 200\n<\n< {\"a\":1}\n", []string{`got  {"a":2,"b":1}`}},
		{"a JWT of two segments", "> GET /text\n>\n> eyJa.eyJb\n< 200\n<\n< <jwt>\n", []string{"want <jwt>"}},
		{"a UUID of version 1", "> GET /text\n>\n> 01234567-89ab-1cde-8f01-23456789abcd\n< 200\n<\n< <uuid>\n", []string{"want <uuid>"}},
		{"a weak ETag", "> GET /text\n>\n> W/\"0123456789abcdef0123456789abcdef\"\n< 200\n<\n< <etag>\n", []string{"want <etag>"}},
		{"two values for any", "> GET /text\n>\n> 1, 2\n< 200\n<\n< \"<any>\"\n", []string{`want "<any>"`}},
		{"two differences", "> GET /\n< 201\n< Vary: x\n", []string{"status", "Vary"}},
		{"one of three repeated responses", "repeat 3\n> GET /text\n>\n> {N}\n< 200\n<\n< 2\n", []string{"got  1", "got  3"}},
		{"as before, with another response before", "> GET /text\n>\n> b\n< 200\n<\n< b\n" + text + "< as before\n", []string{"got  a\n\twant b"}},
		{"as before, with no response before", "> GET /\n< as before\n", []string{"status\n\tgot  200"}},
		{"an unknown directive", "sleep 1s\n" + text + "< 200\n", []string{`file:1: got "sleep 1s\n", want a directive`}},
		{"a directive without an argument", "clock\n", []string{`got "clock\n"`}},
		{"a setting after the first step", "> GET /\n< 200\nset A=1\n", []string{`file:3: got "set A=1\n"`}},
		{"a setting after a token", "let A = token {} {}\nset A=1\n", []string{`file:2: got "set A=1\n"`}},
		{"a setting after the clock", "clock +1s\nset A=1\n", []string{`file:2: got "set A=1\n"`}},
		{"a clock that is no duration", "clock 15\n", []string{"file:1: got clock 15, want clock +15m (fatal)"}},
		{"a token without claims", "let A = token {}\n", []string{"got let A = token {}, want let NAME = token HEADER CLAIMS"}},
		{"a token without an equals sign", "let A token {} {} {}\n", []string{"want let NAME"}},
		{"a value that is no token", "let A = text {} {}\n", []string{"want let NAME"}},
		{"a name without a value", "> GET /{TOKEN}\n< 200\n", []string{"{TOKEN} has no value (fatal)"}},
		{"a segment of a value that is no token", text + "< 200\n<\n< <uuid A>\n> GET /{A.header}\n< 200\n", []string{"body", "{A.header} has no value"}},
		{"a repetition without a step", "repeat 2\nclock +1s\n", []string{`got "repeat 2\n"`}},
		{"no repetition", "repeat 0\n> GET /\n< 200\n", []string{`got "repeat 0\n"`}},
		{"a request without a response", "> GET /\n\n< 200\n", []string{`file:1: got "> GET /\n"`}},
		{"a last line without its end", "> GET /\n< 200", []string{`got "> GET /\n"`}},
		{"no step", "# Nothing.\nset A=1\n", []string{"file:3: got no step, want at least one (fatal)"}},
	} {
		got := record(func(t testing.TB) {
			s := script{TB: t, file: "file", line: 1, vars: map[string]string{}}
			s.run(row.script, func([]string) Server { return &fake{} })
		})
		checkFailures(t, row.name, got, row.want)
	}
}

// TestWalkthroughFails runs walkthroughs with one mistake, or other output than they show.
func TestWalkthroughFails(t *testing.T) {
	const curl = "curl -s http://127.0.0.1:8000"
	for _, row := range []struct{ name, commands, prints, want string }{
		{"other output", curl + "/text -d abc", "abd", "README.md:5: curl -s http://127.0.0.1:8000/text -d abc\n\n\tgot  abc\n\twant abd\n"},
		{"more output", curl + "/text -d abc", "ab", "got  abc"},
		{"a space where the output differs from run to run", curl + "/text -d 'a b c'", "a ... d", "got  a b c"},
		{"no output in JSON", curl + "/text -d abc | jq .", "abc", `got "abc", want JSON`},
		{"no object", curl + "/text -d '[]' | jq -r .a", "", `got "[]", want an object with this member`},
		{"no such member", curl + "/me | jq -r .a", "null", "want an object with this member"},
		{"another filter", curl + "/me | jq .a", "", `got "jq .a", want jq . or jq -r .member`},
		{"another command", "wget http://127.0.0.1:8000/me", "", "want curl with known options"},
		{"an unknown option", curl + "/me -k", "", "want curl with known options"},
		{"an unknown option before the URL", "curl -k http://127.0.0.1:8000/me", "", "want curl with known options"},
		{"another server", "curl -s http://example.com/me", "", "want curl with known options"},
		{"two URLs", curl + "/me http://127.0.0.1:8000/me", "", "want curl with known options"},
		{"output to a file", curl + "/me -o file", "", "want curl with known options"},
		{"a quote without its end", curl + "/me -d 'x", "", "want words in one kind of quotes"},
		{"two kinds of quotes in a word", curl + `/me -d 'x'"y"`, "", "want words in one kind of quotes"},
		{"a variable without a value", curl + "/me -d $A", "", "$A has no value"},
	} {
		text := fmt.Sprintf("# Name\n\n## Walkthrough\n\n```sh\n%s\n```\n\n```text\n%s\n```\n", row.commands, row.prints)
		got := record(func(t testing.TB) {
			s := script{TB: t, file: "README.md", server: &fake{}, vars: map[string]string{}}
			s.walk(text)
		})
		checkFailures(t, row.name, got, []string{row.want})
	}
	for _, text := range []string{"```sh\ncurl\n```\n", "\n## Walkthrough\n\n```text\n403\n```\n"} {
		got := record(func(t testing.TB) { (&script{TB: t}).walk(text) })
		checkFailures(t, text, got, []string{"want an sh block first"})
	}
}
