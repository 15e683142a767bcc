// Package webscript runs scripts of HTTP requests and the responses they must get.
//
// # Scripts
//
// A script is a text file of steps, directives and comments. [Run] runs it from top to bottom
// against one server, and reports each response that differs, with its file and line:
//
//	# A login returns a token that opens the profile.
//	> POST /login
//	> Content-Type: application/json
//	>
//	> {"user":"ann","password":"secret"}
//	< 200
//	< Cache-Control: no-store
//	< !Set-Cookie
//	<
//	< {"token":"<jwt TOKEN>"}
//
//	> GET /me
//	> Authorization: Bearer {TOKEN}
//	< 200
//
// A step is a request, marked by >, and its response, marked by <. Both have a first line, header
// fields, and after an empty line a body, whose lines are joined by LF. In a response
//
//   - the first line is the status code;
//   - "Name: value" requires a header field, the lines of which are joined by a comma and a space;
//   - "!Name" requires that the field is absent; fields that are not named are not compared;
//   - a body that is JSON is compared as a value, regardless of white space and order of members;
//   - "(empty)" requires an empty body; without a body in the script none is compared.
//
// The line "< as before" repeats the response of the step before. A line that begins with # is a
// comment, and one of these words begins a directive:
//
//	set NAME=value                  start the server with a setting; before the first step only
//	let NAME = token HEADER CLAIMS  name a token of these segments, which need not be valid, with
//	                                a valid signature; HEADER has no spaces
//	clock +15m                      move the server's clock
//	repeat 10                       send the request of the step on the next line ten times
//
// Any other line ends the script with an error, as does a script without a step.
//
// # Placeholders
//
// Requests, responses and the segments of tokens may contain
//
//	{NAME}      the value of a name; if it is a token, its segments are {NAME.header},
//	            {NAME.payload} and {NAME.signature}
//	{N}         the number of a repeated request, from 1
//	{hex:0d0a}  bytes in hexadecimal
//	{"ab"*3}    the text ab three times
//
// # Patterns
//
// Responses may contain patterns for values that differ from run to run: <jwt>, <uuid>, <etag>, and
// "<any>" for any JSON value. <jwt TOKEN> also names the value.
//
// # Walkthroughs
//
// [Walkthrough] runs the commands of a README, which keeps them true. In its section
// "## Walkthrough", each sh block has commands, one a line. The blocks in other languages up to the
// next sh block are what they print, with "..." for text that differs from run to run. A command is
// curl, curl into "jq .", or the assignment of a member to a variable:
//
//	TOKEN=$(curl -s http://127.0.0.1:8000/login -d user=ann -d password=secret | jq -r .token)
//
// A word may be in one kind of quotes and contain $TOKEN. A backslash continues a line. The known
// options of curl are -s, -X, -H, -d, --data-urlencode, -o /dev/null and -w.
package webscript

import (
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A Response is a response as scripts compare it.
type Response struct {
	Status int
	Header http.Header
	Body   string
}

// A Server is the server under test.
type Server interface {
	// Send sends a request such as "GET /me", with header lines such as "Accept: */*".
	Send(t testing.TB, request string, header []string, body string) Response
	// Advance moves the server's clock.
	Advance(d time.Duration)
	// Sign returns a token of header and claims as they are, with a valid signature.
	Sign(header, claims string) string
}

// Run runs the script in file. It calls start with the script's settings for the server to run it
// against.
func Run(t *testing.T, file string, start func(t *testing.T, settings []string) Server) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := script{TB: t, file: file, line: 1, vars: map[string]string{}}
	s.run(string(text), func(settings []string) Server { return start(t, settings) })
}

// A script is one run of a script.
type script struct {
	testing.TB
	file   string
	line   int // of the step, from 1
	server Server
	vars   map[string]string // values by name
}

// element matches a directive, a step, a comment or empty line, or a mistake.
var element = regexp.MustCompile(`(set|let|clock) (.+)\n|` +
	`(?:repeat ([1-9]\d*)\n)?((?:>.*\n)+)((?:<.*\n)+)|(?:#.*)?\n|(.+)\n?`)

func (s *script) run(text string, start func(settings []string) Server) {
	var settings []string
	var before string // the last response that is written out
	for _, m := range element.FindAllStringSubmatch(text, -1) {
		directive, argument, times, request, response, mistake := m[1], m[2], m[3], m[4], m[5], m[6]
		late := directive == "set" && s.server != nil
		s.must(mistake == "" && !late, "got %q, want a directive in its place, a step or a comment", m[0])
		if s.server == nil && (request != "" || directive == "let" || directive == "clock") {
			s.server = start(settings)
		}
		switch {
		case directive == "set":
			settings = append(settings, argument)
		case directive == "let":
			s.let(argument)
		case directive == "clock":
			by, err := time.ParseDuration(argument)
			s.must(err == nil, "got clock %s, want clock +15m", argument)
			s.server.Advance(by)
		case request != "":
			if response != "< as before\n" {
				before = response
			}
			s.step(max(1, number(times)), request, before)
		}
		s.line += strings.Count(m[0], "\n")
	}
	s.must(s.server != nil, "got no step, want at least one")
}

// must ends a script that has a mistake.
func (s *script) must(ok bool, format string, args ...any) {
	if s.Helper(); !ok {
		s.Fatalf("%s:%d: "+format, append([]any{s.file, s.line}, args...)...)
	}
}

func number(text string) int { n, _ := strconv.Atoi(text); return n }

// let runs a directive such as let NAME = token {"alg":"HS256"} {"sub":"a"}.
func (s *script) let(text string) {
	words := strings.SplitN(text, " ", 5)
	ok := len(words) == 5 && words[1] == "=" && words[2] == "token"
	s.must(ok, "got let %s, want let NAME = token HEADER CLAIMS", text)
	s.name(words[0], s.server.Sign(s.expand(words[3]), s.expand(words[4])))
}

// name names a value, and the segments of a token.
func (s *script) name(name, value string) {
	s.vars[name] = value
	if parts := strings.Split(value, "."); len(parts) == 3 {
		s.vars[name+".header"], s.vars[name+".payload"], s.vars[name+".signature"] = parts[0], parts[1], parts[2]
	}
}

// step sends a request as many times, and compares each response.
func (s *script) step(times int, request, response string) {
	for n := range times {
		s.vars["N"] = strconv.Itoa(n + 1)
		head, body := s.message(request)
		got := s.server.Send(s.TB, head[0], head[1:], body)
		want, wantBody := s.message(response)
		s.compare(head[0], "status", strconv.Itoa(got.Status), want[0])
		for _, line := range want[1:] {
			name, absent := strings.CutPrefix(line, "!")
			name, value, valued := strings.Cut(name, ": ")
			s.must(valued != absent, "got %q, want Name: value or !Name", line)
			values := got.Header.Values(name)
			if absent && values != nil {
				s.Errorf("%s:%d: %s: %s: got %q, want no such field", s.file, s.line, head[0], name, values)
			} else if !absent {
				s.compare(head[0], name, strings.Join(values, ", "), value)
			}
		}
		if wantBody == "(empty)" {
			s.compare(head[0], "body", got.Body, "")
		} else if wantBody != "" {
			s.compare(head[0], "body", canonical(got.Body), canonical(wantBody))
		}
	}
}

var mark = regexp.MustCompile(`(?m)^[<>] ?`)

// message returns the lines of a marked message up to its empty line, and the body after it.
func (s *script) message(marked string) (head []string, body string) {
	text := s.expand(mark.ReplaceAllString(strings.TrimSuffix(marked, "\n"), ""))
	text, body, _ = strings.Cut(text, "\n\n")
	return strings.Split(text, "\n"), body
}

var placeholder = regexp.MustCompile(`\{([A-Z]+(?:\.[a-z]+)?)\}|\{hex:((?:[0-9a-f]{2})+)\}|\{"([^"]*)"\*(\d+)\}`)

// expand replaces the placeholders in text.
func (s *script) expand(text string) string {
	return placeholder.ReplaceAllStringFunc(text, func(found string) string {
		m := placeholder.FindStringSubmatch(found)
		value, known := s.vars[m[1]]
		s.must(known || m[1] == "", "%s has no value", found)
		raw, _ := hex.DecodeString(m[2])
		return value + string(raw) + strings.Repeat(m[3], number(m[4]))
	})
}

// canonical returns a JSON value in one spelling, and a text that is not JSON as it is.
func canonical(text string) string {
	var value any
	if json.Unmarshal([]byte(text), &value) != nil {
		return text
	}
	out, _ := json.Marshal(value)
	return strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(string(out))
}

var pattern = regexp.MustCompile(`<(jwt|uuid|etag)(?: ([A-Z]+))?>`)

// shapes are the regular expressions of the values that the patterns match.
var shapes = map[string]string{
	"jwt":  `eyJ[\w-]+\.eyJ[\w-]+\.[\w-]{43}`,
	"uuid": `[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`,
	"etag": `"[^" ]+"`,
	"any":  `("([^"\\]|\\.)*"|[[{].*[]}]|[^]["{},]+)`, // a JSON value
}

// compare reports a part of a response that differs, and names what the patterns in want match.
func (s *script) compare(request, part, got, want string) {
	expr := strings.ReplaceAll(regexp.QuoteMeta(want), `"<any>"`, shapes["any"])
	expr = pattern.ReplaceAllStringFunc(expr, func(found string) string {
		m := pattern.FindStringSubmatch(found)
		return strings.Replace("(?P<"+m[2]+">"+shapes[m[1]]+")", "?P<>", "", 1)
	})
	re := regexp.MustCompile("(?s)^" + expr + "$")
	values := re.FindStringSubmatch(got)
	if values == nil {
		s.Errorf("%s:%d: %s: %s\n\tgot  %s\n\twant %s", s.file, s.line, request, part, got, want)
	}
	for i := range values {
		if name := re.SubexpNames()[i]; name != "" {
			s.name(name, values[i])
		}
	}
}
